//! Moving cold pages from the store in memory to the next tier, in the
//! background: a file, so far, and called so here.
//!
//! ```text
//!   rank      how dispensable the stored pages are, by coldness and size; an
//!             eighth of the bytes at least is to go
//!   choose    in address order: claim, copy the packed bytes, release marked
//!   write     one batch, no claim held, outside the gate
//!   repoint   where the mark is still there: claim, point the word to the file,
//!             release, free the slot
//!   tend      both tiers: memory back to the kernel, thin parts of the file
//!             written again elsewhere
//! ```
//! In address order, so that what readahead asks for lies together in the
//! file. The mark in the word, not the slot, proves that a page is what was
//! written (see [`ghostmem_table::Word::is_marked`]); only this thread marks, and
//! a page is in a batch once. A mark that a failed batch left behind proves nothing
//! wrong: a page that is chosen again is copied and marked anew.
//!
//! # The share of the store
//! ```text
//!   share         what the store may hold
//!   share + 1/16  faults that write and must evict wait here ("behind")
//!   share - 1/32  writing begins
//!   share - 1/16  writing ends
//! ```
//! When the file cannot take more (full, or an error), pages stay in memory, no
//! fault waits, and writing is tried again after a while.
//!
//! The thread owns no ghost memory, and allocates nothing.

use core::sync::atomic::Ordering;
use core::time::Duration;

use ghostmem_os::buffer::Buffer;
use ghostmem_os::map::MapArc;
use ghostmem_os::thread::EngineThread;
use ghostmem_os::{OsError, clock, futex};
use ghostmem_store::tier::{ColdTier, Packed, TierSlot};
use ghostmem_table::PageState;

use crate::parts::cold::ColdTiers;
use crate::parts::demote_batch::{
    DEMOTE_BATCH_BYTES, DEMOTE_BATCH_PAGES, DemoteBatch, Entry, slot_of_stored,
};
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::region::PageId;
use crate::tiers::choose::Demoter;
use crate::tiers::lap::Lap;

/// Pages pointed to the file in one go, inside the gate.
const REPOINT_PAGES: usize = 64;

/// How long the thread sleeps when there is nothing to do.
const IDLE: Duration = Duration::from_secs(2);

/// How long it sleeps when there is, but nothing could be done: at first, and
/// from where on it can be woken. Twice as long each time.
const NAP: Duration = Duration::from_millis(2);
const NAP_LIGHT: Duration = Duration::from_millis(20);

/// How long it leaves the file alone after an error, at first and at most.
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Slots moved to make the store dense after a batch.
const COMPACT_SLOTS: usize = 1024;

/// Bytes of the file that cleaning may write again after each batch.
const CLEAN_BYTES: u64 = 2 << 20;

impl Engine {
    pub(crate) fn start_demoter(this: &MapArc<Self>) -> Result<(), OsError> {
        if let Some(cold) = &this.cold {
            this.share_store();
            let thread = EngineThread::spawn_with(c"ghost-demote", this.clone(), demoter_main)?;
            *cold.thread.lock() = Some(thread);
        }
        Ok(())
    }

    /// Waits for the thread to end, which [`Engine::ends_threads`] tells it; whether there was one.
    pub(crate) fn stop_demoter(&self) -> bool {
        let Some(cold) = &self.cold else { return false };
        let thread = cold.thread.lock().take();
        let was_there = thread.is_some();
        if let Some(thread) = thread {
            cold.asleep.store(0, Ordering::Release);
            futex::wake_all(&cold.asleep);
            thread.join();
        }
        was_there
    }

    /// Starts the thread again where there was one, or goes on without.
    pub(crate) fn restart_demoter(this: &MapArc<Self>) {
        let Some(cold) = &this.cold else { return };
        let started = Self::start_demoter(this).is_ok();
        // Nobody writes: nobody waits for it, and its room does not count.
        cold.failing.store(!started, Ordering::Relaxed);
    }

    /// In a forked child the thread does not exist; start a new one, or go on
    /// without: what is in the file can be read all the same.
    /// `stood_aside`: there may have been one that its parent waits for.
    pub(crate) fn restart_demoter_after_fork(&self, stood_aside: bool) {
        let Some(cold) = &self.cold else { return };
        let lost = cold.thread.lock().take();
        let mut started = false;
        if lost.is_some() || stood_aside {
            if let Some(lost) = lost {
                lost.forget_after_fork();
            }
            let handle = self.handle();
            if let Some(handle) = handle.filter(|_| self.config.background_in_children) {
                started = Self::start_demoter(&handle).is_ok();
            }
        }
        // Nobody writes: nobody waits for it, and its room does not count.
        cold.failing.store(!started, Ordering::Relaxed);
    }

    /// Points the pages of a batch to their places in the file; how many it
    /// was. Places of pages that were touched meanwhile are given back.
    fn repoint(
        &self,
        cold: &ColdTiers,
        batch: &DemoteBatch<'_>,
        slots: &[Option<TierSlot>],
    ) -> usize {
        let mut moved = 0;
        let entries = &batch.entries[..batch.count];
        for (entries, slots) in entries
            .chunks(REPOINT_PAGES)
            .zip(slots.chunks(REPOINT_PAGES))
        {
            let inside = ghostmem_fault::gate().enter();
            for (entry, slot) in entries.iter().zip(slots) {
                let Some(slot) = slot else { continue };
                if self.repoint_one(cold, entry, *slot) {
                    moved += 1;
                } else {
                    cold.tier.remove(*slot);
                }
            }
            drop(inside);
        }
        moved
    }

    fn repoint_one(&self, cold: &ColdTiers, entry: &Entry, to: TierSlot) -> bool {
        let Some(region) = self.region(entry.region as usize) else {
            return false;
        };
        let page = entry.page as usize;
        let word = region.table.load(page);
        let Some(slot) = slot_of_stored(word).filter(|_| word.is_marked()) else {
            return false;
        };
        // Lost to a touch, or to the compactor, which leaves the page where it
        // is this time.
        let Ok(claim) = region.table.claim(page, word) else {
            return false;
        };
        let moved = word.with_marked(false).with_payload(cold.place(to));
        self.release(region, claim, moved);
        self.store.remove(slot);
        true
    }

    /// The file moves a page: points its word to the new place, if it is still
    /// at the old one.
    fn repoint_moved(&self, cold: &ColdTiers, owner: u64, from: TierSlot, to: TierSlot) -> bool {
        let id = PageId::of(ghostmem_store::Owner::new(owner));
        let (index, page) = (id.region(), id.page());
        let Some(region) = self.region(index).filter(|region| page < region.pages()) else {
            return false;
        };
        let inside = ghostmem_fault::gate().enter();
        let word = region.table.load(page);
        let owns = word.state() == PageState::Stored
            || (word.state() == PageState::Resident && word.is_clean());
        let moved = owns
            && word.payload() == cold.place(from)
            && region.table.claim(page, word).is_ok_and(|claim| {
                self.release(region, claim, word.with_payload(cold.place(to)));
                true
            });
        drop(inside);
        moved
    }

    /// One batch, from the store to the file: whether anything moved.
    fn demote_batch(&self, cold: &ColdTiers, demoter: &mut Demoter, buffer: &mut Buffer) -> bool {
        let store = self.store.stats();
        let wanted = store.slot_bytes.saturating_sub(cold.share().end_bytes());
        if wanted == 0 {
            return false;
        }
        if demoter.lap.is_done() {
            self.rank(cold, wanted);
            demoter.lap.begin();
        }
        let mut batch = DemoteBatch {
            entries: [Entry::NONE; DEMOTE_BATCH_PAGES],
            count: 0,
            bytes: buffer,
            used: 0,
        };
        self.choose(cold, demoter, &mut batch, wanted);
        if batch.count == 0 {
            // Everything is a copy of a resident page, or too warm by a ranking
            // that is over now.
            if store.held_bytes > cold.share().bytes() {
                let inside = ghostmem_fault::gate().enter();
                self.shed_copies(DEMOTE_BATCH_PAGES / 4);
                drop(inside);
            }
            return false;
        }
        let mut pages = [Packed {
            owner: 0,
            codec: 0,
            bytes: &[],
        }; DEMOTE_BATCH_PAGES];
        for (page, entry) in pages.iter_mut().zip(&batch.entries[..batch.count]) {
            *page = Packed {
                owner: owner_of(entry),
                codec: entry.codec,
                bytes: entry.bytes(&*batch.bytes),
            };
        }
        let mut slots = [None; DEMOTE_BATCH_PAGES];
        let moving = cold.moving.lock();
        let written = cold
            .tier
            .write(&pages[..batch.count], &mut slots[..batch.count]);
        if written.is_err() {
            // The pages are where they were; their marks mean nothing any more.
            self.metrics.add(Counter::spill_write_errors, 1);
            cold.failing.store(true, Ordering::Relaxed);
            demoter.retry_ns = clock::now_ns() + demoter.back_off.as_nanos() as u64;
            demoter.back_off = (demoter.back_off * 2).min(BACK_OFF_MAX);
            futex::wake_all(&cold.progress);
            return false;
        }
        cold.failing.store(false, Ordering::Relaxed);
        demoter.back_off = BACK_OFF_MIN;
        let moved = self.repoint(cold, &batch, &slots[..batch.count]);
        drop(moving);
        self.metrics.add(Counter::pages_spilled, moved as u64);
        let in_vain = (batch.count - moved) as u64;
        self.metrics.add(Counter::spills_in_vain, in_vain);
        moved > 0
    }

    /// Writes batches until the store has come down; `false` when nothing more
    /// can be done for now.
    fn demote_down(&self, cold: &ColdTiers, demoter: &mut Demoter) -> bool {
        // Only while there is work: an idle heap holds no buffer.
        let Ok(mut buffer) = Buffer::new(DEMOTE_BATCH_BYTES) else {
            return false;
        };
        let mut fruitless = 0;
        while !self.ends_threads() {
            self.share_store();
            let worked = self.demote_batch(cold, demoter, &mut buffer);
            if self.store.held_bytes() > cold.share().end_bytes() {
                self.compact_store(COMPACT_SLOTS, 0);
            }
            cold.progress.fetch_add(1, Ordering::AcqRel);
            futex::wake_all(&cold.progress);
            self.clean_file(cold);
            if self.store.held_bytes() <= cold.share().begin_bytes() {
                return true;
            }
            // A lap that found nothing is followed by a ranking, and one more.
            fruitless = if worked { 0 } else { fruitless + 1 };
            if fruitless == 2 || cold.is_failing() {
                return false;
            }
        }
        true
    }

    /// Keeps the file dense, and gives back what nothing lives in any more; whether
    /// there is more to do.
    fn clean_file(&self, cold: &ColdTiers) -> bool {
        let mut moved = |owner, from, to| self.repoint_moved(cold, owner, from, to);
        cold.tier.tend(CLEAN_BYTES, &mut moved).is_behind
    }
}

fn owner_of(entry: &Entry) -> u64 {
    PageId::new(entry.region, entry.page as usize).get()
}

/// What the thread remembers from turn to turn.
pub(crate) struct Turns {
    demoter: Demoter,
    nap: Duration,
    done: bool,
}

impl Turns {
    pub(crate) const fn new() -> Self {
        Self {
            demoter: Demoter {
                lap: Lap::NONE,
                back_off: BACK_OFF_MIN,
                retry_ns: 0,
            },
            nap: NAP,
            done: true,
        }
    }
}

impl Engine {
    /// One turn of the thread: how long it rests now; `None` when it goes on at once.
    /// `spill.asleep` says whether it can be woken.
    pub(crate) fn demoter_step(&self, cold: &ColdTiers, turns: &mut Turns) -> Option<Duration> {
        cold.asleep.store(0, Ordering::Relaxed);
        if turns.done {
            turns.nap = NAP;
        }
        let demoter = &mut turns.demoter;
        self.share_store();
        let over = self.store.held_bytes() > cold.share().begin_bytes();
        let may = clock::now_ns() >= demoter.retry_ns;
        turns.done = !over || (may && self.demote_down(cold, demoter));
        if !over && may {
            // Nothing to try it with: who asks for memory may count on it.
            cold.failing.store(false, Ordering::Relaxed);
        }
        let cleaning = self.clean_file(cold);
        // Room comes as the program frees and evicts, or with time.
        turns.nap = match (turns.done, cleaning) {
            (true, false) => IDLE,
            (true, true) => NAP,
            (false, _) => (turns.nap * 2).clamp(NAP, BACK_OFF_MAX),
        };
        // Not to be woken for each batch of evictions that changes nothing.
        let asleep = u64::from(turns.nap >= NAP_LIGHT);
        cold.asleep.store(asleep, Ordering::SeqCst);
        let still = !turns.done || self.store.held_bytes() <= cold.share().begin_bytes();
        (still && !self.ends_threads()).then_some(turns.nap)
    }
}

fn demoter_main(engine: &Engine) {
    let Some(cold) = &engine.cold else { return };
    let mut turns = Turns::new();
    while !engine.ends_threads() {
        if let Some(nap) = engine.demoter_step(cold, &mut turns) {
            // Woken before it sleeps, it finds another value.
            let asleep = u32::from(nap >= NAP_LIGHT);
            futex::wait(&cold.asleep, asleep, nap);
        }
    }
}

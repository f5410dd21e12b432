//! Copies: the slots that resident pages keep, clean or writable, so that evicting them
//! again costs no compression while they are what they were. What they may take of memory, and how they are given up.
//!
//! A memory limit has to hold a copy *beside* its page. Reading alone makes copies:
//! each batch of evictions therefore looks at what is held, once in
//! [`LOOK_EVICTIONS`] pages. Above the limit less a margin no further copy is kept,
//! and as many are given up as it takes; they come back when half of the margin is
//! free again. A page that did not shrink never keeps a copy in memory: its slot is
//! as large as its frame.
//!
//! With a file that takes pages none of this is asked: the demoter keeps the store
//! within its share, and gives up copies for it.

use core::sync::atomic::Ordering;

use ghostmem_os::PAGE_SIZE;
use ghostmem_policy::balance::{self, Copies};
use ghostmem_policy::costs::{Evictor, SIGNAL_NS};
use ghostmem_policy::hand::{EVICT_BATCH_PAGES, LOOKS_PER_PAGE};
use ghostmem_policy::worth::{CopiesShare, Counted};
use ghostmem_store::{Place, Slot, StoreStats};
use ghostmem_table::{PageState, Word};

use crate::parts::cold::ColdTiers;
use crate::parts::demote_batch::slot_of_stored;
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::page::bare;

/// Evictions between two looks at what is held: a quarter of a batch, so that the
/// figures' seventy cache lines cost nothing beside it.
const LOOK_EVICTIONS: u64 = 64;

/// Pages of which one is kept writable where others are not.
const SAMPLED: u64 = 32;

/// What a batch of pages that do not shrink makes the store grow by, bytes.
const EVICT_BATCH_BYTES: usize = EVICT_BATCH_PAGES * PAGE_SIZE;

/// Slots whose bytes add up to `bytes`, about.
fn slots_of(bytes: usize, store: &StoreStats) -> usize {
    let mean = store.slot_bytes.checked_div(store.live_slots).unwrap_or(0);
    bytes / mean.max(1) as usize + 1
}

impl Engine {
    /// Whether a stored page that is restored for reading may keep its slot. Where memory is
    /// to be spared for a share of time it does not: a copy takes room beside its page, and
    /// the store that opens a clean page takes the program's time; compressing the page anew
    /// takes the background thread's.
    pub(crate) fn may_keep_copy(&self, stored: Word) -> bool {
        self.config.keep_copies
            && self.slowdown.is_none()
            && self.copies_fit.load(Ordering::Relaxed)
            && !(stored.is_incompressible() && slot_of_stored(stored).is_some())
    }

    /// Whether a page that comes back from `slot` may keep it and be written to: where
    /// comparing pages with their copies was worth it lately. Where it was not, one page
    /// in [`SAMPLED`] tells of changes.
    pub(crate) fn compares(&self, slot: Slot) -> bool {
        let bits = slot.bits();
        self.costs.compares() || (bits ^ bits >> 16).is_multiple_of(SAMPLED)
    }

    /// Compares what is held with the memory limit, now and then: called with the
    /// number of pages evicted so far before and after a batch, from inside the
    /// gate, with no claim held.
    pub(crate) fn fit_copies(&self, before: u64, after: u64) {
        if !self.has_memory_limit() {
            return;
        }
        let due = before / LOOK_EVICTIONS != after / LOOK_EVICTIONS;
        if !due || !self.cold.as_ref().is_none_or(ColdTiers::is_failing) {
            return;
        }
        let Some(limit) = self.memory_limit() else {
            return;
        };
        let store = self.store.stats();
        self.look();
        if self.bound.is_some() && self.config.memory_limit_bytes.is_none() {
            let mean = store.slot_bytes.checked_div(store.live_slots).unwrap_or(0);
            let copied = self.copies.sum() * mean as usize;
            let least = self.budget.limit() <= self.least_resident_pages();
            let most = self.copies_share(after, copied).of(limit);
            self.follow(balance::copies_beside(most, copied, least), &store);
            return;
        }
        // The resident limit will be used, whether it is now or not.
        let frames = self.budget.limit().max(self.budget.used()).max(0) as usize * PAGE_SIZE;
        let fixed = frames + self.table_bytes() + store.metadata_bytes as usize;
        let copies = balance::copies(limit, EVICT_BATCH_BYTES, fixed, store.slot_bytes as usize);
        self.follow(copies, &store);
        let margin = balance::copies_margin_bytes(limit, EVICT_BATCH_BYTES);
        if fixed + store.held_bytes as usize > limit - margin / 2 {
            self.compact_few();
        }
    }

    /// What copies may have of what the heap may take, after so many evictions and with
    /// `copied` bytes of them: by what they saved lately, and what pages in their place
    /// would have.
    fn copies_share(&self, evictions: u64, copied: usize) -> CopiesShare {
        let limit = self.budget.limit().max(0) as u64;
        self.worth
            .share(evictions, self.clock().evictions_per_epoch(), || {
                let sum = |counter| self.metrics.sum(counter);
                let faults = sum(Counter::faults);
                let counted = Counted {
                    clean: sum(Counter::evictions_clean),
                    packed: sum(Counter::evictions_dirty),
                    compared: sum(Counter::verified_unchanged) + sum(Counter::verified_changed),
                    opened: sum(Counter::write_faults),
                    early: sum(Counter::early_refaults),
                    faults,
                    fault_ns: sum(Counter::fault_ns) + faults * SIGNAL_NS,
                };
                let costs = self.costs.of(Evictor::Faulting);
                (counted, costs, (copied / PAGE_SIZE) as u64, limit)
            })
    }

    /// Does what was said about copies.
    fn follow(&self, copies: Copies, store: &StoreStats) {
        match copies {
            Copies::Keep => self.copies_fit.store(true, Ordering::Relaxed),
            Copies::Leave => {}
            Copies::GiveUp(excess) => {
                self.copies_fit.store(false, Ordering::Relaxed);
                self.shed_copies(slots_of(excess, store).min(self.copies.sum()));
            }
        }
    }

    /// Gives copies up and compacts the store, for an allocation that `missing` bytes
    /// are missing for. The caller is inside the gate and holds no claim.
    pub(crate) fn make_room(&self, missing: usize, slots: usize) {
        let copies = self.copies.sum();
        if copies > 0 {
            self.shed_copies(slots_of(missing, &self.store.stats()).min(copies));
        }
        self.compact_from_inside(slots, 0);
    }

    /// Gives up copies of up to `wanted` resident pages, to make room in the store.
    /// The pages stay; they have to be compressed again when they are evicted.
    pub(crate) fn shed_copies(&self, wanted: usize) {
        let mut shed = 0;
        let mut looks = wanted * LOOKS_PER_PAGE;
        while shed < wanted && looks > 0 {
            let Some((region, window)) = self.next_window(EVICT_BATCH_PAGES) else {
                break;
            };
            looks = looks.saturating_sub(EVICT_BATCH_PAGES);
            let mut from = window.start;
            while let Some(page) = region.resident.next(from).filter(|&page| page < window.end) {
                from = page + 1;
                let word = region.table.load(page);
                // A copy in a file takes no room here.
                let in_store = matches!(Place::from_bits(word.payload()), Some(Place::Store(_)));
                if word.state() != PageState::Resident || !word.has_copy() || !in_store {
                    continue;
                }
                let Ok(claim) = region.table.claim(page, word) else {
                    continue;
                };
                // A clean page is still write-protected: the next store finds a
                // dirty page and merely opens it.
                self.release(region, claim, bare(word, self.costs.compares()));
                self.free_slot(word);
                shed += 1;
            }
        }
        self.metrics.add(Counter::copies_shed, shed as u64);
    }
}

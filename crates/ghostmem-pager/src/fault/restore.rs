//! Putting an absent page in place, and with it what readahead asks for.
//!
//! ```text
//!   frames    for all of the run, evicting if there are none
//!   claim     the page that faulted, then those ahead as far as frames reach
//!   read      those in the file together, each slot by itself; decide the words
//!   install   as few calls as neighbours with equal protection       (`install`)
//!   publish   words say Resident, waiters wake, slots nobody keeps are free
//! ```
//! Frames are taken before claims; a thread that holds claims waits for nobody.

use core::sync::atomic::{Ordering, fence};

use ghostmem_codec::{self as codec};
use ghostmem_fault::{Fault, RUN_PAGES, Scratch, Verdict};
use ghostmem_os::{PAGE_SIZE, clock};
use ghostmem_policy::costs::Evictor;
use ghostmem_policy::writes::{self, CopyKept};
use ghostmem_policy::{Heat, Past, Plan, stream};
use ghostmem_store::Place;
use ghostmem_table::{Claim, PageState, Word};

use crate::fault::run::{Run, place_of_step};
use crate::parts::demote_batch::slot_of_stored;
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::region::Region;

/// Pages that mimalloc takes at once for small objects of one size, and gives
/// back at once (its arena slice, 64 KiB).
const GROUP_PAGES: usize = 16;

/// The smallest limit, pages, that can be so far from reached that pages are
/// put in place before anybody asks.
const AMPLE_PAGES_MIN: i64 = 1024;

/// What a fault asks for: its page as it was seen, and what readahead wants with it.
#[derive(Clone, Copy)]
struct Ask {
    page: usize,
    word: Word,
    stride: i32,
    write: bool,
    /// Steps to look at, the page itself among them, and frames for the pages.
    steps: usize,
    frames: usize,
}

/// Where a page's bytes came from.
#[derive(Clone, Copy)]
enum Source {
    Memory,
    /// The file: so many, packed.
    File(usize),
}

impl Engine {
    /// Gives up the claims from the first one on whose page is no longer part
    /// of a block: it was freed after we looked, and who freed it may have
    /// passed it already. How many steps are left, and how many claims.
    pub(crate) fn keep_allocated(
        &self,
        region: &Region,
        claims: &mut [Option<Claim>],
    ) -> (usize, usize) {
        // Who frees the block looks only where words were written.
        for claim in claims.iter().flatten() {
            region.resident.note(claim.page());
        }
        // Pairs with the one in `finish_free`: either we see that the block
        // was given back, or who frees it sees our claim, and waits.
        fence(Ordering::SeqCst);
        let is_freed = |claim: &Option<Claim>| {
            claim
                .as_ref()
                .is_some_and(|claim| !region.is_allocated(claim.page()))
        };
        let count = claims.iter().position(is_freed).unwrap_or(claims.len());
        let (kept, freed) = claims.split_at_mut(count);
        for claim in freed.iter_mut().filter_map(Option::take) {
            let before = claim.before();
            self.release(region, claim, before);
        }
        (count, kept.iter().flatten().count())
    }

    /// Puts an absent page in place, and with it what readahead asks for.
    #[inline(never)]
    pub(crate) fn restore(
        &self,
        region: &Region,
        word: Word,
        write: bool,
        fault: &Fault,
        scratch: &mut Scratch,
    ) -> Verdict {
        let page = fault.page;
        let refault = word.state() != PageState::Empty;
        let new = word.state() != PageState::Stored;
        if let Some(slot) = slot_of_stored(word) {
            // Cold memory, while there is other work: stale by the time of
            // the claim at worst.
            self.store.prefetch(slot);
        }
        if let Err(wait) = self.take_frame(fault, refault, new, scratch) {
            return wait;
        }
        let number = region.id(page).get();
        let plan = if self.config.readahead {
            self.threads.plan(fault.thread, number)
        } else {
            Plan::ONE
        };
        let plan = self.ample(region, page, refault || !write, plan);
        let extra = i64::from(plan.count.min(RUN_PAGES as u32)) - 1;
        let extra = extra
            .min(stream::ahead_pages_max(self.budget.limit()))
            .max(0);
        let mut frames = 1;
        if extra > 0 {
            frames += self.budget.take_up_to(extra);
            if frames <= extra {
                // The reclaimer is behind. A run restored page by page would
                // cost a fault for each: one batch evicted here costs less.
                let wanted = (extra + 1 - frames) as usize;
                self.reclaim(wanted, Evictor::Faulting, scratch);
                frames += self.budget.take_up_to(extra + 1 - frames);
            }
        }
        let ask = Ask {
            page,
            word,
            stride: plan.stride,
            write,
            steps: plan.count as usize,
            frames: frames as usize,
        };
        let restored = if frames == 1 {
            self.restore_run::<1>(region, ask, scratch)
        } else {
            self.restore_run::<RUN_PAGES>(region, ask, scratch)
        };
        let (restored, covered) = match restored {
            Ok(counts) => counts,
            Err(verdict) => {
                self.budget.give_back(frames);
                return verdict;
            }
        };
        self.budget.give_back(frames - restored as i64);
        self.metrics.add(Counter::faults, 1);
        self.metrics.add(Counter::refaults, u64::from(refault));
        self.metrics
            .add(Counter::readahead_pages, restored as u64 - 1);
        self.metrics
            .add(Counter::readahead_hits, u64::from(plan.proven));
        if (covered as u32) < plan.count {
            self.threads
                .cut_short(fault.thread, plan, number, covered as u32);
        }
        if self.budget.is_below(self.low_watermark()) {
            self.want_more();
            self.wake_worker();
        }
        Verdict::Resolved
    }

    /// A plan for a page of small objects that is stored to for the first time,
    /// while there is room for everything: up to the end of its group. Their
    /// allocator goes through all of a group, but through many of them in turn,
    /// which looks like no run.
    fn ample(&self, region: &Region, page: usize, used: bool, plan: Plan) -> Plan {
        let limit = self.reach_pages();
        let place = (region.base() / PAGE_SIZE + page) % GROUP_PAGES;
        let count = (GROUP_PAGES - place) as u32;
        let wanted = !used
            && region.blocks.is_none()
            && self.config.readahead
            && (plan.count < count || plan.stride != 1)
            && limit >= AMPLE_PAGES_MIN
            && limit - self.budget.taken() > limit / 2;
        if !wanted {
            return plan;
        }
        Plan {
            stride: 1,
            count,
            ..plan
        }
    }

    /// Restores a run; the frames are taken already. How many pages it was, the
    /// first always among them, and how many steps that covered. `MOST` bounds the
    /// run, and the stack it takes.
    fn restore_run<const MOST: usize>(
        &self,
        region: &Region,
        ask: Ask,
        scratch: &mut Scratch,
    ) -> Result<(usize, usize), Verdict> {
        let first = region.table.claim(ask.page, ask.word);
        let first = first.map_err(|_| Verdict::Retry)?;
        let mut run = Run::<MOST>::new(region, ask.page, ask.stride, ask.write, first);
        self.claim_ahead(&mut run, ask.steps, ask.frames);
        if run.fresh {
            (run.count, run.restored) = self.keep_allocated(region, run.claims_mut());
            if run.count == 0 {
                return Err(Verdict::Refused);
            }
        }
        self.read(&mut run, scratch)?;
        self.install(&run, scratch);
        self.publish(&mut run);
        Ok((run.restored, run.count))
    }

    /// Claims the pages that are to come in with the first one: of `steps` steps, as
    /// far as `frames` reach. Pages that are resident are passed over.
    #[inline]
    fn claim_ahead<const MOST: usize>(&self, run: &mut Run<'_, MOST>, steps: usize, frames: usize) {
        let region = run.region;
        for step in 1..steps.min(MOST) {
            if run.restored == frames {
                break;
            }
            let Some(page) = run.page_ahead(step) else {
                break;
            };
            let word = region.table.load(page);
            let wanted = match word.state() {
                PageState::Stored | PageState::Filled => !run.fresh,
                // Fresh pages follow only a fresh page: a program that fills
                // its memory, not one that reads what is there.
                PageState::Empty => run.fresh && run.write && region.is_allocated(page),
                PageState::Resident | PageState::Evicting => continue,
                _ => false,
            };
            if !wanted {
                break;
            }
            let Ok(claim) = region.table.claim(page, word) else {
                break;
            };
            run.claims[step] = Some(claim);
            (run.count, run.restored) = (step + 1, run.restored + 1);
        }
    }

    /// Brings the bytes of a run's pages into the buffers, and decides what their
    /// words will be. Where bytes are gone, the run's claims are given up.
    #[inline]
    fn read<const MOST: usize>(
        &self,
        run: &mut Run<'_, MOST>,
        scratch: &mut Scratch,
    ) -> Result<(), Verdict> {
        let region = run.region;
        // A run's pages in the file are read together; those ahead that cannot
        // be read stay where they are.
        let mut fetched = 0;
        if MOST > 1 && !run.fresh {
            let (stride, count) = (run.stride, run.count);
            let place = |step| place_of_step(stride, count, step);
            let failed;
            (fetched, failed) = self.fetch_run(region, &run.claims[..count], place, scratch);
            run.restored -= self.let_go_of(region, run.claims_mut(), failed);
        }
        let now = self.clock().epoch(self.evictions());
        for step in 0..run.count {
            let Some(claim) = &run.claims[step] else {
                continue;
            };
            // Cold memory, while this page is decompressed.
            let ahead = run.claims.get(step + 1).and_then(Option::as_ref);
            if let Some(next) = ahead.and_then(|next| slot_of_stored(next.before())) {
                self.store.prefetch(next);
            }
            let before = claim.before();
            let source = if fetched >> step & 1 == 1 {
                // Of a run: it stays where readahead finds it together.
                Some(Source::Memory)
            } else {
                self.contents(region, claim, run.place(step), scratch)
            };
            let Some(source) = source else {
                self.lose(region, run.claims_mut(), step);
                // The faulting page itself, or only one of those ahead of it.
                return Err(if step == 0 {
                    Verdict::Refused
                } else {
                    Verdict::Retry
                });
            };
            run.words[step] = self.word_of(run, before, source, (step, now));
        }
        Ok(())
    }

    /// The word of a page that comes in as step `step` in the epoch `now`.
    #[inline]
    fn word_of<const MOST: usize>(
        &self,
        run: &Run<'_, MOST>,
        before: Word,
        source: Source,
        (step, now): (usize, u16),
    ) -> Word {
        let past = Past::from_bits(before.heat());
        if step == 0 && before.state() != PageState::Empty && past.left_in(now) {
            self.metrics.add(Counter::early_refaults, 1);
        }
        let may_keep = before.state() == PageState::Stored
            && self.may_keep_copy(before)
            && !matches!(source, Source::File(len) if self.belongs_in_memory(past, len, now));
        let copy = match may_keep {
            true => self.copy_kept(run, before, (past, now)),
            false => CopyKept::GivenUp,
        };
        let heat = match (before.state(), step) {
            (PageState::Empty, _) => Heat::FRESH,
            // Pages that stay because they are hot are not seen.
            _ if self.is_recorded() => Heat::FRESH,
            (_, 0) => past.refault(self.clock(), now),
            _ => past.ahead(),
        };
        let resident = before
            .with_state(PageState::Resident)
            .with_heat(heat.to_bits());
        match copy {
            CopyKept::Protected => resident.with_clean(true),
            CopyKept::Writable => resident.with_kept(),
            CopyKept::GivenUp => {
                let write_hot = writes::stays_write_hot(run.write, before.is_write_hot(), now);
                resident.without_copy().with_write_hot(write_hot)
            }
        }
    }

    /// How a stored page that comes back in the epoch `now` keeps its copy.
    ///
    /// While comparing is worth it, each page that comes back for a store is write hot
    /// from then on. Once it is not, hot pages give their copies up: those of that time
    /// would be compressed once more for nothing if they are only read, and are not taken
    /// for hot any longer.
    #[inline]
    fn copy_kept<const MOST: usize>(
        &self,
        run: &Run<'_, MOST>,
        before: Word,
        (past, now): (Past, u16),
    ) -> CopyKept {
        let is_old = |ceased| past.left_by(ceased);
        let write_hot = before.is_write_hot() && !self.costs.ceased().is_some_and(is_old);
        let compares = slot_of_stored(before).is_some_and(|slot| self.compares(slot));
        writes::Return {
            write: run.write,
            write_hot,
            tracks_writes: run.region.mapped.tracks_writes(),
            compares,
            now,
        }
        .copy()
    }

    /// Ends the claims of a run whose pages are mapped, and gives back the slots
    /// that no page keeps.
    #[inline]
    fn publish<const MOST: usize>(&self, run: &mut Run<'_, MOST>) {
        let region = run.region;
        // Counted before anybody can give one of them up.
        let words = &run.words[..run.count];
        let copies = words.iter().filter(|word| word.has_copy()).count();
        self.copies.add(copies);
        for step in 0..run.count {
            let Some(claim) = run.claims[step].take() else {
                continue;
            };
            let before = claim.before();
            region.resident.insert(claim.page());
            self.release(region, claim, run.words[step]);
            if before.state() == PageState::Stored && !run.words[step].has_copy() {
                self.free_slot(before);
            }
        }
    }

    /// Brings the bytes of a claimed page that is stored into the first place of the
    /// buffer; whether they could be had.
    #[cfg(not(windows))]
    pub(crate) fn bring_bytes(
        &self,
        region: &Region,
        claim: &Claim,
        scratch: &mut Scratch,
    ) -> bool {
        self.contents(region, claim, 0, scratch).is_some()
    }

    /// Brings the bytes of a page into place `place` of the buffer: where they
    /// came from. `None` when they cannot be had.
    fn contents(
        &self,
        region: &Region,
        claim: &Claim,
        place: usize,
        scratch: &mut Scratch,
    ) -> Option<Source> {
        let word = claim.before();
        let out = &mut scratch.run[place];
        match word.state() {
            PageState::Stored => {
                let slot = match Place::from_bits(word.payload()) {
                    Some(Place::Store(slot)) => slot,
                    Some(Place::Cold(tier, slot)) => {
                        return self
                            .fetch(region, claim.page(), (tier, slot), place, scratch)
                            .map(Source::File);
                    }
                    None => return None,
                };
                let info = self.store.read(slot, &mut scratch.packed);
                // The clock costs a few per cent of a restore.
                let sampled = place == 0 && (slot.bits() ^ slot.bits() >> 16) & 7 == 0;
                let start = if sampled { clock::now_ns() } else { 0 };
                let ok = codec::decode(info.codec, &scratch.packed[..info.len], out).is_ok();
                if sampled {
                    self.metrics
                        .add(Counter::decompress_ns, clock::now_ns() - start);
                    self.metrics.add(Counter::decompress_samples, 1);
                }
                ok.then_some(Source::Memory)
            }
            PageState::Filled => {
                codec::fill(word.payload() as u32, out);
                Some(Source::Memory)
            }
            _ => {
                out.fill(0);
                Some(Source::Memory)
            }
        }
    }
}

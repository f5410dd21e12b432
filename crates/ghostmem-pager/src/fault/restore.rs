//! Putting an absent page in place, and with it what readahead asks for.
//!
//! Frames are taken before claims; a thread that holds claims waits for nobody.

use core::sync::atomic::{Ordering, fence};

use ghostmem_codec::{self as codec};
use ghostmem_fault::{Fault, RUN_PAGES, Scratch, Verdict};
use ghostmem_os::{PAGE_SIZE, clock};
use ghostmem_policy::{Heat, Past, Plan};
use ghostmem_store::Place;
use ghostmem_table::{Claim, State, Word};

use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::place::slot_of_stored;
use crate::parts::region::Region;

/// Pages that mimalloc takes at once for small objects of one size, and gives
/// back at once (its arena slice, 64 KiB).
const GROUP_PAGES: usize = 16;

/// The smallest limit, pages, that can be so far from reached that pages are
/// put in place before anybody asks.
const AMPLE_PAGES_MIN: i64 = 1024;

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
        let refault = word.state() != State::Empty;
        if let Some(slot) = slot_of_stored(word) {
            // Cold memory, while there is other work: stale by the time of
            // the claim at worst.
            self.store.prefetch(slot);
        }
        if let Err(wait) = self.take_frame(fault, refault, scratch) {
            return wait;
        }
        let number = self.number(region, page);
        let plan = if self.config.readahead {
            self.threads.plan(fault.thread, number)
        } else {
            Plan {
                stride: 1,
                count: 1,
                proven: 0,
            }
        };
        let plan = self.ample(region, page, refault || !write, plan);
        // Readahead never fills more than an eighth of the limit.
        let extra = i64::from(plan.count.min(RUN_PAGES as u32)) - 1;
        let extra = extra.min(self.budget.limit() / 8).max(0);
        let mut frames = 1;
        if extra > 0 {
            frames += self.budget.take_up_to(extra);
            if frames <= extra {
                // The reclaimer is behind. A run restored page by page would
                // cost a fault for each: one batch evicted here costs less.
                self.reclaim((extra + 1 - frames) as usize, scratch);
                frames += self.budget.take_up_to(extra + 1 - frames);
            }
        }
        let (stride, most) = (plan.stride, frames as usize);
        let steps = plan.count as usize;
        let restored = if most == 1 {
            self.restore_run::<1>(region, page, word, stride, (1, 1), write, scratch)
        } else {
            self.restore_run::<RUN_PAGES>(region, page, word, stride, (steps, most), write, scratch)
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
        if self.budget.free() < self.low_watermark() {
            self.wake_worker();
        }
        Verdict::Resolved
    }

    /// A plan for a page of small objects that is stored to for the first time,
    /// while there is room for everything: up to the end of its group. Their
    /// allocator goes through all of a group, but through many of them in turn,
    /// which looks like no run.
    fn ample(&self, region: &Region, page: usize, used: bool, plan: Plan) -> Plan {
        let limit = self.budget.limit();
        let place = (region.base() / PAGE_SIZE + page) % GROUP_PAGES;
        let count = (GROUP_PAGES - place) as u32;
        let wanted = !used
            && region.blocks.is_none()
            && self.config.readahead
            && plan.count < count
            && limit >= AMPLE_PAGES_MIN
            && self.budget.free() > limit / 2;
        if !wanted {
            return plan;
        }
        Plan {
            stride: 1,
            count,
            ..plan
        }
    }

    /// Restores up to `frames` pages among the `steps` that are `stride` apart
    /// from `first` on; the frames are taken already. Pages that are resident
    /// are passed over. How many it was, the first always among them, and how
    /// many steps that covered. `MOST` bounds the run, and the stack it takes.
    #[allow(clippy::too_many_arguments)]
    fn restore_run<const MOST: usize>(
        &self,
        region: &Region,
        first: usize,
        word: Word,
        stride: i32,
        (steps, frames): (usize, usize),
        write: bool,
        scratch: &mut Scratch,
    ) -> Result<(usize, usize), Verdict> {
        let mut claims: [Option<Claim>; MOST] = [const { None }; MOST];
        claims[0] = Some(
            region
                .table
                .claim(first, word)
                .map_err(|_| Verdict::Retry)?,
        );
        let fresh = word.state() == State::Empty;
        // Steps up to the last one claimed, and how many those were.
        let (mut count, mut restored) = (1, 1);
        for (step, slot) in claims.iter_mut().enumerate().take(steps).skip(1) {
            if restored == frames {
                break;
            }
            let Some(page) = first
                .checked_add_signed(step as isize * stride as isize)
                .filter(|&page| page < region.pages())
            else {
                break;
            };
            let word = region.table.load(page);
            let wanted = match word.state() {
                State::Stored | State::Filled => !fresh,
                // Fresh pages follow only a fresh page: a program that fills
                // its memory, not one that reads what is there.
                State::Empty => fresh && write && region.is_allocated(page),
                State::Resident | State::Evicting => continue,
                _ => false,
            };
            if !wanted {
                break;
            }
            let Ok(claim) = region.table.claim(page, word) else {
                break;
            };
            *slot = Some(claim);
            (count, restored) = (step + 1, restored + 1);
        }
        if fresh {
            (count, restored) = self.keep_allocated(region, &mut claims[..count]);
            if count == 0 {
                return Err(Verdict::Refused);
            }
        }
        // Pages are laid out in the buffer in address order, so that
        // neighbours go in with one call.
        let place = |step: usize| if stride < 0 { count - 1 - step } else { step };
        // A run's pages in the file are read together; those ahead that cannot
        // be read stay where they are.
        let mut fetched = 0;
        if MOST > 1 && !fresh {
            let failed;
            (fetched, failed) = self.fetch_run(region, &claims[..count], place, scratch);
            restored -= self.let_go_of(region, &mut claims[..count], failed);
        }
        let now = self.clock().epoch(self.evictions());
        let mut words = [Word::EMPTY; MOST];
        for (step, word) in words.iter_mut().enumerate().take(count) {
            let Some(claim) = &claims[step] else {
                continue;
            };
            // Cold memory, while this page is decompressed.
            let ahead = claims.get(step + 1).and_then(Option::as_ref);
            if let Some(next) = ahead.and_then(|next| slot_of_stored(next.before())) {
                self.store.prefetch(next);
            }
            let before = claim.before();
            let source = if fetched >> step & 1 == 1 {
                // Of a run: it stays where readahead finds it together.
                Some(Source::Memory)
            } else {
                self.contents(region, claim, place(step), scratch)
            };
            let Some(source) = source else {
                self.lose(region, &mut claims[..count], step);
                // The faulting page itself, or only one of those ahead of it.
                return Err(if step == 0 {
                    Verdict::Refused
                } else {
                    Verdict::Retry
                });
            };
            let past = Past::from_bits(before.heat());
            let clean = before.state() == State::Stored
                && !write
                && region.mapped.tracks_writes()
                && self.may_keep_copy(before)
                && !before.is_write_hot()
                && !matches!(source, Source::File(len) if self.belongs_in_memory(past, len, now));
            let heat = match (before.state(), step) {
                (State::Empty, _) => Heat::FRESH,
                // Pages that stay because they are hot are not seen.
                _ if self.is_recorded() => Heat::FRESH,
                (_, 0) => past.refault(self.clock(), now),
                _ => past.ahead(),
            };
            // Being hot for writing wears off with reads: half of them find the
            // page's copy kept again, and cost one more fault should a store
            // follow after all.
            let forget = !write && now & 1 == 0;
            *word = before
                .with_state(State::Resident)
                .with_clean(clean)
                .with_payload(if clean { before.payload() } else { 0 })
                .with_write_hot(before.is_write_hot() && !forget)
                .with_heat(heat.to_bits());
        }
        let page_of = |step: usize| first.wrapping_add_signed(step as isize * stride as isize);
        self.install(
            region, count, stride, page_of, &words, write, fresh, scratch,
        );
        // Counted before anybody can give one of them up.
        let copies = words[..count].iter().filter(|word| word.is_clean()).count();
        self.copies.add(copies);
        for step in 0..count {
            let Some(claim) = claims[step].take() else {
                continue;
            };
            let before = claim.before();
            region.resident.insert(claim.page());
            self.release(region, claim, words[step]);
            if before.state() == State::Stored && !words[step].is_clean() {
                self.free_slot(before);
            }
        }
        Ok((restored, count))
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
            State::Stored => {
                let slot = match Place::from_bits(word.payload()) {
                    Some(Place::Store(slot)) => slot,
                    Some(Place::Elsewhere(number)) => {
                        return self
                            .fetch(region, claim.page(), number, place, scratch)
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
            State::Filled => {
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

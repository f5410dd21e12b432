//! One batch on its way out.
//!
//! ```text
//!   protect    dirty victims are write-protected, neighbours in one call, and others
//!              where what lies between costs less than another call
//!   compress   each into a slot, unless the copy it kept has the same bytes; a touch
//!              meanwhile cancels                                       (`pack`)
//!   commit     victims nobody touched (and clean ones, which have a slot)
//!   drop       one vectored call takes all their mappings away
//!   finish     words say Stored, frames go back to the budget
//! ```
//! Taking mappings away interrupts every processor the program runs on, so it is done for a
//! whole batch at once.

use core::ops::Range;
use core::sync::atomic::Ordering;

use ghostmem_fault::{Batch, Scratch};
use ghostmem_os::scratch::STACK_BYTES;
use ghostmem_os::{clock, futex};
use ghostmem_policy::Heat;
use ghostmem_policy::costs::{Evictor, LONG_STRETCH_PAGES, Protected};
use ghostmem_policy::hand::EVICT_BATCH_PAGES;
use ghostmem_table::{DropClaim, EvictClaim, PageState, Word};

use crate::evict::pack::{Packed, Victim};
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::page::bare;
use crate::parts::region::Region;

/// Two dirty victims at most this many pages apart are protected in one call:
/// walking absent pages is cheaper than another round of interrupts.
const PROTECT_GAP_PAGES: usize = 1024;

/// A page that shrinks is taken to need this part of a page at first.
const PACKED_PART: u64 = 4;

/// What a batch takes of a handler's stack, bytes.
const EVICT_BATCH_STACK_BYTES: usize = EVICT_BATCH_PAGES
    * (size_of::<Victim>()
        + size_of::<Option<EvictClaim>>()
        + size_of::<Packed>()
        + size_of::<Option<DropClaim>>()
        + size_of::<bool>())
    + size_of::<Batch>();

// The other half is for the rest of the way from the fault to the kernel, and
// for the copies that unoptimised builds make.
const _: () = assert!(EVICT_BATCH_STACK_BYTES <= STACK_BYTES / 2);

/// Victims that one call protects, with what lies between them.
struct Stretch {
    /// Pages, from the first victim to the last.
    start: usize,
    end: usize,
    /// The places of their claims.
    claims: Range<usize>,
    /// Written pages in it that stay.
    between: u64,
    /// Those, and the victims.
    protected: u64,
}

impl Stretch {
    /// The stretch that begins with the first claim at or after `from`. A victim `apart`
    /// pages from the one before, with `between` written ones that stay, is in it where
    /// the two are joined.
    #[inline]
    fn next(
        claims: &[Option<EvictClaim>],
        victims: &[Victim],
        from: usize,
        joins: impl Fn(usize, u64) -> bool,
    ) -> Option<Self> {
        let mut stretch: Option<Self> = None;
        let mut between = 0;
        for (index, (claim, victim)) in claims.iter().zip(victims).enumerate().skip(from) {
            between += u64::from(victim.between);
            let Some(page) = claim.as_ref().map(EvictClaim::page) else {
                continue;
            };
            match &mut stretch {
                None => {
                    stretch = Some(Self {
                        start: page,
                        end: page + 1,
                        claims: index..index + 1,
                        between: 0,
                        protected: 1,
                    });
                }
                // A page that the hand met twice is begun twice where a touch cancels in
                // between: it is no distance away from itself.
                Some(stretch) if joins(page.saturating_sub(stretch.end), between) => {
                    stretch.end = page + 1;
                    stretch.claims.end = index + 1;
                    stretch.between += between;
                    stretch.protected += between + 1;
                }
                Some(_) => break,
            }
            between = 0;
        }
        stretch
    }

    /// Its first victim alone.
    const fn first(&self) -> Self {
        let at = self.claims.start;
        Self {
            start: self.start,
            end: self.start + 1,
            claims: at..at + 1,
            between: 0,
            protected: 1,
        }
    }
}

impl Engine {
    /// Evicts pages of one region, given in address order; how many it was.
    #[inline(never)]
    pub(crate) fn evict_batch(
        &self,
        region: &Region,
        victims: &[Victim],
        by: Evictor,
        scratch: &mut Scratch,
    ) -> usize {
        let mut claims: [Option<EvictClaim>; EVICT_BATCH_PAGES] =
            [const { None }; EVICT_BATCH_PAGES];
        let mut packed = [Packed::Not; EVICT_BATCH_PAGES];
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed) & ((1 << 40) - 1);
        let mut dirty = 0;
        // A pin waits until the pages are protected.
        let protecting = victims
            .iter()
            .any(|victim| !victim.word.is_clean())
            .then(|| region.protecting.enter());
        for (claim, victim) in claims.iter_mut().zip(victims) {
            if !victim.word.is_clean() {
                *claim = region
                    .table
                    .begin_evict(victim.page, victim.word, nonce)
                    .ok();
                dirty += usize::from(claim.is_some());
            }
        }
        if dirty > 0 {
            self.protect(region, victims, &mut claims[..victims.len()], by);
        }
        drop(protecting);
        if dirty > 0 {
            self.pack_all(region, &claims[..victims.len()], &mut packed, scratch);
        }
        self.drop_committed(region, victims, &mut claims, &packed, by)
    }

    /// Write-protects the pages of `claims`, in as many calls as cost least, and gives up
    /// those that the kernel does not protect. Who calls it entered `protecting`
    /// before: either we see a pin, or it waits for us.
    fn protect(
        &self,
        region: &Region,
        victims: &[Victim],
        claims: &mut [Option<EvictClaim>],
        by: Evictor,
    ) {
        let costs = self.costs.of(by);
        let exact = region.mapped.protects_exactly() || region.has_pins();
        let joins = |apart: usize, between: u64| {
            apart == 0 || (!exact && apart <= PROTECT_GAP_PAGES && costs.joins(between))
        };
        let (mut made, mut all_between) = (Protected::default(), 0);
        let (mut begin, mut from) = (clock::thread_ns(), 0);
        while let Some(mut stretch) = Stretch::next(claims, victims, from, joins) {
            // Timed alone, so that what a call takes is told from what its pages take.
            let alone = made.alone_ns == 0 && stretch.protected > LONG_STRETCH_PAGES;
            let before = if alone { clock::thread_ns() } else { 0 };
            if alone {
                stretch = stretch.first();
            }
            let (start, pages) = (stretch.start, stretch.end - stretch.start);
            if region.mapped.protect(start, pages).is_err() {
                self.protect_each(region, &mut claims[stretch.claims.clone()]);
            }
            from = stretch.claims.end;
            all_between += stretch.between;
            if alone {
                let took = clock::thread_ns().saturating_sub(before);
                made.alone_ns = took.max(1);
                begin += took;
            } else {
                made.calls += 1;
                made.pages += stretch.protected;
            }
        }
        made.ns = clock::thread_ns().saturating_sub(begin);
        self.costs.protected(by, &made, all_between);
        self.metrics.add(Counter::protect_calls, made.all_calls());
        self.metrics.add(Counter::protected_between, all_between);
    }

    /// As [`Engine::protect`], for pages some of which the kernel does not protect:
    /// guard markers are refused on locked memory (mlock), and a mapping may not be
    /// split when there are too many. The others still go.
    fn protect_each(&self, region: &Region, claims: &mut [Option<EvictClaim>]) {
        for claim in claims {
            let Some(page) = claim.as_ref().map(EvictClaim::page) else {
                continue;
            };
            if region.mapped.protect(page, 1).is_ok() || self.close_around_from_inside(region, page)
            {
                continue;
            }
            if let Some(claim) = claim.take() {
                let word = claim.before();
                self.abandon(region, claim, word);
            }
        }
    }

    /// Gives an eviction up: the page is `word` again. Where a touch was faster, nobody
    /// else knows of the copy that the page kept.
    fn abandon(&self, region: &Region, claim: EvictClaim, word: Word) {
        if !region.table.abandon(claim, word) && word.has_copy() {
            self.free_slot(word);
        }
    }

    /// Commits what was not touched meanwhile, drops all of it at once and
    /// finishes the words; how many pages left.
    fn drop_committed(
        &self,
        region: &Region,
        victims: &[Victim],
        claims: &mut [Option<EvictClaim>; EVICT_BATCH_PAGES],
        packed: &[Packed; EVICT_BATCH_PAGES],
        by: Evictor,
    ) -> usize {
        let mut drops: [Option<DropClaim>; EVICT_BATCH_PAGES] = [const { None }; EVICT_BATCH_PAGES];
        let mut batch = Batch::new();
        let epoch = self.clock().epoch(self.evictions());
        for (index, victim) in victims.iter().enumerate() {
            drops[index] = self.commit(region, victim, claims[index].take(), packed[index]);
            if drops[index].is_some() {
                region.mapped.add_to(&mut batch, victim.page, 1);
            }
        }
        let mut kept = [false; EVICT_BATCH_PAGES];
        region.mapped.drop_batch(&mut batch, false, &mut |page| {
            // A hand that wrapped may have taken a page twice, and either of
            // the two may be the one that was committed.
            for (kept, victim) in kept.iter_mut().zip(victims) {
                *kept |= victim.page == page;
            }
        });
        self.costs.changed(by, 1);
        let mut gone = Gone {
            compares: self.costs.compares(),
            ..Gone::default()
        };
        for (index, claim) in drops.iter_mut().enumerate() {
            let Some(claim) = claim.take() else { continue };
            let before = claim.before();
            let word = if kept[index] {
                // The kernel kept the mapping (locked memory): so do we.
                match packed[index] {
                    _ if before.is_clean() => before,
                    Packed::Same => before,
                    Packed::Slot(slot, _) => {
                        self.store.remove(slot);
                        before.without_copy()
                    }
                    _ => before.without_copy(),
                }
            } else {
                let past = Heat::from_bits(before.heat()).evict(epoch);
                gone.word(before.with_heat(past.to_bits()), packed[index])
            };
            let page = claim.page();
            if word.state() != PageState::Resident {
                region.resident.remove(page);
                gone.pages += 1;
            }
            if region.table.finish(claim, word).0 {
                futex::wake_all(region.table.futex(page));
            }
        }
        self.count_gone(&gone);
        gone.pages as usize
    }

    /// Takes a victim from those who could touch it still; `None` where one of them
    /// was faster, or it could not be packed.
    fn commit(
        &self,
        region: &Region,
        victim: &Victim,
        claim: Option<EvictClaim>,
        packed: Packed,
    ) -> Option<DropClaim> {
        if victim.word.is_clean() {
            return region.table.begin_drop(victim.page, victim.word).ok();
        }
        let claim = claim?;
        let before = claim.before();
        match packed {
            // The page may stay protected: the next touch that minds opens it.
            Packed::Not => {
                self.abandon(region, claim, before);
                None
            }
            Packed::Full => {
                self.abandon(region, claim, before.without_copy());
                None
            }
            Packed::Filled(_) => region.table.commit_evict(claim),
            Packed::Same => {
                let committed = region.table.commit_evict(claim);
                if committed.is_none() {
                    // Touched after it was compared.
                    self.free_slot(before);
                }
                committed
            }
            Packed::Slot(slot, _) => {
                let committed = region.table.commit_evict(claim);
                if committed.is_none() {
                    // Touched after it was compressed.
                    self.store.remove(slot);
                }
                committed
            }
        }
    }

    /// Takes what a batch stored off the resident limit, close to a bound on the process:
    /// else others take its frames before somebody looks, and what was stored comes on top.
    /// The next look counts exactly.
    fn charge_stored(&self, gone: &Gone) {
        if self.bound.as_ref().is_some_and(|bound| !bound.is_far()) {
            let stored = gone.pages.saturating_sub(gone.clean + gone.filled);
            let packed = stored.saturating_sub(gone.raw);
            let frames = gone.raw + packed.div_ceil(PACKED_PART);
            let least = self.least_resident_pages();
            self.budget.lower_limit(frames as i64, least);
        }
    }

    /// Gives the frames of a batch back, and counts what left.
    fn count_gone(&self, gone: &Gone) {
        self.charge_stored(gone);
        self.budget.give_back(gone.pages as i64);
        // Clean pages have one place again, not two.
        self.copies.sub(gone.clean as usize);
        let evictions = self.count_evictions(gone.pages);
        self.metrics.add(Counter::evictions_clean, gone.clean);
        self.metrics
            .add(Counter::evictions_dirty, gone.pages - gone.clean);
        self.metrics.add(Counter::same_filled_pages, gone.filled);
        self.metrics.add(Counter::raw_pages_evicted, gone.raw);
        self.wake_demoter();
        self.fit_copies(evictions, evictions + gone.pages);
    }
}

/// What left with a batch.
#[derive(Default)]
struct Gone {
    /// Comparing pages with the copies that they keep is worth its while.
    compares: bool,
    pages: u64,
    /// Pages that had their slot already.
    clean: u64,
    /// Pages of one value, which took none.
    filled: u64,
    /// Pages that did not shrink.
    raw: u64,
}

impl Gone {
    /// The word of a page whose frame is gone; `before` has its heat already.
    fn word(&mut self, before: Word, packed: Packed) -> Word {
        let stored = before.with_clean(false);
        match packed {
            _ if before.is_clean() => {
                self.clean += 1;
                stored.with_state(PageState::Stored)
            }
            Packed::Same => {
                self.clean += 1;
                stored.with_state(PageState::Stored)
            }
            Packed::Slot(slot, is_raw) => {
                self.raw += u64::from(is_raw);
                bare(before, self.compares)
                    .with_state(PageState::Stored)
                    .with_incompressible(is_raw)
                    .with_payload(slot.bits())
            }
            Packed::Filled(pattern) => {
                self.filled += 1;
                stored
                    .with_state(PageState::Filled)
                    .with_incompressible(false)
                    .with_payload(u64::from(pattern))
            }
            // Not committed, so not here.
            Packed::Full | Packed::Not => before,
        }
    }
}

#[cfg(test)]
mod tests {
    use ghostmem_store::Slot;

    use super::*;

    /// Proves that keeping a page writable makes it write hot for no longer than comparing is
    /// worth it: else pages that are only read from then on are compressed once more.
    #[test]
    fn a_kept_page_found_changed_is_write_hot_where_comparing_is_worth_it() {
        let slot = Slot::from_bits(1).unwrap();
        let left = |before: Word, compares| {
            let mut gone = Gone {
                compares,
                ..Gone::default()
            };
            gone.word(before, Packed::Slot(slot, false)).is_write_hot()
        };
        let resident = Word::EMPTY.with_state(PageState::Resident);
        for (before, compares, hot) in [
            (resident.with_kept(), true, true),
            (resident.with_kept(), false, false),
            // Not kept: a store to the clean page made it hot, or none did.
            (resident.with_write_hot(true), false, true),
            (resident, true, false),
        ] {
            assert_eq!(left(before, compares), hot, "{before:?}, {compares}");
        }
    }
}

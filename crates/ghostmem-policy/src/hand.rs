//! The hand's walk: which resident pages are looked at, and which of them leave.
//!
//! The hand goes round all regions in address order, a *window* of resident pages at a
//! time. A *walk* is what one call of the reclaimer asks of the hand:
//!
//! ```text
//!   window  ──►  look  ──►  judge  ──►  leave   a written page, in a sweep without them
//!     ▲            │           │  └──►  spare   the page has credit, and loses one
//!     └────────────┴───────────┴─────►  take    until the batch is full
//! ```
//! A *sweep* is one round of the hand through everything. Written pages leave in one
//! sweep out of [`DIRTY_SWEEPS`] only, unless most resident pages are written.
//!
//! The pager keeps the hand, the sweeps and the page words in atomics; the lab keeps
//! them in plain numbers. Both ask this module what to do.

use core::ops::Range;

use crate::Heat;

/// Most pages evicted in one batch. Dropping mappings interrupts the other
/// processors once for each batch, which costs as much as evicting some 40
/// clean pages.
pub const EVICT_BATCH_PAGES: usize = 256;

/// Resident pages the hand looks at for each page it is asked to evict,
/// before it takes what it has.
pub const LOOKS_PER_PAGE: usize = 32;

/// The last looks of a walk ignore credit when no page has been found before.
pub const FORCED_LOOKS: usize = 256;

/// Most dirty pages in one batch: their frames come free only when the last of
/// them is compressed.
pub const DIRTY_PAGES_MAX: usize = 128;

/// The same for a batch that a faulting thread evicts: it waits a third of a
/// millisecond for them.
pub const DIRECT_DIRTY_PAGES_MAX: usize = 64;

/// Where protecting one page alone costs more than compressing it, dirty pages are spared
/// from this credit on. Below it, the chance that they are written again before the hand is
/// back does not pay for the interrupts of lifting their write protection.
pub const DIRTY_CREDIT_MIN: u8 = 16;

/// Dirty pages leave in one sweep of the hand out of so many, unless most pages are
/// dirty. Each sweep that takes some write-protects all others between them, and
/// these then fault at their next store, for longer than a restore takes.
pub const DIRTY_SWEEPS: u64 = 4;

/// Below this limit every eviction is done by the faulting thread: there is no
/// room to keep frames free.
pub const BACKGROUND_LIMIT_PAGES: i64 = 1024;

/// Fewer free frames than this wake the background reclaimer, for a resident limit of
/// `limit_pages`: enough for the faults of the time it takes to compress one batch,
/// and no more, as every free frame is one that holds no page. 0: the limit is too
/// small for a background reclaimer.
#[must_use]
#[inline]
pub fn low_watermark(limit_pages: i64) -> i64 {
    if limit_pages < BACKGROUND_LIMIT_PAGES {
        return 0;
    }
    (limit_pages / 64).clamp(64, 256)
}

/// The background reclaimer, once woken, evicts until so many frames are free.
#[must_use]
#[inline]
pub fn high_watermark(low: i64) -> i64 {
    low + low.min(EVICT_BATCH_PAGES as i64)
}

/// Whether dirty pages leave in the sweep with this number. `mostly_dirty`: see
/// [`is_mostly_dirty`], for the sweep before.
#[must_use]
#[inline]
pub const fn takes_dirty(sweep: u64, mostly_dirty: bool) -> bool {
    mostly_dirty || sweep.is_multiple_of(DIRTY_SWEEPS)
}

/// Whether most pages of a sweep were dirty. `dirty_lead`: the [`Walk::dirty_lead`] of
/// all walks in it.
#[must_use]
#[inline]
pub const fn is_mostly_dirty(dirty_lead: i64) -> bool {
    dirty_lead > 0
}

/// Where the hand is: before a page of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Index of the region.
    pub region: usize,
    /// The first page that was not looked at yet.
    pub page: usize,
}

const POSITION_PAGE_BITS: u32 = 40;

impl Position {
    /// Before everything: where sweeps begin.
    pub const START: Self = Self { region: 0, page: 0 };

    /// Reads the position from one word.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            region: (bits >> POSITION_PAGE_BITS) as usize,
            page: (bits & ((1 << POSITION_PAGE_BITS) - 1)) as usize,
        }
    }

    /// The position in one word; pages are below 2^40, regions below 2^24.
    #[must_use]
    #[inline]
    pub const fn to_bits(self) -> u64 {
        (self.region as u64) << POSITION_PAGE_BITS | self.page as u64
    }

    /// The same place among `regions` regions, of which there may be fewer now.
    #[must_use]
    #[inline]
    pub const fn among(self, regions: usize) -> Self {
        let region = if self.region >= regions {
            0
        } else {
            self.region
        };
        Self { region, ..self }
    }

    /// Where the hand goes past a window: behind it, or to the next of `regions`
    /// regions when the window is empty. Back at [`Position::START`] a sweep ends.
    #[must_use]
    #[inline]
    pub const fn past(self, window: &Range<usize>, regions: usize) -> Self {
        if window.start < window.end {
            Self {
                page: window.end,
                ..self
            }
        } else {
            Self {
                region: (self.region + 1) % regions,
                page: 0,
            }
        }
    }
}

/// The pages from the first resident one at or after `from` on that hold up to
/// `wanted` resident pages; empty when there is none. `next` finds the first resident
/// page at or after its argument.
#[must_use]
#[inline]
pub fn window(from: usize, wanted: usize, next: impl Fn(usize) -> Option<usize>) -> Range<usize> {
    let Some(start) = next(from) else {
        return 0..0;
    };
    let mut end = start + 1;
    for _ in 1..wanted.min(EVICT_BATCH_PAGES) {
        match next(end) {
            Some(page) => end = page + 1,
            None => break,
        }
    }
    start..end
}

/// What becomes of a page that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The page leaves.
    Take,
    /// The page stays, with this heat.
    Spare(Heat),
    /// The page stays as it is.
    Leave,
}

/// One look of a walk at one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    clean: bool,
    takes_dirty: bool,
    forced: bool,
    ignores_credit: bool,
    spares_from: u8,
}

impl Look {
    /// What becomes of the page, if nothing but its heat speaks for it.
    #[must_use]
    #[inline]
    pub const fn judge(self, heat: Heat) -> Judgement {
        if !(self.clean || self.takes_dirty || self.forced) {
            return Judgement::Leave;
        }
        // A dirty page that is spared between two that are not costs another call, or
        // gets write protected with them and faults at its next store.
        let counts = self.clean || heat.credit() >= self.spares_from;
        match heat.pass() {
            Some(spared) if counts && !self.forced && !self.ignores_credit => {
                Judgement::Spare(spared)
            }
            _ => Judgement::Take,
        }
    }
}

/// What one call of the reclaimer asks of the hand, and what it has found so far.
#[derive(Debug, Clone, Copy)]
pub struct Walk {
    wanted: usize,
    dirty_most: usize,
    ignores_credit: bool,
    /// The credit from which dirty pages are spared.
    spares_from: u8,
    /// Looks that are left.
    looks: usize,
    taken: usize,
    dirty: usize,
    /// Empty windows met.
    ends: usize,
    dirty_lead: i64,
}

impl Walk {
    /// A walk for up to about `wanted` pages.
    #[must_use]
    #[inline]
    pub fn new(wanted: usize) -> Self {
        let wanted = wanted.clamp(1, EVICT_BATCH_PAGES);
        Self {
            wanted,
            dirty_most: DIRTY_PAGES_MAX,
            ignores_credit: false,
            spares_from: DIRTY_CREDIT_MIN,
            looks: wanted * LOOKS_PER_PAGE + FORCED_LOOKS,
            taken: 0,
            dirty: 0,
            ends: 0,
            dirty_lead: 0,
        }
    }

    /// A walk of a thread that found no frame, under a resident limit of
    /// `limit_pages`: it takes many pages as long as that costs no more than dropping
    /// them, and few that must be compressed first.
    #[must_use]
    #[inline]
    pub fn direct(limit_pages: i64) -> Self {
        let wanted = (limit_pages / 16).clamp(1, EVICT_BATCH_PAGES as i64);
        Self {
            dirty_most: DIRECT_DIRTY_PAGES_MAX,
            ..Self::new(wanted as usize)
        }
    }

    /// The same walk, taking pages whatever their credit: where a page that stays
    /// between two that leave costs more than its restore.
    #[must_use]
    #[inline]
    pub const fn ignoring_credit(self, ignores_credit: bool) -> Self {
        Self {
            ignores_credit,
            ..self
        }
    }

    /// The same walk, sparing dirty pages from so much credit on: see
    /// [`Costs::spares_from`](crate::costs::Costs::spares_from).
    #[must_use]
    #[inline]
    pub const fn sparing_dirty_from(self, credit: u8) -> Self {
        Self {
            spares_from: credit,
            ..self
        }
    }

    /// How many pages the next window is to have, in a heap of `regions` regions;
    /// `None`: the walk has what it can get.
    #[must_use]
    #[inline]
    pub const fn wants(&self, regions: usize) -> Option<usize> {
        // Once more than all regions: the hand began in the middle of one.
        let over = self.dirty >= self.dirty_most || self.looks == 0 || self.ends > regions;
        if over || self.taken >= self.wanted {
            return None;
        }
        Some(self.wanted - self.taken)
    }

    /// A window was empty: the hand went on to the next region.
    #[inline]
    pub const fn end_of_region(&mut self) {
        self.ends += 1;
    }

    /// Looks at a page of a window, in a sweep that [`takes_dirty`] pages or not.
    #[inline]
    pub const fn look(&mut self, clean: bool, takes_dirty: bool) -> Look {
        self.looks = self.looks.saturating_sub(1);
        self.dirty_lead += if clean { -1 } else { 1 };
        Look {
            clean,
            takes_dirty,
            // So many pages in a row with credit: take what comes, or the
            // caller would wait for all of it to run out.
            forced: self.taken == 0 && self.looks < FORCED_LOOKS,
            ignores_credit: self.ignores_credit,
            spares_from: self.spares_from,
        }
    }

    /// A page joined the batch.
    #[inline]
    pub const fn take(&mut self, clean: bool) {
        self.taken += 1;
        self.dirty += !clean as usize;
    }

    /// So many pages of the batch did not leave after all: they were touched meanwhile.
    #[inline]
    pub const fn missed(&mut self, pages: usize) {
        self.taken = self.taken.saturating_sub(pages);
    }

    /// Dirty pages looked at, less the clean ones.
    #[must_use]
    #[inline]
    pub const fn dirty_lead(&self) -> i64 {
        self.dirty_lead
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EpochClock, Past};

    const LIMIT: u64 = 1000;

    /// The heat of a page that came back at once, `times` times.
    fn hot(times: usize) -> Heat {
        let mut heat = Heat::FRESH;
        for _ in 0..times {
            heat = Past::from_bits(heat.evict(7).to_bits()).refault(EpochClock::new(LIMIT), 7);
        }
        heat
    }

    fn look(clean: bool, takes_dirty: bool) -> Look {
        Walk::new(1).look(clean, takes_dirty)
    }

    #[test]
    fn a_position_is_one_word() {
        let far = Position {
            region: (1 << 24) - 1,
            page: (1 << 40) - 1,
        };
        assert_eq!(far.to_bits(), u64::MAX);
        for position in [
            far,
            Position::START,
            Position { region: 3, page: 5 },
            Position { region: 0, page: 9 },
        ] {
            assert_eq!(Position::from_bits(position.to_bits()), position);
        }
        assert_eq!(Position::START.to_bits(), 0);
    }

    #[test]
    fn the_hand_goes_round_all_regions() {
        // Resident pages by region.
        let regions: [&[usize]; 3] = [&[2, 3, 9], &[], &[0, 70]];
        let mut hand = Position::START;
        let mut windows = Vec::new();
        loop {
            let pages = regions[hand.region];
            let window = window(hand.page, 2, |from| {
                pages.iter().copied().find(|&page| page >= from)
            });
            let region = hand.region;
            hand = hand.past(&window, regions.len());
            windows.push((region, window));
            if hand == Position::START {
                break;
            }
        }
        assert_eq!(
            windows,
            [
                (0, 2..4),
                (0, 9..10),
                (0, 0..0),
                (1, 0..0),
                (2, 0..71),
                (2, 0..0)
            ]
        );
        // A region that is gone: from the first one on, at the same page.
        let lost = Position { region: 3, page: 8 };
        assert_eq!(lost.among(3), Position { region: 0, page: 8 });
        assert_eq!(lost.among(4), lost);
    }

    #[test]
    fn a_window_is_no_larger_than_a_batch() {
        assert_eq!(window(5, 1000, Some), 5..5 + EVICT_BATCH_PAGES);
        assert_eq!(window(5, 1, Some), 5..6);
        // Asked for none, it still moves on.
        assert_eq!(window(5, 0, Some), 5..6);
    }

    #[test]
    fn credit_spares_a_clean_page_and_little_of_it_no_dirty_one() {
        for times in 0..8 {
            let heat = hot(times);
            let spared = Judgement::Spare(heat.pass().unwrap());
            assert_eq!(look(true, false).judge(heat), spared);
            assert_eq!(look(true, true).judge(heat), spared);
            assert_eq!(look(false, false).judge(heat), Judgement::Leave);
            let credit = heat.credit() >= DIRTY_CREDIT_MIN;
            let expected = if credit { spared } else { Judgement::Take };
            assert_eq!(look(false, true).judge(heat), expected);
        }
        assert!(hot(0).credit() < DIRTY_CREDIT_MIN && hot(7).credit() >= DIRTY_CREDIT_MIN);
        for clean in [true, false] {
            assert_eq!(look(clean, true).judge(Heat::COLD), Judgement::Take);
        }
        assert_eq!(look(false, false).judge(Heat::COLD), Judgement::Leave);
    }

    #[test]
    fn where_dirty_pages_are_spared_as_others_any_credit_counts() {
        for times in 0..8 {
            let heat = hot(times);
            let spared = Judgement::Spare(heat.pass().unwrap());
            let mut walk = Walk::new(1).sparing_dirty_from(1);
            assert_eq!(walk.look(false, true).judge(heat), spared);
        }
        let mut walk = Walk::new(1).sparing_dirty_from(1);
        assert_eq!(walk.look(false, true).judge(Heat::COLD), Judgement::Take);
    }

    #[test]
    fn credit_can_be_ignored_but_not_the_sweep() {
        let mut walk = Walk::new(9).ignoring_credit(true);
        assert_eq!(walk.look(true, false).judge(hot(5)), Judgement::Take);
        assert_eq!(walk.look(false, true).judge(hot(5)), Judgement::Take);
        assert_eq!(walk.look(false, false).judge(hot(5)), Judgement::Leave);
    }

    /// Counts the looks of a walk that meets only such pages; and what it took.
    fn walk_through(mut walk: Walk, heat: Heat, clean: bool, takes_dirty: bool) -> (usize, usize) {
        let (mut looks, mut taken) = (0, 0);
        while let Some(wanted) = walk.wants(1) {
            for _ in 0..wanted {
                looks += 1;
                if walk.look(clean, takes_dirty).judge(heat) == Judgement::Take {
                    walk.take(clean);
                    taken += 1;
                }
            }
        }
        let lead = if clean { -1 } else { 1 };
        assert_eq!(walk.dirty_lead(), lead * looks as i64);
        (looks, taken)
    }

    #[test]
    fn a_walk_ends_with_what_it_was_asked_for() {
        assert_eq!(
            walk_through(Walk::new(100), Heat::COLD, true, false),
            (100, 100)
        );
        // None and too many are asked for.
        assert_eq!(walk_through(Walk::new(0), Heat::COLD, true, false), (1, 1));
        let most = EVICT_BATCH_PAGES;
        assert_eq!(
            walk_through(Walk::new(9999), Heat::COLD, true, false),
            (most, most)
        );
    }

    #[test]
    fn a_batch_has_few_dirty_pages_and_a_direct_one_fewer() {
        // The last window is judged to its end.
        let (_, taken) = walk_through(Walk::new(300), Heat::COLD, false, true);
        assert_eq!(taken, EVICT_BATCH_PAGES);
        let one_by_one = |mut walk: Walk| {
            let mut taken = 0;
            while walk.wants(1).is_some() {
                walk.take(false);
                taken += 1;
            }
            taken
        };
        assert_eq!(one_by_one(Walk::new(300)), DIRTY_PAGES_MAX);
        assert_eq!(one_by_one(Walk::direct(1 << 20)), DIRECT_DIRTY_PAGES_MAX);
        // A sixteenth of the limit, at least one page.
        assert_eq!(one_by_one(Walk::direct(160)), 10);
        assert_eq!(one_by_one(Walk::direct(1)), 1);
    }

    #[test]
    fn where_all_have_credit_the_last_looks_take_what_comes() {
        for (clean, takes_dirty) in [(true, false), (false, true), (false, false)] {
            let (looks, taken) = walk_through(Walk::new(10), hot(5), clean, takes_dirty);
            // One page, then credit counts again.
            assert_eq!(taken, 1, "clean {clean}");
            assert!(looks >= 10 * LOOKS_PER_PAGE + FORCED_LOOKS);
        }
        let mut walk = Walk::new(2);
        for _ in 0..2 * LOOKS_PER_PAGE {
            assert!(!walk.look(true, false).forced);
        }
        assert!(walk.look(true, false).forced);
    }

    #[test]
    fn a_batch_that_is_missed_is_looked_for_again() {
        let mut walk = Walk::new(4);
        for _ in 0..3 {
            walk.take(true);
        }
        assert_eq!(walk.wants(1), Some(1));
        walk.missed(2);
        assert_eq!(walk.wants(1), Some(3));
    }

    #[test]
    fn an_empty_heap_is_gone_through_once() {
        for regions in [1, 3] {
            let mut walk = Walk::new(4);
            let mut windows = 0;
            while walk.wants(regions).is_some() {
                walk.end_of_region();
                windows += 1;
            }
            assert_eq!(windows, regions + 1);
        }
    }

    #[test]
    fn written_pages_leave_in_every_fourth_sweep_or_when_they_are_most() {
        let taking: Vec<bool> = (0..9).map(|sweep| takes_dirty(sweep, false)).collect();
        let expected = [true, false, false, false];
        assert_eq!(taking[..8], [expected, expected].concat());
        assert!((0..9).all(|sweep| takes_dirty(sweep, true)));
        assert!(is_mostly_dirty(1));
        assert!(!is_mostly_dirty(0) && !is_mostly_dirty(-1));
    }

    #[test]
    fn watermarks_grow_with_the_limit_up_to_a_batch() {
        assert_eq!(low_watermark(BACKGROUND_LIMIT_PAGES - 1), 0);
        assert_eq!(high_watermark(0), 0);
        let most = EVICT_BATCH_PAGES as i64;
        for (limit, low) in [(1024, 64), (6400, 100), (1 << 20, most)] {
            assert_eq!(low_watermark(limit), low);
            assert_eq!(high_watermark(low), 2 * low);
        }
    }
}

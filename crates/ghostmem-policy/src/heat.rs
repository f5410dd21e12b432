//! Which page leaves: the credit of resident pages and the past of evicted ones.
//!
//! A page word has 16 bits for the policy. What they mean depends on where the
//! page is; the level stays in place.
//!
//! ```text
//!              15   13 12                 7 6            0
//!  resident   ┌───────┬────────────────────┬──────────────┐
//!  [`Heat`]   │ level │         0          │    credit    │
//!             └───────┴────────────────────┴──────────────┘
//!  evicted    ┌───────┬───────────────────────────────────┐
//!  [`Past`]   │ level │       epoch of the eviction       │
//!             └───────┴───────────────────────────────────┘
//! ```
//! The level says how hot the page proved to be over its past lives. Each
//! refault moves it, by how soon it came:
//!
//! ```text
//!   turnovers since the eviction   0 ... 1/4 ... 1 ... 3 ...
//!   level                           +2    +1    -1    -2
//! ```
//! and buys credit: passes of the hand that the page survives. One turnover is
//! the point where keeping the page would just have saved the fault; the
//! other figures come from the lab (`ghostmem-bench lab`), where all this is
//! judged beside other policies.
//!
//! New pages start in the middle and survive one pass, so that a program's
//! first working set is not evicted while it is built. Pages that readahead
//! brought start lower and survive none: a scan displaces nothing that proved
//! itself.

use crate::EpochClock;

const LEVEL_SHIFT: u32 = 13;
const LEVEL_TOP: u8 = 7;
const CREDIT_MASK: u16 = 0x7F;
/// Epochs are counted modulo this plus one.
pub(crate) const EPOCH_MASK: u16 = (1 << LEVEL_SHIFT) - 1;

/// Steps of coldness for time alone: those of 256 turnovers.
const STEPS_MAX: u32 = 36;

/// Steps for size alone: those of a whole page.
const SIZE_STEPS_MAX: u32 = 4 * 7;

/// Sizes are told apart from about four times as many bytes on.
const BYTES_UNIT: usize = 8;

/// Level of a page that was never evicted.
const LEVEL_FRESH: u8 = 2;
/// Levels that a page loses when only readahead asked for it.
const AHEAD_FALL: u8 = 2;
/// Passes survived at each level.
const CREDITS: [u8; LEVEL_TOP as usize + 1] = [0, 7, 7, 15, 31, 63, 63, 63];

/// What the policy knows of a resident page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heat {
    level: u8,
    credit: u8,
}

impl Heat {
    /// A page that holds nothing yet and is written or read for the first time.
    pub const FRESH: Self = Self {
        level: LEVEL_FRESH,
        credit: 1,
    };
    /// A page that is to leave at the next occasion, its past forgotten.
    pub const COLD: Self = Self {
        level: 0,
        credit: 0,
    };

    /// Reads the 16 bits of a resident page.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self {
            level: (bits >> LEVEL_SHIFT) as u8,
            credit: (bits & CREDIT_MASK) as u8,
        }
    }

    /// The 16 bits to keep while the page is resident.
    #[must_use]
    pub const fn to_bits(self) -> u16 {
        (self.level as u16) << LEVEL_SHIFT | self.credit as u16
    }

    /// Passes of the hand the page still survives.
    #[must_use]
    pub const fn credit(self) -> u8 {
        self.credit
    }

    /// How hot it proved to be, 0 to 7.
    #[must_use]
    pub const fn level(self) -> u8 {
        self.level
    }

    /// The hand passes: the heat afterwards, or `None` when the page must go.
    #[must_use]
    pub const fn pass(self) -> Option<Self> {
        match self.credit.checked_sub(1) {
            Some(credit) => Some(Self {
                level: self.level,
                credit,
            }),
            None => None,
        }
    }

    /// The program was seen to store to the page, which it had kept: the page survives
    /// again as many passes as when it came. One that only readahead asked for has been
    /// wanted now.
    #[must_use]
    pub const fn sighted(self) -> Self {
        let level = if self.level == 0 { 1 } else { self.level };
        let credit = CREDITS[level as usize];
        Self {
            level,
            credit: if self.credit > credit {
                self.credit
            } else {
                credit
            },
        }
    }

    /// The program touched the page while it was leaving: it would have come back at
    /// once.
    #[must_use]
    pub const fn held_back(self) -> Self {
        self.climbed(2)
    }

    const fn climbed(self, levels: u8) -> Self {
        let level = self.level + levels;
        let level = if level > LEVEL_TOP { LEVEL_TOP } else { level };
        Self {
            level,
            credit: CREDITS[level as usize],
        }
    }

    /// The page is evicted in epoch `now`.
    #[must_use]
    pub const fn evict(self, now: u16) -> Past {
        Past {
            level: self.level,
            evicted: now & EPOCH_MASK,
        }
    }
}

/// What the policy remembers of an evicted page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Past {
    level: u8,
    evicted: u16,
}

impl Past {
    /// Reads the 16 bits of an evicted page.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self {
            level: (bits >> LEVEL_SHIFT) as u8,
            evicted: bits & EPOCH_MASK,
        }
    }

    /// The 16 bits to keep while the page is away.
    #[must_use]
    pub const fn to_bits(self) -> u16 {
        (self.level as u16) << LEVEL_SHIFT | self.evicted
    }

    /// The program touches the page in epoch `now` of `clock`.
    #[must_use]
    pub const fn refault(self, clock: EpochClock, now: u16) -> Heat {
        let distance = (now.wrapping_sub(self.evicted) & EPOCH_MASK) as u64;
        let turnover = clock.epochs_per_turnover();
        let level = if 4 * distance < turnover {
            self.level + 2
        } else if distance < turnover {
            self.level + 1
        } else if distance < 3 * turnover {
            self.level.saturating_sub(1)
        } else {
            self.level.saturating_sub(2)
        };
        let level = if level > LEVEL_TOP { LEVEL_TOP } else { level };
        Heat {
            level,
            credit: CREDITS[level as usize],
        }
    }

    /// Whether the page left in epoch `now`.
    #[must_use]
    #[inline]
    pub const fn left_in(self, now: u16) -> bool {
        self.evicted == now & EPOCH_MASK
    }

    /// Whether the page left in epoch `then` or before: in the nearer half of the
    /// epochs that are told apart.
    #[must_use]
    #[inline]
    pub const fn left_by(self, then: u16) -> bool {
        then.wrapping_sub(self.evicted) & EPOCH_MASK <= EPOCH_MASK / 2
    }

    /// How cold the page is, 0 to [`Past::COLDNESS_MAX`]: four steps more for
    /// each doubling of the time it has been away, two less for each level.
    /// What leaves memory altogether leaves in this order.
    #[must_use]
    pub const fn coldness(self, clock: EpochClock, now: u16) -> u8 {
        let distance = (now.wrapping_sub(self.evicted) & EPOCH_MASK) as u64;
        let eighths = 8 * distance / clock.epochs_per_turnover() + 4;
        let power = eighths.ilog2();
        let step = 4 * (power - 2) + (eighths >> (power - 2) & 3) as u32;
        let step = if step > STEPS_MAX { STEPS_MAX } else { step };
        step as u8 + 2 * (LEVEL_TOP - self.level)
    }

    /// In which order what takes `bytes` leaves memory altogether, 0 to
    /// [`Past::DISPENSABLE_MAX`], the largest first: by the touches that a byte is
    /// expected to serve (Young, "On-line file caching", 1998; GreedyDual-Size).
    /// Twice the bytes weigh as much as twice the time away: a page that shrank
    /// to a tenth is ten times as cheap to keep, and costs as much to read back.
    #[must_use]
    pub const fn dispensable(self, bytes: usize, clock: EpochClock, now: u16) -> u8 {
        // Quarters of a doubling, as time is counted.
        let units = bytes / BYTES_UNIT + 4;
        let power = units.ilog2();
        let step = 4 * (power - 2) + (units >> (power - 2) & 3) as u32;
        let step = if step > SIZE_STEPS_MAX {
            SIZE_STEPS_MAX
        } else {
            step
        };
        self.coldness(clock, now) + step as u8
    }

    /// The largest [`Past::dispensable`].
    pub const DISPENSABLE_MAX: u8 = Self::COLDNESS_MAX + SIZE_STEPS_MAX as u8;

    /// The largest [`Past::coldness`].
    pub const COLDNESS_MAX: u8 = STEPS_MAX as u8 + 2 * LEVEL_TOP;

    /// Readahead brings the page back; nobody has asked for it yet.
    #[must_use]
    pub const fn ahead(self) -> Heat {
        Heat {
            level: self.level.saturating_sub(AHEAD_FALL),
            credit: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: EpochClock = EpochClock::new(65536);

    #[test]
    fn soon_refaults_climb_and_late_ones_fall() {
        let past = |level, evicted| Past { level, evicted };
        let turnover = CLOCK.epochs_per_turnover() as u16;
        for (distance, from, to) in [
            (0, 0, 2),
            (turnover / 4 - 1, 0, 2),
            (turnover / 4, 0, 1),
            (turnover - 1, 3, 4),
            (turnover, 3, 2),
            (3 * turnover - 1, 3, 2),
            (3 * turnover, 3, 1),
            (0, 6, 7),
            (0, 7, 7),
            (3 * turnover, 1, 0),
            (turnover, 0, 0),
        ] {
            // The second time across the point where the clock wraps.
            for evicted in [0, EPOCH_MASK] {
                let now = (evicted + distance) & EPOCH_MASK;
                let heat = past(from, evicted).refault(CLOCK, now);
                assert_eq!(heat.level(), to, "level {from}, {distance} epochs");
                assert_eq!(heat.credit(), CREDITS[usize::from(to)]);
            }
        }
    }

    #[test]
    fn a_page_left_by_an_epoch_when_that_was_its_own_or_a_later_one() {
        let half = EPOCH_MASK / 2;
        // The last two across the point where the clock wraps.
        for then in [half, 0, EPOCH_MASK] {
            let left = |before: u16| Past {
                level: 0,
                evicted: then.wrapping_sub(before) & EPOCH_MASK,
            };
            assert!([0, 1, half].iter().all(|&ago| left(ago).left_by(then)));
            assert!(!left(half + 1).left_by(then));
            assert!(!left(EPOCH_MASK).left_by(then), "the epoch after");
        }
    }

    #[test]
    fn a_page_that_is_sighted_survives_again_what_its_level_buys() {
        let ahead = Past::from_bits(0).ahead();
        assert_eq!((ahead.level(), ahead.credit()), (0, 0));
        assert_eq!((ahead.sighted().level(), ahead.sighted().credit()), (1, 7));
        for level in 1..=LEVEL_TOP {
            let full = CREDITS[usize::from(level)];
            for credit in 0..=full {
                let seen = Heat { level, credit }.sighted();
                assert_eq!((seen.level(), seen.credit()), (level, full));
            }
        }
        assert_eq!(Heat::FRESH.sighted().credit(), 7);
    }

    #[test]
    fn a_page_held_back_is_as_hot_as_one_that_came_back_at_once() {
        for level in 0..=LEVEL_TOP {
            let heat = Heat { level, credit: 0 };
            assert_eq!(heat.held_back(), heat.evict(9).refault(CLOCK, 9));
        }
    }

    #[test]
    fn credit_runs_out() {
        let mut heat = Past::from_bits(0).refault(CLOCK, 0);
        let mut passes = 0;
        while let Some(next) = heat.pass() {
            heat = next;
            passes += 1;
        }
        assert_eq!((passes, heat.level()), (7, 2));
        assert_eq!(Heat::COLD.pass(), None);
        assert_eq!(Heat::FRESH.pass().and_then(Heat::pass), None);
    }

    #[test]
    fn bits_survive_the_round_trip() {
        for level in 0..=LEVEL_TOP {
            for credit in CREDITS {
                let heat = Heat { level, credit };
                assert_eq!(Heat::from_bits(heat.to_bits()), heat);
            }
            for evicted in [0, 1, EPOCH_MASK] {
                let past = Past { level, evicted };
                assert_eq!(Past::from_bits(past.to_bits()), past);
                assert_eq!(past.ahead().credit(), 0);
            }
        }
    }

    #[test]
    fn a_tiny_limit_still_tells_soon_from_late() {
        let clock = EpochClock::new(5);
        let past = Heat::COLD.evict(clock.epoch(1000));
        assert_eq!(past.refault(clock, clock.epoch(1001)).level(), 2);
        assert_eq!(past.refault(clock, clock.epoch(1004)).level(), 1);
        assert_eq!(past.refault(clock, clock.epoch(1005)).level(), 0);
    }

    #[test]
    fn twice_the_bytes_weigh_as_much_as_twice_the_time() {
        let clock = EpochClock::new(3200);
        let past = Past {
            level: 3,
            evicted: 0,
        };
        let at = |bytes, distance| past.dispensable(bytes, clock, distance);
        for distance in [32, 128, 512] {
            for bytes in [128, 600, 1400, 2048] {
                let (large, long) = (at(2 * bytes, distance), at(bytes, 2 * distance));
                assert!(
                    large.abs_diff(long) <= 1,
                    "{bytes} bytes, {distance} epochs"
                );
                assert!(large > at(bytes, distance));
            }
        }
        let sizes = (0..=4200).map(|bytes| at(bytes, 100));
        assert!(sizes.is_sorted());
        assert_eq!(
            past.dispensable(4096 + 64, clock, 0) - past.coldness(clock, 0),
            SIZE_STEPS_MAX as u8
        );
    }

    #[test]
    fn pages_get_colder_with_time_and_hot_ones_later() {
        let clock = EpochClock::new(3200);
        let at = |level, distance| {
            Past {
                level,
                evicted: 100,
            }
            .coldness(clock, (100 + distance) & EPOCH_MASK)
        };
        for level in 0..=LEVEL_TOP {
            let all = (0..EPOCH_MASK).map(|distance| at(level, distance));
            assert!(all.clone().is_sorted() && all.max() <= Some(Past::COLDNESS_MAX));
        }
        assert_eq!(at(LEVEL_TOP, 0), 0);
        assert_eq!(at(0, EPOCH_MASK), Past::COLDNESS_MAX);
        // Two levels make up for twice the time, about.
        for distance in [32, 128, 512, 2048] {
            let (hot, cold) = (at(4, 2 * distance), at(2, distance));
            assert!(hot.abs_diff(cold) <= 1 && at(2, 2 * distance) > hot);
        }
    }
}

//! Which page leaves, and how far to read ahead: pure decisions, no clock, no
//! operating system, no memory of their own.
//!
//! The processor's accessed bits cannot be seen from user space, so the only
//! sign of a page's heat is a *refault*: it was evicted and came back. How
//! soon it came back, measured in turnovers of the resident set, says how hot
//! it is ([`Heat`]). Hot pages get *credit*: passes of the clock hand they
//! survive. A page that keeps refaulting soon climbs levels, each worth twice
//! the credit of the one before, so a page of the hot core soon costs one
//! fault in sixteen turnovers instead of one in each; a page that comes back
//! late falls again. New pages and pages of a one-time scan have no credit:
//! they prove themselves before they displace anything.
//!
//! ```text
//!   refault distance (turnovers)   0 ... SOON ... LATE ...
//!   level                          up one | keep | down one
//!   credit = 2^level - 1
//! ```
#![forbid(unsafe_code)]

pub mod stream;

pub use stream::{Plan, Stream};

/// Epochs in one turnover of the resident set: the clock advances by one each
/// time this fraction of the resident limit has been evicted.
pub const EPOCHS_PER_TURNOVER: u64 = 8;

/// The reclaimer's clock, counted in evictions.
#[derive(Debug, Clone, Copy)]
pub struct EpochClock {
    evictions_per_epoch: u64,
}

impl EpochClock {
    /// A clock for a resident set of `limit_pages`.
    #[must_use]
    pub const fn new(limit_pages: u64) -> Self {
        let step = limit_pages / EPOCHS_PER_TURNOVER;
        Self {
            evictions_per_epoch: if step == 0 { 1 } else { step },
        }
    }

    /// The epoch after `evictions`, modulo 512 (what a page word keeps).
    #[must_use]
    pub const fn epoch(self, evictions: u64) -> u16 {
        ((evictions / self.evictions_per_epoch) & 0x1FF) as u16
    }
}

/// What a page word remembers of its past, and what the hand does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heat {
    /// Passes of the hand the page still survives.
    pub credit: u8,
    /// 0 to [`Heat::LEVEL_TOP`].
    pub level: u8,
}

impl Heat {
    /// Highest level: credit 15.
    pub const LEVEL_TOP: u8 = 4;
    /// Refaults within this many epochs of the eviction are soon.
    pub const SOON_EPOCHS: u16 = EPOCHS_PER_TURNOVER as u16;
    /// Refaults after more than this many epochs are late.
    pub const LATE_EPOCHS: u16 = 4 * EPOCHS_PER_TURNOVER as u16;

    /// The page was evicted at epoch `evicted` and is touched at epoch `now`.
    #[must_use]
    pub const fn refault(self, evicted: u16, now: u16) -> Self {
        let distance = now.wrapping_sub(evicted) & 0x1FF;
        let level = if distance <= Self::SOON_EPOCHS {
            if self.level < Self::LEVEL_TOP {
                self.level + 1
            } else {
                Self::LEVEL_TOP
            }
        } else if distance > Self::LATE_EPOCHS {
            self.level.saturating_sub(1)
        } else {
            self.level
        };
        Self {
            credit: (1 << level) - 1,
            level,
        }
    }

    /// The hand passes: the heat afterwards, or `None` when the page must go.
    #[must_use]
    pub const fn pass(self) -> Option<Self> {
        match self.credit.checked_sub(1) {
            Some(credit) => Some(Self {
                credit,
                level: self.level,
            }),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soon_refaults_climb_and_late_ones_fall() {
        let mut heat = Heat::default();
        for level in 1..=4 {
            heat = heat.refault(100, 101);
            assert_eq!((heat.level, heat.credit), (level, (1 << level) - 1));
        }
        assert_eq!(heat.refault(100, 100).level, 4, "the top is the top");
        assert_eq!(heat.refault(100, 100 + Heat::LATE_EPOCHS + 1).level, 3);
        assert_eq!(heat.refault(100, 100 + Heat::SOON_EPOCHS + 1).level, 4);
        // The clock wraps at 512.
        assert_eq!(heat.refault(510, 2).level, 4);
    }

    #[test]
    fn credit_runs_out() {
        let mut heat = Heat {
            credit: 3,
            level: 2,
        };
        let mut passes = 0;
        while let Some(next) = heat.pass() {
            heat = next;
            passes += 1;
        }
        assert_eq!((passes, heat.level), (3, 2));
    }

    #[test]
    fn one_turnover_is_eight_epochs() {
        let clock = EpochClock::new(65536);
        assert_eq!(clock.epoch(65536) - clock.epoch(0), 8);
        assert_eq!(EpochClock::new(5).epoch(513), 1);
    }
}

//! Which page leaves, and how far to read ahead: pure decisions, no clock, no
//! operating system, no memory of their own.
//!
//! The processor's accessed bits cannot be seen from user space, so the only
//! sign of a page's heat is a *refault*: it was evicted and came back. How
//! soon it came back, measured in turnovers of the resident set, says how hot
//! it is. See [`heat`] for what follows from that, [`hand`] for the walk that
//! finds pages to evict, and [`stream`] for readahead. [`writes`] says which
//! pages keep a copy, [`balance`] what each kind of memory may take, [`bound`] how
//! many pages may be resident under a bound on the whole process, [`forecast`]
//! what an allocation will take, [`pace`] when the store is compacted, [`slowdown`] how
//! little memory a program bears, and [`thrash`] whether it does little but fault, and [`worth`] what
//! copies are worth beside pages.
#![forbid(unsafe_code)]

pub mod balance;
pub mod bound;
pub mod costs;
pub mod forecast;
pub mod hand;
pub mod heat;
pub mod pace;
pub mod slowdown;
pub mod stream;
pub mod thrash;
pub mod worth;
pub mod writes;

pub use heat::{Heat, Past};
pub use stream::{Plan, RUNS, Runs, Stream};

/// Epochs in one turnover of a large resident set: the clock advances by one
/// each time this fraction of the resident limit has been evicted. Fine enough
/// to tell a quarter of a turnover from less, coarse enough that the 13 bits
/// of a page word hold 256 turnovers: a page away for longer looks recent
/// again, once in 256 times.
const EPOCHS_PER_TURNOVER: u64 = 32;

/// The reclaimer's clock, counted in evictions.
#[derive(Debug, Clone, Copy)]
pub struct EpochClock {
    limit_pages: u64,
    evictions_per_epoch: u64,
}

impl EpochClock {
    /// A clock for a resident set of `limit_pages`.
    #[must_use]
    pub const fn new(limit_pages: u64) -> Self {
        let step = limit_pages / EPOCHS_PER_TURNOVER;
        Self {
            limit_pages: if limit_pages == 0 { 1 } else { limit_pages },
            evictions_per_epoch: if step == 0 { 1 } else { step },
        }
    }

    /// Evictions from one epoch to the next.
    #[must_use]
    pub const fn evictions_per_epoch(self) -> u64 {
        self.evictions_per_epoch
    }

    /// The epoch after `evictions`, modulo what a page word keeps.
    #[must_use]
    pub const fn epoch(self, evictions: u64) -> u16 {
        ((evictions / self.evictions_per_epoch) & heat::EPOCH_MASK as u64) as u16
    }

    /// Epochs in which as many pages are evicted as may be resident; at least
    /// 1, fewer than 64.
    #[must_use]
    pub const fn epochs_per_turnover(self) -> u64 {
        self.limit_pages / self.evictions_per_epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turnover_is_the_limit_whatever_the_limit() {
        for limit in [1, 5, 31, 32, 33, 63, 64, 1000, 65536] {
            let clock = EpochClock::new(limit);
            let epochs = clock.epochs_per_turnover();
            assert!((1..64).contains(&epochs), "{epochs} for {limit}");
            // A whole turnover advances the clock by that much, one eviction
            // too few by at most as much.
            assert!(u64::from(clock.epoch(limit)) == epochs);
            assert!(u64::from(clock.epoch(limit - 1)) <= epochs);
        }
    }
}

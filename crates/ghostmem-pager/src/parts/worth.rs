//! What copies were seen to be worth: the counts of the last time that somebody looked,
//! and the share of memory that followed. Async-signal-safe.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ghostmem_policy::costs::Costs;
use ghostmem_policy::worth::{CopiesShare, Counted};

/// The counts are written by whoever moved `looked` on; of two who do so at once, within
/// an epoch, one may see a part of the other's.
pub(crate) struct Worth {
    /// Evictions when somebody looked.
    looked: AtomicU64,
    share: AtomicU32,
    /// See [`Counted`].
    counted: [AtomicU64; 7],
}

impl Worth {
    pub(crate) const fn new() -> Self {
        Self {
            looked: AtomicU64::new(0),
            share: AtomicU32::new(CopiesShare::START.to_bits()),
            counted: [const { AtomicU64::new(0) }; 7],
        }
    }

    /// The share of copies after so many evictions, of which an epoch has `epoch`. `look`
    /// is called where enough were evicted to tell more: what was counted, costs, pages
    /// that would have the place of copies, and how many pages may be resident.
    pub(crate) fn share(
        &self,
        evictions: u64,
        epoch: u64,
        look: impl FnOnce() -> (Counted, Costs, u64, u64),
    ) -> CopiesShare {
        let share = CopiesShare::from_bits(self.share.load(Ordering::Relaxed));
        let looked = self.looked.load(Ordering::Relaxed);
        let due = evictions.saturating_sub(looked) >= CopiesShare::evictions(epoch);
        let is_mine = || {
            let moved = self.looked.compare_exchange(
                looked,
                evictions,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            moved.is_ok()
        };
        if !due || !is_mine() {
            return share;
        }
        let (now, costs, copied, resident) = look();
        let share = share.after(&now.since(&self.swap(&now)), &costs, copied, resident);
        self.share.store(share.to_bits(), Ordering::Relaxed);
        share
    }

    /// Keeps what is counted now; what had been the last time.
    fn swap(&self, now: &Counted) -> Counted {
        let now = [
            now.clean,
            now.packed,
            now.compared,
            now.opened,
            now.early,
            now.faults,
            now.fault_ns,
        ];
        let mut before = [0; 7];
        for ((kept, now), before) in self.counted.iter().zip(now).zip(&mut before) {
            *before = kept.swap(now, Ordering::Relaxed);
        }
        let [clean, packed, compared, opened, early, faults, fault_ns] = before;
        Counted {
            clean,
            packed,
            compared,
            opened,
            early,
            faults,
            fault_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs {
        call_ns: 1000,
        page_ns: 60,
        open_ns: 4000,
        pack_ns: 4000,
        compare_ns: 1500,
        stored: 0,
        unchanged: 0,
    };

    /// Counts of a program that evicted so many pages, all of them clean.
    fn read(evictions: u64) -> (Counted, Costs, u64, u64) {
        let counted = Counted {
            clean: evictions,
            faults: evictions,
            fault_ns: evictions * 9000,
            ..Counted::default()
        };
        (counted, COSTS, 1 << 10, 32 << 10)
    }

    #[test]
    fn the_share_follows_what_was_counted_since_the_last_look() {
        let worth = Worth::new();
        let start = CopiesShare::START.to_bits();
        let at = |evictions, look: &dyn Fn() -> (Counted, Costs, u64, u64)| {
            worth.share(evictions, 2000, look).to_bits()
        };
        assert_eq!(at(1999, &|| panic!("too early to tell")), start);
        assert_eq!(at(2000, &|| read(2000)), 2 * start);
        assert_eq!(at(3999, &|| panic!("as well")), 2 * start);
        assert_eq!(at(4000, &|| read(4000)), 4 * start);
        // None left clean since then, and stores had to open them.
        let (counted, costs, copied, resident) = read(4000);
        let opened = Counted {
            opened: 1000,
            faults: 6000,
            ..counted
        };
        assert_eq!(at(6000, &|| (opened, costs, copied, resident)), 2 * start);
        // An epoch of a small heap is too short.
        let look = || -> (Counted, Costs, u64, u64) { panic!("a thousand at least") };
        assert_eq!(worth.share(6500, 10, look).to_bits(), 2 * start);
    }
}

//! What copies are worth beside the pages whose place they take.
//!
//! ```text
//!   a copy saves      compressing its page, once that leaves unchanged
//!   and costs         the fault of a store to the clean page, a comparison,
//!                     and its room: a part of a page that could be resident
//!   a page more       saves the refaults of pages that come back just after they left
//! ```
//! How much room copies may have is not known beforehand: a program that only reads gains
//! by each of them, one that goes through more than it has pays a fault for each page they
//! take the place of. So both sides are counted, and the share follows.

use crate::costs::Costs;

/// Parts that a share of memory is given in.
const WHOLE: u32 = 1024;

/// Fewer evictions tell too little.
const EVICTIONS_MIN: u64 = 1024;

/// What was counted while some pages were evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Pages that left without being compressed, as they had a copy.
    pub clean: u64,
    /// Pages that were compressed when they left.
    pub packed: u64,
    /// Pages that were compared with their copy before they left.
    pub compared: u64,
    /// Stores to pages that were protected beside their copy.
    pub opened: u64,
    /// Faults on pages that had left in the same epoch.
    pub early: u64,
    /// Faults that were served, and the time they took with their signals, nanoseconds.
    pub faults: u64,
    /// See `faults`.
    pub fault_ns: u64,
}

impl Counted {
    /// What was counted since `before`.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            clean: self.clean.saturating_sub(before.clean),
            packed: self.packed.saturating_sub(before.packed),
            compared: self.compared.saturating_sub(before.compared),
            opened: self.opened.saturating_sub(before.opened),
            early: self.early.saturating_sub(before.early),
            faults: self.faults.saturating_sub(before.faults),
            fault_ns: self.fault_ns.saturating_sub(before.fault_ns),
        }
    }
}

/// What copies may take of a heap's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopiesShare(u32);

impl CopiesShare {
    /// A thirty-second: what is lost by it, if anything, is little, and it tells.
    pub const START: Self = Self(WHOLE / 32);

    /// Never less, as it tells what copies save.
    const LEAST: u32 = WHOLE / 128;

    /// Never more: the rest is for pages.
    const MOST: u32 = WHOLE / 4;

    /// Of so many parts of 1024.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits.clamp(Self::LEAST, Self::MOST))
    }

    /// The share in parts of 1024.
    #[must_use]
    pub const fn to_bits(self) -> u32 {
        self.0
    }

    /// The share of so many bytes.
    #[must_use]
    pub const fn of(self, bytes: usize) -> usize {
        (bytes as u128 * self.0 as u128 / WHOLE as u128) as usize
    }

    /// How many evictions tell enough, where one epoch takes `epoch`.
    #[must_use]
    pub fn evictions(epoch: u64) -> u64 {
        epoch.max(EVICTIONS_MIN)
    }

    /// The share after what was `counted`, with copies in the place of `copied_pages` of
    /// resident pages beside `resident` of them. It doubles or halves, where one side
    /// outweighs the other clearly.
    #[must_use]
    pub fn after(self, counted: &Counted, costs: &Costs, copied_pages: u64, resident: u64) -> Self {
        let saved_ns = counted.clean * costs.pack_ns;
        let spent_ns = counted.compared * costs.compare_ns + counted.opened * costs.open_ns;
        let fault_ns = counted.fault_ns.checked_div(counted.faults).unwrap_or(0);
        let gone = (counted.clean + counted.packed).max(1);
        let leaving_ns = costs.pack_ns * counted.packed / gone;
        let return_ns = fault_ns + leaving_ns;
        // Of those who are away for less than an epoch, half come back in the epoch that
        // they left in. So these are as many as half an epoch's frames more would keep.
        let half_epoch = resident / (2 * super::EPOCHS_PER_TURNOVER);
        let saved_by_pages = counted.early as u128 * copied_pages as u128;
        let room_ns = saved_by_pages * return_ns as u128 / half_epoch.max(1) as u128;
        let cost_ns = spent_ns as u128 + room_ns;
        let gain_ns = saved_ns as u128;
        if 2 * gain_ns > 3 * cost_ns {
            Self::from_bits(2 * self.0)
        } else if 2 * cost_ns > 3 * gain_ns {
            Self::from_bits(self.0 / 2)
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: Costs = Costs {
        call_ns: 1000,
        page_ns: 60,
        open_ns: 4600,
        pack_ns: 4400,
        compare_ns: 1600,
        stored: 0,
        unchanged: 0,
    };

    /// A thousand pages left, of 32 thousand that are resident; so many of them clean.
    fn share_after(counted: Counted) -> u32 {
        let mut share = CopiesShare::START;
        for _ in 0..10 {
            let copied = share.of(32 << 10) as u64;
            share = share.after(&counted, &COSTS, copied, 32 << 10);
        }
        share.to_bits()
    }

    #[test]
    fn a_program_that_only_reads_has_a_quarter_for_copies() {
        let counted = Counted {
            clean: 900,
            faults: 1000,
            fault_ns: 9_300_000,
            ..Counted::default()
        };
        assert_eq!(share_after(counted), CopiesShare::MOST);
    }

    #[test]
    fn copies_that_are_stored_to_go() {
        let counted = Counted {
            clean: 100,
            opened: 300,
            faults: 1000,
            fault_ns: 9_300_000,
            ..Counted::default()
        };
        assert_eq!(share_after(counted), CopiesShare::LEAST);
        // None that ever left clean, and nothing else: nothing is known, or they cost nothing.
        assert_eq!(share_after(Counted::default()), WHOLE / 32);
    }

    #[test]
    fn pages_that_come_back_at_once_take_the_place_of_copies() {
        let counted = |early| Counted {
            clean: 100,
            packed: 900,
            early,
            faults: 1000,
            fault_ns: 9_300_000,
            ..Counted::default()
        };
        assert_eq!(share_after(counted(100)), CopiesShare::LEAST);
        assert_eq!(share_after(counted(0)), CopiesShare::MOST);
        // In between: 100 compressions, 0.44 ms, are worth the room of 3,400 pages, each of
        // which would save a hundredth of a return of 13.3 us.
        let share = share_after(counted(5));
        assert!((WHOLE / 64..=WHOLE / 8).contains(&share), "{share}");
    }

    #[test]
    fn a_share_is_of_any_memory() {
        assert_eq!(CopiesShare::START.of(usize::MAX), usize::MAX / 32);
        assert_eq!(CopiesShare::from_bits(0).to_bits(), CopiesShare::LEAST);
        assert_eq!(CopiesShare::evictions(7), EVICTIONS_MIN);
    }
}

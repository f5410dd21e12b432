//! The clock hand, kept in atomics: which resident pages are looked at next.
//!
//! It walks all regions in address order, a window of pages at a time; a window belongs to
//! the thread that moved the hand past it. What the hand does where is decided in
//! `ghostmem_policy::hand`.

use core::ops::Range;
use core::sync::atomic::Ordering;

use ghostmem_policy::hand::{self, Position};

use crate::parts::engine::Engine;
use crate::parts::region::Region;

impl Engine {
    /// Whether dirty pages leave in this sweep of the hand.
    pub(crate) fn takes_dirty(&self) -> bool {
        hand::takes_dirty(
            self.sweeps.load(Ordering::Relaxed),
            self.dirty_rules.load(Ordering::Relaxed),
        )
    }

    /// A sweep begins.
    fn next_sweep(&self) {
        let dirty_lead = self.dirty_lead.swap(0, Ordering::Relaxed);
        let rules = hand::is_mostly_dirty(dirty_lead);
        self.dirty_rules.store(rules, Ordering::Relaxed);
        self.sweeps.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the hand past the next few resident pages, which are then this
    /// caller's to judge. An empty window: the hand went on to the next
    /// region. `None`: there are no regions.
    pub(crate) fn next_window(&self, wanted: usize) -> Option<(&Region, Range<usize>)> {
        loop {
            let before = self.hand.load(Ordering::Acquire);
            let count = self.region_count();
            if count == 0 {
                return None;
            }
            let position = Position::from_bits(before).among(count);
            let region = self.region(position.region)?;
            let window = hand::window(position.page, wanted, |from| region.resident.next(from));
            let after = position.past(&window, count);
            if self
                .hand
                .compare_exchange(before, after.to_bits(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                if after == Position::START {
                    self.next_sweep();
                }
                return Some((region, window));
            }
        }
    }
}

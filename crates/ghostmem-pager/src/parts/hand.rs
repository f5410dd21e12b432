//! The clock hand: which resident pages are looked at next.
//!
//! It walks all regions in address order, a window of pages at a time; a window belongs to
//! the thread that moved the hand past it. Once a sweep it is decided whether written
//! pages leave with it.

use core::sync::atomic::Ordering;

use crate::parts::engine::Engine;
use crate::parts::region::Region;

/// Most pages evicted in one batch. Dropping mappings interrupts the other
/// processors once for each batch, which costs as much as evicting some 40
/// clean pages.
pub(crate) const BATCH_PAGES: usize = 256;

/// Resident pages the hand looks at for each page it is asked to evict,
/// before it takes what it has.
pub(crate) const LOOKS_PER_PAGE: usize = 32;

/// Dirty pages leave in one sweep of the hand out of so many, unless most pages are
/// dirty. Each sweep that takes some write-protects all others between them, and
/// these then fault at their next store, for longer than a restore takes.
const DIRTY_SWEEPS: u64 = 4;

impl Engine {
    /// Whether dirty pages leave in this sweep of the hand.
    pub(crate) fn takes_dirty(&self) -> bool {
        self.dirty_rules.load(Ordering::Relaxed)
            || self
                .sweeps
                .load(Ordering::Relaxed)
                .is_multiple_of(DIRTY_SWEEPS)
    }

    /// A sweep begins.
    fn next_sweep(&self) {
        let dirty_lead = self.dirty_lead.swap(0, Ordering::Relaxed);
        self.dirty_rules.store(dirty_lead > 0, Ordering::Relaxed);
        self.sweeps.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the hand past the next few resident pages, which are then this
    /// caller's to judge. An empty window: the hand went on to the next
    /// region. `None`: there are no regions.
    pub(crate) fn next_window(&self, wanted: usize) -> Option<(&Region, usize, usize)> {
        loop {
            let hand = self.hand.load(Ordering::Acquire);
            let (index, from) = ((hand >> 40) as usize, (hand & ((1 << 40) - 1)) as usize);
            let count = self.region_count();
            if count == 0 {
                return None;
            }
            let index = if index >= count { 0 } else { index };
            let region = self.region(index)?;
            let start = region.resident.next(from);
            let mut end = start.map_or(0, |page| page + 1);
            if start.is_some() {
                for _ in 1..wanted.min(BATCH_PAGES) {
                    match region.resident.next(end) {
                        Some(page) => end = page + 1,
                        None => break,
                    }
                }
            }
            let next = match start {
                Some(_) => ((index as u64) << 40) | end as u64,
                None => (((index + 1) % count) as u64) << 40,
            };
            if self
                .hand
                .compare_exchange(hand, next, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                if next == 0 {
                    self.next_sweep();
                }
                return Some((region, start.unwrap_or(0), end));
            }
        }
    }
}

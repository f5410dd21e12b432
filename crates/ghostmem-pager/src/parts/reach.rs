//! What a heap may take at the moment: its limits and its bound, looked up.

use core::sync::atomic::Ordering;

use crate::parts::bound::{LEAST_PAGES, ProcessBound};
use crate::parts::engine::Engine;

impl Engine {
    /// What the heap may take in all, bytes: the memory limit, or what the bound leaves
    /// beside what is not the heap's. `None`: as much as there is.
    pub(crate) fn memory_limit(&self) -> Option<usize> {
        let left = self.bound.as_ref().map(ProcessBound::heap_bytes);
        match (left, self.config.memory_limit_bytes) {
            (Some(left), Some(limit)) => Some(left.min(limit)),
            (left, limit) => left.or(limit),
        }
    }

    /// Pages that may be resident if everything that can leave for it leaves: the limit,
    /// where nothing but the limit says so. What a slowdown takes off it comes back where
    /// it is needed.
    pub(crate) fn reach_pages(&self) -> i64 {
        let limit = self.budget.limit();
        match (&self.bound, &self.slowdown) {
            (Some(bound), _) => bound.reach_pages().max(limit),
            (None, Some(slowed)) => slowed.most_pages(),
            (None, None) => limit,
        }
    }

    /// Most pages that the share of time in faults leaves; without one, any number.
    pub(crate) fn slowed_pages(&self) -> i64 {
        let pinned = self.pinned_pages.load(Ordering::Relaxed);
        let slowed = self.slowdown.as_ref();
        slowed.map_or(i64::MAX, |slowed| slowed.limit_pages(pinned))
    }

    /// Leaves the pages that a slowdown leaves beside pinned ones, as soon as they are
    /// pinned. Under a bound, whoever needs a frame looks.
    pub(crate) fn make_way_for_pins(&self) {
        if let (Some(slowed), None) = (&self.slowdown, &self.bound) {
            let pages = slowed.most_pages().min(self.slowed_pages());
            if self.budget.limit() < pages {
                self.budget.set_limit(pages);
            }
        }
    }

    /// Fewest pages that stay resident while others wait in the store.
    pub(crate) fn least_resident_pages(&self) -> i64 {
        match &self.bound {
            Some(bound) => LEAST_PAGES.min(bound.most_pages()),
            None => self.budget.limit(),
        }
    }

    /// Whether there is a memory limit, and [`Engine::count_foreign`] may refuse.
    #[must_use]
    #[inline]
    pub fn has_memory_limit(&self) -> bool {
        self.has_heap_limit() || self.bound.is_some()
    }

    /// Whether there is a limit on what the heap itself holds, beside any bound.
    #[must_use]
    #[inline]
    pub fn has_heap_limit(&self) -> bool {
        self.config.memory_limit_bytes.is_some()
    }
}

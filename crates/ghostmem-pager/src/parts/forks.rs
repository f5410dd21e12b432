//! What forks may come to, under a bound that holds parent and child.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ghostmem_os::PAGE_SIZE;

/// A measurement of this age still says that the bound is far away, nanoseconds: twice the
/// longest time between two looks of the engine's thread.
const FRESH_NS: u64 = 500_000_000;

/// The bound is far away where it holds so many times the pages that may stay.
const FAR_TIMES: i64 = 2;

#[derive(Debug)]
pub(crate) struct Forks {
    /// This process was forked from one with a heap.
    is_child: AtomicBool,
    /// Other processes of the tree that share pages of a fork, at the last look.
    sharing: AtomicU64,
}

impl Forks {
    pub(crate) const fn new() -> Self {
        Self {
            is_child: AtomicBool::new(false),
            sharing: AtomicU64::new(0),
        }
    }

    pub(crate) fn after_fork_in_child(&self) {
        self.is_child.store(true, Ordering::Relaxed);
    }

    pub(crate) fn note_sharing(&self, processes: u64) {
        self.sharing.store(processes, Ordering::Relaxed);
    }

    /// Pages that may be resident at a fork where `room_bytes` are left: these hold them
    /// once more for the child, once for each other process that shares pages of a fork, as
    /// it may fork as well, and once for what all take until the child has looked.
    pub(crate) fn shareable_pages(&self, room_bytes: u64) -> i64 {
        let times = self.sharing.load(Ordering::Relaxed).saturating_add(2);
        let pages = room_bytes / PAGE_SIZE as u64 / times;
        i64::try_from(pages).unwrap_or(i64::MAX)
    }

    /// Whether `used` pages may stay at a fork, of `shareable` by a measurement of that age,
    /// so that there is no need to measure again.
    pub(crate) const fn needs_no_look(used: i64, shareable: i64, age_ns: u64) -> bool {
        used.saturating_mul(FAR_TIMES) <= shareable && age_ns < FRESH_NS
    }

    /// What a forked child may come to without a fault that the engine sees: it writes
    /// resident pages, as far as it shares `shared_bytes`. Of the process that forked
    /// others ask for its faults, and its own thread looks.
    pub(crate) fn unseen_bytes(&self, shared_bytes: u64, resident_bytes: u64) -> u64 {
        if self.is_child.load(Ordering::Relaxed) {
            shared_bytes.min(resident_bytes)
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE as u64;

    #[test]
    fn only_processes_that_share_pages_of_a_fork_divide_the_room() {
        let forks = Forks::new();
        assert_eq!(forks.shareable_pages(12_000 * PAGE), 6000);
        forks.note_sharing(2);
        assert_eq!(forks.shareable_pages(12_000 * PAGE), 3000);
        assert_eq!(forks.shareable_pages(0), 0);
    }

    #[test]
    fn a_look_is_spared_far_from_the_bound() {
        let spared = Forks::needs_no_look;
        assert!(spared(1000, 2000, FRESH_NS - 1));
        assert!(!spared(1000, 1999, 0), "close to the bound");
        assert!(!spared(1000, 2000, FRESH_NS), "measured long ago");
    }

    #[test]
    fn a_child_may_write_what_is_resident_and_shared() {
        let forks = Forks::new();
        assert_eq!(forks.unseen_bytes(50, 90), 0, "it forked");
        forks.after_fork_in_child();
        assert_eq!(forks.unseen_bytes(50, 90), 50);
        assert_eq!(forks.unseen_bytes(50, 20), 20);
    }
}

//! What the share of time that faults may take leaves to the resident limit. The thread that
//! evicts writes it, some times a second ([`ghostmem_policy::slowdown`]); those who set the
//! limit read it.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use ghostmem_os::clock;
use ghostmem_policy::hand::BACKGROUND_LIMIT_PAGES;
use ghostmem_policy::slowdown::share_ppm;

/// Fewest pages that a share leaves beside pinned ones: with fewer, faulting threads evict
/// for themselves.
const FLOOR_PAGES: i64 = BACKGROUND_LIMIT_PAGES;

/// The clock follows when the limit is off by this part.
const CLOCK_STEP: i64 = 4;

/// A share of the program's time that faults may take.
#[derive(Debug)]
pub(crate) struct Slowed {
    /// The share, in millionths.
    share_ppm: u32,
    /// Most pages that may be resident, whatever the share leaves.
    most_pages: AtomicI64,
    /// Most pages that the share leaves.
    limit_pages: AtomicI64,
    /// The resident limit that turnovers are counted by, in large steps; any number where
    /// nobody looks.
    clock_pages: AtomicI64,
    /// Time in faults when the heap was made, or the process forked, nanoseconds.
    begun_faults_ns: AtomicU64,
    /// What the process had computed for then, nanoseconds.
    begun_user_ns: AtomicU64,
    /// What the background thread of the engine has computed for since, nanoseconds.
    engine_ns: AtomicU64,
}

impl Slowed {
    pub(crate) fn new(share_ppm: u32, most_pages: i64) -> Self {
        Self {
            share_ppm,
            most_pages: AtomicI64::new(most_pages),
            limit_pages: AtomicI64::new(i64::MAX),
            clock_pages: AtomicI64::new(most_pages),
            begun_faults_ns: AtomicU64::new(0),
            begun_user_ns: AtomicU64::new(clock::process_user_ns().unwrap_or(0)),
            engine_ns: AtomicU64::new(0),
        }
    }

    pub(crate) const fn share_ppm(&self) -> u32 {
        self.share_ppm
    }

    pub(crate) fn most_pages(&self) -> i64 {
        self.most_pages.load(Ordering::Relaxed)
    }

    pub(crate) fn set_most_pages(&self, pages: i64) {
        self.most_pages.store(pages, Ordering::Relaxed);
    }

    /// Most pages that the share leaves while so many are pinned: these cannot leave.
    pub(crate) fn limit_pages(&self, pinned_pages: usize) -> i64 {
        let limit = self.limit_pages.load(Ordering::Relaxed);
        limit.max(Self::floor_pages(pinned_pages))
    }

    /// Fewest pages that a share leaves while so many are pinned.
    pub(crate) fn floor_pages(pinned_pages: usize) -> i64 {
        let pinned = i64::try_from(pinned_pages).unwrap_or(i64::MAX);
        FLOOR_PAGES.saturating_add(pinned)
    }

    pub(crate) fn set_limit_pages(&self, pages: i64) {
        self.limit_pages.store(pages, Ordering::Relaxed);
    }

    pub(crate) fn clock_pages(&self) -> i64 {
        self.clock_pages.load(Ordering::Relaxed)
    }

    /// The resident limit is `pages` now: the clock follows where it is far off.
    pub(crate) fn note_limit(&self, pages: i64) {
        let clock = self.clock_pages();
        if (pages - clock).abs() > clock / CLOCK_STEP {
            self.clock_pages.store(pages, Ordering::Relaxed);
        }
    }

    /// Time in faults since it began, of `faults_ns` in all.
    pub(crate) fn faults_ns(&self, faults_ns: u64) -> u64 {
        faults_ns.saturating_sub(self.begun_faults_ns.load(Ordering::Relaxed))
    }

    /// What the program has computed for since it began: the process, less the engine's
    /// background thread. `None` where the system does not tell.
    pub(crate) fn own_ns(&self) -> Option<u64> {
        let begun = self.begun_user_ns.load(Ordering::Relaxed);
        let user = clock::process_user_ns()?.saturating_sub(begun);
        Some(user.saturating_sub(self.engine_ns.load(Ordering::Relaxed)))
    }

    /// What the calling thread has computed for is the engine's.
    pub(crate) fn note_engine(&self) {
        let engine = clock::thread_user_ns().unwrap_or(0);
        self.engine_ns.store(engine, Ordering::Relaxed);
    }

    /// The share that faults took since it began, of `faults_ns` in all, in millionths.
    pub(crate) fn reached_ppm(&self, faults_ns: u64) -> u64 {
        let own = self.own_ns();
        own.map_or(0, |own| share_ppm(self.faults_ns(faults_ns), own))
    }

    /// In a forked child, which had `faults_ns` in faults as its parent: it begins anew, and
    /// without a thread that looks nothing is limited.
    pub(crate) fn after_fork_in_child(&self, faults_ns: u64) {
        self.begun_faults_ns.store(faults_ns, Ordering::Relaxed);
        let user = clock::process_user_ns().unwrap_or(0);
        self.begun_user_ns.store(user, Ordering::Relaxed);
        self.engine_ns.store(0, Ordering::Relaxed);
        self.set_limit_pages(i64::MAX);
        self.clock_pages.store(i64::MAX, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_follows_in_steps_of_a_quarter() {
        let slowed = Slowed::new(50_000, 100_000);
        slowed.note_limit(80_000);
        assert_eq!(slowed.clock_pages(), 100_000);
        slowed.note_limit(74_000);
        assert_eq!(slowed.clock_pages(), 74_000);
        slowed.note_limit(90_000);
        assert_eq!(slowed.clock_pages(), 74_000);
    }

    #[test]
    fn pinned_pages_are_left_beside_the_fewest() {
        let slowed = Slowed::new(50_000, 100_000);
        slowed.set_limit_pages(5000);
        assert_eq!(slowed.limit_pages(0), 5000);
        assert_eq!(slowed.limit_pages(20_000), 20_000 + FLOOR_PAGES);
    }

    #[test]
    fn a_child_begins_with_a_share_of_its_own() {
        let slowed = Slowed::new(50_000, 100_000);
        slowed.set_limit_pages(5000);
        assert_eq!(slowed.faults_ns(7_000_000_000), 7_000_000_000);
        slowed.after_fork_in_child(7_000_000_000);
        assert_eq!(slowed.faults_ns(7_000_000_001), 1);
        assert_eq!(slowed.limit_pages(0), i64::MAX);
        // The parent's turnovers are not the child's, until a thread of its own looks.
        assert_eq!(slowed.clock_pages(), i64::MAX);
        slowed.note_limit(90_000);
        assert_eq!(slowed.clock_pages(), 90_000);
        assert_eq!(slowed.reached_ppm(7_000_000_000), 0);
    }
}

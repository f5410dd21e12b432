//! Who asks others in the same supply to give back, and when it was in vain.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::parts::spin::{SpinGuard, SpinLock};

/// Time for which others are not asked again that gave nothing back, nanoseconds; twice as
/// long each time, up to a minute.
const VAIN_NS: u64 = 1_000_000_000;
const VAIN_DOUBLINGS: u32 = 6;

/// At most one thread of a process inflates a balloon at a time.
#[derive(Debug)]
pub(crate) struct Balloons {
    going_on: SpinLock,
    /// Balloons in vain since one that was not.
    vain: AtomicU32,
    /// When others may be asked again.
    until_ns: AtomicU64,
}

impl Balloons {
    pub(crate) const fn new() -> Self {
        Self {
            going_on: SpinLock::new(),
            vain: AtomicU32::new(0),
            until_ns: AtomicU64::new(0),
        }
    }

    /// The right to inflate one, unless somebody has it.
    pub(crate) fn try_begin(&self) -> Option<SpinGuard<'_>> {
        self.going_on.try_lock()
    }

    pub(crate) fn is_going_on(&self) -> bool {
        self.going_on.is_held()
    }

    /// Whether the last one in vain was long ago.
    pub(crate) fn are_hopeful(&self, now: u64) -> bool {
        now >= self.until_ns.load(Ordering::Relaxed)
    }

    /// Notes whether others gave back what was missing.
    pub(crate) fn note(&self, given: bool, now: u64) {
        if given {
            self.vain.store(0, Ordering::Relaxed);
            return;
        }
        let vain = self.vain.fetch_add(1, Ordering::Relaxed);
        let until = now.saturating_add(VAIN_NS << vain.min(VAIN_DOUBLINGS));
        self.until_ns.store(until, Ordering::Relaxed);
    }

    /// In a forked child: whoever inflated one is not there.
    pub(crate) fn after_fork_in_child(&self) {
        self.going_on.release();
        self.note(true, 0);
        self.until_ns.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_that_give_nothing_are_asked_ever_more_rarely() {
        let balloons = Balloons::new();
        let right = balloons.try_begin().unwrap();
        assert!(balloons.try_begin().is_none() && balloons.is_going_on());
        drop(right);
        assert!(!balloons.is_going_on() && balloons.are_hopeful(0));
        let mut now = 10;
        for seconds in [1, 2, 4, 8, 16, 32, 64, 64] {
            balloons.note(false, now);
            now += seconds * VAIN_NS - 1;
            assert!(!balloons.are_hopeful(now), "after {seconds} s");
            now += 1;
            assert!(balloons.are_hopeful(now), "after {seconds} s");
        }
        balloons.note(true, now);
        balloons.note(false, now);
        assert!(balloons.are_hopeful(now + VAIN_NS));
    }
}

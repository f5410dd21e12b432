//! A control group that swaps to zram, and whose processes the kernel does not kill.
//!
//! Linux 6.18 with groups of version 1 gives up on a group that swaps while most of
//! its pages could still be reclaimed. So its killer is switched off for the group. A
//! process then waits for memory instead, and is lent some for a moment, in which the
//! kernel gets on with reclaiming. How often that was, and for how long, is part of the
//! record: the kernel may refuse to take a loan back for most of a run, which then had
//! more memory than its limit says, and does not count ([`Loans::spoil`]). Version 2 has
//! no such switch: there a run that was killed is tried again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::contenders::{zram, zswap};
use crate::error::Result;

/// What is lent, bytes, and for how long.
const LOAN: u64 = 8 << 20;
const LOAN_LASTS: Duration = Duration::from_millis(10);
/// Between two questions whether a process waits for memory.
const WATCH: Duration = Duration::from_millis(1);

/// What a group was lent in one run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Loans {
    /// How often.
    pub(super) count: u64,
    /// How long the group could hold more than its limit.
    pub(super) lasted: Duration,
}

impl Loans {
    /// A run counts while it was lent memory for no larger part of its time.
    const PART: f64 = 1.0 / 20.0;
    /// Or for no more seconds: what a loan or two take of a short run.
    const SHORT_S: f64 = 0.1;

    /// Whether a run of so many seconds had more memory than its limit says.
    pub(super) fn spoil(&self, seconds: f64) -> bool {
        self.lasted.as_secs_f64() > (seconds * Self::PART).max(Self::SHORT_S)
    }
}

/// Swap and group of one run. Fields are dropped in this order: the program is gone
/// by then.
pub(super) struct SwapGroup {
    swap: zram::Swap,
    _zswap: Option<zswap::Switch>,
    group: Cgroup,
    limit: u64,
    /// It may hold more than its limit now.
    is_lent: AtomicBool,
}

impl SwapGroup {
    /// A group of `limit` bytes for a program that takes `peak` bytes without one.
    ///
    /// # Errors
    /// [`crate::error::Error::Skipped`] when the machine does not allow it.
    pub(super) fn set_up(limit: u64, peak: u64) -> Result<Self> {
        // zswap would stand between the group and zram.
        let off = zswap::Switch::set(false)?;
        let swap = zram::Swap::set_up(2 * peak + (256 << 20), "lz4")?;
        let group = Cgroup::create()?;
        group.set_limit(limit)?;
        group.swap_readily()?;
        group.wait_for_memory()?;
        Ok(Self {
            swap,
            _zswap: off,
            group,
            limit,
            is_lent: AtomicBool::new(false),
        })
    }

    pub(super) fn group(&self) -> &Cgroup {
        &self.group
    }

    /// Whether it may hold more than its limit now: what it holds then is no part of its
    /// total, which GhostMem gets as its bound.
    pub(super) fn is_lent(&self) -> bool {
        self.is_lent.load(Ordering::Acquire)
    }

    /// Bytes that zram holds.
    pub(super) fn swapped_bytes(&self) -> u64 {
        zram::device_bytes(self.swap.name()).map_or(0, |[_, held, _]| held)
    }

    /// Lends the group memory whenever a process waits for it, until `run` is done;
    /// what that answers, and what loans there were.
    pub(super) fn lending<T>(&self, run: impl FnOnce() -> T) -> (T, Loans) {
        let (done, loans) = (AtomicBool::new(false), AtomicU64::new(0));
        let lasted_ns = AtomicU64::new(0);
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let begin = Instant::now();
                    let waits = self.group.is_waiting();
                    self.is_lent.store(waits, Ordering::Release);
                    if waits && self.loan().is_ok() {
                        loans.fetch_add(1, Ordering::Relaxed);
                        self.end_loan(&done);
                        let lasted = begin.elapsed().as_nanos() as u64;
                        lasted_ns.fetch_add(lasted, Ordering::Relaxed);
                    }
                    std::thread::sleep(WATCH);
                }
            });
            let answer = run();
            done.store(true, Ordering::Release);
            answer
        });
        let loans = Loans {
            count: loans.load(Ordering::Relaxed),
            lasted: Duration::from_nanos(lasted_ns.load(Ordering::Relaxed)),
        };
        (answer, loans)
    }

    /// Lends more than the group has, whatever it was lent before.
    fn loan(&self) -> Result<()> {
        let has = self.group.usage()?.max(self.limit);
        self.group.set_limit(has + LOAN)
    }

    /// Ends a loan. The kernel refuses while it finds too little to swap out. What it found
    /// is not lent any more: else the program would take it again before the next try.
    fn end_loan(&self, done: &AtomicBool) {
        loop {
            std::thread::sleep(LOAN_LASTS);
            if self.group.set_limit(self.limit).is_ok() {
                return;
            }
            if let Ok(usage) = self.group.usage() {
                // Refused again where the program is faster.
                let _next_time = self.group.set_limit(usage.max(self.limit));
            }
            if self.group.is_waiting() || done.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_was_lent_memory_for_long_does_not_count() {
        let lasted = |ms| Loans {
            count: 1,
            lasted: Duration::from_millis(ms),
        };
        assert!(!Loans::default().spoil(0.0));
        assert!(!lasted(30).spoil(0.2), "one loan of a short run");
        assert!(!lasted(400).spoil(8.0), "a twentieth");
        assert!(lasted(401).spoil(8.0));
        // Most of a run: the kernel refused to take the loan back.
        assert!(lasted(5000).spoil(7.57));
    }
}

//! A control group that swaps to zram, and whose processes the kernel does not kill.
//!
//! Linux 6.18 with groups of version 1 gives up on a group that swaps while most of
//! its pages could still be reclaimed. So its killer is switched off for the group. A
//! process then waits for memory instead, and is lent some for a moment, in which the
//! kernel gets on with reclaiming. How often that was is part of the record. Version 2
//! has no such switch: there a run that was killed is tried again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::contenders::{zram, zswap};
use crate::error::Result;

/// What is lent, bytes, and for how long.
const LOAN: u64 = 8 << 20;
const LOAN_LASTS: Duration = Duration::from_millis(10);
/// Between two questions whether a process waits for memory.
const WATCH: Duration = Duration::from_millis(1);

/// Swap and group of one run. Fields are dropped in this order: the program is gone
/// by then.
pub(super) struct SwapGroup {
    swap: zram::Swap,
    _zswap: Option<zswap::Switch>,
    group: Cgroup,
    limit: u64,
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
        })
    }

    pub(super) fn group(&self) -> &Cgroup {
        &self.group
    }

    /// Name of the zram device.
    pub(super) fn device(&self) -> &str {
        self.swap.name()
    }

    /// Lends the group memory whenever a process waits for it, until `run` is done;
    /// what that answers, and how many loans there were.
    pub(super) fn lending<T>(&self, run: impl FnOnce() -> T) -> (T, u64) {
        let (done, loans) = (AtomicBool::new(false), AtomicU64::new(0));
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    if self.group.is_waiting() && self.loan().is_ok() {
                        loans.fetch_add(1, Ordering::Relaxed);
                        self.end_loan(&done);
                    }
                    std::thread::sleep(WATCH);
                }
            });
            let answer = run();
            done.store(true, Ordering::Release);
            answer
        });
        (answer, loans.load(Ordering::Relaxed))
    }

    /// Lends more than the group has, whatever it was lent before.
    fn loan(&self) -> Result<()> {
        let has = self.group.usage()?.max(self.limit);
        self.group.set_limit(has + LOAN)
    }

    /// Ends a loan. The kernel refuses while it finds too little to swap out.
    fn end_loan(&self, done: &AtomicBool) {
        loop {
            std::thread::sleep(LOAN_LASTS);
            if self.group.set_limit(self.limit).is_ok()
                || self.group.is_waiting()
                || done.load(Ordering::Acquire)
            {
                return;
            }
        }
    }
}

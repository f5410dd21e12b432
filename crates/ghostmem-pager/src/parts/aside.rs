//! Whether the engine's own threads stand aside, as a call wants a process of one thread.

use core::sync::atomic::{AtomicBool, Ordering};

use ghostmem_os::futex;

/// Nothing stands aside by default.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    /// One caller at a time has threads stand aside.
    is_taken: AtomicBool,
    /// They are to end.
    ends: AtomicBool,
}

impl Aside {
    /// Waits for others that have threads stand aside.
    pub(crate) fn take(&self) {
        let mut tries = 0_u32;
        while self.is_taken.swap(true, Ordering::AcqRel) {
            futex::pause(tries);
            tries = tries.saturating_add(1);
        }
    }

    /// Tells the threads to end, or that they may be started again.
    pub(crate) fn set(&self, ends: bool) {
        self.ends.store(ends, Ordering::Release);
    }

    /// Lets the next caller go on.
    pub(crate) fn give_back(&self) {
        self.is_taken.store(false, Ordering::Release);
    }

    /// Whether threads are to end.
    pub(crate) fn ends(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    /// In a forked child, which has one thread: whether the parent's stood aside, or were about
    /// to, for a thread that is not here.
    pub(crate) fn forget(&self) -> bool {
        self.ends.store(false, Ordering::Release);
        self.is_taken.swap(false, Ordering::AcqRel)
    }
}

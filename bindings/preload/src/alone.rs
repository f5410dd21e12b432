//! A lock for what takes a moment: one thread at a time has it, none that a handler of the
//! program's could interrupt, and no forked child waits for a thread of its parent's.

use core::sync::atomic::{AtomicBool, Ordering};

use ghostmem_os::futex;

/// The lock. Whoever takes it has signals blocked, as a handler would wait for its own
/// thread, and does not take it twice.
pub(crate) struct Alone(AtomicBool);

impl Alone {
    pub(crate) const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Waits until no other thread has it. Threads of lower priority run meanwhile.
    pub(crate) fn take(&'static self) -> Taken {
        let mut tries = 0;
        while self.0.swap(true, Ordering::Acquire) {
            futex::pause(tries);
            tries = tries.saturating_add(1);
        }
        Taken(self)
    }

    /// In a forked child: whoever had it in the parent is not here.
    pub(crate) fn forget_others(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Nobody else has the lock while this is there.
pub(crate) struct Taken(&'static Alone);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

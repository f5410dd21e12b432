//! A lock for sections of a few dozen steps.

use core::hint;
use core::sync::atomic::{AtomicBool, Ordering};

use ghostmem_os::futex;

/// A lock without a queue, for sections of a few dozen steps. Unlike the
/// standard library's it can be let go of by the other handler of a fork.
#[derive(Debug)]
pub(crate) struct SpinLock {
    held: AtomicBool,
}

/// Holding the lock; lets go when dropped.
#[derive(Debug)]
pub(crate) struct SpinGuard<'a>(&'a SpinLock);

impl SpinLock {
    /// Tries before the processor is offered to others.
    const SPINS: u32 = 64;

    pub(crate) const fn new() -> Self {
        Self {
            held: AtomicBool::new(false),
        }
    }

    pub(crate) fn lock(&self) -> SpinGuard<'_> {
        self.acquire();
        SpinGuard(self)
    }

    /// The lock, unless somebody holds it: never waits.
    pub(crate) fn try_lock(&self) -> Option<SpinGuard<'_>> {
        let free = !self.held.swap(true, Ordering::Acquire);
        // Not made where it is not free: its end would let go of the other's.
        free.then(|| SpinGuard(self))
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    pub(crate) fn acquire(&self) {
        let mut tries = 0_u32;
        while self.held.swap(true, Ordering::Acquire) {
            // Look without writing until it seems free.
            while self.held.load(Ordering::Relaxed) {
                match tries.checked_sub(Self::SPINS) {
                    None => hint::spin_loop(),
                    // Sleeps after a while: the holder may be of lower priority.
                    Some(pauses) => futex::pause(pauses),
                }
                tries = tries.saturating_add(1);
            }
        }
    }

    pub(crate) fn release(&self) {
        self.held.store(false, Ordering::Release);
    }
}

impl Drop for SpinGuard<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

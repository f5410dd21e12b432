//! A lock for sections of a few dozen steps.

use core::hint;
use core::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// A lock without a queue, for sections of a few dozen steps. Unlike the
/// standard library's it can be let go of by the other handler of a fork.
#[derive(Debug)]
pub(crate) struct SpinLock {
    held: AtomicBool,
}

/// Holding the lock; lets go when dropped.
pub(crate) struct Held<'a>(&'a SpinLock);

impl SpinLock {
    /// Tries before the processor is offered to others.
    const SPINS: u32 = 64;

    /// Tries before sleeping: the holder may be of lower priority.
    const YIELDS: u32 = 256;

    /// How long a sleep is.
    const PAUSE: Duration = Duration::from_micros(50);

    pub(crate) const fn new() -> Self {
        Self {
            held: AtomicBool::new(false),
        }
    }

    pub(crate) fn hold(&self) -> Held<'_> {
        self.acquire();
        Held(self)
    }

    pub(crate) fn acquire(&self) {
        let mut tries = 0_u32;
        while self.held.swap(true, Ordering::Acquire) {
            // Look without writing until it seems free.
            while self.held.load(Ordering::Relaxed) {
                tries = tries.saturating_add(1);
                match tries {
                    0..Self::SPINS => hint::spin_loop(),
                    Self::SPINS..Self::YIELDS => thread::yield_now(),
                    _ => thread::sleep(Self::PAUSE),
                }
            }
        }
    }

    pub(crate) fn release(&self) {
        self.held.store(false, Ordering::Release);
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

//! A thread without an operating system: its clock is a number, and it never sleeps.
//!
//! Only in builds with the feature `sim`, and there only on threads that [`begin`] was
//! called on. What such a thread would have waited for in the kernel happens otherwise:
//! [`crate::futex::wait`] lets the clock go on by the whole timeout and returns, so that
//! every wait for time ends; a wait for another actor of the same thread must not be
//! begun at all.

use core::cell::Cell;

std::thread_local! {
    /// The time in nanoseconds; `None` where the operating system's counts.
    static NOW: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Sets the calling thread's clock to `now_ns`, and keeps the operating system's away.
pub fn begin(now_ns: u64) {
    NOW.set(Some(now_ns));
}

/// Gives the calling thread the operating system's clock and waits back.
pub fn end() {
    NOW.set(None);
}

/// The time of a simulated thread; `None` on all others.
#[must_use]
pub fn now_ns() -> Option<u64> {
    NOW.get()
}

/// Whether the calling thread is simulated.
#[must_use]
pub fn is_on() -> bool {
    NOW.get().is_some()
}

/// Lets a simulated thread's clock go on by `ns`.
pub fn advance(ns: u64) {
    NOW.set(NOW.get().map(|now| now.saturating_add(ns)));
}

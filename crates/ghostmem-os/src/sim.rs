//! A thread without an operating system: its clock is a number, and it never sleeps.
//!
//! Only in builds with the feature `sim`, and there only on threads that [`begin`] was
//! called on. What such a thread would have waited for in the kernel happens otherwise:
//! [`crate::futex::wait`] lets the clock go on by the whole timeout and returns, so that
//! every wait for time ends; a wait for another actor of the same thread must not be
//! begun at all.
//!
//! With a scheduler ([`set_scheduler`]) the actors of a simulation have stacks of their
//! own: a wait is handed to it, and other actors run meanwhile. Each actor has a number,
//! by which locks and counters know it ([`set_actor`]).

use core::cell::Cell;

std::thread_local! {
    /// The time in nanoseconds; `None` where the operating system's counts.
    static NOW: Cell<Option<u64>> = const { Cell::new(None) };
    static SCHEDULER: Cell<Option<Scheduler>> = const { Cell::new(None) };
    /// Which actor runs; 0: nobody in particular.
    static ACTOR: Cell<usize> = const { Cell::new(0) };
}

/// What becomes of an actor that waits.
#[derive(Debug, Clone, Copy)]
pub struct Scheduler {
    /// It sleeps on a word, known by its address, until that time in nanoseconds.
    pub wait: fn(word: usize, until_ns: u64),
    /// Those who sleep on a word are woken.
    pub wake: fn(word: usize),
    /// It waits for another actor, and looks again later.
    pub pause: fn(),
}

/// Hands the calling thread's waits to a scheduler, or to none.
pub fn set_scheduler(scheduler: Option<Scheduler>) {
    SCHEDULER.set(scheduler);
}

pub(crate) fn scheduler() -> Option<Scheduler> {
    SCHEDULER.get()
}

/// Says which actor runs from now on; 0: nobody in particular.
pub fn set_actor(actor: usize) {
    ACTOR.set(actor);
}

/// The actor that runs, or 0.
#[must_use]
pub fn actor() -> usize {
    ACTOR.get()
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

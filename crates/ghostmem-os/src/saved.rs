//! The signal actions that were there before ours, published so that handlers
//! can read them at any moment.
//!
//! ```text
//!   actions   [ A ][ B ][ C ][    ] ...     written once, before `current`
//!   current     2: B is what ours chains to  says so; never changed again
//! ```
//! A program may install a handler over ours and have ours put back (re-arm)
//! while other threads are in our handler: rewriting one place would hand them
//! half of the old action and half of the new. Actions seen before are found
//! again, so alternating between a few handlers takes no room.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::error::OsError;

/// Most different actions kept for one signal.
pub const SAVED_MAX: usize = 32;

/// The actions found for one signal, and which of them is the current one.
pub(crate) struct Saved {
    actions: [UnsafeCell<Option<libc::sigaction>>; SAVED_MAX],
    /// Places written; changed by the one publisher only.
    len: AtomicUsize,
    /// Place of the current action, + 1; 0: there is none.
    current: AtomicUsize,
}

// SAFETY: a place is written once, by the only publisher, before `current`
// names it with Release; readers read places that `current` named, with
// Acquire, and those are never written again.
unsafe impl Sync for Saved {}

impl Saved {
    pub(crate) const fn new() -> Self {
        Self {
            actions: [const { UnsafeCell::new(None) }; SAVED_MAX],
            len: AtomicUsize::new(0),
            current: AtomicUsize::new(0),
        }
    }

    /// Makes `action` the current one. One thread at a time.
    ///
    /// # Errors
    /// `ENOSPC` when there is no place left for one more.
    pub(crate) fn publish(&self, action: libc::sigaction) -> Result<(), OsError> {
        let len = self.len.load(Ordering::Relaxed);
        let known = (0..len).find(|&place| self.read(place).is_some_and(|a| same(&a, &action)));
        let place = known.unwrap_or(len);
        if known.is_none() {
            let cell = self
                .actions
                .get(len)
                .ok_or(OsError::new("saving a signal handler", libc::ENOSPC))?;
            // SAFETY: this place was never named by `current`, so nobody reads
            // it; publishers come one at a time.
            unsafe { *cell.get() = Some(action) };
            self.len.store(len + 1, Ordering::Relaxed);
        }
        self.current.store(place + 1, Ordering::Release);
        Ok(())
    }

    /// The current action (`level` 0), or the one found so many before it.
    /// Async-signal-safe.
    pub(crate) fn current(&self, level: usize) -> Option<libc::sigaction> {
        let place = self.current.load(Ordering::Acquire).checked_sub(1)?;
        self.read(place.checked_sub(level)?)
    }

    /// The action in a place that was written before.
    fn read(&self, place: usize) -> Option<libc::sigaction> {
        // SAFETY: written before the caller could know of the place, and never
        // since.
        unsafe { *self.actions[place].get() }
    }
}

/// Whether two actions do the same.
fn same(one: &libc::sigaction, other: &libc::sigaction) -> bool {
    let blocks = |action: &libc::sigaction, number| {
        // SAFETY: a valid set and a signal number in range.
        unsafe { libc::sigismember(&raw const action.sa_mask, number) == 1 }
    };
    one.sa_sigaction == other.sa_sigaction
        && one.sa_flags == other.sa_flags
        && (1..=64).all(|number| blocks(one, number) == blocks(other, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    /// An action all of whose fields depend on `number`.
    fn action(number: usize) -> libc::sigaction {
        // SAFETY: all-zero bytes are a valid action.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = number;
        action.sa_flags = number as i32;
        for signal in 1..=64 {
            if (number >> (signal % 5)) & 1 == 1 {
                // SAFETY: a valid set and a signal number in range.
                unsafe { libc::sigaddset(&raw mut action.sa_mask, signal) };
            }
        }
        action
    }

    #[test]
    fn readers_never_see_parts_of_two_actions() {
        let saved = Saved::new();
        let done = AtomicBool::new(false);
        saved.publish(action(0)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let seen = saved.current(0).unwrap();
                        assert!(same(&seen, &action(seen.sa_sigaction)), "torn");
                    }
                });
            }
            for round in 0..200_000 {
                saved.publish(action(round % 20)).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(saved.len.load(Ordering::Relaxed), 20, "each is kept once");
    }

    #[test]
    fn too_many_different_actions_are_refused_and_change_nothing() {
        let saved = Saved::new();
        assert!(saved.current(0).is_none());
        for number in 0..SAVED_MAX {
            saved.publish(action(number)).unwrap();
        }
        let error = saved.publish(action(SAVED_MAX)).unwrap_err();
        assert_eq!(error.errno, libc::ENOSPC);
        let current = saved.current(0).unwrap();
        assert!(same(&current, &action(SAVED_MAX - 1)));
        saved.publish(action(3)).unwrap();
        assert!(same(&saved.current(0).unwrap(), &action(3)));
    }
}

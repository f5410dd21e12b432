//! A lock that survives fork(2): plain, short, and never taken in a fault
//! handler.
//!
//! `std::sync::Mutex` cannot be held across a fork and released in the child
//! through a guard that lives in a static; this one can.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{futex, thread};

/// A value behind a lock whose waiters look again and again, ever more seldom.
#[derive(Debug, Default)]
pub struct Lock<T> {
    /// [`thread::key`] of the holder, or 0.
    holder: AtomicU64,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only by the one thread that holds the lock.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The lock, held.
#[derive(Debug)]
pub struct Held<'a, T> {
    lock: &'a Lock<T>,
}

impl<T> Lock<T> {
    /// An open lock.
    pub const fn new(value: T) -> Self {
        Self {
            holder: AtomicU64::new(0),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock.
    pub fn lock(&self) -> Held<'_, T> {
        self.take();
        Held { lock: self }
    }

    /// Takes the lock, if nobody holds it.
    pub fn try_lock(&self) -> Option<Held<'_, T>> {
        self.try_take_for_fork().then(|| Held { lock: self })
    }

    fn take(&self) {
        let me = thread::key() as u64;
        let mut tries = 0;
        while self
            .holder
            .compare_exchange_weak(0, me, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            debug_assert_ne!(
                self.holder.load(Ordering::Relaxed),
                me,
                "a lock taken twice"
            );
            futex::pause(tries);
            tries = tries.saturating_add(1);
        }
    }

    /// Takes the lock before a fork; [`Lock::release_after_fork`] gives it
    /// back, in parent and child.
    pub fn take_for_fork(&self) {
        self.take();
    }

    /// As [`Lock::take_for_fork`], if nobody holds the lock.
    #[must_use]
    pub fn try_take_for_fork(&self) -> bool {
        let me = thread::key() as u64;
        self.holder
            .compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Whether the calling thread holds the lock.
    #[must_use]
    pub fn is_mine(&self) -> bool {
        self.holder.load(Ordering::Relaxed) == thread::key() as u64
    }

    /// Gives back what [`Lock::take_for_fork`] took.
    ///
    /// # Panics
    /// When the calling thread does not hold the lock.
    pub fn release_after_fork(&self) {
        let me = thread::key() as u64;
        assert_eq!(self.holder.load(Ordering::Relaxed), me, "not the holder");
        self.holder.store(0, Ordering::Release);
    }
}

impl<T> Held<'_, T> {
    /// Lets the guard go with the lock taken, over a fork:
    /// [`Lock::release_after_fork`] gives it back.
    pub fn keep_for_fork(self) {
        core::mem::forget(self);
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock and is borrowed exclusively.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.lock.holder.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_held_is_refused_and_stays_held() {
        let lock = Lock::new(1);
        let held = lock.lock();
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| lock.try_lock().is_none());
            assert!(refused.join().unwrap());
        });
        assert!(lock.is_mine(), "a refusal gave somebody else's lock back");
        drop(held);
        assert!(lock.try_lock().is_some());
    }
}

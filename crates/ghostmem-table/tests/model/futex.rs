//! Sleep on a word and wake, as `futex(2)` does it: the comparison and the
//! falling asleep are one step against every wake.
//!
//! A sleeper that nobody wakes leaves loom without a runnable thread, which it
//! reports as a deadlock.

use ghostmem_table::{AtomicU64, Word};
use loom::sync::atomic::Ordering;
use loom::sync::{Condvar, Mutex};

#[derive(Debug)]
pub(crate) struct Futex {
    bucket: Mutex<()>,
    sleepers: Condvar,
}

impl Futex {
    pub(crate) fn new() -> Self {
        Self {
            bucket: Mutex::new(()),
            sleepers: Condvar::new(),
        }
    }

    /// Sleeps unless the low half of `atomic` is no longer that of `expected`.
    pub(crate) fn wait(&self, atomic: &AtomicU64, expected: Word) {
        let bucket = self.bucket.lock().unwrap();
        if atomic.load(Ordering::Acquire) as u32 == expected.low_half() {
            drop(self.sleepers.wait(bucket).unwrap());
        }
    }

    /// Wakes every sleeper.
    pub(crate) fn wake(&self) {
        let _bucket = self.bucket.lock().unwrap();
        self.sleepers.notify_all();
    }
}

//! What the reclaimer's thread and those who wake it share.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ghostmem_os::futex;
use ghostmem_os::lock::Lock;
use ghostmem_os::thread::EngineThread;

pub(crate) struct WorkerState {
    /// 1 while the worker sleeps and wants to be woken.
    pub(crate) asleep: AtomicU64,
    /// Faulting threads evict for themselves: they keep every processor busy, or it costs
    /// the program less.
    pub(crate) stands_back: AtomicBool,
    pub(crate) thread: Lock<Option<EngineThread>>,
}

impl WorkerState {
    /// Ends the background thread's nap, though it may leave evictions to others.
    pub(crate) fn rouse(&self) {
        if self.asleep.load(Ordering::Relaxed) == 1 && self.asleep.swap(0, Ordering::AcqRel) == 1 {
            futex::wake_all(&self.asleep);
        }
    }
}

//! The engine's own threads: they start with it, and stand aside for a call that the kernel
//! makes only for a process of one thread.

use core::sync::atomic::Ordering;

use ghostmem_os::OsError;
use ghostmem_os::map::MapArc;

use crate::parts::engine::Engine;

impl Engine {
    /// Starts the threads that the settings ask for. Where the kernel gives the process no
    /// thread for evictions (a low `RLIMIT_NPROC`, a PID namespace for later children),
    /// faulting threads evict for themselves, as in a child that gets none.
    ///
    /// # Errors
    /// Of the thread that writes to the file: without it there is no file.
    pub(super) fn start_threads(this: &MapArc<Self>) -> Result<(), OsError> {
        if this.config.background {
            let _without = Self::start_worker(this);
        }
        Self::start_demoter(this)
    }

    /// Waits for the threads to end; which there were.
    pub(super) fn stop_threads(&self) -> (bool, bool) {
        (self.stop_worker(), self.stop_demoter())
    }

    /// Calls `call` while the process has none of the engine's threads, and starts them
    /// again. One that cannot be started is done without, as in a forked child. Pages are
    /// restored and evicted meanwhile, by the threads that fault.
    ///
    /// With the fault monitor its thread stays: it serves the faults.
    pub fn without_threads<R>(&self, call: impl FnOnce() -> R) -> R {
        self.closed.store(true, Ordering::Release);
        let (worker, demoter) = self.stop_threads();
        self.closed.store(false, Ordering::Release);
        if let Some(cold) = self.cold.as_ref().filter(|_| demoter) {
            // Nobody writes: nobody waits for it.
            cold.failing.store(true, Ordering::Relaxed);
        }
        let answer = call();
        if let Some(this) = self.handle() {
            if worker {
                let _without = Self::start_worker(&this);
            }
            if demoter {
                Self::restart_demoter(&this);
            }
        }
        answer
    }
}

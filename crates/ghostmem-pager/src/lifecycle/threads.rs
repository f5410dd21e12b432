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

    /// Calls `call` while the process has none of the engine's threads, and starts them
    /// again, also where it panics. One that cannot be started is done without, as in a forked
    /// child. Pages are restored and evicted meanwhile, by the threads that fault. Others that
    /// call this wait: `call` must not call it again.
    ///
    /// With the fault monitor its thread stays: it serves the faults.
    pub fn without_threads<R>(&self, call: impl FnOnce() -> R) -> R {
        self.aside.take();
        self.aside.set(true);
        let back = Back {
            engine: self,
            worker: self.stop_worker(),
            demoter: self.stop_demoter(),
        };
        if let Some(cold) = self.cold.as_ref().filter(|_| back.demoter) {
            // Nobody writes: nobody waits for it.
            cold.failing.store(true, Ordering::Relaxed);
        }
        call()
    }

    /// In a forked child, which has none of the threads. Those that stood aside in its parent
    /// come back as well.
    pub(super) fn start_threads_in_child(&self) {
        let stood_aside = self.aside.forget();
        self.restart_worker_after_fork(stood_aside);
        self.restart_demoter_after_fork(stood_aside);
    }
}

/// Which threads come back when this goes.
struct Back<'a> {
    engine: &'a Engine,
    worker: bool,
    demoter: bool,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        let engine = self.engine;
        engine.aside.set(false);
        if let Some(this) = engine.handle() {
            if self.worker {
                let _without = Engine::start_worker(&this);
            }
            if self.demoter {
                Engine::restart_demoter(&this);
            }
        }
        engine.aside.give_back();
    }
}

//! What an engine is told: of faults, and of each step of a fork.

use core::sync::atomic::Ordering;

use ghostmem_fault::{Fault, FaultSink, Scratch, Verdict};
use ghostmem_os::OsError;

use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;

impl FaultSink for Engine {
    fn on_fault(&self, fault: &Fault, scratch: &mut Scratch) -> Verdict {
        self.serve(fault, scratch)
    }

    fn try_before_fork(&self) -> bool {
        if !self.registrations.try_take_for_fork() {
            return false;
        }
        if !self.worker.thread.try_take_for_fork() {
            self.registrations.release_after_fork();
            return false;
        }
        if !self.enrolment.try_take_for_fork() {
            self.worker.thread.release_after_fork();
            self.registrations.release_after_fork();
            return false;
        }
        if self.cold.as_ref().is_some_and(|s| !s.try_take_for_fork()) {
            self.enrolment.release_after_fork();
            self.worker.thread.release_after_fork();
            self.registrations.release_after_fork();
            return false;
        }
        for space in self.block_spaces() {
            space.lock_for_fork();
        }
        if let Some(bound) = &self.bound {
            bound.before_fork();
        }
        true
    }

    fn cancel_fork(&self) {
        if let Some(cold) = &self.cold {
            cold.cancel_fork();
        }
        self.release_fork_locks();
    }

    fn copy_for_fork(&self) -> Result<(), OsError> {
        self.regions().try_for_each(|region| {
            let pinned = |page| region.table.load(page).is_pinned();
            region.mapped.before_fork(|| region.resident.all(), pinned)
        })
    }

    fn after_fork_in_parent(&self) {
        if let Some(cold) = &self.cold {
            cold.after_fork_in_parent();
        }
        for region in self.regions() {
            region.mapped.after_fork_in_parent();
        }
        if let Some(bound) = &self.bound {
            bound.after_fork_in_parent(self.placed_pages());
        }
        self.release_fork_locks();
    }

    fn after_fork_in_child(&self) {
        if let Some(recorder) = self.recorder.get() {
            recorder.stop();
        }
        // First: putting the tables in order gives places in the file back.
        if let Some(cold) = &self.cold {
            cold.after_fork_in_child();
        }
        let mut resident = 0;
        for region in self.regions() {
            Self::refuse_strangers(region);
            resident += self.take_over_region(region);
        }
        self.budget.repair_after_fork(resident);
        self.token.store(0, Ordering::Release);
        if let Some(slowed) = &self.slowdown {
            slowed.after_fork_in_child(self.metrics.sum(Counter::fault_ns));
            if self.bound.is_none() {
                self.budget.set_limit(slowed.most_pages());
            }
        }
        if let Some(bound) = &self.bound {
            bound.after_fork_in_child(self.placed_pages());
            self.metrics.peak.forget();
            if bound.holds_children() {
                // The parent's grant is for the parent alone: who takes a frame here looks.
                let least = self.least_resident_pages();
                self.budget.lower_limit(i64::MAX, resident.max(least));
            }
        }
        self.release_fork_locks();
    }

    fn give_to_monitor_in_child(&self) {
        for region in self.regions().filter(|region| region.mapped.is_monitored()) {
            let _counted = self.take_over_region(region);
        }
    }

    fn restart_threads_in_child(&self) {
        self.start_threads_in_child();
    }
}

//! Noting what a program touches, for those who record it.

use ghostmem_os::PAGE_SIZE;

use crate::parts::engine::Engine;
use crate::parts::ring::{Recorder, SeenTouch, fold};

impl Engine {
    /// Notes every fault from now on. `false`: the engine is recorded already.
    pub fn record(&self, recorder: Recorder) -> bool {
        self.recorder.set(recorder).is_ok()
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.recorder.get().is_some()
    }

    /// Notes a fault that was resolved.
    pub(crate) fn note_touch(&self, fault: &ghostmem_fault::Fault) {
        let Some(recorder) = self.recorder.get() else {
            return;
        };
        if let Some(region) = self.region(fault.region as usize) {
            recorder.note(SeenTouch {
                page: (region.base() / PAGE_SIZE + fault.page) as u64,
                thread: fold(fault.thread),
                write: fault.access != ghostmem_fault::AccessKind::Read,
            });
        }
    }
}

//! A fault that nobody took: a call needs its page.

use ghostmem_fault::{AccessKind, Fault, Verdict, Waits};
use ghostmem_os::error::{EINVAL, EIO};
use ghostmem_os::{OsError, clock, thread};
use ghostmem_table::PageState;

use crate::parts::engine::Engine;
use crate::parts::region::Region;
impl Engine {
    /// Resolves a fault that nobody took.
    pub(crate) fn touch(
        &self,
        region: &Region,
        page: usize,
        access: AccessKind,
    ) -> Result<(), OsError> {
        let fault = Fault {
            region: region.index,
            page,
            access,
            present: true,
            thread: thread::key() as u64,
            instant: clock::now_ns(),
            waits: Waits::default(),
        };
        loop {
            let state = region.table.load(page).state();
            if state == PageState::Resident {
                return Ok(());
            }
            let mut refused = Ok(());
            let verdict = Waits::through(|waits| {
                let fault = Fault { waits, ..fault };
                self.quietly(fault, |engine, fault, scratch| {
                    engine.serve(&fault, scratch)
                })
                .unwrap_or_else(|error| {
                    refused = Err(error);
                    Verdict::Retry
                })
            });
            refused?;
            match verdict {
                Verdict::Refused => {
                    // Lost, or freed meanwhile and nobody's any more.
                    let lost = region.table.load(page).state() == PageState::Lost;
                    let errno = if lost { EIO } else { EINVAL };
                    return Err(OsError::new("restore", errno));
                }
                Verdict::Resolved | Verdict::Retry | Verdict::Wait { .. } => {}
            }
        }
    }
}

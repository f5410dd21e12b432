//! For tests: a step of setting up small objects that fails, as if the kernel had
//! refused memory.

use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_os::OsError;
use ghostmem_os::error::ENOMEM;

/// Steps until one fails; `usize::MAX`: none does.
static STEPS: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Lets `steps` steps of this process pass, and the next one fail.
pub fn fail_after(steps: usize) {
    STEPS.store(steps, Ordering::SeqCst);
}

/// No step fails from now on; whether one was still to.
pub fn fail_none() -> bool {
    STEPS.swap(usize::MAX, Ordering::SeqCst) != usize::MAX
}

/// A step that can fail.
///
/// # Errors
/// When this is the one.
pub fn step() -> Result<(), OsError> {
    match STEPS.load(Ordering::Relaxed) {
        usize::MAX => Ok(()),
        0 => {
            STEPS.store(usize::MAX, Ordering::SeqCst);
            Err(OsError::new("a test", ENOMEM))
        }
        left => {
            STEPS.store(left - 1, Ordering::SeqCst);
            Ok(())
        }
    }
}

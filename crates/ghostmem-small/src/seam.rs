//! For tests: a step of setting up small objects that fails, as if the kernel had
//! refused memory, and arenas that are full soon.

use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_os::OsError;
use ghostmem_os::error::ENOMEM;

/// Steps until one fails; `usize::MAX`: none does.
static STEPS: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Bytes of an arena's step; 0: as many as there are usually.
static STEP_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Gives arenas made from now on steps of `bytes`, a power of two of at least
/// [`crate::STEP_BYTES_MIN`].
pub fn set_step_bytes(bytes: usize) {
    assert!(bytes.is_power_of_two() && bytes >= crate::STEP_BYTES_MIN);
    STEP_BYTES.store(bytes, Ordering::SeqCst);
}

pub(crate) fn step_bytes() -> Option<usize> {
    Some(STEP_BYTES.load(Ordering::Relaxed)).filter(|&bytes| bytes != 0)
}

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

//! Ending the process with a line on its error stream.

use core::mem::MaybeUninit;

use crate::kernel;

/// Writes `line` to the standard error stream; what cannot be written is lost.
/// Async-signal-safe.
pub fn complain(line: &[u8]) {
    let _lost = crate::calls::write(libc::STDERR_FILENO, line);
}

/// Which file the standard error stream is, device and inode; `None` where it is closed.
/// Async-signal-safe.
#[must_use]
pub fn error_stream() -> Option<[u64; 2]> {
    let mut seen = MaybeUninit::<libc::stat64>::zeroed();
    // SAFETY: `seen` is writable.
    let rc = unsafe { kernel::syscall!(libc::SYS_fstat, libc::STDERR_FILENO, seen.as_mut_ptr()) };
    // SAFETY: zeroed, and filled by the kernel where it succeeded.
    let seen = unsafe { seen.assume_init() };
    (rc == 0).then_some([seen.st_dev, seen.st_ino])
}

/// Ends the process at once, with a core dump where those are on.
/// Async-signal-safe.
pub fn abort() -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}

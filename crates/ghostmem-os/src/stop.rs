//! Ending the process with a line on its error stream.

/// Writes `line` to the standard error stream; what cannot be written is lost.
/// Async-signal-safe.
pub fn complain(line: &[u8]) {
    // SAFETY: the buffer is valid for its length; a failed write changes
    // nothing.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

/// Ends the process at once, with a core dump where those are on.
/// Async-signal-safe.
pub fn abort() -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}

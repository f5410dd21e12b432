//! Ending the process with a line on its error stream.

/// Writes `line` to the standard error stream; what cannot be written is lost.
/// Async-signal-safe.
pub fn complain(line: &[u8]) {
    let _lost = crate::calls::write(libc::STDERR_FILENO, line);
}

/// Ends the process at once, with a core dump where those are on.
/// Async-signal-safe.
pub fn abort() -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}

//! Ending the process with a line on its error stream.

use windows_sys::Win32::Storage::FileSystem::WriteFile;
use windows_sys::Win32::System::Console::{GetStdHandle, STD_ERROR_HANDLE};

/// Writes `line` to the standard error stream; what cannot be written is lost.
/// Safe in an exception handler.
pub fn complain(line: &[u8]) {
    // SAFETY: no preconditions.
    let stream = unsafe { GetStdHandle(STD_ERROR_HANDLE) };
    let len = u32::try_from(line.len()).unwrap_or(u32::MAX);
    let mut written = 0;
    // SAFETY: the buffer is valid for its length and `written` is writable;
    // with no stream the handle is null or invalid and the call fails.
    unsafe {
        WriteFile(
            stream,
            line.as_ptr(),
            len,
            &raw mut written,
            core::ptr::null_mut(),
        )
    };
}

/// Which file the standard error stream is: not asked for on Windows.
#[must_use]
pub const fn error_stream() -> Option<[u64; 2]> {
    Some([0; 2])
}

/// Ends the process at once (a fail-fast exception, which no handler sees).
pub fn abort() -> ! {
    std::process::abort()
}

//! The one error type of this room: which call failed, and how.

use core::fmt;

/// A failed operating-system call.
///
/// It carries no heap data, so it can be made and dropped anywhere, fault
/// handlers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OsError {
    /// The call that failed, as a manual page names it.
    pub call: &'static str,
    /// The `errno` it left.
    pub errno: i32,
}

impl OsError {
    /// The error of `call`, taken from the calling thread's `errno`.
    #[must_use]
    pub fn last(call: &'static str) -> Self {
        Self {
            call,
            errno: errno(),
        }
    }

    /// An error of `call` with a known `errno`.
    #[must_use]
    pub const fn new(call: &'static str, errno: i32) -> Self {
        Self { call, errno }
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `std::io::Error` knows the text of every errno of the platform.
        write!(
            f,
            "{} failed: {}",
            self.call,
            std::io::Error::from_raw_os_error(self.errno)
        )
    }
}

impl core::error::Error for OsError {}

/// The calling thread's `errno`.
#[must_use]
pub fn errno() -> i32 {
    // SAFETY: `__errno_location` has no preconditions and returns a pointer
    // to the calling thread's own `errno`.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is valid and only this thread reads or writes it.
    unsafe { *location }
}

/// Sets the calling thread's `errno`: a signal handler must leave it as it
/// found it.
pub fn set_errno(value: i32) {
    // SAFETY: as in `errno`.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: as in `errno`.
    unsafe { *location = value };
}

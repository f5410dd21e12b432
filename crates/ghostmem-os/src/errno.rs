//! The number that a failed call leaves, and its text.

use core::fmt::Display;

use crate::error::OsError;

impl OsError {
    /// The error of `call`, taken from the calling thread's `errno`.
    #[must_use]
    pub fn last(call: &'static str) -> Self {
        Self {
            call,
            errno: errno(),
        }
    }
}

/// What an error's number says.
pub(crate) fn text(errno: i32) -> impl Display {
    // It knows the text of every errno of the platform.
    std::io::Error::from_raw_os_error(errno)
}

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

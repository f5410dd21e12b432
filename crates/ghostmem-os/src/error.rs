//! The one error type of this room: which call failed, and how.

use core::fmt;

/// `EPERM` of errno(3).
pub const EPERM: i32 = 1;
/// `EIO`
pub const EIO: i32 = 5;
/// `EAGAIN`
pub const EAGAIN: i32 = 11;
/// `ENOMEM`
pub const ENOMEM: i32 = 12;
/// `EEXIST`
pub const EEXIST: i32 = 17;
/// `EINVAL`
pub const EINVAL: i32 = 22;
/// `ENOSPC`
pub const ENOSPC: i32 = 28;
/// `ENOSYS`
pub const ENOSYS: i32 = 38;

/// A failed operating-system call.
///
/// It carries no heap data, so it can be made and dropped anywhere, fault
/// handlers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OsError {
    /// The call that failed, as a manual page names it.
    pub call: &'static str,
    /// The `errno` it left. On Windows, where calls leave codes of their own,
    /// such a code is negative; what the engine itself refuses is an `errno`.
    pub errno: i32,
}

impl OsError {
    /// An error of `call` with a known `errno`.
    #[must_use]
    pub const fn new(call: &'static str, errno: i32) -> Self {
        Self { call, errno }
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} failed: {}",
            self.call,
            crate::errno::text(self.errno)
        )
    }
}

impl core::error::Error for OsError {}

/// An errno by what it means, name and number, without the allocation that
/// `std::io::Error` makes for its text: for messages of fault handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match crate::errno::name(self.0) {
            Some(name) => write!(f, "{name} (errno {})", self.0),
            None => write!(f, "errno {}", self.0),
        }
    }
}

#[cfg(not(windows))]
pub use crate::errno::{KeptErrno, errno, set_errno};

//! The number that a failed call leaves, and its text.
//!
//! The engine's own refusals have numbers of errno(3), as on every system. A
//! Windows call leaves a code of another kind, kept as its negative.

use core::fmt;

use windows_sys::Win32::Foundation::GetLastError;

use crate::error::{EEXIST, EINVAL, EIO, ENOMEM, ENOSPC, ENOSYS, EPERM, OsError};

impl OsError {
    /// The error of `call`, taken from the calling thread's last error.
    #[must_use]
    pub fn last(call: &'static str) -> Self {
        // SAFETY: no preconditions.
        let code = unsafe { GetLastError() };
        Self {
            call,
            errno: i32::try_from(code).map_or(i32::MIN, |code| -code),
        }
    }
}

/// What an error's number says.
pub(crate) fn text(errno: i32) -> impl fmt::Display {
    Text(errno)
}

/// What an error means, and its name.
pub(crate) const fn name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        EPERM => "not permitted, EPERM",
        EIO => "input/output error, EIO",
        ENOMEM => "out of memory, ENOMEM",
        EEXIST => "something is there already, EEXIST",
        EINVAL => "invalid argument, EINVAL",
        ENOSPC => "no room left, ENOSPC",
        ENOSYS => "this system does not have it, ENOSYS",
        _ => return None,
    })
}

struct Text(i32);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = match self.0 {
            EPERM => "not permitted",
            EIO => "input or output error",
            ENOMEM => "not enough memory or address space",
            EEXIST => "something is there already",
            EINVAL => "invalid argument",
            ENOSPC => "no room left",
            ENOSYS => "this system does not have it",
            code if code < 0 => {
                return write!(f, "{}", std::io::Error::from_raw_os_error(-code));
            }
            code => return write!(f, "errno {code}"),
        };
        f.write_str(known)
    }
}

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

/// What an error means, and its name.
pub(crate) const fn name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EACCES => "permission denied, EACCES",
        libc::EAGAIN => "in use, EAGAIN",
        libc::EBADF => "file closed, EBADF",
        libc::EDQUOT => "disk quota exceeded, EDQUOT",
        libc::EFBIG => "larger than files may be, EFBIG",
        libc::EINVAL => "invalid argument, EINVAL",
        libc::EIO => "input/output error, EIO",
        libc::EISDIR => "is a directory, EISDIR",
        libc::ELOOP => "is a symbolic link, ELOOP",
        libc::EMFILE => "too many open files, EMFILE",
        libc::ENFILE => "too many open files in the system, ENFILE",
        libc::ENODEV => "device gone, ENODEV",
        libc::ENOENT => "no such file or directory, ENOENT",
        libc::ENOMEM => "out of memory, ENOMEM",
        libc::ENOSPC => "no space left on the device, ENOSPC",
        libc::ENOTDIR => "not a directory, ENOTDIR",
        libc::EOPNOTSUPP => "not supported, EOPNOTSUPP",
        libc::EPERM => "not permitted, EPERM",
        libc::EROFS => "read-only file system, EROFS",
        libc::ESTALE => "file gone from its server, ESTALE",
        libc::ETIMEDOUT => "timed out, ETIMEDOUT",
        _ => return None,
    })
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

/// errno is the caller's: as it was when this is dropped, on the same thread or in a child
/// of its.
#[derive(Debug)]
pub struct KeptErrno(i32);

impl KeptErrno {
    /// Keeps what it is now.
    #[must_use]
    pub fn now() -> Self {
        Self(errno())
    }
}

impl Drop for KeptErrno {
    fn drop(&mut self) {
        set_errno(self.0);
    }
}

/// Sets the calling thread's `errno`: a signal handler must leave it as it
/// found it.
pub fn set_errno(value: i32) {
    // SAFETY: as in `errno`.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: as in `errno`.
    unsafe { *location = value };
}

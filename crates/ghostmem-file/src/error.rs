//! What can go wrong, in one line each.
//!
//! [`ReadError`] and [`WriteError`] are copied and printed in fault handlers and
//! on engine threads: they own nothing and their `Display` allocates nothing.

use core::fmt;

use ghostmem_os::OsError;

/// An errno by name and number, without the allocation that
/// `std::io::Error` makes for its text.
pub(crate) struct Errno(pub(crate) i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[cfg(windows)]
        let text = match self.0 {
            ghostmem_os::error::ENOSYS => "Windows has no file tier yet, ENOSYS",
            other => return write!(f, "errno {other}"),
        };
        #[cfg(not(windows))]
        let text = match self.0 {
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
            other => return write!(f, "errno {other}"),
        };
        write!(f, "{text} (errno {})", self.0)
    }
}

/// Why a tier could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenError {
    /// The file cannot be made or used.
    File {
        /// The directory or file, as it was given.
        path: String,
        /// The call and its error.
        error: OsError,
    },
    /// Another heap, here or in another process, has the named file open.
    InUse {
        /// The file.
        path: String,
    },
    /// There is a file of that name, and it is not a spill file.
    Foreign {
        /// The file.
        path: String,
    },
    /// A path with a zero byte, or no file name.
    BadPath {
        /// The path.
        path: String,
    },
    /// The limit leaves no room to work in.
    LimitTooSmall {
        /// The limit given, bytes.
        limit_bytes: u64,
        /// The smallest possible, bytes.
        least_bytes: u64,
    },
    /// Memory for the tables or keys cannot be had, or no random bytes.
    Os(OsError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, error } => write!(
                f,
                "cannot spill to {path}: {}: {}; choose a directory on a disk that this user \
                 can write to",
                error.call,
                Errno(error.errno)
            ),
            Self::InUse { path } => write!(
                f,
                "cannot spill to {path}: another heap has it open; choose another name, or \
                 none"
            ),
            Self::Foreign { path } => write!(
                f,
                "cannot spill to {path}: it is there and is not a spill file; remove it or \
                 choose another name"
            ),
            Self::BadPath { path } => write!(
                f,
                "cannot spill to {path}: not a usable path; give a directory, or a file name \
                 in one"
            ),
            Self::LimitTooSmall {
                limit_bytes,
                least_bytes,
            } => write!(
                f,
                "a spill file of at most {limit_bytes} bytes is too small to work with; allow \
                 at least {least_bytes}"
            ),
            Self::Os(error) => write!(
                f,
                "cannot set up a spill file: {}: {}",
                error.call,
                Errno(error.errno)
            ),
        }
    }
}

impl core::error::Error for OpenError {}

/// Why a batch was not written. Nothing of it was: the pages are still the
/// caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// The file system has no room: full, a quota (`EDQUOT`), or the largest file
    /// it or `RLIMIT_FSIZE` allows (`EFBIG`).
    NoSpace {
        /// Which of them.
        errno: i32,
    },
    /// The file has the size it may have.
    LimitReached,
    /// The disk does not take it, at two different places.
    Io {
        /// The error.
        errno: i32,
    },
    /// No slot is free: the file holds as many pages as it can name, or a child of
    /// many generations still reads as many of its ancestors' files as it can. `tidy`
    /// makes room for either.
    Full,
    /// A new key, needed now, cannot be had: no random bytes, or all places for keys
    /// hold keys of pages that are still alive. `tidy` frees them.
    NoKey,
    /// A page longer than 4096 bytes, or empty, or more pages than places for
    /// slots.
    BadPage,
    /// A child that ran no fork handlers may not write to its parent's file.
    Stranger,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoSpace { errno } => {
                write!(f, "the spill file cannot grow: {}", Errno(errno))
            }
            Self::LimitReached => f.write_str("the spill file has reached its limit"),
            Self::Io { errno } => write!(f, "the spill file takes no writes: {}", Errno(errno)),
            Self::Full => f.write_str("the spill file holds as many pages as it can name"),
            Self::NoKey => f.write_str("no new key for the spill file can be had now"),
            Self::BadPage => f.write_str("a page to spill must have 1 to 4096 bytes"),
            Self::Stranger => {
                f.write_str("a child that ran no fork handlers must not write the spill file")
            }
        }
    }
}

impl core::error::Error for WriteError {}

/// A page that the file does not give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadError {
    /// The file, or the directory of an unlinked one.
    pub file: &'static str,
    /// Where in it the record begins, bytes.
    pub offset: u64,
    /// What happened.
    pub cause: ReadCause,
}

/// What happened to a page that the file does not give back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadCause {
    /// The read failed.
    Io {
        /// The error.
        errno: i32,
    },
    /// The file ends before the record does.
    Short {
        /// Bytes of the record that are there.
        got_bytes: usize,
        /// Bytes that it has.
        wanted_bytes: usize,
    },
    /// The bytes are not the ones that were sealed: changed, moved, or older.
    Tampered,
    /// As `Tampered`, without encryption.
    Checksum,
    /// The record is another page's.
    WrongOwner,
    /// The bytes are as they were written, and mean nothing to the codec.
    Undecodable,
    /// No record has this slot.
    NoRecord,
    /// The buffer that was given is too short.
    NoBuffer,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}: ", self.file, self.offset)?;
        match self.cause {
            ReadCause::Io { errno } => write!(f, "{}", Errno(errno)),
            ReadCause::Short {
                got_bytes,
                wanted_bytes,
            } => write!(
                f,
                "the file was cut short, {got_bytes} of {wanted_bytes} bytes are there"
            ),
            ReadCause::Tampered => {
                f.write_str("the bytes there are not the ones that were written (wrong tag)")
            }
            ReadCause::Checksum => {
                f.write_str("the bytes there are not the ones that were written (wrong checksum)")
            }
            ReadCause::WrongOwner => f.write_str("the record there is another page's"),
            ReadCause::Undecodable => f.write_str("the record there does not decode"),
            ReadCause::NoRecord => f.write_str("no page was written there"),
            ReadCause::NoBuffer => f.write_str("the buffer for reading it is too short"),
        }
    }
}

impl core::error::Error for ReadError {}

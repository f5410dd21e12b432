//! Why there is no tier, in one line. What goes wrong later is
//! [`ghostmem_store::tier`]'s to name.

use core::fmt;

use ghostmem_os::OsError;
use ghostmem_os::error::Errno;

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
    /// What is written there stays in memory.
    InMemory {
        /// The directory or file, as it was given.
        path: String,
        /// What keeps it there.
        kept_by: &'static str,
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
            Self::InMemory { path, kept_by } => write!(
                f,
                "cannot spill to {path}: {kept_by} keeps files in memory, which would save \
                 none; choose a directory on a disk, such as /var/tmp"
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

//! Why a measurement did not happen.

use std::fmt;

/// The outcome of a command that did not finish.
#[derive(Debug)]
pub(crate) enum Error {
    /// The machine does not allow it (no privilege, no zram): exit code 3.
    Skipped(String),
    /// Something failed that should not have: exit code 1.
    Failed(String),
    /// The kernel killed a measured process that its cgroup left no memory, at what it was doing.
    Killed(String),
    /// SIGINT or SIGTERM arrived; everything set up has been taken down.
    Interrupted,
}

impl Error {
    /// A failed system call or file operation, with what was being done.
    pub(crate) fn io(what: impl fmt::Display, err: &std::io::Error) -> Self {
        Self::Failed(format!("{what}: {err}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Skipped(why) => write!(f, "skipped: {why}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Killed(doing) => write!(f, "failed: out of memory in its cgroup, at {doing}"),
            Self::Interrupted => f.write_str("interrupted; cleaned up"),
        }
    }
}

impl std::error::Error for Error {}

/// What every fallible piece of the bench returns.
pub(crate) type Result<T> = std::result::Result<T, Error>;

//! What can go wrong, for callers to act on.

use core::fmt;

use ghostmem_os::OsError;

/// A refusal of this crate. Carries no heap data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SmallError {
    /// The pointer is not one this heap can have handed out: it lies outside
    /// its memory.
    Foreign {
        /// The pointer's address.
        address: usize,
    },
    /// The pointer lies in the heap but no live block starts there: it was
    /// freed before, points inside a block, or was never handed out.
    NotLive {
        /// The pointer's address.
        address: usize,
    },
    /// All arenas are in use, or mimalloc takes no more.
    TooManyArenas,
    /// mimalloc had no memory for the heap's bookkeeping, or is configured
    /// (`MIMALLOC_DISALLOW_ARENA_ALLOC`) not to use arenas.
    NoHeap,
    /// The mimalloc linked into this program was compiled with features that
    /// change its internals (`secure`, `debug`).
    UnsupportedMimalloc,
    /// The kernel refused a mapping.
    Os(OsError),
}

impl From<OsError> for SmallError {
    fn from(error: OsError) -> Self {
        Self::Os(error)
    }
}

impl fmt::Display for SmallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { address } => {
                write!(f, "{address:#x} is not memory of this heap")
            }
            Self::NotLive { address } => write!(
                f,
                "no live block starts at {address:#x}: freed twice, or not what allocate returned"
            ),
            Self::TooManyArenas => write!(
                f,
                "no arena left for small objects ({} in use); drop a heap first",
                crate::ARENAS_MAX
            ),
            Self::NoHeap => f.write_str(
                "mimalloc made no heap: out of memory, or MIMALLOC_DISALLOW_ARENA_ALLOC is set",
            ),
            Self::UnsupportedMimalloc => f.write_str(
                "mimalloc was built with features that change its internals; \
                 build libmimalloc-sys without `secure` and `debug`",
            ),
            Self::Os(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SmallError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Os(error) => Some(error),
            _ => None,
        }
    }
}

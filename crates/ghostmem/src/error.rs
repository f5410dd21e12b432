//! What can go wrong, in words a user can act on.

use core::fmt;

use ghostmem_file::OpenError;
use ghostmem_os::OsError;
use ghostmem_pager::UnusableTier;
use ghostmem_small::SmallError;

use crate::size::SizeError;
use crate::{Backend, MemorySizeError};

/// A refused request. The heap is as it was before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The resident limit is below the smallest that can work.
    LimitTooSmall {
        /// What was asked for, bytes.
        limit_bytes: usize,
        /// What it takes, bytes.
        least_bytes: usize,
    },
    /// What the process may take leaves too little for ghost pages beside what it takes
    /// already.
    MemoryTooSmall {
        /// What was asked for, bytes.
        bytes: usize,
        /// What the process takes now, bytes.
        taken_bytes: usize,
        /// What would do, bytes.
        least_bytes: usize,
    },
    /// A part of the memory there is that is not more than 0 and at most 100 %.
    MemoryPercent,
    /// A variable of the environment has a value that cannot be read.
    Environment {
        /// Its name.
        name: &'static str,
        /// What it holds.
        value: String,
        /// Why that cannot be read.
        cause: MemorySizeError,
    },
    /// A share of time that faults may take that is not from 0.5 to 50 %.
    Slowdown,
    /// Such a share without a background thread, which would look at it.
    SlowdownWithoutThread,
    /// `GHOSTMEM_SLOWDOWN` of the environment is no such share.
    EnvironmentSlowdown {
        /// What it holds.
        value: String,
    },
    /// The backend asked for cannot work here.
    BackendUnavailable {
        /// The one asked for.
        backend: Backend,
        /// What the kernel refused.
        cause: OsError,
    },
    /// No backend can work here.
    NoBackend {
        /// What the last one tried was refused.
        cause: OsError,
    },
    /// The kernel's base page is not 4096 bytes.
    PageSize,
    /// No memory or address space for the request, or the memory limit does
    /// not hold it.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The pointer is no live block's start: freed already, never allocated
    /// here, or the middle of one.
    NotAllocated {
        /// The address.
        address: usize,
    },
    /// The range is not ghost memory of this heap.
    NotGhost {
        /// Its first address.
        address: usize,
    },
    /// So many pages are pinned that the limit would leave too few for
    /// everything else.
    TooManyPinned,
    /// A page's bytes could not be brought back.
    PageLost {
        /// An address in the range.
        address: usize,
    },
    /// The file for cold pages cannot be had.
    Spill(OpenError),
    /// The engine has no way to use the tier for cold pages.
    Tier(UnusableTier),
    /// The small-object allocator cannot be used.
    Small(SmallError),
    /// A kernel call failed.
    Os(OsError),
    /// The global heap is being set up by this very call.
    Reentered,
    /// The global heap is there already, with the settings of whoever needed it first.
    AlreadyGlobal,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LimitTooSmall {
                limit_bytes,
                least_bytes,
            } => write!(
                f,
                "resident limit of {limit_bytes} bytes is too small: use at least {least_bytes}"
            ),
            Self::MemoryTooSmall {
                bytes,
                taken_bytes,
                least_bytes,
            } => write!(
                f,
                "memory of {bytes} bytes is too little for a process that takes {taken_bytes} \
                 already: use at least {least_bytes}"
            ),
            Self::MemoryPercent => {
                f.write_str("a percentage of the memory there is: more than 0 and at most 100")
            }
            Self::Environment { name, value, cause } => {
                write!(f, "{name}={}: {cause}", value.escape_debug())
            }
            Self::Slowdown => f.write_str("a slowdown is a share from 0.5 to 50 per cent"),
            Self::SlowdownWithoutThread => {
                f.write_str("a slowdown takes a background thread: leave that on")
            }
            Self::EnvironmentSlowdown { value } => write!(
                f,
                "GHOSTMEM_SLOWDOWN={}: {}",
                value.escape_debug(),
                SizeError::Slowdown
            ),
            Self::BackendUnavailable { backend, cause } => write!(
                f,
                "the {backend} backend cannot work here: {cause}; use Backend::Auto, or see \
                 `ghostmem doctor`"
            ),
            Self::NoBackend { cause } => {
                write!(
                    f,
                    "no fault backend works here: {cause}; see `ghostmem doctor`"
                )
            }
            Self::PageSize => f.write_str("the kernel's page size is not 4096 bytes"),
            Self::OutOfMemory { bytes } => write!(
                f,
                "cannot allocate {bytes} bytes: no address space left, or the memory limit is \
                 reached"
            ),
            Self::NotAllocated { address } => write!(
                f,
                "{address:#x} is not the start of a live block of this heap: freed twice, or \
                 from elsewhere"
            ),
            Self::NotGhost { address } => {
                write!(f, "{address:#x} is not ghost memory of this heap")
            }
            Self::TooManyPinned => {
                f.write_str("too many pages are pinned: unpin some, or raise the resident limit")
            }
            Self::PageLost { address } => {
                write!(f, "the contents of the page at {address:#x} are lost")
            }
            Self::Spill(error) => write!(f, "{error}"),
            Self::Tier(error) => write!(f, "{error}"),
            Self::Small(error) => write!(f, "small objects: {error}"),
            Self::Os(error) => write!(f, "{error}"),
            Self::Reentered => f.write_str("the global heap is still being set up"),
            Self::AlreadyGlobal => f.write_str(
                "the global heap is in use already: set it up before the first allocation; a \
                 global allocator has its size from GhostAlloc::with_memory",
            ),
        }
    }
}

impl core::error::Error for Error {}

impl From<OsError> for Error {
    fn from(error: OsError) -> Self {
        Self::Os(error)
    }
}

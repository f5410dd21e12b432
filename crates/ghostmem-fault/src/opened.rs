//! An opened mechanism, ready to take regions.

use ghostmem_os::OsError;
use ghostmem_os::error::ENOSYS;

use crate::kind::BackendKind;
use crate::{open, probe};

/// Why *veh* cannot be had here.
pub(crate) const NOT_HERE: OsError =
    OsError::new("a vectored exception handler, on Linux,", ENOSYS);

/// An opened mechanism, ready to take regions.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    kind: BackendKind,
    /// Guard by mprotect(2) instead of guard markers.
    mprotect: bool,
    /// What a simulated region behaves like.
    #[cfg(feature = "sim")]
    pub(crate) manner: crate::sim::Manner,
}

impl Opened {
    /// Opens the mechanism `kind`, once for the process.
    ///
    /// # Errors
    /// What the kernel refused, and how.
    pub fn open(kind: BackendKind) -> Result<Self, OsError> {
        crate::fork::hook_forks()?;
        let mut mprotect = false;
        match kind {
            BackendKind::Inline => drop(open::inline()?),
            BackendKind::Monitor => drop(open::monitor()?),
            BackendKind::Guard => {
                probe::memory_files()?;
                mprotect = !probe::guard_pages();
            }
            BackendKind::Veh => return Err(NOT_HERE),
            #[cfg(feature = "sim")]
            BackendKind::Sim => {}
        }
        Ok(Self {
            kind,
            mprotect,
            #[cfg(feature = "sim")]
            manner: crate::sim::Manner::Userfaultfd,
        })
    }

    /// The guard backend without guard markers, as on a kernel before 6.15.
    ///
    /// # Errors
    /// Where there is none at all: on Windows.
    pub const fn guard_by_mprotect() -> Result<Self, OsError> {
        Ok(Self {
            kind: BackendKind::Guard,
            mprotect: true,
            #[cfg(feature = "sim")]
            manner: crate::sim::Manner::GuardByMprotect,
        })
    }

    /// The backend without an operating system, in a manner of behaving.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn sim(manner: crate::sim::Manner) -> Self {
        Self {
            kind: BackendKind::Sim,
            mprotect: manner == crate::sim::Manner::GuardByMprotect,
            manner,
        }
    }

    /// The mechanism.
    #[must_use]
    pub const fn kind(self) -> BackendKind {
        self.kind
    }

    /// Whether who uses it may have threads: not in a simulation, which calls what they do.
    #[must_use]
    pub const fn has_threads(self) -> bool {
        #[cfg(feature = "sim")]
        if matches!(self.kind, BackendKind::Sim) {
            return false;
        }
        true
    }

    /// Whether closing pages splits mappings, so that pages should be opened
    /// and closed many neighbours at a time.
    #[must_use]
    pub const fn splits_mappings(self) -> bool {
        self.mprotect
    }
}

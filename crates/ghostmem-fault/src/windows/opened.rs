//! An opened mechanism, ready to take regions.

use ghostmem_os::OsError;
use ghostmem_os::error::ENOSYS;
use ghostmem_os::frame;

use crate::kind::BackendKind;

/// Why the other mechanisms cannot be had here.
pub(crate) const NOT_HERE: OsError =
    OsError::new("userfaultfd or guard pages, on Windows,", ENOSYS);

/// An opened mechanism, ready to take regions.
#[derive(Debug, Clone, Copy)]
pub struct Opened(());

impl Opened {
    /// Opens the mechanism `kind`.
    ///
    /// # Errors
    /// `ENOSYS` for all but [`BackendKind::Veh`], and where the system has no
    /// placeholders; no address space.
    pub fn open(kind: BackendKind) -> Result<Self, OsError> {
        if kind != BackendKind::Veh {
            return Err(NOT_HERE);
        }
        frame::prepare()?;
        Ok(Self(()))
    }

    /// The guard backend without guard markers: there is none here.
    ///
    /// # Errors
    /// Always.
    pub const fn guard_by_mprotect() -> Result<Self, OsError> {
        Err(NOT_HERE)
    }

    /// The mechanism.
    #[must_use]
    pub const fn kind(self) -> BackendKind {
        BackendKind::Veh
    }

    /// Whether who uses it may have threads.
    #[must_use]
    pub const fn has_threads(self) -> bool {
        true
    }

    /// Whether pages should be opened and closed many neighbours at a time:
    /// no, each has a view of its own anyway.
    #[must_use]
    pub const fn splits_mappings(self) -> bool {
        false
    }
}

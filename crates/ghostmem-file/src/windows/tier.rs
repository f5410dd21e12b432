//! There is no file tier on Windows yet: [`FileTier::open`] says so, and there is
//! never a [`FileTier`] to ask for anything.

use ghostmem_os::OsError;
use ghostmem_os::error::ENOSYS;

use crate::PAYLOAD_BYTES_MAX;
use crate::error::{OpenError, ReadError, WriteError};
use crate::options::Options;
use crate::slot::{FileSlot, Packed};
use crate::traffic::FileStats;

/// What a call of [`FileTier::tidy`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TidyReport {
    /// There is more to do.
    pub is_behind: bool,
}

/// Told of each page that was read: index, codec and packed bytes.
pub type EachRead<'a> = dyn FnMut(usize, Result<(u8, &[u8]), ReadError>) + 'a;

/// Pages in a file: there are none.
#[derive(Debug)]
pub enum FileTier {}

impl FileTier {
    /// Opens a tier.
    ///
    /// # Errors
    /// Always, with `ENOSYS`.
    pub const fn open(_options: &Options) -> Result<Self, OpenError> {
        Err(OpenError::Os(OsError::new(
            "a file for cold pages (disk backing)",
            ENOSYS,
        )))
    }

    /// What there is and what has happened.
    #[must_use]
    pub const fn stats(&self) -> FileStats {
        match *self {}
    }

    /// Reads a page.
    ///
    /// # Errors
    /// Why the file does not give the page back.
    pub const fn read(
        &self,
        _slot: FileSlot,
        _owner: u64,
        _work: &mut [u8],
        _out: &mut [u8; PAYLOAD_BYTES_MAX],
    ) -> Result<(u8, usize), ReadError> {
        match *self {}
    }

    /// Reads several pages.
    pub fn read_run(&self, _pages: &[(FileSlot, u64)], _work: &mut [u8], _each: &mut EachRead<'_>) {
        match *self {}
    }

    /// The error of a record that means nothing to the codec.
    #[must_use]
    pub const fn undecodable(&self, _slot: FileSlot) -> ReadError {
        match *self {}
    }

    /// Gives a slot up.
    pub const fn remove(&self, _slot: FileSlot) {
        match *self {}
    }

    /// Writes pages.
    ///
    /// # Errors
    /// Why not.
    pub const fn write(
        &self,
        _pages: &[Packed<'_>],
        _slots: &mut [Option<FileSlot>],
    ) -> Result<(), WriteError> {
        match *self {}
    }

    /// Makes the file smaller where it is thin.
    pub fn tidy(
        &self,
        _budget_bytes: u64,
        _moved: &mut dyn FnMut(u64, FileSlot, FileSlot) -> bool,
    ) -> TidyReport {
        match *self {}
    }

    /// Before a fork.
    #[must_use]
    pub const fn try_before_fork(&self) -> bool {
        match *self {}
    }

    /// After a fork that did not happen.
    pub const fn cancel_fork(&self) {
        match *self {}
    }

    /// After a fork, in the parent.
    pub const fn after_fork_in_parent(&self) {
        match *self {}
    }

    /// After a fork, in the child.
    pub const fn after_fork_in_child(&self) {
        match *self {}
    }
}

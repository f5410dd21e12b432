//! The *veh* backend: access violations, and pages put in place as sections.
//!
//! A region is a range of placeholders. A page that is there is a view of a
//! section of its own (`ghostmem_os::frame`), read-only while it is clean or on
//! its way out. There is no call for many pages: each of a run is mapped,
//! protected and taken away by itself.

use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_os::error::ENOSYS;
use ghostmem_os::frame;
use ghostmem_os::ghost::{Installed, read_page};
use ghostmem_os::map::{Access, Span, ZeroArray};
use ghostmem_os::signal::Sign;
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::kind::{BackendKind, Home};

/// Why the other mechanisms cannot be had.
const LINUX_ONLY: OsError = OsError::new("userfaultfd or guard pages, on Windows,", ENOSYS);

/// An opened mechanism, ready to take regions.
#[derive(Debug, Clone, Copy)]
pub struct Backend(());

impl Backend {
    /// Opens the mechanism `kind`.
    ///
    /// # Errors
    /// `ENOSYS` for all but [`BackendKind::Veh`], and where the system has no
    /// placeholders; no address space.
    pub fn open(kind: BackendKind) -> Result<Self, OsError> {
        if kind != BackendKind::Veh {
            return Err(LINUX_ONLY);
        }
        frame::prepare()?;
        Ok(Self(()))
    }

    /// The guard backend without guard markers: there is none here.
    ///
    /// # Errors
    /// Always.
    pub const fn guard_by_mprotect() -> Result<Self, OsError> {
        Err(LINUX_ONLY)
    }

    /// The mechanism.
    #[must_use]
    pub const fn kind(self) -> BackendKind {
        BackendKind::Veh
    }

    /// Whether pages should be opened and closed many neighbours at a time:
    /// no, each has a view of its own anyway.
    #[must_use]
    pub const fn splits_mappings(self) -> bool {
        false
    }
}

/// Most page runs a [`Batch`] holds.
const BATCH_RUNS: usize = 256;

/// Page runs of one region to be dropped in one call.
pub struct Batch {
    runs: [(usize, usize); BATCH_RUNS],
    len: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            runs: [(0, 0); BATCH_RUNS],
            len: 0,
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// One range of address space under a backend. Page numbers count from its
/// start.
///
/// None of these calls checks that the caller owns the pages' transitions:
/// that is what the page table's claims are for.
pub struct Region {
    home: Home,
    span: Span,
    /// One bit for each page that is a placeholder, or a view, of its own.
    split: ZeroArray<AtomicU64>,
}

impl Region {
    /// Puts the address space of `home` under `backend`. Every page is
    /// absent, whatever was there is gone.
    ///
    /// # Errors
    /// The system's refusal; `EINVAL` when `home` is not whole pages of
    /// placeholders up to the end of its reservation.
    pub fn new(_backend: Backend, home: Home) -> Result<Self, OsError> {
        let (reservation, offset, len) = match &home {
            Home::Own(reservation) => (reservation, 0, reservation.len()),
            Home::Lent {
                reservation,
                offset,
                len,
            } => (*reservation, *offset, *len),
        };
        let span = reservation.span(offset, len)?;
        let split = ZeroArray::new(span.pages().div_ceil(64))?;
        reservation.become_ghost(offset, len)?;
        Ok(Self { home, span, split })
    }

    /// The range.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }

    /// Whether pages can be put in place read-only so that the first store is
    /// noticed.
    #[must_use]
    pub const fn tracks_writes(&self) -> bool {
        true
    }

    /// Whether [`Region::protect`] keeps out loads too.
    #[must_use]
    pub const fn protects_from_loads(&self) -> bool {
        false
    }

    /// How the system reports touches that the engine can resolve.
    #[must_use]
    pub const fn signs(&self) -> &'static [Sign] {
        &[Sign::Forbidden]
    }

    /// Whether each page to be protected must be named exactly.
    #[must_use]
    pub const fn protects_exactly(&self) -> bool {
        true
    }

    fn address(&self, page: usize) -> usize {
        assert!(page < self.span.pages(), "a page outside the region");
        self.span.base() + page * PAGE_SIZE
    }

    /// Memory that the mechanism takes for itself, bytes: the system's, not
    /// counted here.
    #[must_use]
    pub const fn metadata_bytes(&self) -> usize {
        0
    }

    fn place(
        &self,
        page: usize,
        data: Option<&[u8]>,
        writable: bool,
    ) -> Result<Installed, OsError> {
        let address = self.address(page);
        let bit = 1 << (page % 64);
        if self.split[page / 64].load(Ordering::Relaxed) & bit == 0 {
            // SAFETY: the page lies in our own placeholders.
            unsafe { frame::split(address) };
            self.split[page / 64].fetch_or(bit, Ordering::Relaxed);
        }
        // SAFETY: as above; the caller holds the page's claim.
        unsafe { frame::place(address, data, writable) }
    }

    /// Puts `data` (whole pages) in place at `page`, each page complete before
    /// any thread can see it; read-only when `protect`.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn install(&self, page: usize, data: &[u8], protect: bool) -> Result<Installed, OsError> {
        for (index, bytes) in data.chunks_exact(PAGE_SIZE).enumerate() {
            // A fresh section is zero: it need not be opened to be filled.
            let zero = bytes
                .as_chunks::<16>()
                .0
                .iter()
                .all(|&part| part == [0; 16]);
            let bytes = (!zero).then_some(bytes);
            match self.place(page + index, bytes, !protect)? {
                Installed::Bytes(_) => {}
                Installed::Exists if index == 0 => return Ok(Installed::Exists),
                Installed::Exists => return Ok(Installed::Bytes(index * PAGE_SIZE)),
            }
        }
        Ok(Installed::Bytes(data.len()))
    }

    /// Puts a page of zeros in place, if none is there.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn install_zero(&self, page: usize) -> Result<Installed, OsError> {
        self.place(page, None, true)
    }

    fn set_writable(&self, page: usize, pages: usize, writable: bool) -> Result<(), OsError> {
        for page in page..page + pages {
            // SAFETY: the page lies in our own placeholders, and the caller
            // holds its claim, or begins to evict it.
            unsafe { frame::set_writable(self.address(page), writable) }?;
        }
        Ok(())
    }

    /// Makes stores to the mapped pages of a run fault.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn protect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.set_writable(page, pages, false)
    }

    /// Lets the program use the mapped pages of a run freely again.
    ///
    /// # Errors
    /// The system's refusal.
    pub fn unprotect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.set_writable(page, pages, true)
    }

    /// Copies a mapped page that nobody can write now; `false` when it cannot
    /// be read.
    #[must_use]
    pub fn read(&self, page: usize, out: &mut [u8; PAGE_SIZE]) -> bool {
        // SAFETY: aligned and inside the region; the caller holds the page in
        // place, mapped and write-protected.
        unsafe { read_page(self.address(page), out) };
        true
    }

    /// Takes the program's lock off pages, of which Windows has another kind: one
    /// that a frame loses with its mapping.
    ///
    /// # Errors
    /// Never.
    pub const fn unlock(&self, _page: usize, _pages: usize) -> Result<(), OsError> {
        Ok(())
    }

    /// Adds a run of protected pages to a batch.
    ///
    /// # Panics
    /// When the batch holds as many runs already as a batch of reclaim has
    /// pages.
    pub fn add_to(&self, batch: &mut Batch, page: usize, pages: usize) {
        if let Some(last) = batch.len.checked_sub(1).map(|i| &mut batch.runs[i])
            && last.0 + last.1 == page
        {
            last.1 += pages;
            return;
        }
        batch.runs[batch.len] = (page, pages);
        batch.len += 1;
    }

    /// Gives the frames of the batch's pages back to the system; the batch is
    /// empty afterwards. `kept` is called for each page whose frame stays.
    pub fn drop_batch(&self, batch: &mut Batch, _even_locked: bool, kept: &mut dyn FnMut(usize)) {
        let runs = &batch.runs[..batch.len];
        batch.len = 0;
        for page in runs.iter().flat_map(|&(page, pages)| page..page + pages) {
            // SAFETY: the page lies in our own placeholders, and its bytes are
            // safe in the store or unwanted: the caller holds its claim.
            if unsafe { frame::remove(self.address(page)) }.is_err() {
                kept(page);
            }
        }
    }

    /// Wakes a thread that waits on this page in the kernel: none does.
    pub const fn wake(&self, _page: usize) {}

    /// Nothing forks.
    pub const fn note_store(&self) {}

    /// Before a fork, of which Windows has none.
    ///
    /// # Errors
    /// Never.
    pub fn before_fork<I: Iterator<Item = usize>>(
        &self,
        _resident: impl Fn() -> I,
        _pinned: impl Fn(usize) -> bool,
    ) -> Result<(), OsError> {
        Ok(())
    }

    /// After a fork, in the parent.
    pub const fn after_fork_in_parent(&self) {}

    /// Which pages are mapped, unseen by the engine: none can be.
    ///
    /// # Errors
    /// Never.
    pub const fn mapped(&self, _page: usize, _out: &mut [u8]) -> Result<bool, OsError> {
        Ok(false)
    }

    /// Whether engine threads serve the region: none do.
    #[must_use]
    pub const fn is_monitored(&self) -> bool {
        false
    }

    /// After a fork, in the child.
    ///
    /// # Errors
    /// Never.
    pub fn after_fork_in_child(
        &self,
        _resident: impl Iterator<Item = usize>,
    ) -> Result<(), OsError> {
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // What it owns takes its frames along.
        if let Home::Lent {
            reservation,
            offset,
            len,
        } = &self.home
        {
            // Whoever lent it clears it too.
            let _fresh = reservation.remap(*offset, *len, Access::ReadWrite);
        }
    }
}

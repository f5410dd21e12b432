//! The *veh* backend: access violations, and pages put in place as sections.
//!
//! A region is a range of placeholders. A page that is there is a view of a
//! section of its own (`ghostmem_os::frame`), read-only while it is clean or on
//! its way out. There is no call for many pages: each of a run is mapped,
//! protected and taken away by itself.

use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_os::frame;
use ghostmem_os::ghost::{Installed, read_page};
use ghostmem_os::map::{Span, ZeroArray};
use ghostmem_os::signal::Sign;
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::backend::Backend;
use crate::batch::Batch;
use crate::kind::Home;

/// A range of placeholders.
pub(crate) struct Veh {
    span: Span,
    /// One bit for each page that is a placeholder, or a view, of its own.
    split: ZeroArray<AtomicU64>,
}

impl Veh {
    /// Makes the address space of `home`, which is `span`, placeholders.
    ///
    /// # Errors
    /// The system's refusal; `EINVAL` when `home` is not whole pages of
    /// placeholders up to the end of its reservation.
    pub(crate) fn over(home: &Home, span: Span) -> Result<Self, OsError> {
        let (reservation, offset, len) = match home {
            Home::Own(reservation) => (reservation, 0, reservation.len()),
            Home::Adopted {
                reservation,
                offset,
                len,
            } => (*reservation, *offset, *len),
        };
        let split = ZeroArray::new(span.pages().div_ceil(64))?;
        reservation.become_ghost(offset, len)?;
        Ok(Self { span, split })
    }

    fn address(&self, page: usize) -> usize {
        self.span.base() + page * PAGE_SIZE
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

    fn set_writable(&self, page: usize, pages: usize, writable: bool) -> Result<(), OsError> {
        for page in page..page + pages {
            // SAFETY: the page lies in our own placeholders, and the caller
            // holds its claim, or begins to evict it.
            unsafe { frame::set_writable(self.address(page), writable) }?;
        }
        Ok(())
    }
}

impl Backend for Veh {
    fn tracks_writes(&self) -> bool {
        true
    }

    fn protects_from_loads(&self) -> bool {
        false
    }

    fn protects_exactly(&self) -> bool {
        true
    }

    fn signs(&self) -> &'static [Sign] {
        &[Sign::Forbidden]
    }

    fn install(&self, page: usize, data: &[u8], protect: bool) -> Result<Installed, OsError> {
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

    fn install_zero(&self, page: usize) -> Result<Installed, OsError> {
        self.place(page, None, true)
    }

    fn protect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.set_writable(page, pages, false)
    }

    fn unprotect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.set_writable(page, pages, true)
    }

    fn read(&self, page: usize, out: &mut [u8; PAGE_SIZE]) -> bool {
        // SAFETY: aligned and inside the region; the caller holds the page in
        // place, mapped and write-protected.
        unsafe { read_page(self.address(page), out) };
        true
    }

    /// Windows has another kind of lock: one that a frame loses with its mapping.
    fn unlock(&self, _page: usize, _pages: usize) -> Result<(), OsError> {
        Ok(())
    }

    fn drop_batch(&self, batch: &mut Batch, _even_locked: bool, kept: &mut dyn FnMut(usize)) {
        let runs = batch.take();
        for page in runs.iter().flat_map(|&(page, pages)| page..page + pages) {
            // SAFETY: the page lies in our own placeholders, and its bytes are
            // safe in the store or unwanted: the caller holds its claim.
            if unsafe { frame::remove(self.address(page)) }.is_err() {
                kept(page);
            }
        }
    }

    /// Windows has no fork.
    fn before_fork<I: Iterator<Item = usize>>(
        &self,
        _resident: impl Fn() -> I,
        _pinned: impl Fn(usize) -> bool,
    ) -> Result<(), OsError> {
        Ok(())
    }

    fn after_fork_in_parent(&self) {}

    fn after_fork_in_child(&self, _resident: impl Iterator<Item = usize>) -> Result<(), OsError> {
        Ok(())
    }
}

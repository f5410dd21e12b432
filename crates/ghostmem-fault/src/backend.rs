//! What every mechanism does with the pages of one region.
//!
//! One file for each implementation; [`Region`](crate::Region) is the closed list of them,
//! so that a fault costs one comparison and no indirect call.

use ghostmem_os::bits::PageBits;
#[cfg(not(windows))]
use ghostmem_os::error::ENOSYS;
use ghostmem_os::ghost::Installed;
use ghostmem_os::map::Access;
#[cfg(not(windows))]
use ghostmem_os::room::Room;
use ghostmem_os::signal::Sign;
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::batch::Batch;

/// A mechanism over one range of address space. Page numbers count from the range's
/// start, and pages given lie inside of it.
///
/// No call checks that the caller owns the pages' transitions: that is what the page
/// table's claims are for.
pub trait Backend {
    /// Whether pages can be put in place read-only so that the first store is noticed.
    fn tracks_writes(&self) -> bool;
    /// Whether [`Backend::protect`] keeps out loads too.
    fn protects_from_loads(&self) -> bool;
    /// Whether each page to be protected must be named exactly, as pages in between
    /// would suffer from it.
    fn protects_exactly(&self) -> bool;
    /// How the system reports touches that the engine can resolve.
    fn signs(&self) -> &'static [Sign];
    /// Memory that the mechanism takes for itself, bytes, as far as it grows with what
    /// is used.
    fn metadata_bytes(&self) -> usize {
        0
    }

    /// Puts `data` (whole pages) in place at `page`, each page complete before any
    /// thread can see it; read-only when `protect` and the mechanism tracks writes.
    ///
    /// # Errors
    /// The system's refusal.
    fn install(&self, page: usize, data: &[u8], protect: bool) -> Result<Installed, OsError>;
    /// Puts a page of zeros in place, if none is there.
    ///
    /// # Errors
    /// The system's refusal.
    fn install_zero(&self, page: usize) -> Result<Installed, OsError>;
    /// Makes stores to the mapped pages of a run fault, and loads where the mechanism
    /// protects from loads.
    ///
    /// # Errors
    /// The system's refusal.
    fn protect(&self, page: usize, pages: usize) -> Result<(), OsError>;
    /// Lets the program use the mapped pages of a run freely again.
    ///
    /// # Errors
    /// The system's refusal.
    fn unprotect(&self, page: usize, pages: usize) -> Result<(), OsError>;
    /// Has the kernel itself refuse every touch of a run of absent pages, or no longer.
    /// Only where a touch of an absent page would wait for the engine's threads: elsewhere
    /// it is refused by whoever gets the signal.
    ///
    /// # Errors
    /// The system's refusal.
    fn bar(&self, _page: usize, _pages: usize, _barred: bool) -> Result<(), OsError> {
        Ok(())
    }
    /// Gives pages none of which is there to another mapping, which the caller puts in
    /// their place: from now on the mechanism leaves their addresses alone.
    fn give_away(&self, away: &PageBits, page: usize, pages: usize) {
        away.set(page, page + pages);
    }
    /// Puts filled pages in the place of claimed ones that nobody can store to: these are
    /// given away by it, and their frames go. Where that is refused nothing has changed.
    ///
    /// # Errors
    /// The system's refusal; `ENOSYS` where the mechanism has no such memory.
    #[cfg(not(windows))]
    fn replace(&self, _away: &PageBits, _page: usize, _room: Room) -> Result<(), OsError> {
        Err(OsError::new("mremap", ENOSYS))
    }
    /// The access of the fresh private memory that lies at pages taken back, before
    /// [`Backend::retake`].
    fn access_before_retake(&self) -> Access {
        match self.protects_from_loads() {
            true => Access::None,
            false => Access::ReadWrite,
        }
    }
    /// Takes the addresses of pages back, where fresh private memory lies by now: the
    /// pages are absent.
    ///
    /// # Errors
    /// The system's refusal: they stay away.
    fn retake(&self, away: &PageBits, page: usize, pages: usize) -> Result<(), OsError> {
        away.clear(page, page + pages);
        Ok(())
    }
    /// Copies a mapped page that nobody can write now; `false` when it cannot be read.
    fn read(&self, page: usize, out: &mut [u8; PAGE_SIZE]) -> bool;
    /// Takes the program's lock (mlock(2)) off a run of pages whose block is gone.
    ///
    /// # Errors
    /// The system's refusal.
    fn unlock(&self, page: usize, pages: usize) -> Result<(), OsError>;
    /// Gives the frames of the batch's pages back to the system; the batch is empty
    /// afterwards. `kept` is called for each page whose frame stays: locked memory,
    /// unless `even_locked`.
    fn drop_batch(&self, batch: &mut Batch, even_locked: bool, kept: &mut dyn FnMut(usize));
    /// Wakes a thread that waits on this page in the kernel although nothing was put in
    /// place.
    fn wake(&self, _page: usize) {}
    /// Which of the pages from `page` on are mapped, one byte each with bit 0 set;
    /// `false` where the mechanism cannot tell, or nothing there can be mapped unseen.
    ///
    /// # Errors
    /// The system's refusal.
    fn mapped(&self, _page: usize, _out: &mut [u8]) -> Result<bool, OsError> {
        Ok(false)
    }

    /// The program is about to store to a page.
    fn note_store(&self) {}
    /// Before fork(2): the region is to be copied. `resident` yields the resident pages,
    /// in order, each time it is asked; nobody moves pages.
    ///
    /// # Errors
    /// No memory for the child's copy.
    fn before_fork<I: Iterator<Item = usize>>(
        &self,
        resident: impl Fn() -> I,
        pinned: impl Fn(usize) -> bool,
    ) -> Result<(), OsError>;
    /// After fork(2), in the parent.
    fn after_fork_in_parent(&self);
    /// Whether engine threads serve the region.
    fn is_monitored(&self) -> bool {
        false
    }
    /// After fork(2), in the child: puts the region under the child's own mechanism.
    /// `resident` yields the pages that are mapped, in order.
    ///
    /// # Errors
    /// The system's refusal; the child cannot go on then.
    fn after_fork_in_child(&self, resident: impl Iterator<Item = usize>) -> Result<(), OsError>;
    /// Ends the mechanism over the range, whose address space is about to go.
    fn leave(&self) {}
}

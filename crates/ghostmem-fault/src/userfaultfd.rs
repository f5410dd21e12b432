//! The *inline* and *monitor* backends: pages put in place by userfaultfd(2).

use ghostmem_os::bits::PageBits;
use ghostmem_os::ghost::read_page;
use ghostmem_os::map::{self, Access, MapArc, Span};
use ghostmem_os::ranges::{self, drop_ranges};
use ghostmem_os::room::Room;
use ghostmem_os::signal::Sign;
use ghostmem_os::uffd::{Installed, Uffd};
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::advise::advise;
use crate::backend::Backend;
use crate::batch::Batch;
use crate::dumped::Dumped;

/// A range registered with a userfaultfd, in private anonymous memory.
pub(crate) struct Userfaultfd {
    span: Span,
    away: MapArc<PageBits>,
    uffd: &'static Uffd,
    monitored: bool,
    dumped: Dumped,
}

impl Userfaultfd {
    /// Puts the range under `uffd`.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) fn over(
        span: Span,
        away: MapArc<PageBits>,
        uffd: &'static Uffd,
        monitored: bool,
    ) -> Result<Self, OsError> {
        // A huge page would appear where 512 pages have words of their own.
        advise(span, libc::MADV_NOHUGEPAGE)?;
        let region = Self {
            span,
            away,
            uffd,
            monitored,
            dumped: Dumped::nothing_of(span)?,
        };
        uffd.register(span.base(), span.len())?;
        // A child made without our fork hooks (a raw clone) must find no
        // memory here rather than zeros.
        if let Err(error) = advise(span, libc::MADV_DONTFORK) {
            region.leave();
            return Err(error);
        }
        Ok(region)
    }

    /// The region's own parts of the address space.
    fn parts(&self) -> impl Iterator<Item = Span> {
        let gaps = self.away.gaps(0, self.span.pages());
        gaps.map(|(start, end)| self.span.part(start, end - start))
    }

    fn address(&self, page: usize) -> usize {
        self.span.base() + page * PAGE_SIZE
    }
}

impl Backend for Userfaultfd {
    fn tracks_writes(&self) -> bool {
        true
    }

    fn protects_from_loads(&self) -> bool {
        false
    }

    fn protects_exactly(&self) -> bool {
        false
    }

    fn signs(&self) -> &'static [Sign] {
        &[Sign::Bus]
    }

    fn install(&self, page: usize, data: &[u8], protect: bool) -> Result<Installed, OsError> {
        self.dumped.note(page * PAGE_SIZE, data.len());
        self.uffd.copy(self.address(page), data, protect)
    }

    fn install_zero(&self, page: usize) -> Result<Installed, OsError> {
        self.dumped.note(page * PAGE_SIZE, PAGE_SIZE);
        self.uffd.zero(self.address(page), PAGE_SIZE)
    }

    fn protect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.uffd
            .protect(self.address(page), pages * PAGE_SIZE, true)
    }

    fn unprotect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.uffd
            .protect(self.address(page), pages * PAGE_SIZE, false)
    }

    fn bar(&self, page: usize, pages: usize, barred: bool) -> Result<(), OsError> {
        if !self.monitored {
            return Ok(());
        }
        // SAFETY: pages of this region, into which nobody has a reference.
        unsafe { ranges::set_open(self.address(page), pages * PAGE_SIZE, !barred) }
    }

    fn replace(&self, away: &PageBits, page: usize, room: Room) -> Result<(), OsError> {
        // SAFETY: pages of this region, into which nobody has a reference.
        unsafe { room.move_over(self.address(page)) }?;
        away.set(page, page + room.pages());
        Ok(())
    }

    /// Before it is registered the kernel would serve touches by itself: pages that the
    /// engine knows nothing of.
    fn access_before_retake(&self) -> Access {
        Access::None
    }

    fn retake(&self, away: &PageBits, page: usize, pages: usize) -> Result<(), OsError> {
        let part = self.span.part(page, pages);
        advise(part, libc::MADV_NOHUGEPAGE)?;
        self.dumped.set_again_in(page * PAGE_SIZE, part.len());
        self.uffd.register(part.base(), part.len())?;
        advise(part, libc::MADV_DONTFORK)?;
        if !self.monitored {
            // SAFETY: pages of this region, into which nobody has a reference.
            unsafe { ranges::set_open(part.base(), part.len(), true) }?;
        }
        away.clear(page, page + pages);
        Ok(())
    }

    fn read(&self, page: usize, out: &mut [u8; PAGE_SIZE]) -> bool {
        // SAFETY: aligned and inside the region; the caller holds the
        // page in place, mapped and write-protected.
        unsafe { read_page(self.address(page), out) };
        true
    }

    fn unlock(&self, page: usize, pages: usize) -> Result<(), OsError> {
        ranges::unlock(self.address(page), pages * PAGE_SIZE)
    }

    fn drop_batch(&self, batch: &mut Batch, even_locked: bool, kept: &mut dyn FnMut(usize)) {
        let runs = batch.take();
        if runs.is_empty() {
            return;
        }
        let base = self.span.base();
        // SAFETY: the runs lie in private anonymous memory of this region
        // (`Region::add_to` checked), and their bytes are safe in the store or
        // unwanted: the caller holds the pages' claims.
        unsafe {
            drop_ranges(runs, even_locked, &mut |address| {
                kept((address - base) / PAGE_SIZE);
            });
        }
    }

    fn wake(&self, page: usize) {
        // Nobody waiting, or no longer registered: both fine.
        let _nobody = self.uffd.wake(self.address(page), PAGE_SIZE);
    }

    fn mapped(&self, page: usize, out: &mut [u8]) -> Result<bool, OsError> {
        let len = out.len() * PAGE_SIZE;
        map::mapped_pages(self.address(page), len, out).map(|()| true)
    }

    fn before_fork<I: Iterator<Item = usize>>(
        &self,
        _resident: impl Fn() -> I,
        _pinned: impl Fn(usize) -> bool,
    ) -> Result<(), OsError> {
        self.parts()
            .try_for_each(|part| advise(part, libc::MADV_DOFORK))
    }

    fn after_fork_in_parent(&self) {
        for part in self.parts() {
            // It worked when the region was made.
            let _kept = advise(part, libc::MADV_DONTFORK);
        }
    }

    fn is_monitored(&self) -> bool {
        self.monitored
    }

    fn after_fork_in_child(&self, _resident: impl Iterator<Item = usize>) -> Result<(), OsError> {
        self.parts().try_for_each(|part| {
            advise(part, libc::MADV_DONTFORK)?;
            self.uffd.register(part.base(), part.len())
        })
    }

    fn leave(&self) {
        // The mapping goes with its reservation anyway.
        let _gone = self.uffd.unregister(self.span.base(), self.span.len());
    }
}

//! Putting pages in place, protecting them and taking them away: the same
//! verbs for every backend.

use ghostmem_os::bits::PageBits;
use ghostmem_os::ghost::Installed;
use ghostmem_os::map::{Access, MapArc, Span};
#[cfg(not(windows))]
use ghostmem_os::room::Room;
use ghostmem_os::signal::Sign;
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::backend::Backend;
use crate::batch::Batch;
#[cfg(not(windows))]
use crate::guard::Guard;
use crate::kind::{BackendKind, Home};
#[cfg(not(windows))]
use crate::open;
use crate::opened::{self, Opened};
#[cfg(not(windows))]
use crate::userfaultfd::Userfaultfd;
#[cfg(windows)]
use crate::veh::Veh;

/// The closed list of mechanisms: a fault finds its own by one comparison.
enum Mechanism {
    #[cfg(not(windows))]
    Userfaultfd(Userfaultfd),
    #[cfg(not(windows))]
    Guard(Guard),
    #[cfg(windows)]
    Veh(Veh),
    #[cfg(feature = "sim")]
    Sim(crate::sim::Sim),
}

/// Evaluates an expression with whichever mechanism it is.
macro_rules! with {
    ($mechanism:expr, $backend:ident => $body:expr) => {
        match $mechanism {
            #[cfg(not(windows))]
            Mechanism::Userfaultfd($backend) => $body,
            #[cfg(not(windows))]
            Mechanism::Guard($backend) => $body,
            #[cfg(windows)]
            Mechanism::Veh($backend) => $body,
            #[cfg(feature = "sim")]
            Mechanism::Sim($backend) => $body,
        }
    };
}

/// One range of address space under a [`Backend`]. Page numbers count from its
/// start.
///
/// None of these calls checks that the caller owns the pages' transitions:
/// that is what the page table's claims are for.
pub struct Region {
    // Dropped after the mechanism's `leave` ran.
    home: Home,
    span: Span,
    /// Pages whose addresses other mappings have. The mechanism reads it, too.
    away: MapArc<PageBits>,
    mechanism: Mechanism,
}

impl Region {
    /// Puts the address space of `home` under `opened`. Every page is
    /// absent, whatever was there is gone.
    ///
    /// # Errors
    /// The system's refusal; `EINVAL` when `home` is not whole pages, or on Windows
    /// not placeholders up to the end of its reservation.
    pub fn new(opened: Opened, home: Home) -> Result<Self, OsError> {
        let span = match &home {
            Home::Own(reservation) => reservation.span(0, reservation.len())?,
            Home::Adopted {
                reservation,
                offset,
                len,
            } => reservation.span(*offset, *len)?,
        };
        let away = MapArc::new(PageBits::new(span.pages())?)?;
        let mechanism = match opened.kind() {
            #[cfg(not(windows))]
            BackendKind::Inline => {
                let uffd = open::inline()?;
                Mechanism::Userfaultfd(Userfaultfd::over(span, away.clone(), uffd, false)?)
            }
            #[cfg(not(windows))]
            BackendKind::Monitor => {
                let uffd = open::monitor()?.uffd();
                Mechanism::Userfaultfd(Userfaultfd::over(span, away.clone(), uffd, true)?)
            }
            #[cfg(not(windows))]
            BackendKind::Guard => {
                let markers = !opened.splits_mappings();
                // SAFETY: `home` keeps the reservation for as long as the
                // region, and a reservation never gives out references.
                Mechanism::Guard(unsafe { Guard::over(span, away.clone(), markers) }?)
            }
            #[cfg(windows)]
            BackendKind::Veh => Mechanism::Veh(Veh::over(&home, span)?),
            #[cfg(feature = "sim")]
            BackendKind::Sim => Mechanism::Sim(crate::sim::Sim::over(span, opened.manner)?),
            _ => return Err(opened::NOT_HERE),
        };
        Ok(Self {
            home,
            span,
            away,
            mechanism,
        })
    }

    /// The range.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }

    fn check(&self, page: usize, pages: usize) {
        assert!(
            (page + pages) * PAGE_SIZE <= self.span.len(),
            "pages outside the region"
        );
    }

    /// See [`Backend::tracks_writes`].
    #[must_use]
    pub fn tracks_writes(&self) -> bool {
        with!(&self.mechanism, backend => backend.tracks_writes())
    }

    /// See [`Backend::protects_from_loads`].
    #[must_use]
    pub fn protects_from_loads(&self) -> bool {
        with!(&self.mechanism, backend => backend.protects_from_loads())
    }

    /// See [`Backend::protects_exactly`].
    #[must_use]
    pub fn protects_exactly(&self) -> bool {
        with!(&self.mechanism, backend => backend.protects_exactly())
    }

    /// See [`Backend::signs`].
    #[must_use]
    pub fn signs(&self) -> &'static [Sign] {
        with!(&self.mechanism, backend => backend.signs())
    }

    /// See [`Backend::metadata_bytes`].
    #[must_use]
    pub fn metadata_bytes(&self) -> usize {
        self.away.bytes() + with!(&self.mechanism, backend => backend.metadata_bytes())
    }

    /// See [`Backend::install`].
    ///
    /// # Errors
    /// The system's refusal.
    #[inline]
    pub fn install(&self, page: usize, data: &[u8], protect: bool) -> Result<Installed, OsError> {
        self.check(page, data.len() / PAGE_SIZE);
        with!(&self.mechanism, backend => backend.install(page, data, protect))
    }

    /// See [`Backend::install_zero`].
    ///
    /// # Errors
    /// The system's refusal.
    #[inline]
    pub fn install_zero(&self, page: usize) -> Result<Installed, OsError> {
        self.check(page, 1);
        with!(&self.mechanism, backend => backend.install_zero(page))
    }

    /// See [`Backend::protect`].
    ///
    /// # Errors
    /// The system's refusal.
    #[inline]
    pub fn protect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.check(page, pages);
        with!(&self.mechanism, backend => backend.protect(page, pages))
    }

    /// See [`Backend::unprotect`].
    ///
    /// # Errors
    /// The system's refusal.
    #[inline]
    pub fn unprotect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.check(page, pages);
        with!(&self.mechanism, backend => backend.unprotect(page, pages))
    }

    /// See [`Backend::bar`].
    ///
    /// # Errors
    /// The system's refusal.
    pub fn bar(&self, page: usize, pages: usize, barred: bool) -> Result<(), OsError> {
        self.check(page, pages);
        with!(&self.mechanism, backend => backend.bar(page, pages, barred))
    }

    /// Gives pages none of which is there to another mapping, which the caller puts in
    /// their place: nothing acts on their addresses until [`Region::retake`].
    pub fn give_away(&self, page: usize, pages: usize) {
        self.check(page, pages);
        with!(&self.mechanism, backend => backend.give_away(&self.away, page, pages));
    }

    /// See [`Backend::replace`]: as many pages as the room has.
    ///
    /// # Errors
    /// The system's refusal; `ENOSYS` where the mechanism has no such memory.
    #[cfg(not(windows))]
    pub fn replace(&self, page: usize, room: Room) -> Result<(), OsError> {
        self.check(page, room.pages());
        with!(&self.mechanism, backend => backend.replace(&self.away, page, room))
    }

    /// Takes the addresses of pages back that were given away: whatever lies there goes,
    /// and the pages are absent.
    ///
    /// # Errors
    /// The system's refusal: they stay away.
    pub fn retake(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.check(page, pages);
        let access = with!(&self.mechanism, backend => backend.access_before_retake());
        let (reservation, base) = match &self.home {
            Home::Own(reservation) => (reservation, 0),
            Home::Adopted {
                reservation,
                offset,
                ..
            } => (*reservation, *offset),
        };
        reservation.remap(base + page * PAGE_SIZE, pages * PAGE_SIZE, access)?;
        with!(&self.mechanism, backend => backend.retake(&self.away, page, pages))
    }

    /// Whether a page's address was given to another mapping. One load where none was.
    #[must_use]
    #[inline]
    pub fn is_away(&self, page: usize) -> bool {
        self.away.has(page)
    }

    /// The first page from `from` on, and before `end`, that is away, or is not; `end`
    /// where there is none.
    #[must_use]
    pub fn next_away(&self, from: usize, end: usize, away: bool) -> usize {
        self.away.next(from, end, away)
    }

    /// See [`Backend::read`].
    #[must_use]
    #[inline]
    pub fn read(&self, page: usize, out: &mut [u8; PAGE_SIZE]) -> bool {
        self.check(page, 1);
        with!(&self.mechanism, backend => backend.read(page, out))
    }

    /// See [`Backend::unlock`].
    ///
    /// # Errors
    /// The system's refusal: too many mappings.
    pub fn unlock(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.check(page, pages);
        with!(&self.mechanism, backend => backend.unlock(page, pages))
    }

    /// Adds a run of protected pages to a batch.
    ///
    /// # Panics
    /// When the batch holds as many runs already as a batch of reclaim has
    /// pages.
    #[inline]
    pub fn add_to(&self, batch: &mut Batch, page: usize, pages: usize) {
        self.check(page, pages);
        batch.add(self.span, page, pages);
    }

    /// See [`Backend::drop_batch`].
    #[inline]
    pub fn drop_batch(&self, batch: &mut Batch, even_locked: bool, kept: &mut dyn FnMut(usize)) {
        with!(&self.mechanism, backend => backend.drop_batch(batch, even_locked, kept));
    }

    /// See [`Backend::wake`].
    pub fn wake(&self, page: usize) {
        self.check(page, 1);
        with!(&self.mechanism, backend => backend.wake(page));
    }

    /// See [`Backend::mapped`].
    ///
    /// # Errors
    /// The system's refusal.
    pub fn mapped(&self, page: usize, out: &mut [u8]) -> Result<bool, OsError> {
        self.check(page, out.len());
        with!(&self.mechanism, backend => backend.mapped(page, out))
    }

    /// See [`Backend::note_store`].
    #[inline]
    pub fn note_store(&self) {
        with!(&self.mechanism, backend => backend.note_store());
    }

    /// See [`Backend::before_fork`].
    ///
    /// # Errors
    /// No memory for the child's copy of a shared memory file.
    pub fn before_fork<I: Iterator<Item = usize>>(
        &self,
        resident: impl Fn() -> I,
        pinned: impl Fn(usize) -> bool,
    ) -> Result<(), OsError> {
        with!(&self.mechanism, backend => backend.before_fork(resident, pinned))
    }

    /// See [`Backend::after_fork_in_parent`].
    pub fn after_fork_in_parent(&self) {
        with!(&self.mechanism, backend => backend.after_fork_in_parent());
    }

    /// After fork(2), in the child, once the fault monitor can hear: whether
    /// the region is its, which is then to be handed over: until now the
    /// faulting threads served themselves, and just now nobody does.
    #[must_use]
    pub fn is_monitored(&self) -> bool {
        with!(&self.mechanism, backend => backend.is_monitored())
    }

    /// See [`Backend::after_fork_in_child`].
    ///
    /// # Errors
    /// The system's refusal; the child cannot go on then.
    pub fn after_fork_in_child(
        &self,
        resident: impl Iterator<Item = usize>,
    ) -> Result<(), OsError> {
        with!(&self.mechanism, backend => backend.after_fork_in_child(resident))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        with!(&self.mechanism, backend => backend.leave());
        if let Home::Adopted {
            reservation,
            offset,
            len,
        } = &self.home
        {
            // Whoever lent it lays fresh memory over it too.
            let _fresh = reservation.remap(*offset, *len, Access::ReadWrite);
        }
    }
}

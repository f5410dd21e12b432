//! Putting pages in place, protecting them and taking them away: the same
//! verbs for every backend.

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::OnceLock;

use ghostmem_os::descriptor::Spare;
use ghostmem_os::error::ENOSYS;
use ghostmem_os::ghost::read_page;
use ghostmem_os::guard::{self, FileMap};
use ghostmem_os::map::{self, Span};
use ghostmem_os::ranges::{self, DROP_RANGES_MAX, DropRange, NO_RANGE, drop_range, drop_ranges};
use ghostmem_os::signal::Sign;
use ghostmem_os::uffd::{FEATURE_SIGBUS, FEATURE_THREAD_ID, FEATURE_WP, Installed, Source, Uffd};
use ghostmem_os::{OsError, PAGE_SIZE, machine};

use crate::die::die;
use crate::groups::Groups;
use crate::kind::{BackendKind, Home};
use crate::monitor::Monitor;
use crate::once::get_or_open;

/// Why *veh* cannot be had.
const NO_EXCEPTIONS: OsError = OsError::new("a vectored exception handler, on Linux,", ENOSYS);

static INLINE: OnceLock<Uffd> = OnceLock::new();
static MONITOR: OnceLock<Monitor> = OnceLock::new();
/// A number for a forked child's userfaultfd, where the process may open no more.
static SPARE: Spare = Spare::new();

/// Makes what exists once in the process, and the spare for its children.
fn get_or_open_uffd<T>(
    cell: &'static OnceLock<T>,
    open: impl FnOnce() -> Result<T, OsError>,
) -> Result<&'static T, OsError> {
    get_or_open(cell, || open().inspect(|_| SPARE.hold()))
}

fn open_inline() -> Result<Uffd, OsError> {
    // Full mode buys nothing here: a kernel access raises no SIGBUS.
    let features = FEATURE_SIGBUS | FEATURE_WP;
    let lanes = if machine::cpus() > 1 { 8 } else { 1 };
    let open = |source| Uffd::open_lanes(source, features, lanes);
    open(Source::UserModeOnly).or_else(|first| {
        open(Source::Syscall)
            .or_else(|_| open(Source::Device))
            .map_err(|_| first)
    })
}

pub(crate) fn open_monitor() -> Result<Uffd, OsError> {
    let features = FEATURE_WP | FEATURE_THREAD_ID;
    Uffd::open(Source::Device, features).or_else(|_| {
        Uffd::open(Source::Syscall, features)
            .or_else(|first| Uffd::open(Source::UserModeOnly, features).map_err(|_| first))
    })
}

/// In a forked child: the descriptors inherited from the parent still speak
/// for the parent. The monitor's regions are the faulting thread's to serve for
/// now: there are no engine threads, and none can be made yet.
pub(crate) fn reopen_in_child() {
    let opened = || {
        let monitor = MONITOR.get().map(Monitor::uffd_in_child);
        INLINE.get().into_iter().chain(monitor)
    };
    // Their numbers may be the only ones that the child can have.
    opened().for_each(Uffd::close);
    if opened().next().is_some() {
        SPARE.let_go();
    }
    for uffd in opened() {
        match open_inline() {
            Ok(fresh) => uffd.replace(fresh),
            Err(error) => die("a forked child cannot open userfaultfd", error.errno),
        }
    }
    if opened().next().is_some() {
        SPARE.hold();
    }
}

/// In a forked child: the monitor, if there is one to be started again.
pub(crate) fn monitor_in_child() -> Option<&'static Monitor> {
    MONITOR.get().filter(|monitor| monitor.was_started())
}

/// An opened mechanism, ready to take regions.
#[derive(Debug, Clone, Copy)]
pub struct Backend {
    kind: BackendKind,
    /// Guard by mprotect(2) instead of guard markers.
    mprotect: bool,
}

impl Backend {
    /// Opens the mechanism `kind`, once for the process.
    ///
    /// # Errors
    /// What the kernel refused, and how.
    pub fn open(kind: BackendKind) -> Result<Self, OsError> {
        crate::fork::hook_forks()?;
        let mut mprotect = false;
        match kind {
            BackendKind::Inline => drop(get_or_open_uffd(&INLINE, open_inline)?),
            BackendKind::Monitor => drop(get_or_open_uffd(&MONITOR, Monitor::start)?),
            BackendKind::Guard => mprotect = !guard::guard_pages_work(),
            BackendKind::Veh => return Err(NO_EXCEPTIONS),
        }
        Ok(Self { kind, mprotect })
    }

    /// The guard backend without guard markers, as on a kernel before 6.15.
    ///
    /// # Errors
    /// Where there is none at all: on Windows.
    pub const fn guard_by_mprotect() -> Result<Self, OsError> {
        Ok(Self {
            kind: BackendKind::Guard,
            mprotect: true,
        })
    }

    /// The mechanism.
    #[must_use]
    pub const fn kind(self) -> BackendKind {
        self.kind
    }

    /// Whether closing pages splits mappings, so that pages should be opened
    /// and closed many neighbours at a time.
    #[must_use]
    pub const fn splits_mappings(self) -> bool {
        self.mprotect
    }
}

enum Mechanism {
    Uffd {
        uffd: &'static Uffd,
        monitored: bool,
    },
    Guard {
        map: FileMap,
        /// Which parts have markers; `None` where pages are closed by mprotect(2).
        groups: Option<Groups>,
        copy_for_child: ChildCopy,
        /// Numbers for that copy, and for the copy that its child needs when that
        /// forks, where the process may open no more.
        spares: [Spare; 2],
    },
}

/// What a child of guard will find in its file, from before the fork until the child
/// has it.
struct ChildCopy {
    /// The file, or -1.
    file: AtomicI32,
    /// It is no more what the page table says. Not mended: nobody can tell whether
    /// the child exists already, and uses the file.
    stale: AtomicBool,
}

impl ChildCopy {
    const fn new() -> Self {
        Self {
            file: AtomicI32::new(-1),
            stale: AtomicBool::new(false),
        }
    }

    fn begin(&self, file: i32) {
        self.stale.store(false, Ordering::Relaxed);
        self.file.store(file, Ordering::Release);
    }

    fn take(&self) -> Option<i32> {
        let file = self.file.swap(-1, Ordering::AcqRel);
        (file >= 0).then_some(file)
    }

    /// A page comes, goes or is stored to. Before the call that makes the child only
    /// a handler of the program's can do that, one that runs after ours. One load at
    /// any other time.
    fn note_change(&self) {
        if self.file.load(Ordering::Relaxed) >= 0 {
            self.stale.store(true, Ordering::Relaxed);
        }
    }
}

/// Most page runs a [`Batch`] holds.
const BATCH_RUNS: usize = DROP_RANGES_MAX;

/// Page runs of one region to be dropped in one call.
pub struct Batch {
    runs: [DropRange; BATCH_RUNS],
    len: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            runs: [NO_RANGE; BATCH_RUNS],
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
    // Dropped after the mechanism's own `drop` ran.
    home: Home,
    span: Span,
    mechanism: Mechanism,
}

impl Region {
    /// Puts the address space of `home` under `backend`. Every page is
    /// absent, whatever was there is gone.
    ///
    /// # Errors
    /// The kernel's refusal; `EINVAL` when `home` is not whole pages.
    pub fn new(backend: Backend, home: Home) -> Result<Self, OsError> {
        let span = match &home {
            Home::Own(reservation) => reservation.span(0, reservation.len())?,
            Home::Lent {
                reservation,
                offset,
                len,
            } => reservation.span(*offset, *len)?,
        };
        let mechanism = match backend.kind {
            BackendKind::Inline => Mechanism::Uffd {
                uffd: get_or_open_uffd(&INLINE, open_inline)?,
                monitored: false,
            },
            BackendKind::Monitor => Mechanism::Uffd {
                uffd: get_or_open_uffd(&MONITOR, Monitor::start)?.uffd(),
                monitored: true,
            },
            BackendKind::Guard => {
                // SAFETY: `home` keeps the reservation for as long as the
                // region, and a reservation never gives out references.
                let map = unsafe { FileMap::over(span) }?;
                let spares = [const { Spare::new() }; 2];
                spares.iter().for_each(Spare::hold);
                let groups = match backend.mprotect {
                    true => None,
                    false => Some(Groups::new(&map)?),
                };
                Mechanism::Guard {
                    map,
                    groups,
                    copy_for_child: ChildCopy::new(),
                    spares,
                }
            }
            BackendKind::Veh => return Err(NO_EXCEPTIONS),
        };
        let region = Self {
            home,
            span,
            mechanism,
        };
        if let Mechanism::Uffd { uffd, .. } = region.mechanism {
            // A huge page would appear where 512 pages have words of their own.
            region.advise(libc::MADV_NOHUGEPAGE)?;
            uffd.register(span.base(), span.len())?;
        }
        // A child made without our fork hooks (a raw clone) must find no
        // memory here rather than zeros.
        region.advise(libc::MADV_DONTFORK)?;
        Ok(region)
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
        matches!(self.mechanism, Mechanism::Uffd { .. })
    }

    /// Whether [`Region::protect`] keeps out loads too.
    #[must_use]
    pub const fn protects_from_loads(&self) -> bool {
        matches!(self.mechanism, Mechanism::Guard { .. })
    }

    /// How the kernel reports touches that the engine can resolve.
    #[must_use]
    pub const fn signs(&self) -> &'static [Sign] {
        match &self.mechanism {
            Mechanism::Uffd { .. } => &[Sign::Bus],
            // A guard marker, or a mapping that is closed.
            Mechanism::Guard { .. } => &[Sign::Unmapped, Sign::Forbidden],
        }
    }

    /// Whether each page to be protected must be named exactly, as pages in
    /// between would suffer from it.
    #[must_use]
    pub const fn protects_exactly(&self) -> bool {
        self.protects_from_loads()
    }

    fn offset(&self, page: usize, pages: usize) -> (usize, usize) {
        let (offset, len) = (page * PAGE_SIZE, pages * PAGE_SIZE);
        assert!(offset + len <= self.span.len(), "pages outside the region");
        (offset, len)
    }

    /// Memory that the mechanism takes for itself, bytes, as far as it grows with
    /// what is used: page tables of markers.
    #[must_use]
    pub fn metadata_bytes(&self) -> usize {
        match &self.mechanism {
            Mechanism::Guard {
                groups: Some(groups),
                ..
            } => groups.metadata_bytes(),
            Mechanism::Guard { .. } | Mechanism::Uffd { .. } => 0,
        }
    }

    /// Puts `data` (whole pages) in place at `page`, complete before any
    /// thread can see it; read-only when `protect` and the backend tracks
    /// writes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn install(&self, page: usize, data: &[u8], protect: bool) -> Result<Installed, OsError> {
        let (offset, len) = self.offset(page, data.len() / PAGE_SIZE);
        match &self.mechanism {
            Mechanism::Uffd { uffd, .. } => uffd.copy(self.span.base() + offset, data, protect),
            Mechanism::Guard {
                map,
                groups,
                copy_for_child,
                ..
            } => {
                map.fill(offset, data)?;
                copy_for_child.note_change();
                put_in_place(map, groups.as_ref(), offset, len)?;
                Ok(Installed::Bytes(len))
            }
        }
    }

    /// Puts a page of zeros in place, if none is there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn install_zero(&self, page: usize) -> Result<Installed, OsError> {
        let (offset, len) = self.offset(page, 1);
        match &self.mechanism {
            Mechanism::Uffd { uffd, .. } => uffd.zero(self.span.base() + offset, len),
            Mechanism::Guard {
                map,
                groups,
                copy_for_child,
                ..
            } => {
                copy_for_child.note_change();
                // The hole in the file reads as zero.
                put_in_place(map, groups.as_ref(), offset, len)?;
                Ok(Installed::Bytes(len))
            }
        }
    }

    /// Makes stores to the mapped pages of a run fault (loads too, where the
    /// backend [protects from loads](Region::protects_from_loads)).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn protect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        let (offset, len) = self.offset(page, pages);
        match &self.mechanism {
            Mechanism::Uffd { uffd, .. } => uffd.protect(self.span.base() + offset, len, true),
            Mechanism::Guard {
                map, groups: None, ..
            } => map.protect(offset, len, false),
            Mechanism::Guard { map, .. } => map.guard(offset, len),
        }
    }

    /// Lets the program use the mapped pages of a run freely again.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn unprotect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        let (offset, len) = self.offset(page, pages);
        match &self.mechanism {
            Mechanism::Uffd { uffd, .. } => uffd.protect(self.span.base() + offset, len, false),
            Mechanism::Guard { map, groups, .. } => open(map, groups.as_ref(), offset, len),
        }
    }

    /// Copies a mapped page that nobody can write now; `false` when it cannot
    /// be read.
    #[must_use]
    pub fn read(&self, page: usize, out: &mut [u8; PAGE_SIZE]) -> bool {
        let (offset, _) = self.offset(page, 1);
        match &self.mechanism {
            Mechanism::Uffd { .. } => {
                // SAFETY: aligned and inside the region; the caller holds the
                // page in place, mapped and write-protected.
                unsafe { read_page(self.span.base() + offset, out) };
                true
            }
            Mechanism::Guard { map, .. } => map.read(offset, out).is_ok(),
        }
    }

    /// Takes the program's lock (mlock(2)) off a run of pages whose block is gone.
    ///
    /// # Errors
    /// The kernel's refusal: too many mappings.
    pub fn unlock(&self, page: usize, pages: usize) -> Result<(), OsError> {
        let (offset, len) = self.offset(page, pages);
        ranges::unlock(self.span.base() + offset, len)
    }

    /// Adds a run of protected pages to a batch.
    ///
    /// # Panics
    /// When the batch holds as many runs already as a batch of reclaim has
    /// pages.
    pub fn add_to(&self, batch: &mut Batch, page: usize, pages: usize) {
        let (offset, len) = self.offset(page, pages);
        let address = self.span.base() + offset;
        if let Some(last) = batch.len.checked_sub(1).map(|i| &mut batch.runs[i])
            && last.iov_base as usize + last.iov_len == address
        {
            last.iov_len += len;
            return;
        }
        batch.runs[batch.len] = drop_range(address, len);
        batch.len += 1;
    }

    /// Gives the frames of the batch's pages back to the kernel; the batch is
    /// empty afterwards. `kept` is called for each page whose frame stays:
    /// locked memory, unless `even_locked`.
    pub fn drop_batch(&self, batch: &mut Batch, even_locked: bool, kept: &mut dyn FnMut(usize)) {
        let runs = &batch.runs[..batch.len];
        batch.len = 0;
        if runs.is_empty() {
            return;
        }
        let page_at = |address: usize| (address - self.span.base()) / PAGE_SIZE;
        match &self.mechanism {
            // SAFETY: the runs lie in private anonymous memory of this region
            // (`add_to` checked), and their bytes are safe in the store or
            // unwanted: the caller holds the pages' claims.
            Mechanism::Uffd { .. } => unsafe {
                drop_ranges(runs, even_locked, &mut |address| kept(page_at(address)));
            },
            Mechanism::Guard {
                map,
                copy_for_child,
                ..
            } => {
                copy_for_child.note_change();
                for run in runs {
                    let first = page_at(run.iov_base as usize);
                    if map.punch(first * PAGE_SIZE, run.iov_len).is_err() {
                        (first..first + run.iov_len / PAGE_SIZE).for_each(&mut *kept);
                    }
                }
            }
        }
    }

    /// Wakes a thread that waits on this page although nothing was put in
    /// place (monitor).
    pub fn wake(&self, page: usize) {
        if let Mechanism::Uffd { uffd, .. } = self.mechanism {
            let (offset, len) = self.offset(page, 1);
            // Nobody waiting, or no longer registered: both fine.
            let _nobody = uffd.wake(self.span.base() + offset, len);
        }
    }

    fn advise(&self, advice: i32) -> Result<(), OsError> {
        // SAFETY: the span is reserved (`home`) and the advice given changes
        // no contents.
        let rc = unsafe {
            libc::madvise(
                self.span.base() as *mut libc::c_void,
                self.span.len(),
                advice,
            )
        };
        // A kernel without transparent huge pages has no such advice.
        if rc == 0
            || (advice == libc::MADV_NOHUGEPAGE && ghostmem_os::error::errno() == libc::EINVAL)
        {
            Ok(())
        } else {
            Err(OsError::last("madvise"))
        }
    }

    /// The program is about to store to a page. Where the region was copied for a
    /// child already, the child cannot have what is stored.
    pub fn note_store(&self) {
        if let Mechanism::Guard { copy_for_child, .. } = &self.mechanism {
            copy_for_child.note_change();
        }
    }

    /// Before fork(2): the region is to be copied. `resident` yields the
    /// resident pages, in order, each time it is asked; nobody moves pages.
    ///
    /// # Errors
    /// No memory for the child's copy of a shared memory file.
    pub fn before_fork<I: Iterator<Item = usize>>(
        &self,
        resident: impl Fn() -> I,
        pinned: impl Fn(usize) -> bool,
    ) -> Result<(), OsError> {
        self.advise(libc::MADV_DOFORK)?;
        let Mechanism::Guard {
            map,
            copy_for_child,
            spares,
            ..
        } = &self.mechanism
        else {
            return Ok(());
        };
        let len = self.span.len();
        let file =
            guard::memory_file(len).or_else(|error| match spares.iter().any(Spare::let_go) {
                true => guard::memory_file(len),
                false => Err(error),
            })?;
        // No thread may store to a page while it is copied, nor between then and
        // the fork: a touch waits at the gate, which is frozen. The parent's
        // pages open again one by one, as they are touched.
        //
        // Pinned pages stay open, as a pin promises: the kernel would answer
        // EFAULT to a call that works on one meanwhile, and a page that was
        // opened only after the fork could be evicted first. They are copied
        // last. What other threads store to them from there on is not the
        // child's; natively the last such store is that before clone(2).
        let closed = || resident().filter(|&page| !pinned(page));
        self.close_runs(closed(), &pinned);
        let copied = closed()
            .chain(resident().filter(|&page| pinned(page)))
            .try_for_each(|page| map.copy_page_to(page * PAGE_SIZE, file));
        if let Err(error) = copied {
            guard::close(file);
            return Err(error);
        }
        copy_for_child.begin(file);
        Ok(())
    }

    /// Closes pages that are given in order, neighbours in one call. A page that
    /// the kernel does not close (locked memory) stays open.
    fn close_runs(&self, pages: impl Iterator<Item = usize>, pinned: impl Fn(usize) -> bool) {
        /// Closing so many absent pages once more is cheaper than another call.
        const GAP_PAGES: usize = 64;
        let close = |(start, end): (usize, usize)| {
            if self.protect(start, end - start).is_err() {
                for page in start..end {
                    let _open = self.protect(page, 1);
                }
            }
        };
        let mut run: Option<(usize, usize)> = None;
        for page in pages {
            run = match run {
                Some((start, end)) if page - end <= GAP_PAGES && !(end..page).any(&pinned) => {
                    Some((start, page + 1))
                }
                before => {
                    before.into_iter().for_each(close);
                    Some((page, page + 1))
                }
            };
        }
        run.into_iter().for_each(close);
    }

    /// After fork(2), in the parent.
    pub fn after_fork_in_parent(&self) {
        // It worked when the region was made.
        let _kept = self.advise(libc::MADV_DONTFORK);
        if let Mechanism::Guard {
            copy_for_child,
            spares,
            ..
        } = &self.mechanism
        {
            if let Some(file) = copy_for_child.take() {
                guard::close(file);
            }
            spares.iter().for_each(Spare::hold);
        }
    }

    /// Which of the pages from `page` on are mapped, one byte each with bit 0
    /// set; `false` where the backend cannot tell, or nothing there can be
    /// mapped unseen.
    ///
    /// # Errors
    /// The kernel's refusal of mincore(2).
    pub fn mapped(&self, page: usize, out: &mut [u8]) -> Result<bool, OsError> {
        let (offset, len) = self.offset(page, out.len());
        match &self.mechanism {
            Mechanism::Uffd { .. } => {
                map::mapped_pages(self.span.base() + offset, len, out).map(|()| true)
            }
            Mechanism::Guard { .. } => Ok(false),
        }
    }

    /// After fork(2), in the child, once the fault monitor can hear: whether
    /// the region is its, which is then to be handed over: until now the
    /// faulting threads served themselves, and just now nobody does.
    #[must_use]
    pub const fn is_monitored(&self) -> bool {
        matches!(
            self.mechanism,
            Mechanism::Uffd {
                monitored: true,
                ..
            }
        )
    }

    /// After fork(2), in the child: puts the region under the child's own
    /// backend. `resident` yields the pages that are mapped, in order.
    ///
    /// # Errors
    /// The kernel's refusal; the child cannot go on then.
    pub fn after_fork_in_child(
        &self,
        resident: impl Iterator<Item = usize>,
    ) -> Result<(), OsError> {
        self.advise(libc::MADV_DONTFORK)?;
        match &self.mechanism {
            Mechanism::Uffd { uffd, .. } => uffd.register(self.span.base(), self.span.len()),
            Mechanism::Guard {
                map,
                groups,
                copy_for_child,
                spares,
            } => {
                let Some(file) = copy_for_child.take() else {
                    return Err(OsError::new("fork", libc::ENOMEM));
                };
                if copy_for_child.stale.load(Ordering::Relaxed) {
                    die(
                        "a fork handler used a guard heap after it was copied for the child",
                        libc::EFAULT,
                    );
                }
                map.adopt(file)?;
                spares.iter().for_each(Spare::hold);
                self.advise(libc::MADV_DONTFORK)?;
                if let Some(groups) = groups {
                    groups.begin_again(map)?;
                }
                let open_run = |(start, end): (usize, usize)| {
                    let (offset, len) = self.offset(start, end - start);
                    match put_in_place(map, groups.as_ref(), offset, len) {
                        // No mapping left: closed pages are opened as they are
                        // touched.
                        Err(error) if groups.is_none() && error.errno == libc::ENOMEM => Ok(()),
                        other => other,
                    }
                };
                let mut run: Option<(usize, usize)> = None;
                for page in resident {
                    run = match run {
                        Some((start, end)) if page == end => Some((start, page + 1)),
                        before => {
                            before.into_iter().try_for_each(open_run)?;
                            Some((page, page + 1))
                        }
                    };
                }
                run.into_iter().try_for_each(open_run)
            }
        }
    }
}

/// Opens pages whose bytes are in the file, for the first time perhaps.
fn put_in_place(
    map: &FileMap,
    groups: Option<&Groups>,
    offset: usize,
    len: usize,
) -> Result<(), OsError> {
    if let Some(groups) = groups {
        groups.prepare(map, offset / PAGE_SIZE, len / PAGE_SIZE)?;
    }
    open(map, groups, offset, len)
}

fn open(map: &FileMap, groups: Option<&Groups>, offset: usize, len: usize) -> Result<(), OsError> {
    match groups {
        Some(_) => map.unguard(offset, len),
        None => map.protect(offset, len, true),
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Mechanism::Uffd { uffd, .. } = self.mechanism {
            // The mapping goes with its reservation anyway.
            let _gone = uffd.unregister(self.span.base(), self.span.len());
        }
        if let Home::Lent {
            reservation,
            offset,
            len,
        } = &self.home
        {
            // Whoever lent it lays fresh memory over it too.
            let _fresh = reservation.remap(*offset, *len, ghostmem_os::map::Access::ReadWrite);
        }
    }
}

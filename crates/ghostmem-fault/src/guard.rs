//! The *guard* backend: closed pages over a memory file that the engine writes to.

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use ghostmem_os::bits::PageBits;
use ghostmem_os::descriptor::Spare;
use ghostmem_os::ghost::Installed;
use ghostmem_os::guard::{self, FileMap};
use ghostmem_os::map::{MapArc, Span};
use ghostmem_os::ranges;
use ghostmem_os::room::Room;
use ghostmem_os::signal::Sign;
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::advise::advise;
use crate::backend::Backend;
use crate::batch::{Batch, pages_of};
use crate::die::die;
use crate::dumped::Dumped;
use crate::groups::Groups;

/// A range that maps a memory file, its absent pages closed.
pub(crate) struct Guard {
    span: Span,
    away: MapArc<PageBits>,
    map: FileMap,
    /// Which parts have markers; `None` where pages are closed by mprotect(2).
    groups: Option<Groups>,
    copy_for_child: ChildCopy,
    /// Numbers for that copy, and for the copy that its child needs when that
    /// forks, where the process may open no more.
    spares: [Spare; 2],
    dumped: Dumped,
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

impl Guard {
    /// Lays a memory file over the range; guarded by markers, or else by mprotect(2).
    ///
    /// # Errors
    /// The kernel's refusal.
    ///
    /// # Safety
    /// As for [`FileMap::over`]: the range is reserved for as long as this lives, and
    /// nobody has a reference into it.
    pub(crate) unsafe fn over(
        span: Span,
        away: MapArc<PageBits>,
        markers: bool,
    ) -> Result<Self, OsError> {
        // SAFETY: the caller's promise.
        let map = unsafe { FileMap::over(span) }?;
        let spares = [const { Spare::new() }; 2];
        spares.iter().for_each(Spare::hold);
        let groups = match markers {
            true => Some(Groups::new(&map, &away)?),
            false => None,
        };
        // A child made without our fork hooks (a raw clone) must find no
        // memory here rather than zeros.
        advise(span, libc::MADV_DONTFORK)?;
        Ok(Self {
            span,
            away,
            map,
            groups,
            copy_for_child: ChildCopy::new(),
            spares,
            dumped: Dumped::nothing_of(span)?,
        })
    }

    /// Opens pages whose bytes are in the file, for the first time perhaps.
    fn put_in_place(&self, page: usize, pages: usize) -> Result<(), OsError> {
        match self.try_in_place(page, pages) {
            // No mapping left: where dumps have parts of the region, mappings end that
            // could be one.
            Err(error) if error.errno == libc::ENOMEM && self.dumped.note_all() => {
                self.try_in_place(page, pages)
            }
            other => other,
        }
    }

    fn try_in_place(&self, page: usize, pages: usize) -> Result<(), OsError> {
        if let Some(groups) = &self.groups {
            groups.prepare(&self.map, &self.away, page, pages)?;
        }
        self.unprotect(page, pages)
    }

    /// The region's own parts of the address space.
    fn parts(&self) -> impl Iterator<Item = Span> {
        let gaps = self.away.gaps(0, self.span.pages());
        gaps.map(|(start, end)| self.span.part(start, end - start))
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
                Some((start, end))
                    if page - end <= GAP_PAGES
                        && self.away.next(end, page, true) == page
                        && !(end..page).any(&pinned) =>
                {
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
}

impl Backend for Guard {
    fn tracks_writes(&self) -> bool {
        false
    }

    fn protects_from_loads(&self) -> bool {
        true
    }

    fn protects_exactly(&self) -> bool {
        true
    }

    fn signs(&self) -> &'static [Sign] {
        // A guard marker, or a mapping that is closed.
        &[Sign::Unmapped, Sign::Forbidden]
    }

    /// Page tables of markers.
    fn metadata_bytes(&self) -> usize {
        self.groups.as_ref().map_or(0, Groups::metadata_bytes)
    }

    fn install(&self, page: usize, data: &[u8], _protect: bool) -> Result<Installed, OsError> {
        self.dumped.note(page * PAGE_SIZE, data.len());
        self.map.fill(page * PAGE_SIZE, data)?;
        self.copy_for_child.note_change();
        self.put_in_place(page, data.len() / PAGE_SIZE)?;
        Ok(Installed::Bytes(data.len()))
    }

    fn install_zero(&self, page: usize) -> Result<Installed, OsError> {
        self.dumped.note(page * PAGE_SIZE, PAGE_SIZE);
        self.copy_for_child.note_change();
        // The hole in the file reads as zero.
        self.put_in_place(page, 1)?;
        Ok(Installed::Bytes(PAGE_SIZE))
    }

    fn protect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        let (offset, len) = (page * PAGE_SIZE, pages * PAGE_SIZE);
        match &self.groups {
            Some(_) => self.map.guard(offset, len),
            None => self.map.protect(offset, len, false),
        }
    }

    fn unprotect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        let (offset, len) = (page * PAGE_SIZE, pages * PAGE_SIZE);
        match &self.groups {
            Some(_) => self.map.unguard(offset, len),
            None => self.map.protect(offset, len, true),
        }
    }

    fn give_away(&self, away: &PageBits, page: usize, pages: usize) {
        match &self.groups {
            Some(groups) => groups.give_away(away, page, pages),
            None => away.set(page, page + pages),
        }
    }

    fn replace(&self, away: &PageBits, page: usize, room: Room) -> Result<(), OsError> {
        let pages = room.pages();
        let part = self.span.part(page, pages);
        let moves = || {
            // SAFETY: pages of this region, into which nobody has a reference.
            unsafe { room.move_over(part.base()) }?;
            away.set(page, page + pages);
            Ok(())
        };
        match &self.groups {
            // In one step for who marks: markers would take the bytes away.
            Some(groups) => groups.in_turn(moves),
            None => moves(),
        }?;
        self.copy_for_child.note_change();
        // Nobody maps them any more, and who does again punches first.
        let _else_they_stay = self.map.punch(page * PAGE_SIZE, part.len());
        Ok(())
    }

    fn retake(&self, away: &PageBits, page: usize, pages: usize) -> Result<(), OsError> {
        let part = self.span.part(page, pages);
        // A hole in the file reads as zero: what could not be punched before is no page's.
        self.map.punch(page * PAGE_SIZE, part.len())?;
        match &self.groups {
            Some(groups) => groups.retake(&self.map, away, page, pages)?,
            None => {
                self.map.map_part(page * PAGE_SIZE, part.len())?;
                away.clear(page, page + pages);
            }
        }
        self.dumped.set_again_in(page * PAGE_SIZE, part.len());
        advise(part, libc::MADV_DONTFORK)
    }

    fn read(&self, page: usize, out: &mut [u8; PAGE_SIZE]) -> bool {
        self.map.read(page * PAGE_SIZE, out).is_ok()
    }

    fn unlock(&self, page: usize, pages: usize) -> Result<(), OsError> {
        ranges::unlock(self.span.base() + page * PAGE_SIZE, pages * PAGE_SIZE)
    }

    fn drop_batch(&self, batch: &mut Batch, _even_locked: bool, kept: &mut dyn FnMut(usize)) {
        let runs = batch.take();
        if runs.is_empty() {
            return;
        }
        self.copy_for_child.note_change();
        for run in runs {
            let (first, pages) = pages_of(run, self.span);
            if self.map.punch(first * PAGE_SIZE, run.iov_len).is_err() {
                (first..first + pages).for_each(&mut *kept);
            }
        }
    }

    /// Where the region was copied for a child already, the child cannot have what is
    /// stored.
    fn note_store(&self) {
        self.copy_for_child.note_change();
    }

    fn before_fork<I: Iterator<Item = usize>>(
        &self,
        resident: impl Fn() -> I,
        pinned: impl Fn(usize) -> bool,
    ) -> Result<(), OsError> {
        self.parts()
            .try_for_each(|part| advise(part, libc::MADV_DOFORK))?;
        let len = self.span.len();
        let file = guard::memory_file(len).or_else(|error| {
            match self.spares.iter().any(Spare::let_go) {
                true => guard::memory_file(len),
                false => Err(error),
            }
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
            .try_for_each(|page| self.map.copy_page_to(page * PAGE_SIZE, file));
        if let Err(error) = copied {
            guard::close(file);
            return Err(error);
        }
        self.copy_for_child.begin(file);
        Ok(())
    }

    fn after_fork_in_parent(&self) {
        for part in self.parts() {
            // It worked when the region was made.
            let _kept = advise(part, libc::MADV_DONTFORK);
        }
        if let Some(file) = self.copy_for_child.take() {
            guard::close(file);
        }
        self.spares.iter().for_each(Spare::hold);
    }

    fn after_fork_in_child(&self, resident: impl Iterator<Item = usize>) -> Result<(), OsError> {
        let Some(file) = self.copy_for_child.take() else {
            return Err(OsError::new("fork", libc::ENOMEM));
        };
        if self.copy_for_child.stale.load(Ordering::Relaxed) {
            die(
                "a fork handler used a guard heap after it was copied for the child",
                libc::EFAULT,
            );
        }
        self.map.replace_file(file);
        for (start, end) in self.away.gaps(0, self.span.pages()) {
            let (offset, len) = (start * PAGE_SIZE, (end - start) * PAGE_SIZE);
            self.map.map_part(offset, len)?;
        }
        self.dumped.set_again();
        self.spares.iter().for_each(Spare::hold);
        self.parts()
            .try_for_each(|part| advise(part, libc::MADV_DONTFORK))?;
        if let Some(groups) = &self.groups {
            groups.begin_again(&self.map, &self.away)?;
        }
        let open_run = |(start, end): (usize, usize)| {
            match self.put_in_place(start, end - start) {
                // No mapping left: closed pages are opened as they are
                // touched.
                Err(error) if self.groups.is_none() && error.errno == libc::ENOMEM => Ok(()),
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

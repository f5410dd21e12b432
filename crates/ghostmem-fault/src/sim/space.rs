//! The memory of a simulated region, and the backend over it.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ghostmem_os::ghost::Installed;
use ghostmem_os::map::{Span, ZeroArray};
use ghostmem_os::signal::Sign;
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::backend::Backend;
use crate::batch::{Batch, pages_of};
use crate::sim::kernel::{Answer, Call, current};

/// Which mechanism a simulated region behaves like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As inline and monitor: absent pages fault, stores to protected ones do.
    Userfaultfd,
    /// As guard: closed pages fault, whatever the access; open ones without a frame read
    /// as zero.
    Guard,
    /// The same, where closing a page splits a mapping.
    GuardByMprotect,
}

/// Number of the page's frame, one more; 0: it has none.
const FRAME: u32 = (1 << 28) - 1;
/// Stores fault (userfaultfd).
const PROTECTED: u32 = 1 << 28;
/// The program gets through (guard).
const OPEN: u32 = 1 << 29;
/// The program locked the page (mlock).
const LOCKED: u32 = 1 << 30;

/// The frames of a region.
#[derive(Default)]
struct Frames {
    bytes: Vec<[u8; PAGE_SIZE]>,
    free: Vec<u32>,
}

impl Frames {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.bytes.push([0; PAGE_SIZE]);
            self.bytes.len() as u32 - 1
        })
    }
}

/// A region's pages as the simulated kernel has them.
pub(crate) struct Space {
    span: Span,
    manner: Manner,
    pages: ZeroArray<AtomicU32>,
    frames: Mutex<Frames>,
    used: AtomicUsize,
}

/// An access that does not get through.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trap {
    /// The page has a frame.
    pub(crate) present: bool,
}

impl Space {
    /// The page of an address of this region.
    pub(crate) fn page_at(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.span.base())?;
        (offset < self.span.len()).then_some(offset / PAGE_SIZE)
    }

    pub(crate) fn frames_used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn get(&self, page: usize) -> u32 {
        self.pages[page].load(Ordering::Relaxed)
    }

    fn set(&self, page: usize, entry: u32) {
        self.pages[page].store(entry, Ordering::Relaxed);
    }

    pub(crate) fn has_frame(&self, page: usize) -> bool {
        self.get(page) & FRAME != 0
    }

    /// Whether the program locked the page.
    pub(crate) fn is_locked(&self, page: usize) -> bool {
        self.get(page) & LOCKED != 0
    }

    /// Gives the page's frame to `act`, a frame of zeros if it had none.
    pub(crate) fn with_frame<R>(
        &self,
        page: usize,
        act: impl FnOnce(&mut [u8; PAGE_SIZE]) -> R,
    ) -> R {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = self.get(page);
        let frame = match entry & FRAME {
            0 => {
                let frame = frames.take();
                frames.bytes[frame as usize].fill(0);
                self.set(page, entry | (frame + 1));
                self.used.fetch_add(1, Ordering::Relaxed);
                frame
            }
            frame => frame - 1,
        };
        act(&mut frames.bytes[frame as usize])
    }

    fn take_frame_away(&self, page: usize) {
        let entry = self.get(page);
        if entry & FRAME != 0 {
            let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
            frames.free.push((entry & FRAME) - 1);
            self.used.fetch_sub(1, Ordering::Relaxed);
        }
        self.set(page, entry & !(FRAME | PROTECTED | LOCKED));
    }

    /// Whether an access gets through.
    pub(crate) fn trap(&self, page: usize, write: bool) -> Result<(), Trap> {
        let entry = self.get(page);
        let present = entry & FRAME != 0;
        let through = match self.manner {
            Manner::Userfaultfd => present && !(write && entry & PROTECTED != 0),
            Manner::Guard | Manner::GuardByMprotect => entry & OPEN != 0,
        };
        through.then_some(()).ok_or(Trap { present })
    }

    /// The program's load.
    pub(crate) fn load(&self, page: usize, offset: usize, out: &mut [u8]) -> Result<(), Trap> {
        self.trap(page, false)?;
        self.with_frame(page, |frame| {
            out.copy_from_slice(&frame[offset..offset + out.len()]);
        });
        Ok(())
    }

    /// The program's store.
    pub(crate) fn store(&self, page: usize, offset: usize, bytes: &[u8]) -> Result<(), Trap> {
        self.trap(page, true)?;
        self.with_frame(page, |frame| {
            frame[offset..offset + bytes.len()].copy_from_slice(bytes);
        });
        Ok(())
    }

    /// The program takes its mapping away itself, as madvise(2) does.
    pub(crate) fn forget(&self, page: usize) {
        self.take_frame_away(page);
    }

    /// The program locks its page, or unlocks it.
    pub(crate) fn set_locked(&self, page: usize, locked: bool) {
        let entry = self.get(page) & !LOCKED;
        self.set(page, if locked { entry | LOCKED } else { entry });
    }
}

/// A region of the *sim* backend.
pub(crate) struct Sim(Arc<Space>);

impl Sim {
    /// Puts `span`, whose memory nobody touches, under the calling thread's simulation.
    ///
    /// # Errors
    /// No memory for the table of pages.
    pub(crate) fn over(span: Span, manner: Manner) -> Result<Self, OsError> {
        let space = Arc::new(Space {
            span,
            manner,
            pages: ZeroArray::new(span.pages())?,
            frames: Mutex::default(),
            used: AtomicUsize::new(0),
        });
        current().spaces.borrow_mut().push(space.clone());
        Ok(Self(space))
    }

    /// A refusal, under the name of the call that would be refused.
    fn error(&self, errno: i32) -> OsError {
        let call = match self.0.manner {
            Manner::Userfaultfd => "ioctl",
            Manner::Guard => "madvise",
            Manner::GuardByMprotect => "mprotect",
        };
        OsError::new(call, errno)
    }

    fn guards(&self) -> bool {
        self.0.manner != Manner::Userfaultfd
    }

    /// Makes a call on `pages` pages from `page` on, of which `act` does one: how many it
    /// was.
    fn call(
        &self,
        call: Call,
        (page, pages): (usize, usize),
        mut act: impl FnMut(&Space, usize),
    ) -> Result<usize, OsError> {
        let sim = current();
        sim.meanwhile(call);
        let done = match sim.ask(call, page) {
            Answer::Done | Answer::Lie(_) => pages,
            // A file is filled whole, however often that takes, before its pages are opened.
            Answer::Part if self.guards() => pages,
            Answer::Part => pages.min(1),
            Answer::Refused(errno) => return Err(self.error(errno)),
        };
        for page in page..page + done {
            act(&self.0, page);
        }
        sim.meanwhile(call);
        Ok(done)
    }

    fn change(
        &self,
        call: Call,
        (page, pages): (usize, usize),
        change: impl Fn(u32) -> u32,
    ) -> Result<(), OsError> {
        let changed = self.call(call, (page, pages), |space, page| {
            space.set(page, change(space.get(page)));
        })?;
        // A call on a run has an effect on its first pages even where it fails.
        (changed == pages)
            .then_some(())
            .ok_or_else(|| self.error(libc::ENOMEM))
    }

    /// Puts pages in place that have no frame.
    fn place(
        &self,
        call: Call,
        (page, pages): (usize, usize),
        data: Option<&[u8]>,
        protect: bool,
    ) -> Result<Installed, OsError> {
        let space = &self.0;
        // Nobody may put it there meanwhile, either: the caller has its claim.
        if !self.guards() && space.has_frame(page) {
            return Ok(Installed::Exists);
        }
        let absent = |at: &usize| self.guards() || !space.has_frame(*at);
        let pages = (page..page + pages).take_while(absent).count();
        let flags = match (self.guards(), protect) {
            (true, _) => OPEN,
            (false, true) => PROTECTED,
            (false, false) => 0,
        };
        let done = self.call(call, (page, pages), |space, at| {
            let bytes = data.map(|data| &data[(at - page) * PAGE_SIZE..][..PAGE_SIZE]);
            // A file keeps what is in it where only a hole was wanted.
            if bytes.is_some() || !self.guards() {
                space.with_frame(at, |frame| match bytes {
                    Some(bytes) => frame.copy_from_slice(bytes),
                    None => frame.fill(0),
                });
            }
            space.set(at, space.get(at) | flags);
        })?;
        Ok(Installed::Bytes(done * PAGE_SIZE))
    }
}

impl Backend for Sim {
    fn tracks_writes(&self) -> bool {
        !self.guards()
    }

    fn protects_from_loads(&self) -> bool {
        self.guards()
    }

    fn protects_exactly(&self) -> bool {
        self.guards()
    }

    /// The system reports none.
    fn signs(&self) -> &'static [Sign] {
        &[]
    }

    fn install(&self, page: usize, data: &[u8], protect: bool) -> Result<Installed, OsError> {
        let run = (page, data.len() / PAGE_SIZE);
        self.place(Call::Install, run, Some(data), protect)
    }

    fn install_zero(&self, page: usize) -> Result<Installed, OsError> {
        self.place(Call::Zero, (page, 1), None, false)
    }

    fn protect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        let guards = self.guards();
        let locked = |page| self.0.get(page) & LOCKED != 0;
        if guards && (page..page + pages).any(locked) {
            // Locked memory takes no markers.
            return Err(self.error(libc::EINVAL));
        }
        self.change(Call::Protect, (page, pages), |entry| {
            match (guards, entry & FRAME != 0) {
                (true, _) => entry & !OPEN,
                (false, true) => entry | PROTECTED,
                (false, false) => entry,
            }
        })
    }

    fn unprotect(&self, page: usize, pages: usize) -> Result<(), OsError> {
        let guards = self.guards();
        self.change(Call::Unprotect, (page, pages), |entry| match guards {
            true => entry | OPEN,
            false => entry & !PROTECTED,
        })
    }

    fn read(&self, page: usize, out: &mut [u8; PAGE_SIZE]) -> bool {
        let sim = current();
        if !self.0.has_frame(page) && !self.guards() {
            sim.break_off(|| format!("the engine reads page {page}, which is not mapped"));
            return false;
        }
        sim.meanwhile(Call::Read);
        let read = sim.ask(Call::Read, page) == Answer::Done;
        if read {
            match self.0.has_frame(page) {
                true => self.0.with_frame(page, |frame| *out = *frame),
                // A hole in the file.
                false => out.fill(0),
            }
        }
        sim.meanwhile(Call::Read);
        read
    }

    fn unlock(&self, page: usize, pages: usize) -> Result<(), OsError> {
        self.change(Call::Unlock, (page, pages), |entry| entry & !LOCKED)
    }

    fn drop_batch(&self, batch: &mut Batch, even_locked: bool, kept: &mut dyn FnMut(usize)) {
        let span = self.0.span;
        let runs: Vec<_> = batch.take().iter().map(|run| pages_of(run, span)).collect();
        if runs.is_empty() {
            return;
        }
        let sim = current();
        sim.meanwhile(Call::Drop);
        for page in runs.iter().flat_map(|&(page, pages)| page..page + pages) {
            let even_locked = even_locked && !sim.keeps_locked.get();
            let locked = self.0.get(page) & LOCKED != 0 && !even_locked && !self.guards();
            if locked || sim.ask(Call::Drop, page) != Answer::Done {
                kept(page);
            } else {
                self.0.take_frame_away(page);
            }
        }
        sim.meanwhile(Call::Drop);
    }

    fn mapped(&self, page: usize, out: &mut [u8]) -> Result<bool, OsError> {
        if self.guards() {
            return Ok(false);
        }
        for (page, out) in (page..).zip(out) {
            *out = u8::from(self.0.has_frame(page));
        }
        Ok(true)
    }

    fn before_fork<I: Iterator<Item = usize>>(
        &self,
        resident: impl Fn() -> I,
        pinned: impl Fn(usize) -> bool,
    ) -> Result<(), OsError> {
        if self.guards() {
            for page in resident().filter(|&page| !pinned(page)) {
                let entry = self.0.get(page);
                if entry & LOCKED == 0 {
                    self.0.set(page, entry & !OPEN);
                }
            }
        }
        Ok(())
    }

    fn after_fork_in_parent(&self) {}

    /// The simulation goes on as the child: locks and protection are not inherited
    /// (mlock(2), userfaultfd(2)), and no page has a frame but the resident ones.
    fn after_fork_in_child(&self, resident: impl Iterator<Item = usize>) -> Result<(), OsError> {
        let mut frames = 0;
        for page in resident {
            let entry = self.0.get(page) & !(PROTECTED | LOCKED);
            frames += usize::from(entry & FRAME != 0);
            self.0
                .set(page, if self.guards() { entry | OPEN } else { entry });
        }
        let used = self.0.frames_used();
        if frames != used {
            let what = || format!("{used} pages are mapped in a child that says {frames}");
            current().break_off(what);
        }
        Ok(())
    }

    fn leave(&self) {
        // Regions may outlive their simulation.
        let gone = |space: &Arc<Space>| !Arc::ptr_eq(space, &self.0);
        crate::sim::kernel::if_current(|sim| sim.spaces.borrow_mut().retain(gone));
    }
}

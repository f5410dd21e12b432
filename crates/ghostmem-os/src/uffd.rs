//! userfaultfd(2): the ioctls, nothing more.
//!
//! Sources: ioctl_userfaultfd(2), the kernel's
//! `Documentation/admin-guide/mm/userfaultfd.rst` and
//! `include/uapi/linux/userfaultfd.h` of Linux 6.x.
//!
//! Every range given here must lie in memory the caller registered; the
//! kernel refuses anything else, and none of these calls can reach memory
//! that was not registered with this descriptor.
//!
//! A descriptor speaks for the process that opened it, so a child that inherits
//! one would change its parent's memory: such calls are refused (`EPERM`).

use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::calls;
use crate::descriptor::close;
use crate::error::{OsError, errno};
use crate::futex;
use crate::kernel;
use crate::lineage;
use crate::map::PAGE_SIZE;

mod abi;
mod source;

pub use crate::ghost::Installed;
use abi::*;
use source::open_fd;
pub use source::{Source, avoid_call, avoids_call, try_call};

/// Fault on a write-protected page is reported (`PAGEFAULT_FLAG_WP`).
pub const FEATURE_WP: u64 = 1 << 0;
/// Faults raise SIGBUS on the faulting thread instead of queueing a message.
pub const FEATURE_SIGBUS: u64 = 1 << 7;
/// Messages carry the faulting thread's id.
pub const FEATURE_THREAD_ID: u64 = 1 << 8;
/// Messages and signals carry the exact address.
pub const FEATURE_EXACT_ADDRESS: u64 = 1 << 11;
/// Write-protect faults resolve themselves (`PAGEMAP_SCAN` reads them back).
pub const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_MOVE` exists.
pub const FEATURE_MOVE: u64 = 1 << 16;

/// `UFFD_USER_MODE_ONLY`: only faults from user mode are handled; needs no
/// privilege.
pub const USER_MODE_ONLY: i32 = 1;

/// One message read from a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultMessage {
    /// The faulting address.
    pub address: usize,
    /// The access was a store.
    pub write: bool,
    /// The page is present and write-protected.
    pub protected: bool,
    /// The faulting thread (with [`FEATURE_THREAD_ID`]), else 0.
    pub thread: u32,
}

/// An open userfaultfd descriptor, and possibly more of the same kind as
/// *lanes*. Closed on drop.
///
/// Every call counts itself in and out of its descriptor, on lines that two
/// processors then pass to and fro. The kernel installs and protects pages
/// through any userfaultfd of the process (`validate_dst_vma` in
/// mm/userfaultfd.c asks only that the range is registered with one), so
/// threads on different lanes share none of that: 1.5 us a page instead of
/// 1.8 with two threads.
///
/// The numbers are atomic so that a forked child can put fresh descriptors in
/// place of the inherited ones.
#[derive(Debug)]
pub struct Uffd {
    fd: AtomicI32,
    /// -1 where there is none. Never used where faults are messages: only the
    /// descriptor that a range is registered with wakes those who wait there.
    lanes: [AtomicI32; LANES_MAX],
    /// See [`Uffd::hold_wakes`].
    held: AtomicU64,
    /// Threads in [`Uffd::wake_unless_held`], which wake somebody if nobody holds wakes.
    waking: AtomicU64,
}

/// Most lanes beside the first descriptor.
const LANES_MAX: usize = 7;

/// Wakes are held so many times just now, and how often they ever were.
const HELD_NOW: u64 = HELD_BEFORE - 1;
const HELD_BEFORE: u64 = 1 << 32;

/// Holding wakes ([`Uffd::hold_wakes`]); dropping it lets them go.
#[derive(Debug)]
#[must_use]
pub struct HeldWakes<'a>(&'a Uffd);

impl Drop for HeldWakes<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether wakes are held, and how often they were ([`Uffd::wakes`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wakes(u64);

impl Wakes {
    /// Whether nobody holds wakes.
    #[must_use]
    pub const fn are_free(self) -> bool {
        self.0 & HELD_NOW == 0
    }
}

impl Uffd {
    /// Opens a descriptor from `source` with exactly `features` switched on.
    ///
    /// # Errors
    /// The kernel's refusal: `EPERM` without privilege, `ENOSYS` where a
    /// seccomp filter or an old kernel has no such call, `EINVAL` for a
    /// feature the kernel lacks.
    pub fn open(source: Source, features: u64) -> Result<Self, OsError> {
        let uffd = Self::of(open_fd(source)?);
        let mut arg = ApiArg {
            api: API,
            features,
            ioctls: 0,
        };
        Self::request(uffd.fd(), "UFFDIO_API", REQ_API, &raw mut arg)?;
        Ok(uffd)
    }

    /// As [`Uffd::open`], with up to `lanes` descriptors in all (8 at most), as
    /// many as the kernel gives. Only for [`FEATURE_SIGBUS`].
    ///
    /// # Errors
    /// As [`Uffd::open`].
    pub fn open_lanes(source: Source, features: u64, lanes: usize) -> Result<Self, OsError> {
        debug_assert!(features & FEATURE_SIGBUS != 0, "messages have one reader");
        let uffd = Self::open(source, features)?;
        uffd.add_lanes(lanes, || Self::open(source, features));
        Ok(uffd)
    }

    /// Adds lanes of the same kind, which `open` opens, until there are `lanes`
    /// descriptors in all (8 at most), or it opens no more. Others may use this one
    /// meanwhile, but only one thread adds.
    pub fn add_lanes(&self, lanes: usize, open: impl Fn() -> Result<Self, OsError>) {
        for lane in self.lanes.iter().take(lanes.saturating_sub(1)) {
            if lane.load(Ordering::Relaxed) >= 0 {
                continue;
            }
            let Ok(more) = open() else {
                break;
            };
            lane.store(more.fd.swap(-1, Ordering::AcqRel), Ordering::Release);
        }
    }

    const fn of(fd: i32) -> Self {
        Self {
            fd: AtomicI32::new(fd),
            lanes: [const { AtomicI32::new(-1) }; LANES_MAX],
            held: AtomicU64::new(0),
            waking: AtomicU64::new(0),
        }
    }

    /// The features the kernel offers a descriptor from `source`.
    ///
    /// # Errors
    /// As [`Uffd::open`].
    pub fn features(source: Source) -> Result<u64, OsError> {
        let uffd = Self::of(open_fd(source)?);
        let mut arg = ApiArg {
            api: API,
            features: 0,
            ioctls: 0,
        };
        Self::request(uffd.fd(), "UFFDIO_API", REQ_API, &raw mut arg)?;
        Ok(arg.features)
    }

    /// The descriptor's number, for poll(2).
    #[must_use]
    pub fn fd(&self) -> i32 {
        self.fd.load(Ordering::Acquire)
    }

    /// Closes the descriptors. In a forked child, whose inherited ones still speak
    /// for the parent: before [`Uffd::replace`], as it may have no other numbers.
    pub fn close(&self) {
        for fd in self.descriptors() {
            close(fd.swap(-1, Ordering::AcqRel));
        }
    }

    /// Takes over `fresh`'s descriptors and closes the old ones. For a forked child,
    /// which has none of the threads that may have held wakes.
    pub fn replace(&self, fresh: Self) {
        self.held.store(0, Ordering::SeqCst);
        self.waking.store(0, Ordering::SeqCst);
        for (old, new) in self.descriptors().zip(fresh.descriptors()) {
            let new = new.swap(-1, Ordering::AcqRel);
            close(old.swap(new, Ordering::AcqRel));
        }
    }

    fn descriptors(&self) -> impl Iterator<Item = &AtomicI32> {
        core::iter::once(&self.fd).chain(&self.lanes)
    }

    /// Registers a page-aligned range for missing and write-protect faults.
    ///
    /// # Errors
    /// The kernel's refusal: `EBUSY` when another descriptor has it.
    pub fn register(&self, base: usize, len: usize) -> Result<(), OsError> {
        let mode = REGISTER_MODE_MISSING | REGISTER_MODE_WP;
        let mut arg = RegisterArg {
            range: range(base, len),
            mode,
            ioctls: 0,
        };
        self.ioctl("UFFDIO_REGISTER", REQ_REGISTER, &raw mut arg)
    }

    /// Ends the registration of a range.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn unregister(&self, base: usize, len: usize) -> Result<(), OsError> {
        let mut arg = range(base, len);
        self.ioctl("UFFDIO_UNREGISTER", REQ_UNREGISTER, &raw mut arg)
    }

    /// Maps `src.len()` bytes (whole pages) at `dst`, filled from `src` before
    /// any thread can see them; write-protected when `protect`. Fewer where
    /// something has split the mapping (mlock(2)): the kernel takes ranges of one
    /// mapping only, and says `ENOENT` of others.
    ///
    /// `EAGAIN` (another thread is changing the address space) is retried.
    ///
    /// # Errors
    /// Any other refusal of the kernel, `ENOENT` when the range is no longer
    /// registered, `ENOMEM` when no frame can be had.
    pub fn copy(&self, dst: usize, src: &[u8], protect: bool) -> Result<Installed, OsError> {
        let mode = if protect { COPY_MODE_WP } else { 0 } | self.quiet(PLACE_MODE_DONTWAKE);
        let mut tries = Tries(0);
        let mut len = src.len();
        loop {
            let mut arg = CopyArg {
                dst: dst as u64,
                src: src.as_ptr() as u64,
                len: len as u64,
                mode,
                copied: 0,
            };
            match self.lane_ioctl("UFFDIO_COPY", REQ_COPY, &raw mut arg) {
                Ok(()) => return Ok(Installed::Bytes(len)),
                Err(e) if e.errno == libc::ENOENT && len > PAGE_SIZE => len = PAGE_SIZE,
                Err(_) if arg.copied > 0 => return Ok(Installed::Bytes(arg.copied as usize)),
                Err(e) if e.errno == libc::EEXIST => return Ok(Installed::Exists),
                Err(e) if e.errno == libc::EAGAIN => tries.once_more(),
                Err(e) => return Err(e),
            }
        }
    }

    /// Maps the shared zero page over a range, as [`Uffd::copy`] of zeros
    /// would read; the first store makes the kernel give it a frame.
    ///
    /// # Errors
    /// As [`Uffd::copy`].
    pub fn zero(&self, base: usize, len: usize) -> Result<Installed, OsError> {
        let mut tries = Tries(0);
        loop {
            let mut arg = ZeroArg {
                range: range(base, len),
                mode: self.quiet(PLACE_MODE_DONTWAKE),
                zeroed: 0,
            };
            match self.lane_ioctl("UFFDIO_ZEROPAGE", REQ_ZEROPAGE, &raw mut arg) {
                Ok(()) => return Ok(Installed::Bytes(len)),
                Err(_) if arg.zeroed > 0 => return Ok(Installed::Bytes(arg.zeroed as usize)),
                Err(e) if e.errno == libc::EEXIST => return Ok(Installed::Exists),
                Err(e) if e.errno == libc::EAGAIN => tries.once_more(),
                Err(e) => return Err(e),
            }
        }
    }

    /// Sets or clears write protection on the mapped pages of a range; holes
    /// are skipped. Clearing wakes whoever waits there.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn protect(&self, base: usize, len: usize, on: bool) -> Result<(), OsError> {
        match self.protect_range(base, len, on) {
            // Split by mlock(2), on a kernel that wants ranges of one mapping.
            Err(e) if e.errno == libc::ENOENT && len > PAGE_SIZE => (base..base + len)
                .step_by(PAGE_SIZE)
                .try_for_each(|page| self.protect_range(page, PAGE_SIZE, on)),
            other => other,
        }
    }

    fn protect_range(&self, base: usize, len: usize, on: bool) -> Result<(), OsError> {
        let mode = if on {
            WRITEPROTECT_MODE_WP
        } else {
            self.quiet(WRITEPROTECT_MODE_DONTWAKE)
        };
        let mut tries = Tries(0);
        loop {
            let mut arg = ProtectArg {
                range: range(base, len),
                mode,
            };
            match self.lane_ioctl("UFFDIO_WRITEPROTECT", REQ_WRITEPROTECT, &raw mut arg) {
                Err(e) if e.errno == libc::EAGAIN => tries.once_more(),
                other => return other,
            }
        }
    }

    /// As long as the answer lives, pages that are put in place or opened leave the
    /// threads that wait for them asleep, until [`Uffd::wake`] (message mode): also
    /// those that other threads put in place ([`Uffd::wakes`]). Waits for those who wake
    /// somebody just now.
    pub fn hold_wakes(&self) -> HeldWakes<'_> {
        self.held.fetch_add(HELD_BEFORE | 1, Ordering::SeqCst);
        let mut tries = 0;
        while self.waking.load(Ordering::SeqCst) != 0 {
            futex::pause(tries);
            tries = tries.saturating_add(1);
        }
        HeldWakes(self)
    }

    /// Where this is the same before and after a page was put in place, and wakes
    /// [are free](Wakes::are_free), whoever waited for the page was woken. Otherwise
    /// that is not known.
    #[must_use]
    pub fn wakes(&self) -> Wakes {
        Wakes(self.held.load(Ordering::SeqCst))
    }

    fn quiet(&self, mode: u64) -> u64 {
        if self.held.load(Ordering::SeqCst) & HELD_NOW != 0 {
            mode
        } else {
            0
        }
    }

    /// Wakes threads that wait for a fault in a range to be resolved
    /// (message mode).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn wake(&self, base: usize, len: usize) -> Result<(), OsError> {
        let mut arg = range(base, len);
        self.ioctl("UFFDIO_WAKE", REQ_WAKE, &raw mut arg)
    }

    /// As [`Uffd::wake`], once nobody holds wakes: several threads may wait on one page,
    /// and the one that wakes are held for is to sleep on. Not while holding them.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn wake_unless_held(&self, base: usize, len: usize) -> Result<(), OsError> {
        let mut tries = 0;
        loop {
            // Either who holds them sees us, and waits, or we see them held.
            self.waking.fetch_add(1, Ordering::SeqCst);
            if self.wakes().are_free() {
                break;
            }
            self.waking.fetch_sub(1, Ordering::SeqCst);
            futex::pause(tries);
            tries = tries.saturating_add(1);
        }
        let woken = self.wake(base, len);
        self.waking.fetch_sub(1, Ordering::SeqCst);
        woken
    }

    /// Reads one message; `None` when there is none (the descriptor is
    /// non-blocking) or it is of another kind.
    ///
    /// # Errors
    /// A failing read(2).
    pub fn read_message(&self) -> Result<Option<FaultMessage>, OsError> {
        // The size of `struct uffd_msg`.
        let mut bytes = [0_u8; 32];
        let got = calls::read(self.fd(), &mut bytes);
        if got < 0 {
            return match errno() {
                libc::EAGAIN | libc::EINTR => Ok(None),
                _ => Err(OsError::last("read of userfaultfd")),
            };
        }
        if got as usize != bytes.len() || bytes[0] != EVENT_PAGEFAULT {
            return Ok(None);
        }
        let (words, _) = bytes.as_chunks::<8>();
        let raw = [0, 1, 2, 3].map(|index| u64::from_ne_bytes(words[index]));
        Ok(Some(FaultMessage {
            write: raw[1] & PAGEFAULT_FLAG_WRITE != 0,
            protected: raw[1] & PAGEFAULT_FLAG_WP != 0,
            address: raw[2] as usize,
            thread: raw[3] as u32,
        }))
    }

    fn ioctl<T>(&self, name: &'static str, req: libc::c_ulong, arg: *mut T) -> Result<(), OsError> {
        lineage::refuse_stranger()?;
        Self::request(self.fd(), name, req, arg)
    }

    /// As [`Uffd::ioctl`], through the lane of the calling thread's processor: the first
    /// processor's is the first descriptor. A kernel that wants the very descriptor a
    /// range is registered with says `ENOENT` and gets it.
    fn lane_ioctl<T>(
        &self,
        name: &'static str,
        req: libc::c_ulong,
        arg: *mut T,
    ) -> Result<(), OsError> {
        lineage::refuse_stranger()?;
        let which = crate::thread::shard(LANES_MAX + 1);
        let lane = which.checked_sub(1).and_then(|at| self.lanes.get(at));
        let lane = lane.map(|fd| fd.load(Ordering::Acquire));
        match lane.filter(|&fd| fd >= 0) {
            Some(fd) => match Self::request(fd, name, req, arg) {
                Err(error) if error.errno == libc::ENOENT => self.ioctl(name, req, arg),
                other => other,
            },
            None => self.ioctl(name, req, arg),
        }
    }

    fn request<T>(
        fd: i32,
        name: &'static str,
        req: libc::c_ulong,
        arg: *mut T,
    ) -> Result<(), OsError> {
        // SAFETY: each caller passes the structure that belongs to the
        // request number, alive for the call; the kernel writes only its
        // output fields. What it does to memory is bounded by registration.
        let rc = unsafe { kernel::syscall!(libc::SYS_ioctl, fd, req, arg) };
        if rc == -1 {
            Err(OsError::last(name))
        } else {
            Ok(())
        }
    }
}

impl Drop for Uffd {
    fn drop(&mut self) {
        self.descriptors()
            .for_each(|fd| close(fd.load(Ordering::Acquire)));
    }
}

/// How often a call was refused because another thread changes the address space.
struct Tries(u32);

impl Tries {
    fn once_more(&mut self) {
        crate::futex::pause(self.0);
        self.0 = self.0.saturating_add(1);
    }
}

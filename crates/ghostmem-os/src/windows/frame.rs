//! Frames of ghost pages: sections of one page each, backed by the paging file.
//!
//! ```text
//!   place    section made, nothing committed ─► mapped in a window of ours
//!            ─► committed ─► filled ─► unmapped there
//!            ─► mapped where the program looks ─► handle closed
//!   remove   unmapped: the section, and the memory it was charged for, is gone
//! ```
//! The program's page goes from a placeholder, where every touch faults, to a
//! view of a section whose bytes are complete, in one step: no thread, and no
//! system call of another thread, ever sees a part of it. Private memory could
//! not do that: to be filled in place it has to be open, for everybody.
//!
//! Sections are made with `SEC_RESERVE` and committed by hand, and not only
//! because a view that needs no memory cannot be refused for want of it. Wine
//! opens the placeholder's own, zero memory to the view's protection before it
//! maps the section over it, if the section's pages count as committed; a load
//! in between reads zeros and a store is lost. Of a reserved section the
//! placeholder stays closed until the mapping is there.
//!
//! A section of its own for each page, instead of a pool of frames that go from
//! page to page, costs two more calls a restore. It buys two things: what is
//! committed is what is mapped, to the page; and a device or a pending read that
//! still writes to a page that was evicted writes to memory that is nobody's,
//! not into some other page.
//!
//! Safe in an exception handler: no heap, no lock.

use core::ffi::c_void;
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, MEM_COMMIT, PAGE_READWRITE, SEC_RESERVE, VirtualProtect,
};

use crate::error::OsError;
use crate::ghost::Installed;
use crate::lazy::GRANULE;
use crate::map::PAGE_SIZE;
use crate::message::Line;
use crate::{placeholder, stop, thread};

/// Pages that can be filled at once; a thread that finds no window free yields.
const WINDOWS: usize = 64;

/// Placeholders of a page each, where sections are filled.
static BASE: OnceLock<usize> = OnceLock::new();
/// One bit for each window in use.
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// Gets ready: reserves the windows, at the first call.
///
/// # Errors
/// `ENOSYS` where the system has no placeholders; no address space.
pub fn prepare() -> Result<(), OsError> {
    if BASE.get().is_none() {
        let base = placeholder::reserve(WINDOWS * PAGE_SIZE, GRANULE)?;
        for window in 0..WINDOWS {
            // SAFETY: just reserved, by us.
            unsafe { placeholder::split(base + window * PAGE_SIZE, PAGE_SIZE) };
        }
        if BASE.set(base).is_err() {
            // SAFETY: another thread was faster; nobody uses these.
            unsafe { placeholder::clear(base, WINDOWS * PAGE_SIZE, false) };
        }
    }
    Ok(())
}

/// A window of the calling thread's; given back on drop.
struct Window {
    bit: u64,
    address: usize,
}

impl Window {
    fn take() -> Self {
        let base = BASE.get().copied().unwrap_or(0);
        loop {
            let seen = IN_USE.load(Ordering::Relaxed);
            let free = (!seen).trailing_zeros();
            if free == u64::BITS {
                thread::yield_now();
                continue;
            }
            let bit = 1 << free;
            if IN_USE
                .compare_exchange_weak(seen, seen | bit, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                let address = base + free as usize * PAGE_SIZE;
                return Self { bit, address };
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        IN_USE.fetch_and(!self.bit, Ordering::Release);
    }
}

/// A section of one page, with no memory until that is committed.
struct Section(HANDLE);

impl Section {
    fn new() -> Result<Self, OsError> {
        // SAFETY: no file, no attributes, no name.
        let handle = unsafe {
            CreateFileMappingW(
                INVALID_HANDLE_VALUE,
                core::ptr::null(),
                PAGE_READWRITE | SEC_RESERVE,
                0,
                PAGE_SIZE as u32,
                core::ptr::null(),
            )
        };
        if handle.is_null() {
            Err(OsError::last("CreateFileMapping"))
        } else {
            Ok(Self(handle))
        }
    }

    /// Commits it and fills it with the page at `from`.
    ///
    /// # Safety
    /// The page at `from` must be readable and not change meanwhile.
    unsafe fn fill(&self, from: *const u8) -> Result<(), OsError> {
        let window = Window::take();
        // SAFETY: the window is this thread's, a placeholder of one page.
        unsafe { placeholder::map(self.0, window.address, true) }?;
        // SAFETY: the view is this thread's.
        let committed = unsafe { placeholder::commit(window.address, true) };
        if committed.is_ok() {
            let to = window.address as *mut u8;
            // SAFETY: `from` is the caller's promise; the view is committed,
            // writable, a page long, and nobody else's.
            unsafe { core::ptr::copy_nonoverlapping(from, to, PAGE_SIZE) };
        }
        // SAFETY: the view is this thread's.
        unsafe { placeholder::unmap(window.address, true) }?;
        committed
    }

    /// Maps it in the place of the page's placeholder; what was not `filled` is
    /// zero.
    ///
    /// # Safety
    /// The page must be the caller's address space.
    unsafe fn put(&self, address: usize, writable: bool, filled: bool) -> Result<(), OsError> {
        // SAFETY: the caller's promise.
        unsafe { placeholder::map(self.0, address, writable) }?;
        // Of one that was filled this changes nothing; but Wine keeps account of
        // what is committed view by view too, and goes by it in system calls.
        // SAFETY: just mapped.
        let committed = unsafe { placeholder::commit(address, writable) };
        if committed.is_ok() || filled {
            return Ok(());
        }
        // Without memory every touch of it faults, so nobody has used it.
        // SAFETY: just mapped.
        unsafe { placeholder::unmap(address, true) }?;
        committed
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        // SAFETY: our own handle, closed once; views keep the section.
        unsafe { CloseHandle(self.0) };
    }
}

/// Makes the page at `address` a placeholder of its own, if it is part of a
/// larger one.
///
/// # Safety
/// The page must lie in a reservation of placeholders of the caller's.
pub unsafe fn split(address: usize) {
    // SAFETY: the caller's promise. Refused where it is one already.
    unsafe { placeholder::split(address, PAGE_SIZE) };
}

/// Puts a frame with the given bytes (`None`: zeros) at `address`, whose
/// placeholder was [`split`] off.
///
/// # Safety
/// The page must lie in a reservation of placeholders of the caller's.
///
/// # Errors
/// No memory; the system's refusal.
pub unsafe fn place(
    address: usize,
    data: Option<&[u8]>,
    writable: bool,
) -> Result<Installed, OsError> {
    let section = Section::new()?;
    if let Some(data) = data {
        assert!(
            data.len() >= PAGE_SIZE,
            "a frame is filled from a whole page"
        );
        // SAFETY: a borrowed slice of at least a page.
        unsafe { section.fill(data.as_ptr()) }?;
    }
    // SAFETY: the caller's promise.
    match unsafe { section.put(address, writable, data.is_some()) } {
        Ok(()) => Ok(Installed::Bytes(PAGE_SIZE)),
        Err(_) if is_there(address) => Ok(Installed::Exists),
        Err(error) => Err(error),
    }
}

/// Whether a frame is at `address`.
fn is_there(address: usize) -> bool {
    placeholder::query(address).is_some_and(|found| found.State == MEM_COMMIT)
}

/// Lets the program only read the frame at `address`, or write it too.
///
/// # Safety
/// As for [`place`]; nobody else changes this page's frame meanwhile.
///
/// # Errors
/// The system's refusal: there is no frame, or no memory.
pub unsafe fn set_writable(address: usize, writable: bool) -> Result<(), OsError> {
    let mut before = 0;
    // SAFETY: the page is the caller's, and the engine holds no reference into
    // it.
    let ok = unsafe {
        VirtualProtect(
            address as *const c_void,
            PAGE_SIZE,
            placeholder::protection(writable),
            &raw mut before,
        )
    };
    if ok != 0 {
        return Ok(());
    }
    let refused = OsError::last("VirtualProtect");
    if !writable || !is_there(address) {
        return Err(refused);
    }
    // Mapped for reading only, which cannot be widened: a copy takes its place.
    // Whoever reads in between faults and waits for the caller.
    let section = Section::new()?;
    // SAFETY: the frame is readable, and nobody can write it.
    unsafe { section.fill(address as *const u8) }?;
    // SAFETY: the page is the caller's; its bytes are in the new section.
    unsafe { placeholder::unmap(address, true) }?;
    // SAFETY: as above.
    let placed = unsafe { section.put(address, true, true) };
    if let Err(error) = placed {
        // Whoever looks now finds a page that is nowhere.
        let mut line = Line::new();
        let _cut_off = write!(
            line,
            "a page cannot be opened for the program: {} ({}); the process is stopped to keep \
             its data from being wrong",
            error.call, error.errno
        );
        line.print();
        stop::abort();
    }
    Ok(())
}

/// Takes the frame at `address` away; the page is a placeholder again.
///
/// # Safety
/// As for [`place`]; the bytes are gone.
///
/// # Errors
/// The system's refusal: there is no frame.
pub unsafe fn remove(address: usize) -> Result<(), OsError> {
    // SAFETY: the caller's promise.
    unsafe { placeholder::unmap(address, true) }
}

//! What the *guard* backend needs: a memory file mapped twice, pages that
//! raise SIGSEGV, and holes punched in the file.
//!
//! `MADV_GUARD_INSTALL` / `MADV_GUARD_REMOVE` (madvise(2), Linux 6.13;
//! file mappings since 6.15) mark single pages without splitting the mapping,
//! so `vm.max_map_count` does not matter.

use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use crate::error::OsError;
use crate::map::{Access, PAGE_SIZE, Reservation, Span};

/// `MADV_GUARD_INSTALL` (include/uapi/asm-generic/mman-common.h).
const MADV_GUARD_INSTALL: i32 = 102;
/// `MADV_GUARD_REMOVE`.
const MADV_GUARD_REMOVE: i32 = 103;

/// A memory file seen through two mappings: the *front*, which the program
/// uses and whose pages are switched on and off, and the *alias*, which only
/// the engine uses and which is always open.
#[derive(Debug)]
pub struct DoubleMap {
    file: AtomicI32,
    front: usize,
    len: usize,
    alias: AtomicUsize,
}

impl DoubleMap {
    /// Puts a fresh memory file over the range `front` and maps it a second
    /// time elsewhere. What the range held before is gone.
    ///
    /// # Safety
    /// The reservation `front` was taken from must be alive, and nobody may
    /// hold a reference into the range.
    ///
    /// # Errors
    /// The kernel's refusal of memfd_create(2), ftruncate(2) or mmap(2).
    pub unsafe fn over(front: Span) -> Result<Self, OsError> {
        let map = Self {
            file: AtomicI32::new(memory_file(front.len())?),
            front: front.base(),
            len: front.len(),
            alias: AtomicUsize::new(0),
        };
        map.map_front()?;
        map.map_alias()?;
        Ok(map)
    }

    fn map_front(&self) -> Result<(), OsError> {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: MAP_FIXED over address space that `over`'s caller keeps
        // reserved.
        let got = unsafe {
            libc::mmap(
                self.front as *mut libc::c_void,
                self.len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                self.file.load(Ordering::Relaxed),
                0,
            )
        };
        if got == libc::MAP_FAILED {
            Err(OsError::last("mmap"))
        } else {
            Ok(())
        }
    }

    fn map_alias(&self) -> Result<(), OsError> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let got = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                self.len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                self.file.load(Ordering::Relaxed),
                0,
            )
        };
        if got == libc::MAP_FAILED {
            return Err(OsError::last("mmap"));
        }
        self.alias.store(got as usize, Ordering::Relaxed);
        Ok(())
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the map is empty: never.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills whole pages at `offset` through the alias. The front must be
    /// closed there.
    pub fn fill(&self, offset: usize, data: &[u8]) {
        assert!(
            offset
                .checked_add(data.len())
                .is_some_and(|end| end <= self.len)
        );
        let at = (self.alias.load(Ordering::Relaxed) + offset) as *mut u8;
        // SAFETY: the destination lies in the alias mapping, which nobody
        // else may write while the front is closed; `data` is engine memory.
        unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len()) };
    }

    /// Copies one page at `offset` through the alias.
    pub fn read(&self, offset: usize, out: &mut [u8; PAGE_SIZE]) {
        assert!(
            offset
                .checked_add(PAGE_SIZE)
                .is_some_and(|end| end <= self.len)
        );
        let at = (self.alias.load(Ordering::Relaxed) + offset) as *const u8;
        // SAFETY: the source lies in the alias mapping, whose pages nobody
        // writes while the front is closed; `out` is engine memory.
        unsafe { core::ptr::copy_nonoverlapping(at, out.as_mut_ptr(), PAGE_SIZE) };
    }

    /// Makes pages of the front raise SIGSEGV, by guard markers.
    ///
    /// # Errors
    /// `EINVAL` where the kernel has no guard pages for file mappings.
    pub fn guard(&self, offset: usize, len: usize) -> Result<(), OsError> {
        self.advise(offset, len, MADV_GUARD_INSTALL)
    }

    /// Takes the guard markers off again.
    ///
    /// # Errors
    /// As [`DoubleMap::guard`].
    pub fn unguard(&self, offset: usize, len: usize) -> Result<(), OsError> {
        self.advise(offset, len, MADV_GUARD_REMOVE)
    }

    /// Changes the access of pages of the front by mprotect(2), splitting the
    /// mapping.
    ///
    /// # Errors
    /// `ENOMEM` when the process has too many mappings.
    pub fn protect(&self, offset: usize, len: usize, open: bool) -> Result<(), OsError> {
        let prot = if open {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_NONE
        };
        let at = self.front_at(offset, len);
        // SAFETY: the range lies in the front mapping, into which the engine
        // holds no reference.
        let rc = unsafe { libc::mprotect(at, len, prot) };
        if rc == 0 {
            Ok(())
        } else {
            Err(OsError::last("mprotect"))
        }
    }

    /// Frees the frames of whole pages: they read zero afterwards.
    ///
    /// # Errors
    /// The kernel's refusal of fallocate(2).
    pub fn punch(&self, offset: usize, len: usize) -> Result<(), OsError> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: operates on our own memory file; the frames it frees are
        // ones whose pages the caller has closed.
        let rc = unsafe {
            libc::fallocate(
                self.file.load(Ordering::Relaxed),
                mode,
                offset as libc::off_t,
                len as libc::off_t,
            )
        };
        if rc == 0 {
            Ok(())
        } else {
            Err(OsError::last("fallocate"))
        }
    }

    /// In a forked child: replaces the file shared with the parent by `copy`,
    /// which the parent prepared before the fork. All pages of the front
    /// become open; the caller closes those that are not resident.
    ///
    /// # Errors
    /// The kernel's refusal of mmap(2).
    pub fn adopt(&self, copy: i32) -> Result<(), OsError> {
        close(self.file.swap(copy, Ordering::Relaxed));
        self.map_front()?;
        let old = self.alias.load(Ordering::Relaxed);
        // SAFETY: unmaps the alias this value owns; no reference into it
        // exists.
        unsafe { libc::munmap(old as *mut libc::c_void, self.len) };
        self.map_alias()
    }

    /// Copies one page into another memory file of the same length.
    ///
    /// # Errors
    /// A failing pwrite(2).
    pub fn copy_page_to(&self, offset: usize, file: i32) -> Result<(), OsError> {
        assert!(offset + PAGE_SIZE <= self.len);
        let at = (self.alias.load(Ordering::Relaxed) + offset) as *const libc::c_void;
        // SAFETY: the page lies in the alias mapping; the kernel only reads it.
        let put = unsafe { libc::pwrite(file, at, PAGE_SIZE, offset as libc::off_t) };
        if put == PAGE_SIZE as isize {
            Ok(())
        } else {
            Err(OsError::last("pwrite"))
        }
    }

    fn front_at(&self, offset: usize, len: usize) -> *mut libc::c_void {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        (self.front + offset) as *mut libc::c_void
    }

    fn advise(&self, offset: usize, len: usize, advice: i32) -> Result<(), OsError> {
        let at = self.front_at(offset, len);
        // SAFETY: the range lies in the front mapping; guard markers change
        // what an access does, never what the memory file holds.
        let rc = unsafe { libc::madvise(at, len, advice) };
        if rc == 0 {
            Ok(())
        } else {
            Err(OsError::last("madvise(MADV_GUARD)"))
        }
    }
}

impl Drop for DoubleMap {
    fn drop(&mut self) {
        let alias = self.alias.load(Ordering::Relaxed);
        if alias != 0 {
            // SAFETY: the alias belongs to this value. The front belongs to
            // the reservation it was laid over.
            unsafe { libc::munmap(alias as *mut libc::c_void, self.len) };
        }
        close(self.file.load(Ordering::Relaxed));
    }
}

/// A new, empty memory file of `len` bytes (memfd_create(2)).
///
/// # Errors
/// The kernel's refusal.
pub fn memory_file(len: usize) -> Result<i32, OsError> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"ghostmem".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(OsError::last("memfd_create"));
    }
    // SAFETY: our own descriptor.
    let rc = unsafe { libc::ftruncate(fd, len as libc::off_t) };
    if rc != 0 {
        let error = OsError::last("ftruncate");
        close(fd);
        return Err(error);
    }
    Ok(fd)
}

/// Closes a descriptor made by [`memory_file`].
pub fn close(fd: i32) {
    if fd >= 0 {
        // SAFETY: callers give up descriptors they own.
        unsafe { libc::close(fd) };
    }
}

/// Whether this kernel has guard pages for file mappings: tries it once.
#[must_use]
pub fn guard_pages_work() -> bool {
    let Ok(front) = Reservation::new(PAGE_SIZE, PAGE_SIZE, Access::None) else {
        return false;
    };
    let Ok(span) = front.span(0, PAGE_SIZE) else {
        return false;
    };
    // SAFETY: `front` outlives `map` in this function and was just made.
    let Ok(map) = (unsafe { DoubleMap::over(span) }) else {
        return false;
    };
    map.guard(0, PAGE_SIZE).is_ok() && map.unguard(0, PAGE_SIZE).is_ok()
}

//! What the *guard* backend needs: a memory file, pages of its mapping
//! that raise SIGSEGV, and holes punched in the file.
//!
//! `MADV_GUARD_INSTALL` / `MADV_GUARD_REMOVE` (madvise(2), Linux 6.13;
//! file mappings since 6.15) mark single pages without splitting the mapping,
//! so `vm.max_map_count` does not matter. Each mark is an entry of a page table,
//! so a mapping begins inaccessible, and is marked and opened in parts as it is
//! used.

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::descriptor::{self, out_of_the_way};
use crate::error::OsError;
use crate::file::File;
use crate::kernel;
use crate::lineage;
use crate::map::{Access, PAGE_SIZE, Reservation, Span};

/// `MADV_GUARD_INSTALL` (include/uapi/asm-generic/mman-common.h).
const MADV_GUARD_INSTALL: i32 = 102;
/// `MADV_GUARD_REMOVE`.
const MADV_GUARD_REMOVE: i32 = 103;

/// A memory file and its mapping, the *front*, which the program uses and
/// whose pages are switched on and off. The engine reads and writes the file
/// itself (pread(2), pwrite(2)): a second mapping would cost a fault for each
/// page, and count each page twice in the process's resident set.
#[derive(Debug)]
pub struct FileMap {
    file: AtomicI32,
    front: usize,
    len: usize,
}

impl FileMap {
    /// Puts a fresh memory file over the range `front`, inaccessible. What the
    /// range held before is gone.
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
        };
        map.map_part(0, map.len)?;
        Ok(map)
    }

    /// Maps a part of the front anew, inaccessible, whatever lies there. Whoever put
    /// something else there knows that it goes.
    ///
    /// # Errors
    /// The kernel's refusal of mmap(2).
    pub fn map_part(&self, offset: usize, len: usize) -> Result<(), OsError> {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let at = self.front_at(offset, len);
        let from = offset as libc::off_t;
        let file = self.file.load(Ordering::Relaxed);
        // SAFETY: MAP_FIXED over address space that `over`'s caller keeps
        // reserved.
        let got = unsafe { kernel::mmap(at, len, libc::PROT_NONE, flags, file, from) };
        if got == libc::MAP_FAILED {
            Err(OsError::last("mmap"))
        } else {
            Ok(())
        }
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

    /// Fills whole pages at `offset`. The front must be closed there.
    ///
    /// # Errors
    /// A failing or short pwrite(2): no memory for the file. `EPERM` in a child
    /// that ran no fork hook: the file is its parent's.
    pub fn fill(&self, offset: usize, data: &[u8]) -> Result<(), OsError> {
        lineage::refuse_stranger()?;
        put_at(self.file.load(Ordering::Relaxed), offset, data)
    }

    /// Copies one page at `offset`.
    ///
    /// # Errors
    /// A failing pread(2).
    pub fn read(&self, offset: usize, out: &mut [u8; PAGE_SIZE]) -> Result<(), OsError> {
        File::from_number(self.file.load(Ordering::Relaxed))
            .read_at(out, offset as u64)
            .and_then(|got| match got {
                PAGE_SIZE => Ok(()),
                // The file is as long as the region: somebody cut it.
                _ => Err(OsError::new("pread", libc::EIO)),
            })
    }

    /// Makes pages of the front raise SIGSEGV, by guard markers.
    ///
    /// # Errors
    /// `EINVAL` where the kernel has no guard pages for file mappings.
    pub fn guard(&self, offset: usize, len: usize) -> Result<(), OsError> {
        self.advise(offset, len, MADV_GUARD_INSTALL)
    }

    /// As [`FileMap::guard`], for pages none of which is in place, and some of
    /// which may be locked (mlock(2)): the kernel refuses markers there. They stay
    /// locked.
    ///
    /// # Errors
    /// As [`FileMap::guard`].
    pub fn guard_even_locked(&self, offset: usize, len: usize) -> Result<(), OsError> {
        match self.guard(offset, len) {
            Err(error) if error.errno == libc::EINVAL => {}
            other => return other,
        }
        for offset in (offset..offset + len).step_by(PAGE_SIZE) {
            if self.guard(offset, PAGE_SIZE).is_ok() {
                continue;
            }
            let at = self.front_at(offset, PAGE_SIZE);
            // SAFETY: the page lies in the front mapping; locks change no contents.
            unsafe { kernel::munlock(at, PAGE_SIZE) };
            self.guard(offset, PAGE_SIZE)?;
            // What is locked on fault is not brought in now. Refused only where
            // the limit was lowered meanwhile.
            // SAFETY: as above.
            unsafe { kernel::mlock2(at, PAGE_SIZE, libc::MLOCK_ONFAULT as libc::c_uint) };
        }
        Ok(())
    }

    /// Takes the guard markers off again.
    ///
    /// # Errors
    /// As [`FileMap::guard`].
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
        let rc = unsafe { kernel::mprotect(at, len, prot) };
        if rc == 0 {
            Ok(())
        } else {
            Err(OsError::last("mprotect"))
        }
    }

    /// Frees the frames of whole pages: they read zero afterwards.
    ///
    /// # Errors
    /// The kernel's refusal of fallocate(2); `EPERM` as for [`FileMap::fill`].
    pub fn punch(&self, offset: usize, len: usize) -> Result<(), OsError> {
        lineage::refuse_stranger()?;
        // Our own memory file; the frames it frees are ones whose pages the
        // caller has closed.
        File::from_number(self.file.load(Ordering::Relaxed)).punch(offset as u64, len as u64)
    }

    /// In a forked child: replaces the file shared with the parent by `copy`,
    /// which the parent prepared before the fork. The caller maps the front anew
    /// ([`FileMap::map_part`]), and opens the resident pages.
    pub fn replace_file(&self, copy: i32) {
        close(self.file.swap(copy, Ordering::Relaxed));
    }

    /// Copies one page into another memory file of the same length.
    ///
    /// # Errors
    /// A failing pread(2) or pwrite(2).
    pub fn copy_page_to(&self, offset: usize, file: i32) -> Result<(), OsError> {
        let mut page = [0; PAGE_SIZE];
        self.read(offset, &mut page)?;
        put_at(file, offset, &page)
    }

    fn front_at(&self, offset: usize, len: usize) -> *mut libc::c_void {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        (self.front + offset) as *mut libc::c_void
    }

    fn advise(&self, offset: usize, len: usize, advice: i32) -> Result<(), OsError> {
        let at = self.front_at(offset, len);
        // SAFETY: the range lies in the front mapping; guard markers change
        // what an access does, never what the memory file holds.
        let rc = unsafe { kernel::madvise(at, len, advice) };
        if rc == 0 {
            Ok(())
        } else {
            Err(OsError::last("madvise(MADV_GUARD)"))
        }
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // The front belongs to the reservation it was laid over.
        close(self.file.load(Ordering::Relaxed));
    }
}

fn write_at(file: i32, offset: usize, data: &[u8]) -> Result<(), OsError> {
    File::from_number(file).write_at(data, offset as u64)
}

/// Writes whole pages of a memory file, every signal being blocked.
fn put_at(file: i32, offset: usize, data: &[u8]) -> Result<(), OsError> {
    match write_at(file, offset, data) {
        // The limit on the size of files (`RLIMIT_FSIZE`) is lower than the file, which
        // was made before, or past a soft one. It is for writes, not for stores.
        Err(error) if error.errno == libc::EFBIG => {
            take_size_signal();
            store_at(file, offset, data)
        }
        done => done,
    }
}

/// Takes the signal back that comes with `EFBIG`, above the limit on the size of files:
/// whoever writes has every signal blocked, so that it waits.
pub(crate) fn take_size_signal() {
    crate::thread::take_pending(1 << (libc::SIGXFSZ - 1));
}

/// Writes whole pages of a memory file by way of a mapping made for it.
fn store_at(file: i32, offset: usize, data: &[u8]) -> Result<(), OsError> {
    let (none, access) = (core::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
    let from = offset as libc::off_t;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let at = unsafe { kernel::mmap(none, data.len(), access, libc::MAP_SHARED, file, from) };
    if at == libc::MAP_FAILED {
        return Err(OsError::last("mmap"));
    }
    // SAFETY: mapped just now, as long as the data, and known to nobody else.
    unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), at.cast::<u8>(), data.len()) };
    // SAFETY: as above.
    unsafe { kernel::munmap(at, data.len()) };
    Ok(())
}

/// The limit on the size of a file that this process makes longer, soft and hard.
fn file_size_limit() -> libc::rlimit {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a place for the limit, and no new one.
    unsafe {
        kernel::syscall!(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_FSIZE,
            0,
            &raw mut limit
        )
    };
    limit
}

/// Set where no memory file could be had for that limit.
static SIZE_LIMIT_MET: AtomicBool = AtomicBool::new(false);

/// Whether the limit on the size of files (`RLIMIT_FSIZE`) has kept a memory file from
/// being made.
#[must_use]
pub fn size_limit_met() -> bool {
    SIZE_LIMIT_MET.load(Ordering::Relaxed)
}

/// Makes an empty file `len` bytes long. Above the limit on the size of files the
/// kernel would end the process (`SIGXFSZ`); a soft limit is lifted for the moment.
fn set_len(file: i32, len: usize) -> Result<(), OsError> {
    let limit = file_size_limit();
    let set = |limit: &libc::rlimit| {
        let limit = core::ptr::from_ref(limit);
        // SAFETY: a complete structure, and no place for the old limit.
        unsafe { kernel::syscall!(libc::SYS_prlimit64, 0, libc::RLIMIT_FSIZE, limit, 0) == 0 }
    };
    let is_low = limit.rlim_cur < len as libc::rlim_t;
    let hard = libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    };
    // Where the program has a filter, setting a limit may be what that forbids.
    let lifted = is_low
        && limit.rlim_max >= len as libc::rlim_t
        && !crate::doorway::is_confined()
        && set(&hard);
    if is_low && !lifted {
        SIZE_LIMIT_MET.store(true, Ordering::Relaxed);
        return Err(OsError::new(
            "making a memory file above the file size limit (ulimit -f)",
            libc::EFBIG,
        ));
    }
    // SAFETY: our own descriptor.
    let rc = unsafe { kernel::ftruncate(file, len as libc::off_t) };
    let done = if rc == 0 {
        Ok(())
    } else {
        Err(OsError::last("ftruncate"))
    };
    if lifted {
        set(&limit);
    }
    done
}

/// A new, empty memory file of `len` bytes (memfd_create(2)).
///
/// # Errors
/// The kernel's refusal.
pub fn memory_file(len: usize) -> Result<i32, OsError> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { kernel::memfd_create(c"ghostmem".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(OsError::last("memfd_create"));
    }
    let fd = out_of_the_way(fd)?;
    set_len(fd, len).inspect_err(|_| close(fd))?;
    Ok(fd)
}

/// Closes a descriptor made by [`memory_file`].
pub fn close(fd: i32) {
    descriptor::close(fd);
}

/// Makes the calls of a memory file and its pages once, but guard markers.
///
/// # Errors
/// The kernel's refusal.
pub fn memory_files_work() -> Result<(), OsError> {
    let front = Reservation::new(PAGE_SIZE, PAGE_SIZE, Access::None)?;
    let span = front.span(0, PAGE_SIZE)?;
    // SAFETY: `front` outlives `map` in this function and was just made.
    let map = unsafe { FileMap::over(span) }?;
    let file = map.file.load(Ordering::Relaxed);
    write_at(file, 0, &[1; 8])?;
    map.read(0, &mut [0; PAGE_SIZE])?;
    map.protect(0, PAGE_SIZE, true)?;
    File::from_number(file).punch(0, PAGE_SIZE as u64)
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
    let Ok(map) = (unsafe { FileMap::over(span) }) else {
        return false;
    };
    map.guard(0, PAGE_SIZE).is_ok() && map.unguard(0, PAGE_SIZE).is_ok()
}

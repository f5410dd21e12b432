//! Words that two processes share: a memory file of fixed size, mapped in both.
//!
//! The file is sealed against shrinking and growing before anybody else can
//! see it, and [`SharedWords::open`] refuses one that is not: a mapping whose
//! file gets shorter would raise SIGBUS where its end was.

use core::ffi::CStr;
use core::ops::Deref;
use core::sync::atomic::AtomicU64;

use crate::descriptor::{self, out_of_the_way};
use crate::error::OsError;
use crate::map::PAGE_SIZE;

/// What keeps the length as it is.
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;

/// An array of 64-bit atomics in a memory file, all zero at first.
///
/// A forked child shares it too. The mapping is the process's own until the
/// value is dropped.
#[derive(Debug)]
pub struct SharedWords {
    base: usize,
    len: usize,
    /// The file, kept open so that others can find it; -1 where it was opened.
    file: i32,
}

impl SharedWords {
    /// A new file of `len` words, rounded up to whole pages.
    ///
    /// # Errors
    /// The kernel's refusal of memfd_create(2), ftruncate(2), the seals or
    /// mmap(2); `EINVAL` for no words at all.
    pub fn create(len: usize) -> Result<Self, OsError> {
        let bytes = len
            .checked_mul(size_of::<AtomicU64>())
            .and_then(crate::map::round_up_to_page)
            .ok_or(OsError::new("ftruncate", libc::ENOMEM))?;
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a NUL-terminated literal.
        let file = unsafe { libc::memfd_create(c"ghostmem-shared".as_ptr(), flags) };
        if file < 0 {
            return Err(OsError::last("memfd_create"));
        }
        let file = out_of_the_way(file)?;
        Self::prepare(file, bytes).inspect_err(|_| descriptor::close(file))
    }

    fn prepare(file: i32, bytes: usize) -> Result<Self, OsError> {
        // SAFETY: our own descriptor; no memory is involved.
        if unsafe { libc::ftruncate(file, bytes as libc::off_t) } != 0 {
            return Err(OsError::last("ftruncate"));
        }
        // SAFETY: as above.
        if unsafe { libc::fcntl(file, libc::F_ADD_SEALS, SEALS) } != 0 {
            return Err(OsError::last("fcntl(F_ADD_SEALS)"));
        }
        Self::map(file, bytes).map(|base| Self {
            base,
            len: bytes / size_of::<AtomicU64>(),
            file,
        })
    }

    /// Maps the words that another process created, found at `path`
    /// (`/proc/PID/fd/N` of [`SharedWords::file`]).
    ///
    /// # Errors
    /// The kernel's refusal to open or map it; `EINVAL` for a file that is not
    /// sealed against a change of its length, or is empty.
    pub fn open(path: &CStr) -> Result<Self, OsError> {
        let file = crate::calls::open(path, libc::O_RDWR, 0);
        if file < 0 {
            return Err(OsError::last("open"));
        }
        let opened = Self::look(file);
        // The mapping needs no descriptor.
        descriptor::close(file);
        opened
    }

    fn look(file: i32) -> Result<Self, OsError> {
        // SAFETY: our own descriptor; no memory is involved.
        let seals = unsafe { libc::fcntl(file, libc::F_GET_SEALS) };
        // SAFETY: as above.
        let bytes = unsafe { libc::lseek(file, 0, libc::SEEK_END) };
        let bytes = usize::try_from(bytes).unwrap_or(0);
        if seals < 0 || seals & SEALS != SEALS || bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
            return Err(OsError::new("open", libc::EINVAL));
        }
        Self::map(file, bytes).map(|base| Self {
            base,
            len: bytes / size_of::<AtomicU64>(),
            file: -1,
        })
    }

    fn map(file: i32, bytes: usize) -> Result<usize, OsError> {
        // SAFETY: a mapping at an address of the kernel's choice touches
        // nothing that exists.
        let got = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file,
                0,
            )
        };
        if got == libc::MAP_FAILED {
            Err(OsError::last("mmap"))
        } else {
            Ok(got as usize)
        }
    }

    /// The descriptor of a file made here, for others to open; `None` where it
    /// was opened.
    #[must_use]
    pub fn file(&self) -> Option<i32> {
        (self.file >= 0).then_some(self.file)
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page aligned, has this many words, lives as
        // long as `self`, and its file cannot get shorter (the seals); every
        // bit pattern is a value, and all access, in every process that maps
        // the file, is atomic.
        unsafe { core::slice::from_raw_parts(self.base as *const AtomicU64, self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value, which hands out borrows
        // of itself only.
        unsafe { libc::munmap(self.base as *mut libc::c_void, self.len * 8) };
        descriptor::close(self.file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::Ordering;

    fn path(file: i32) -> std::ffi::CString {
        std::ffi::CString::new(format!("/proc/self/fd/{file}")).unwrap()
    }

    #[test]
    fn both_mappings_show_the_same_words() {
        let made = SharedWords::create(1000).unwrap();
        assert_eq!(made.len(), 1024);
        let opened = SharedWords::open(&path(made.file().unwrap())).unwrap();
        assert_eq!((opened.len(), opened.file()), (1024, None));
        made[7].store(11, Ordering::Relaxed);
        opened[1023].store(13, Ordering::Relaxed);
        assert_eq!(opened[7].load(Ordering::Relaxed), 11);
        assert_eq!(made[1023].load(Ordering::Relaxed), 13);
    }

    #[test]
    fn a_file_whose_length_may_change_is_refused() {
        let plain = crate::guard::memory_file(PAGE_SIZE).unwrap();
        let error = SharedWords::open(&path(plain)).unwrap_err();
        crate::guard::close(plain);
        assert_eq!(error.errno, libc::EINVAL);
        let missing = SharedWords::open(c"/nowhere/at/all").unwrap_err();
        assert_eq!(missing.errno, libc::ENOENT);
        let made = SharedWords::create(1).unwrap();
        // SAFETY: no memory is involved.
        let shrunk = unsafe { libc::ftruncate(made.file().unwrap(), 0) };
        assert_eq!(shrunk, -1, "the seals hold");
    }
}

//! The memory under test, as a contender hands it out.
//!
//! Unsafe room. A [`Buffer`] never gives out references: what lies behind it
//! may be paged out at any moment, and several threads use it at once. Words
//! are read and written as atomics, bulk copies go through plain pointers and
//! are made by one thread while no other writes.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use ghostmem_os::PAGE_SIZE;

/// A borrowed range of whole pages of the memory under test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Buffer<'a> {
    base: NonNull<u8>,
    pages: u32,
    owner: PhantomData<&'a ()>,
}

// SAFETY: words are accessed atomically, and the constructor's contract makes
// the range usable from every thread for `'a`.
unsafe impl Send for Buffer<'_> {}
// SAFETY: as above; the type holds no state of its own.
unsafe impl Sync for Buffer<'_> {}

impl Buffer<'_> {
    /// Wraps `pages` pages from `base` on.
    ///
    /// # Safety
    /// The range must be page-aligned, mapped readable and writable, usable
    /// from any thread and used by nobody else for the whole of `'a`.
    pub(crate) unsafe fn new(base: NonNull<u8>, pages: u32) -> Self {
        assert_eq!(
            base.as_ptr() as usize % PAGE_SIZE,
            0,
            "buffer not page-aligned"
        );
        Self {
            base,
            pages,
            owner: PhantomData,
        }
    }

    /// Number of pages.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    fn at(&self, page: u32, offset: usize, len: usize) -> *mut u8 {
        let start = page as usize * PAGE_SIZE + offset;
        assert!(
            start + len <= self.pages as usize * PAGE_SIZE,
            "access past the end of the buffer"
        );
        // SAFETY: the offset lies within the range (checked above), which the
        // constructor's contract makes one mapping.
        unsafe { self.base.as_ptr().add(start) }
    }

    fn word(&self, page: u32, offset: usize) -> &AtomicU64 {
        let at = self.at(page, offset, 8);
        assert_eq!(offset % 8, 0, "word not aligned");
        // SAFETY: in bounds and aligned (checked above); the memory is valid
        // for the buffer's lifetime and its words are shared only as atomics
        // while threads run.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// Reads one aligned word: one touch.
    pub(crate) fn load(&self, page: u32, offset: usize) -> u64 {
        self.word(page, offset).load(Ordering::Relaxed)
    }

    /// Writes one aligned word: one touch.
    pub(crate) fn store(&self, page: u32, offset: usize, value: u64) {
        self.word(page, offset).store(value, Ordering::Relaxed);
    }

    /// Copies `bytes` into the buffer from the start of `page` on.
    pub(crate) fn write(&self, page: u32, bytes: &[u8]) {
        let at = self.at(page, 0, bytes.len());
        // SAFETY: the target is in bounds (checked above), the source is an
        // ordinary slice outside the memory under test.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }

    /// Copies from the start of `page` on into `bytes`.
    pub(crate) fn read(&self, page: u32, bytes: &mut [u8]) {
        let at = self.at(page, 0, bytes.len());
        // SAFETY: the source is in bounds (checked above), the target is an
        // ordinary slice outside the memory under test.
        unsafe { std::ptr::copy_nonoverlapping(at, bytes.as_mut_ptr(), bytes.len()) };
    }
}

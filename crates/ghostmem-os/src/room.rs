//! [`Room`]: fresh memory that is filled first and then takes the place of other pages, by
//! one mremap(2).
//!
//! A touch of those pages finds the old ones or the new ones, and never neither.

use crate::error::OsError;
use crate::kernel;
use crate::map::PAGE_SIZE;

/// Whole pages of a private anonymous mapping that nobody but its maker knows.
///
/// A value like an address: it does *not* prove that the pages were not moved yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    base: usize,
    len: usize,
}

impl Room {
    /// The room of `len` bytes at `base`.
    ///
    /// # Safety
    /// Whole pages of a private anonymous mapping, open for loads and stores, that are the
    /// caller's and stay mapped: until they are moved, or until the room and its parts are
    /// not used any more. Nobody has a reference into them. They are alike in all that
    /// madvise(2) sets: the kernel counts them as several mappings else.
    #[must_use]
    pub const unsafe fn new(base: usize, len: usize) -> Self {
        Self { base, len }
    }

    /// Number of pages.
    #[must_use]
    pub const fn pages(self) -> usize {
        self.len / PAGE_SIZE
    }

    /// Some of its pages.
    ///
    /// # Panics
    /// When the room has not as many.
    #[must_use]
    pub const fn part(self, page: usize, pages: usize) -> Self {
        assert!(page + pages <= self.pages(), "pages outside the room");
        Self {
            base: self.base + page * PAGE_SIZE,
            len: pages * PAGE_SIZE,
        }
    }

    /// Fills one of its pages. Async-signal-safe.
    ///
    /// # Panics
    /// When the room has no such page.
    pub fn fill(self, page: usize, bytes: &[u8; PAGE_SIZE]) {
        let at = self.part(page, 1).base as *mut u8;
        // SAFETY: a page of the room, that its maker promised to be open for stores, and that
        // did not move, as who moves it promised; what is copied lies elsewhere, as nobody has
        // a reference into the room.
        unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), PAGE_SIZE) };
    }

    /// Moves all of its pages to an address, in the place of what is mapped there.
    /// Async-signal-safe.
    ///
    /// # Safety
    /// As many pages there are the caller's, and nobody has a reference into them. Once they
    /// have moved nobody uses the room, or a part with one of them, any more.
    ///
    /// # Errors
    /// The kernel's refusal: nothing has changed. (Of several mappings, before Linux 6.17, it
    /// would be found out after what lies there is gone.)
    pub unsafe fn move_over(self, address: usize) -> Result<(), OsError> {
        let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: it is the caller's, at both ends.
        let at = unsafe {
            kernel::syscall!(
                libc::SYS_mremap,
                self.base,
                self.len,
                self.len,
                how,
                address
            )
        };
        if at == -1 {
            Err(OsError::last("mremap"))
        } else {
            Ok(())
        }
    }
}

//! Pages that stay resident as long as somebody needs them.

use ghostmem_os::PAGE_SIZE;

use super::{Heap, parts};
use crate::Error;

impl Heap {
    /// Keeps the pages of a range resident, for as long as the returned value
    /// lives: for raw system calls, asynchronous and direct I/O, devices. Pins
    /// count: up to 2^32 - 1 on one page.
    ///
    /// # Errors
    /// [`Error::NotGhost`]; [`Error::TooManyPinned`]; [`Error::PageLost`];
    /// [`Error::Os`] when the system refuses to open a page, or a page has all the
    /// pins that can be counted (`EAGAIN`). Nothing is pinned then.
    pub fn pin<T>(&self, range: *const [T]) -> Result<Pinned, Error> {
        let (address, len) = parts(range);
        if let Err(error) = self.engine().pin(address, len) {
            // Some of it may have been pinned for a moment.
            self.after_unpin(address, len);
            return Err(match error.errno {
                12 => Error::TooManyPinned,
                5 => Error::PageLost { address },
                22 => Error::NotGhost { address },
                _ => Error::Os(error),
            });
        }
        Ok(Pinned {
            heap: self.clone(),
            address,
            len,
        })
    }

    /// Frees small objects that were freed under pins which are gone now.
    fn after_unpin(&self, address: usize, len: usize) {
        if let Some(small) = self.small_if_made()
            && small.contains(address)
        {
            // Pins hold whole pages.
            let start = address & !(PAGE_SIZE - 1);
            let end = address.saturating_add(len);
            let end = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
            small.let_go(start, end - start);
        }
    }
}

/// Pages held resident; released when dropped.
#[derive(Debug)]
#[must_use = "the pages are let go when this is dropped"]
pub struct Pinned {
    heap: Heap,
    address: usize,
    len: usize,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The range was the heap's when it was pinned, and still is.
        let _ours = self.heap.engine().unpin(self.address, self.len);
        self.heap.after_unpin(self.address, self.len);
    }
}

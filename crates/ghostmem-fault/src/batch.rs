//! Page runs that are dropped in one call, as the kernel wants them.

use ghostmem_os::PAGE_SIZE;
use ghostmem_os::map::Span;
use ghostmem_os::ranges::{DROP_RANGES_MAX, DropRange, NO_RANGE, drop_range};

/// Most page runs a [`Batch`] holds.
const BATCH_RUNS: usize = DROP_RANGES_MAX;

/// Page runs of one region to be dropped in one call.
pub struct Batch {
    runs: [DropRange; BATCH_RUNS],
    len: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            runs: [NO_RANGE; BATCH_RUNS],
            len: 0,
        }
    }

    /// Adds a run of pages of the region `span`.
    ///
    /// # Panics
    /// When the batch is full.
    #[inline]
    pub(crate) fn add(&mut self, span: Span, page: usize, pages: usize) {
        let address = span.base() + page * PAGE_SIZE;
        if let Some(last) = self.len.checked_sub(1).map(|i| &mut self.runs[i])
            && last.iov_base as usize + last.iov_len == address
        {
            last.iov_len += pages * PAGE_SIZE;
            return;
        }
        self.runs[self.len] = drop_range(address, pages * PAGE_SIZE);
        self.len += 1;
    }

    /// The runs; none are left.
    pub(crate) fn take(&mut self) -> &[DropRange] {
        &self.runs[..core::mem::take(&mut self.len)]
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

/// First page and number of pages of a run in the region `span`.
pub(crate) fn pages_of(run: &DropRange, span: Span) -> (usize, usize) {
    let first = (run.iov_base as usize - span.base()) / PAGE_SIZE;
    (first, run.iov_len / PAGE_SIZE)
}

//! Page runs that are dropped one after the other.

use ghostmem_os::map::Span;

/// Most page runs a [`Batch`] holds.
const BATCH_RUNS: usize = 256;

/// Page runs of one region to be dropped in one call.
pub struct Batch {
    runs: [(usize, usize); BATCH_RUNS],
    len: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            runs: [(0, 0); BATCH_RUNS],
            len: 0,
        }
    }

    /// Adds a run of pages.
    ///
    /// # Panics
    /// When the batch is full.
    pub(crate) fn add(&mut self, _span: Span, page: usize, pages: usize) {
        if let Some(last) = self.len.checked_sub(1).map(|i| &mut self.runs[i])
            && last.0 + last.1 == page
        {
            last.1 += pages;
            return;
        }
        self.runs[self.len] = (page, pages);
        self.len += 1;
    }

    /// The runs; none are left.
    pub(crate) fn take(&mut self) -> &[(usize, usize)] {
        &self.runs[..core::mem::take(&mut self.len)]
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

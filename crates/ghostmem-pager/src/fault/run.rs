//! A run: the page that faulted, and those that readahead wants with it.
//!
//! Its pages lie `stride` apart. Step 0 is the page that faulted; steps whose page is
//! resident already have no claim. In the buffers the pages lie in address order, so
//! that neighbours are mapped with one call whatever the direction of the run.

use ghostmem_table::{Claim, PageState, Word};

use crate::parts::region::Region;

/// Pages on their way in, claimed by this thread. `MOST` bounds the run, and the
/// stack it takes.
pub(crate) struct Run<'a, const MOST: usize> {
    pub(crate) region: &'a Region,
    first: usize,
    pub(crate) stride: i32,
    /// The fault is for a store.
    pub(crate) write: bool,
    /// The first page was never written.
    pub(crate) fresh: bool,
    pub(crate) claims: [Option<Claim>; MOST],
    /// What the pages' words will be; of no page where there is no claim.
    pub(crate) words: [Word; MOST],
    /// Steps up to the last one claimed.
    pub(crate) count: usize,
    /// Pages among them that are claimed.
    pub(crate) restored: usize,
}

impl<'a, const MOST: usize> Run<'a, MOST> {
    /// A run of the page that faulted alone.
    #[inline]
    pub(crate) fn new(
        region: &'a Region,
        first: usize,
        stride: i32,
        write: bool,
        claim: Claim,
    ) -> Self {
        let mut run = Self {
            region,
            first,
            stride,
            write,
            fresh: claim.before().state() == PageState::Empty,
            claims: [const { None }; MOST],
            words: [Word::EMPTY; MOST],
            count: 1,
            restored: 1,
        };
        run.claims[0] = Some(claim);
        run
    }

    /// The claims of the steps that count.
    #[inline]
    pub(crate) fn claims_mut(&mut self) -> &mut [Option<Claim>] {
        &mut self.claims[..self.count]
    }

    /// The page of a step that is claimed.
    #[inline]
    pub(crate) fn page(&self, step: usize) -> usize {
        self.first
            .wrapping_add_signed(step as isize * self.stride as isize)
    }

    /// The page of a step to come, if it lies in the region.
    #[inline]
    pub(crate) fn page_ahead(&self, step: usize) -> Option<usize> {
        self.first
            .checked_add_signed(step as isize * self.stride as isize)
            .filter(|&page| page < self.region.pages())
    }

    /// Where the page of a step lies in the buffers; and, the other way round, the
    /// step whose page lies in a place.
    #[inline]
    pub(crate) fn place(&self, step: usize) -> usize {
        place_of_step(self.stride, self.count, step)
    }
}

/// As [`Run::place`], for a run of `count` steps.
#[inline]
pub(crate) fn place_of_step(stride: i32, count: usize, step: usize) -> usize {
    if stride < 0 { count - 1 - step } else { step }
}

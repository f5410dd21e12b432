//! What a program says of ranges: bring them in, send them out, they are cold.

use ghostmem_fault::AccessKind;
use ghostmem_os::OsError;
use ghostmem_policy::Heat;
use ghostmem_policy::costs::Evictor;
use ghostmem_table::PageState;

use crate::calls::discard::STRETCH;
use crate::parts::engine::Engine;

impl Engine {
    /// Evicts the pages of a range now; how many it was.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn evict(&self, address: usize, len: usize) -> Result<usize, OsError> {
        let (region, first, end) = self.pages_of("evict", address, len)?;
        let mut evicted = 0;
        for start in (first..end).step_by(STRETCH) {
            let stop = (start + STRETCH).min(end);
            if region.resident.next(start).is_some_and(|page| page < stop) {
                evicted += self.quietly_in(
                    region,
                    (start, stop),
                    |engine, region, (start, stop), scratch| {
                        engine.evict_pages(region, start, stop, scratch)
                    },
                )?;
            }
        }
        Ok(evicted)
    }

    /// Evicts the coldest page; `false` when none can go.
    ///
    /// # Errors
    /// When no working memory can be had.
    pub fn evict_coldest(&self) -> Result<bool, OsError> {
        self.quietly((), |engine, (), scratch| {
            // Spared pages lose credit with each look: one of the most credit leaves at last.
            (0..=u8::MAX).any(|_| engine.reclaim(1, Evictor::Faulting, scratch) > 0)
        })
    }

    /// Brings the pages of a range in, from its start, as far as half the
    /// limit reaches (others are evicted for them); how many came in.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's; `EIO` when a page is
    /// lost.
    pub fn prefetch(&self, address: usize, len: usize) -> Result<usize, OsError> {
        let (region, first, end) = self.pages_of("prefetch", address, len)?;
        let most = (self.reach_pages() / 2).max(1) as usize;
        let end = end.min(first.saturating_add(most));
        let absent = |page: &usize| {
            matches!(
                region.table.load(*page).state(),
                PageState::Stored | PageState::Filled
            )
        };
        let before = (first..end).filter(absent).count();
        for page in first..end {
            // Readahead brings in most of them before we get there.
            if absent(&page) {
                self.touch(region, page, AccessKind::Read)?;
            }
        }
        Ok(before.saturating_sub((first..end).filter(absent).count()))
    }

    /// Makes the pages of a range the next to leave.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn make_cold(&self, address: usize, len: usize) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("cold", address, len)?;
        let mut next = region.resident.next(first);
        while let Some(page) = next.filter(|&page| page < end) {
            let word = region.table.load(page);
            if matches!(word.state(), PageState::Resident) {
                let cold = word.with_heat(Heat::COLD.to_bits());
                let _raced = region.table.amend(page, word, cold);
            }
            next = region.resident.next(page + 1);
        }
        Ok(())
    }
}

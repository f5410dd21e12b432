//! Pages taken out of a block, and given back to it.

use core::sync::atomic::{Ordering, fence};

use ghostmem_os::OsError;

use crate::parts::engine::Engine;
use crate::parts::holes::Hole;

impl Engine {
    /// Makes holes of the pages of a range: their contents are gone, and so is a lock on
    /// them; a touch is refused until [`Engine::fill_holes`], or until their block is
    /// freed. Pinned pages keep their frames, and can be touched.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn make_holes(&self, address: usize, len: usize, hole: Hole) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("make_holes", address, len)?;
        region.holes.make(first, end, hole);
        // Pairs with the one in `keep_allocated`: no fault claims an empty page of the
        // range after we passed it.
        fence(Ordering::SeqCst);
        self.discard_pages(region, first, end, true).map(drop)
    }

    /// Gives the holes of a range back to their blocks, as zero pages.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn fill_holes(&self, address: usize, len: usize) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("fill_holes", address, len)?;
        region.holes.fill(first, end);
        Ok(())
    }

    /// Whether there ever was a hole. Lock-free.
    #[must_use]
    pub fn has_holes(&self) -> bool {
        self.regions().any(|region| region.holes.any())
    }

    /// Whether some page of a range is unmapped, or part of no block. Lock-free.
    #[must_use]
    pub fn has_unmapped(&self, address: usize, len: usize) -> bool {
        let Ok((region, first, end)) = self.pages_of("has_unmapped", address, len) else {
            return true;
        };
        let mut page = first;
        while let Some(blocks) = region.blocks.as_ref().filter(|_| page < end) {
            let Some(run) = blocks.block_of(page) else {
                return true;
            };
            page = run.first + run.pages;
        }
        region.holes.is_unmapped_in(first, end)
    }

    /// Why a touch of an address would be refused; `None` where it would not, and for
    /// what is not this engine's. Lock-free, async-signal-safe.
    #[must_use]
    pub fn hole_at(&self, address: usize) -> Option<Hole> {
        let (region, page) = self.locate(address)?;
        region
            .holes
            .of(page)
            .or_else(|| (!region.is_allocated(page)).then_some(Hole::Unmapped))
    }
}

#[cfg(test)]
mod tests {
    use ghostmem_os::PAGE_SIZE;

    use super::*;
    use crate::Config;

    #[test]
    fn a_hole_is_not_to_be_had_until_it_is_filled_or_its_block_is_freed() {
        let engine = Engine::new(Config::for_tests(64), None).unwrap();
        let block = Engine::allocate(&engine, 8, 1).unwrap();
        let second = block + PAGE_SIZE;
        engine.pin(block, 8 * PAGE_SIZE).unwrap();
        engine.unpin(block, 8 * PAGE_SIZE).unwrap();
        for hole in [Hole::Unmapped, Hole::Closed] {
            engine.make_holes(second, PAGE_SIZE, hole).unwrap();
            assert_eq!(engine.hole_at(second), Some(hole));
            assert_eq!(engine.hole_at(block), None);
            assert!(engine.pin(second, 1).is_err());
            engine.pin(block, 1).unwrap();
            engine.unpin(block, 1).unwrap();
        }
        engine.fill_holes(second, PAGE_SIZE).unwrap();
        engine.pin(second, 1).unwrap();
        engine.unpin(second, 1).unwrap();
        engine
            .make_holes(second, PAGE_SIZE, Hole::Unmapped)
            .unwrap();
        engine.free(block).unwrap();
        assert_eq!(engine.hole_at(block), Some(Hole::Unmapped));
        // The same place for the next, whole.
        assert_eq!(Engine::allocate(&engine, 8, 1), Ok(block));
        assert_eq!(engine.hole_at(second), None);
        engine.pin(block, 8 * PAGE_SIZE).unwrap();
        engine.unpin(block, 8 * PAGE_SIZE).unwrap();
        engine.shut_down();
    }
}

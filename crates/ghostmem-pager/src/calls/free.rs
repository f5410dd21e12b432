//! Giving a block back.
//!
//! The block is taken from its owner first, in one step that succeeds once; then its
//! contents go; then its address space is free. While pages of it are pinned the last pin
//! does the rest.

use core::sync::atomic::{Ordering, fence};

use ghostmem_os::error::EINVAL;
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::calls::discard::Left;
use crate::calls::holes::unbar_for_kernel;
use crate::parts::blocks::{BlockSpace, PageRun};
use crate::parts::engine::Engine;
use crate::parts::region::Region;

impl Engine {
    /// Frees the block that starts at `address`; its length in bytes. While
    /// pages of it are pinned their memory stays, and the address space is not
    /// handed out again. Nor is it, ever, where the kernel refuses to take the
    /// memory: who gets the block next would find its bytes.
    ///
    /// # Errors
    /// `EINVAL` when no block starts there: never allocated, freed already,
    /// or the middle of one.
    pub fn free(&self, address: usize) -> Result<usize, OsError> {
        let wrong = OsError::new("free", EINVAL);
        let (region, page) = self.locate(address).ok_or(wrong)?;
        let blocks = region.blocks.as_ref().ok_or(wrong)?;
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(wrong);
        }
        if let Some(run) = blocks.block_of(page).filter(|run| run.first == page) {
            let bytes = run.pages * PAGE_SIZE;
            if self.retake(address, bytes).is_err() {
                // Another mapping cannot be removed: the address space is its for ever.
                return self.discard(address, bytes).map(|()| bytes);
            }
        }
        // From here on it is nobody's: a second free is refused.
        let run = blocks.begin_free(page).map_err(|_| wrong)?;
        self.finish_free(region, blocks, run)?;
        Ok(run.pages * PAGE_SIZE)
    }

    /// Makes a block free that was given back, unless some of its pages are
    /// pinned: the last of those pins does it then, as what uses the memory
    /// behind the processor's back must not find it to be somebody else's.
    pub(crate) fn finish_free(
        &self,
        region: &Region,
        blocks: &BlockSpace,
        run: PageRun,
    ) -> Result<(), OsError> {
        let first = run.first;
        let mut end = first + run.pages;
        // Pairs with the one in `unpin_pages`: either we see the pin gone, or
        // whoever took it off sees that the block was given back. And with the
        // one in `keep_allocated`: no fault claims an empty page of the block
        // after we passed it.
        fence(Ordering::SeqCst);
        while !region.has_pins_in(first, end) {
            // Of the run that is there now, should ours be free already.
            let Some(run) = blocks.begin_finish(first) else {
                break;
            };
            end = first + run.pages;
            // The contents go before the address space can be handed out again.
            let discarded = self.discard_pages(region, first, end, true);
            // A page that was pinned when we passed it is full still, however
            // soon it was let go.
            if discarded == Ok(Left::default()) && !region.has_pins_in(first, end) {
                if unbar_for_kernel(region, first, end).is_err() {
                    // Nobody could touch all of it: the address space stays this block's.
                    blocks.cancel_finish(first);
                    return Ok(());
                }
                let filled = region.holes.fill(first, end);
                self.note_allocated(filled * PAGE_SIZE);
                blocks.finish_free(first);
                self.note_freed(run.pages * PAGE_SIZE);
                self.note_closed(run.pages);
                return Ok(());
            }
            // Pinned by a thread that came before the block was given back.
            blocks.cancel_finish(first);
            if discarded?.kept {
                return Ok(());
            }
            fence(Ordering::SeqCst);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ghostmem_table::Word;

    use super::*;
    use crate::Config;

    #[test]
    fn a_sparse_block_is_freed_without_a_look_at_each_page() {
        let engine = Engine::new(Config::for_tests(64), None).unwrap();
        // 16 GiB, of which two pages far from each other are touched.
        let pages = 1 << 22;
        let address = Engine::allocate(&engine, pages, 1).unwrap();
        for page in [3, pages - 1] {
            let place = address + page * PAGE_SIZE;
            engine.pin(place, PAGE_SIZE).unwrap();
            engine.unpin(place, PAGE_SIZE).unwrap();
        }
        engine.free(address).unwrap();
        let (region, page) = engine.locate(address).unwrap();
        assert_eq!(region.table.load(page + 3), Word::EMPTY);
        assert_eq!(region.table.load(page + pages - 1), Word::EMPTY);
        // A page that is only read counts as backed, too.
        let looked_at = region.table.array().backed_bytes();
        assert_eq!(looked_at, 2 * PAGE_SIZE);
        engine.shut_down();
    }

    #[test]
    fn a_late_free_leaves_no_page_of_the_next_owner_behind() {
        let engine = Engine::new(Config::for_tests(64), None).unwrap();
        let address = Engine::allocate(&engine, 5, 1).unwrap();
        let (region, first) = engine.locate(address).unwrap();
        let blocks = region.blocks.as_ref().unwrap();
        let run = blocks.begin_free(first).unwrap();
        // Whoever took off a last pin is faster, and a longer block comes in its place.
        engine.finish_free(region, blocks, run).unwrap();
        assert_eq!(Engine::allocate(&engine, 8, 1), Ok(address));
        engine.pin(address + 7 * PAGE_SIZE, PAGE_SIZE).unwrap();
        engine.unpin(address + 7 * PAGE_SIZE, PAGE_SIZE).unwrap();
        assert_eq!(engine.budget.used(), 1);
        blocks.begin_free(first).unwrap();
        engine.finish_free(region, blocks, run).unwrap();
        assert_eq!(blocks.block_of(first), None);
        assert_eq!(region.table.load(first + 7), Word::EMPTY);
        assert_eq!((engine.budget.used(), engine.allocated_bytes()), (0, 0));
        engine.shut_down();
    }
}

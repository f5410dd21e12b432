//! Making a block of pages longer or shorter where it is: the room it has was
//! rounded up to a power of two when it was allocated.

use core::sync::atomic::{Ordering, fence};

use ghostmem_os::PAGE_SIZE;

use crate::calls::discard::Left;
use crate::calls::holes::unbar_for_kernel;
use crate::parts::engine::Engine;

impl Engine {
    /// Makes the block that starts at `address` `pages` pages long without
    /// moving it; `false`, and the block is as long as it was, when it has no room
    /// for that, the memory limit would not hold it, pages it would lose are
    /// pinned or stay with the kernel, or no block starts there. Pages it loses
    /// are forgotten, those it gains read as zero. Some of those it would have
    /// lost may be forgotten even if it keeps them.
    ///
    /// The caller owns the block: nobody frees or resizes it meanwhile.
    pub fn resize(&self, address: usize, pages: usize) -> bool {
        let Some((region, first)) = self.locate(address) else {
            return false;
        };
        let Some(blocks) = region.blocks.as_ref() else {
            return false;
        };
        let run = blocks.block_of(first).filter(|run| run.first == first);
        let Some(run) = run.filter(|_| pages > 0 && address.is_multiple_of(PAGE_SIZE)) else {
            return false;
        };
        let end = first + run.pages;
        if pages <= run.pages {
            let lost = first + pages;
            // What lies in the place of pages given away is the program's to unmap.
            let away = region.mapped.next_away(lost, end, true) < end;
            if away || region.has_pins_in(lost, end) || !blocks.resize(first, pages) {
                return false;
            }
            // Pairs with the one in `keep_allocated`: no fault claims a page
            // that the block has lost after we passed it.
            fence(Ordering::SeqCst);
            if self.discard_pages(region, lost, end, true) == Ok(Left::default())
                && unbar_for_kernel(region, lost, end).is_ok()
            {
                let filled = region.holes.fill(lost, end);
                self.note_allocated(filled * PAGE_SIZE);
                self.note_freed((end - lost) * PAGE_SIZE);
                return true;
            }
            // Pinned just before, or kept by the kernel: whoever gets these pages
            // next, this block too, must not find the bytes. There is room: who
            // resizes owns the block.
            let _as_before = blocks.resize(first, run.pages);
            return false;
        }
        let more = pages - run.pages;
        self.note_allocated(more * PAGE_SIZE);
        if self.admit(0).is_ok() && blocks.resize(first, pages) {
            return true;
        }
        self.note_freed(more * PAGE_SIZE);
        false
    }
}

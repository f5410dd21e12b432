//! Pins: pages that stay, for what uses the memory behind the processor's back.
//!
//! A page's pins are counted and its word's flag is set under its claim. An
//! evictor that lost its page to a pin may protect it late, so pinning waits for
//! those before it opens the pages for good. Like all advice these calls run on
//! the program's threads, and own pages [quietly](Engine::quietly).

use core::sync::atomic::{Ordering, fence};

use ghostmem_fault::AccessKind;
use ghostmem_os::{OsError, thread};
use ghostmem_table::State;

use crate::advice::{INVALID, NO_MEMORY};
use crate::engine::Engine;
use crate::region::Region;

impl Engine {
    /// Makes the pages of a range resident and keeps them so, open for loads
    /// and stores of the program and of the kernel on its behalf, until
    /// [`Engine::unpin`]. Pins count.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's; `ENOMEM` when pinned
    /// pages would leave less than [`crate::LIMIT_PAGES_MIN`] pages of the
    /// limit for everything else.
    pub fn pin(&self, address: usize, len: usize) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("pin", address, len)?;
        if first == end {
            return Ok(());
        }
        for page in first..end {
            if let Err(error) = self.pin_page(region, page) {
                self.unpin_pages(region, first, page);
                return Err(error);
            }
        }
        // An eviction that a pin cancelled may protect its page late: let
        // those end, then open the whole range once more.
        ghostmem_fault::gate().synchronize();
        region.mapped.unprotect(first, end - first)
    }

    fn pin_page(&self, region: &Region, page: usize) -> Result<(), OsError> {
        if region.pins[page].load(Ordering::Acquire) == 0 {
            let pinned = self.pinned_pages.load(Ordering::Relaxed);
            let room = self.budget.limit() - crate::LIMIT_PAGES_MIN as i64;
            if pinned as i64 >= room {
                return Err(OsError::new("pin", NO_MEMORY));
            }
        }
        loop {
            self.touch(region, page, AccessKind::Write)?;
            let pinned = self.quietly_in(region, page, |engine, region, page, _| {
                engine.pin_resident(region, page)
            })??;
            if pinned {
                return Ok(());
            }
        }
    }

    /// Pins a page that is resident; `false` when it is not, or is busy.
    fn pin_resident(&self, region: &Region, page: usize) -> Result<bool, OsError> {
        let word = region.table.load(page);
        if word.state() != State::Resident {
            return Ok(false);
        }
        let Ok(claim) = region.table.claim(page, word) else {
            return Ok(false);
        };
        let before = claim.before();
        if !region.is_allocated(page) {
            self.release(region, claim, before);
            return Err(OsError::new("pin", INVALID));
        }
        let open = region.mapped.unprotect(page, 1);
        if open.is_err() {
            self.release(region, claim, before);
            return open.map(|()| false);
        }
        region.pins_touched.note(page);
        if region.pins[page].fetch_add(1, Ordering::AcqRel) == 0 {
            region.pinned_pages.fetch_add(1, Ordering::AcqRel);
            self.pinned_pages.fetch_add(1, Ordering::AcqRel);
        }
        let word = before.with_clean(false).with_payload(0).with_pinned(true);
        self.release(region, claim, word);
        if before.is_clean() {
            self.free_slot(before);
        }
        Ok(true)
    }

    /// Whether any page is pinned. One load.
    #[must_use]
    #[inline]
    pub fn has_pins(&self) -> bool {
        self.pinned_pages.load(Ordering::Acquire) > 0
    }

    /// Whether a page that these bytes touch is pinned; `false` for what is not
    /// this engine's.
    #[must_use]
    pub fn is_pinned(&self, address: usize, len: usize) -> bool {
        self.pages_of("pinned", address, len)
            .is_ok_and(|(region, first, end)| region.has_pins_in(first, end))
    }

    /// Takes one pin off each page of a range.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn unpin(&self, address: usize, len: usize) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("unpin", address, len)?;
        self.unpin_pages(region, first, end);
        Ok(())
    }

    fn unpin_pages(&self, region: &Region, first: usize, end: usize) {
        for page in first..end {
            // Under the page's claim, as pinning is: the count and the flag
            // change together.
            while !self
                .quietly_in(region, page, |engine, region, page, _| {
                    engine.unpin_page(region, page)
                })
                .unwrap_or(true)
            {
                thread::yield_now();
            }
        }
        // Blocks that were given back while these pins held their pages.
        let Some(blocks) = region.blocks.as_ref() else {
            return;
        };
        fence(Ordering::SeqCst);
        let mut page = first;
        while page < end {
            let freeing = blocks.freeing(page);
            if let Some(run) = freeing {
                // Refused only without working memory, which there is.
                let _kept = self.finish_free(region, blocks, run);
            }
            let around = freeing.or_else(|| blocks.block_of(page));
            page = around.map_or(page + 1, |run| run.first + run.pages);
        }
    }

    /// `false`: the page is busy, try again.
    fn unpin_page(&self, region: &Region, page: usize) -> bool {
        let word = region.table.load(page);
        if matches!(word.state(), State::Claimed | State::Dropping) {
            return false;
        }
        if !word.is_pinned() {
            // More unpins than pins.
            return true;
        }
        let Ok(claim) = region.table.claim(page, word) else {
            return false;
        };
        let left = region.pins[page].load(Ordering::Acquire).saturating_sub(1);
        region.pins[page].store(left, Ordering::Release);
        if left == 0 {
            region.pinned_pages.fetch_sub(1, Ordering::AcqRel);
            self.pinned_pages.fetch_sub(1, Ordering::AcqRel);
        }
        self.release(region, claim, word.with_pinned(left > 0));
        true
    }
}

//! Pins: pages that stay, for what uses the memory behind the processor's back.
//!
//! A page's pins are counted and its word's flag is set under its claim. An
//! evictor that lost its page to a pin may protect it late, so pinning waits for
//! those (see `protecting`) before it opens the pages for good. Like all advice these calls run on
//! the program's threads, and own pages [quietly](Engine::quietly).

use core::sync::atomic::{Ordering, fence};

use ghostmem_fault::AccessKind;
use ghostmem_os::error::{EAGAIN, EINVAL, ENOMEM};
use ghostmem_os::{OsError, futex};
use ghostmem_table::PageState;

use crate::parts::engine::Engine;
use crate::parts::region::Region;
/// Pinned pages would leave too few for everything else.
const TOO_MANY: OsError = OsError::new("pin", ENOMEM);

/// The page's pins are as many as can be counted.
const TOO_OFTEN: OsError = OsError::new("one more pin of a page with 2^32 - 1 pins", EAGAIN);

impl Engine {
    /// Makes the pages of a range resident and keeps them so, open for loads
    /// and stores of the program and of the kernel on its behalf, until
    /// [`Engine::unpin`]. Pins count. All of the range is pinned, or none.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's; `ENOMEM` when pinned
    /// pages would leave less than [`crate::LIMIT_PAGES_MIN`] pages of the
    /// limit for everything else; `EAGAIN` when a page has 2^32 - 1 pins; the
    /// kernel's refusal to open a page.
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
        // An evictor that began before the pin may protect the page late: let
        // those end, then open the whole range once more.
        region.protecting.wait_for_those_inside();
        region
            .mapped
            .unprotect(first, end - first)
            .or_else(|_| {
                // Where mappings have run out, others are closed for it.
                let range = (first, end - first);
                self.quietly_in(region, range, |engine, region, (first, pages), _| {
                    engine.unprotect(region, first, pages)
                })?
            })
            .inspect_err(|_| self.unpin_pages(region, first, end))
    }

    fn pin_page(&self, region: &Region, page: usize) -> Result<(), OsError> {
        // Not brought in for nothing; what counts is asked again below.
        let pinned = self.pinned_pages.load(Ordering::Relaxed);
        if region.pins[page].load(Ordering::Acquire) == 0 && !self.may_pin(pinned) {
            return Err(TOO_MANY);
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
        if word.state() != PageState::Resident {
            return Ok(false);
        }
        let Ok(claim) = region.table.claim(page, word) else {
            return Ok(false);
        };
        let before = claim.before();
        if let Err(error) = self.count_pin(region, page) {
            self.release(region, claim, before);
            return Err(error);
        }
        let word = before.without_copy().with_pinned(true);
        self.release(region, claim, word);
        if before.has_copy() {
            self.free_slot(before);
        }
        Ok(true)
    }

    /// Opens a claimed page and counts one more pin of it. Nothing is counted when
    /// that is refused.
    fn count_pin(&self, region: &Region, page: usize) -> Result<(), OsError> {
        if !region.is_allocated(page) {
            return Err(OsError::new("pin", EINVAL));
        }
        let pins = region.pins[page].load(Ordering::Acquire);
        let more = pins.checked_add(1).ok_or(TOO_OFTEN)?;
        let first = pins == 0;
        if first {
            // Taken before it is used: threads that pin other pages ask, too.
            self.pinned_pages
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, |pinned| {
                    self.may_pin(pinned).then_some(pinned + 1)
                })
                .map_err(|_| TOO_MANY)?;
            self.make_way_for_pins();
        }
        if let Err(error) = self.unprotect(region, page, 1) {
            if first {
                self.pinned_pages.fetch_sub(1, Ordering::AcqRel);
            }
            return Err(error);
        }
        region.pins_touched.note(page);
        region.pins[page].store(more, Ordering::Release);
        if first {
            region.pinned_pages.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Whether one page more may be pinned when `pinned` are.
    fn may_pin(&self, pinned: usize) -> bool {
        (pinned as i64) < self.reach_pages() - crate::LIMIT_PAGES_MIN as i64
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
            let mut tries = 0_u32;
            while !self
                .quietly_in(region, page, |engine, region, page, _| {
                    engine.unpin_page(region, page)
                })
                .unwrap_or(true)
            {
                futex::pause(tries);
                tries = tries.saturating_add(1);
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
        if matches!(word.state(), PageState::Claimed | PageState::Dropping) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use ghostmem_os::PAGE_SIZE;
    use ghostmem_os::map::MapArc;

    fn engine(limit_pages: usize) -> MapArc<Engine> {
        Engine::new(Config::for_tests(limit_pages), None).unwrap()
    }

    #[test]
    fn a_page_keeps_its_pins_however_many_they_are() {
        let engine = engine(64);
        let block = Engine::allocate(&engine, 8, 1).unwrap();
        let address = block + PAGE_SIZE;
        let (region, page) = engine.locate(address).unwrap();
        for _ in 0..1 << 16 {
            engine.pin_page(region, page).unwrap();
        }
        engine.pin(address, PAGE_SIZE).unwrap();
        engine.unpin(address, PAGE_SIZE).unwrap();
        assert!(engine.is_pinned(address, PAGE_SIZE));
        assert_eq!(engine.evict(address, PAGE_SIZE).unwrap(), 0);
        // Two short of what can be counted.
        region.pins[page].store(u32::MAX - 1, Ordering::Release);
        engine.pin(address, PAGE_SIZE).unwrap();
        // A range is pinned as a whole or not at all.
        assert_eq!(engine.pin(block, 2 * PAGE_SIZE), Err(TOO_OFTEN));
        assert!(!engine.is_pinned(block, PAGE_SIZE));
        for left in [u32::MAX - 1, u32::MAX - 2] {
            engine.unpin(address, PAGE_SIZE).unwrap();
            assert_eq!(region.pins[page].load(Ordering::Acquire), left);
        }
        assert_eq!(engine.evict(address, PAGE_SIZE).unwrap(), 0);
        region.pins[page].store(1, Ordering::Release);
        engine.unpin(address, PAGE_SIZE).unwrap();
        assert!(!engine.has_pins() && !region.has_pins());
        assert_eq!(engine.evict(address, PAGE_SIZE).unwrap(), 1);
        engine.shut_down();
    }

    #[test]
    fn a_pin_waits_for_evictors_of_its_region_and_for_nobody_else() {
        let engine = engine(64);
        let address = Engine::allocate(&engine, 8, 1).unwrap();
        let (region, page) = engine.locate(address).unwrap();
        // A thread that is busy with pages of some other heap.
        let busy = ghostmem_fault::gate().enter();
        engine.pin(address, PAGE_SIZE).unwrap();
        drop(busy);
        let left = core::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let evictor = region.protecting.enter();
            scope.spawn(|| {
                engine.pin(address + PAGE_SIZE, PAGE_SIZE).unwrap();
                assert!(left.load(Ordering::SeqCst), "did not wait");
            });
            while !region.table.load(page + 1).is_pinned() {
                std::thread::yield_now();
            }
            // Late: it has not seen the pin.
            region.mapped.protect(page + 1, 1).unwrap();
            left.store(true, Ordering::SeqCst);
            drop(evictor);
        });
        engine.shut_down();
    }

    #[test]
    fn threads_that_pin_together_leave_pages_for_everything_else() {
        const THREADS: usize = 4;
        // Room for one.
        let engine = engine(crate::LIMIT_PAGES_MIN + 1);
        let address = Engine::allocate(&engine, THREADS, 1).unwrap();
        for round in 0..2000 {
            let start = std::sync::Barrier::new(THREADS);
            let pinned = std::thread::scope(|scope| {
                let threads = core::array::from_fn::<_, THREADS, _>(|thread| {
                    let (engine, start) = (&engine, &start);
                    scope.spawn(move || {
                        let page = address + thread * PAGE_SIZE;
                        start.wait();
                        engine.pin(page, PAGE_SIZE).map(|()| page)
                    })
                });
                threads.map(|thread| thread.join().unwrap())
            });
            let (held, refused) = (
                pinned.iter().flatten(),
                pinned.iter().filter(|p| p.is_err()),
            );
            assert!(refused.clone().all(|&refused| refused == Err(TOO_MANY)));
            let counts = (held.clone().count(), refused.count());
            assert_eq!(counts, (1, THREADS - 1), "round {round}");
            held.for_each(|&page| engine.unpin(page, PAGE_SIZE).unwrap());
            assert!(!engine.has_pins());
        }
        engine.shut_down();
    }
}

//! The program's blocks: allocated, freed, made longer or shorter, and discarded.

use std::rc::Rc;

use ghostmem_os::PAGE_SIZE;
use ghostmem_table::PageState;

use super::Machine;
use crate::parts::engine::Engine;
use crate::sim::oracle::{Block, Known, Use, ZEROS};

/// Pages of a block when it is allocated, at most.
const BLOCK_PAGES_MAX: u64 = 90;

/// Pages of one that grows, at most.
const GROWN_PAGES_MAX: usize = 4 * BLOCK_PAGES_MAX as usize;

impl Machine {
    pub(super) fn allocate(&self, how: u64) {
        let held: usize = self.blocks.borrow().iter().map(|b| b.pages.get()).sum();
        if held as u64 >= self.setting.pages {
            return;
        }
        let most = BLOCK_PAGES_MAX.min(self.setting.pages / 2);
        let pages = 1 + (how % most) as usize;
        let address = Engine::allocate(&self.engine, pages, 1).expect("there is no limit");
        self.take(address, pages, (how >> 48) as u8);
    }

    /// The program has a new block.
    fn take(&self, address: usize, pages: usize, number: u8) {
        let block = Block::new(address, pages, number);
        self.forget_those_that_left();
        let overlaps = |from: usize, end: usize| from < block.end() && address < end;
        for &(from, pages) in self.leaving.borrow().iter() {
            let end = from + pages * PAGE_SIZE;
            assert!(!overlaps(from, end), "a block that is not free yet");
        }
        for other in self.blocks.borrow().iter() {
            assert!(!overlaps(other.address, other.end()), "a block of others");
        }
        self.tell(|| format!("{pages} pages at {address:#x}"));
        self.blocks.borrow_mut().push(block);
    }

    /// A block without users, which nobody finds until it is put back.
    fn take_away(&self, at: u64) -> Option<Rc<Block>> {
        let index = self.index_of(at)?;
        let mut blocks = self.blocks.borrow_mut();
        blocks.get(index).filter(|block| !block.is_used())?;
        Some(blocks.swap_remove(index))
    }

    fn is_leaving(&self, address: usize) -> bool {
        self.schedule.at_once(|| {
            let found = self.engine.locate(address);
            let (region, page) = found.expect("a page of this engine");
            let blocks = region.blocks.as_ref().expect("blocks");
            blocks.freeing(page).is_some()
        })
    }

    pub(super) fn forget_those_that_left(&self) {
        let mut leaving = self.leaving.borrow_mut();
        leaving.retain(|&(address, _)| self.is_leaving(address));
    }

    pub(super) fn free(&self, at: u64) {
        let Some(block) = self.take_away(at) else {
            return;
        };
        let (address, pages) = (block.address, block.pages.get());
        self.tell(|| format!("{pages} pages at {address:#x}"));
        assert_eq!(self.engine.free(address), Ok(pages * PAGE_SIZE));
        if self.is_leaving(address) {
            self.leaving.borrow_mut().push((address, pages));
        }
    }

    pub(super) fn resize(&self, at: u64, how: u64) {
        let Some(block) = self.take_away(at) else {
            return;
        };
        let before = block.pages.get();
        let pages = 1 + how as usize % (2 * before).min(GROWN_PAGES_MAX);
        self.tell(|| format!("{:#x}, {before} pages, to {pages}", block.address));
        let resized = self.engine.resize(block.address, pages);
        let mut known = block.known.borrow_mut();
        for page in pages..before {
            let state = self.state(block.page(page));
            // Emptied while it was open, see `look_at_emptied`.
            let is_gone = state == PageState::Empty || self.setting.manner == 2;
            assert!(!resized || is_gone, "a page of no block is {state:?}");
            // Pages that it was to lose may be forgotten even where it keeps them.
            known[page].or_zero = true;
        }
        if resized {
            block.pages.set(pages);
            known.resize_with(pages, Known::default);
        }
        drop(known);
        // It may have grown over one that was leaving.
        self.forget_those_that_left();
        self.blocks.borrow_mut().push(block);
    }

    pub(super) fn discard(&self, block: &Use, first: usize, pages: usize) {
        let (range, uses) = ((first, first + pages), block.uses.get());
        let alone = block.is_used_once();
        // It may be let go of, and leave, before it is looked at.
        let mut addresses = (first..first + pages).map(|page| block.page(page));
        let is_held = addresses.any(|page| self.is_held(page) || self.sim.is_locked(page));
        block.discarding.borrow_mut().push(range);
        for known in &mut block.known.borrow_mut()[first..first + pages] {
            known.or_zero = true;
        }
        let discarded = self.engine.discard(block.page(first), pages * PAGE_SIZE);
        discarded.expect("pages of a block");
        let mut discarding = block.discarding.borrow_mut();
        let at = discarding.iter().position(|&other| other == range);
        discarding.swap_remove(at.expect("it was there"));
        drop(discarding);
        if !alone || block.uses.get() != uses {
            // The next access says what became of each page.
            return;
        }
        for page in first..first + pages {
            let address = block.page(page);
            let mut is_zero = self.state(address) == PageState::Empty;
            let mut has_frame = false;
            self.sim.look(address, |bytes| {
                has_frame = true;
                is_zero |= *bytes == ZEROS;
            });
            let known = &mut block.known.borrow_mut()[page];
            if is_zero {
                known.clear();
                continue;
            }
            // Pinned, locked, kept; or brought in ahead of somebody else's fault.
            let state = self.state(address);
            let may_stay = has_frame || is_held || self.setting.wrong == 1;
            let stays = may_stay || state != PageState::Stored;
            assert!(stays, "a discarded page is {state:?}");
        }
    }
}

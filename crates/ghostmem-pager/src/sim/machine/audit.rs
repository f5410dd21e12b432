//! What must hold while the program runs, and at its end.

use std::collections::HashSet;

use ghostmem_os::PAGE_SIZE;
use ghostmem_table::{PageState, Word};

use super::Machine;
use crate::parts::metrics::Counter;
use crate::sim::audit::{Words, overdraft_most, touched_pages};
use crate::sim::oracle::ZEROS;

impl Machine {
    /// At every moment, in the middle of calls too.
    pub(crate) fn check(&self) {
        let budget = &self.engine.budget;
        let (used, frames) = (budget.used(), self.sim.frames() as i64);
        assert!(
            frames <= used,
            "{frames} pages are mapped, of {used} that were taken"
        );
        let overdrafts = self.engine.metrics.sum(Counter::overdrafts);
        if used <= budget.limit() {
            self.overdrafts.set(overdrafts);
        }
        let over = match overdrafts - self.overdrafts.get() {
            0 => 0,
            _ => overdraft_most(budget.limit()),
        };
        let most = self.ceiling.get() + over;
        assert!(
            used <= most,
            "{used} pages are resident, the limit is {most}"
        );
        // Once they are fewer, they may not be more again.
        if !self.is_limiting.get() {
            let now = budget.limit().max(used);
            self.ceiling.set(self.ceiling.get().min(now));
        }
        if let Some(what) = self.sim.broken() {
            panic!("{what}");
        }
    }

    /// When nobody is in the middle of anything: words, frames, slots and copies agree.
    pub(super) fn audit(&self) {
        self.schedule.at_once(|| {
            self.check();
            self.audit_words();
            for block in self.blocks.borrow().iter() {
                for (page, known) in block.known.borrow().iter().enumerate() {
                    self.sim.look(block.page(page), |bytes| {
                        self.verify(block, page, known, bytes);
                    });
                }
            }
        });
    }

    fn audit_words(&self) {
        let engine = &self.engine;
        let words = Words::of(engine, self.setting.lies == 1);
        words.agree(engine, self.sim.frames() as i64, self.setting.manner > 0);
        let of_pins: HashSet<usize> = self
            .pins
            .borrow()
            .iter()
            .flat_map(|&(from, pages)| (0..pages).map(move |page| from + page * PAGE_SIZE))
            .collect();
        assert_eq!(words.pinned, of_pins.len(), "pinned words, pages with pins");
        let allocated: usize = self.blocks.borrow().iter().map(|b| b.pages.get()).sum();
        self.forget_those_that_left();
        let leaving: usize = self.leaving.borrow().iter().map(|left| left.1).sum();
        assert_eq!(
            engine.stats().allocated_bytes,
            (allocated + leaving) * PAGE_SIZE,
            "bytes allocated, pages of blocks ({allocated}) and of those not free yet ({leaving})"
        );
    }

    /// Every page is read; then all is given back, and nothing is left of it.
    pub(crate) fn end(&self) {
        self.audit();
        while !self.pins.borrow().is_empty() {
            self.unpin(0);
        }
        for page in self.locked.take() {
            self.sim.set_locked(page, false);
        }
        self.sim.set_keeps_locked(false);
        let blocks = self.blocks.take();
        for block in &blocks {
            let block = block.enter();
            (0..block.pages.get()).for_each(|page| self.touch(0, &block, page, None));
        }
        for block in blocks {
            let bytes = block.pages.get() * PAGE_SIZE;
            assert_eq!(self.engine.free(block.address), Ok(bytes));
        }
        self.audit();
        let leaving = self.leaving.borrow();
        let mut emptied = 0;
        for region in self.engine.regions() {
            for page in touched_pages(region) {
                let (word, address) = (region.table.load(page), region.base() + page * PAGE_SIZE);
                let kept = leaving
                    .iter()
                    .any(|&(from, pages)| (from..from + pages * PAGE_SIZE).contains(&address));
                if !kept && word.state() != PageState::Empty {
                    self.look_at_emptied(address, word);
                    emptied += 1;
                }
            }
        }
        if leaving.is_empty() && emptied == 0 {
            let stats = self.engine.stats();
            assert_eq!(self.engine.budget.used(), 0, "frames are left");
            assert_eq!(self.sim.frames(), 0, "frames are left");
            let left = (stats.stored_pages, stats.file_pages, stats.kept_copies);
            assert_eq!(left, (0, 0, 0), "slots, places, copies are left");
        }
        self.engine.shut_down();
    }

    /// A page of no block that is not empty: guard by mprotect(2) empties a page that the
    /// kernel does not let it close, and leaves it where it is, for the next owner.
    fn look_at_emptied(&self, address: usize, word: Word) {
        let state = word.state();
        let may_be = self.setting.manner == 2 && self.setting.wrong == 1;
        let is_zero = match state {
            PageState::Resident => true,
            PageState::Filled => word.payload() == 0,
            _ => false,
        };
        assert!(may_be && is_zero, "a page of no block is left {state:?}");
        self.sim.look(address, |bytes| {
            assert_eq!(*bytes, ZEROS, "a page of no block has bytes");
        });
    }
}

//! What must hold while a test runs, and at its end.

use super::World;
use crate::parts::metrics::Counter;
use crate::sim::audit::{Words, overdraft_most};

impl World {
    /// At every moment, in the middle of calls too.
    pub(crate) fn check(&self) {
        let budget = &self.engine.budget;
        let (used, frames) = (budget.used(), self.sim.frames() as i64);
        assert!(
            frames <= used,
            "{frames} pages are mapped, of {used} that were taken"
        );
        if used <= budget.limit() {
            self.ceiling.set(budget.limit());
        }
        let most = match self.count(Counter::overdrafts) {
            0 => self.ceiling.get(),
            _ => self.ceiling.get() + overdraft_most(budget.limit()),
        };
        assert!(
            used <= most,
            "{used} pages are resident, the limit is {most}"
        );
        if let Some(what) = self.sim.broken() {
            panic!("{what}");
        }
    }

    /// When nobody is in the middle of anything: words, frames, slots and copies agree.
    pub(crate) fn audit(&self) {
        self.check();
        let engine = &self.engine;
        let has_holes = engine
            .regions()
            .any(|region| region.mapped.protects_from_loads());
        Words::of(engine, false).agree(engine, self.sim.frames() as i64, has_holes);
    }

    /// Every page that holds something is read; then all is given back, and nothing is
    /// left of it.
    pub(crate) fn end(&self) {
        self.sim.clear_hook();
        self.audit();
        let pages: Vec<usize> = self.model.borrow().keys().copied().collect();
        pages.into_iter().for_each(|page| self.load(page));
        let blocks: Vec<_> = self.blocks.borrow().iter().map(|block| block.0).collect();
        blocks.into_iter().for_each(|address| self.free(address));
        self.audit();
        assert_eq!(self.engine.budget.used(), 0, "frames are left");
        let stats = self.engine.stats();
        assert_eq!(
            (stats.stored_pages, stats.file_pages),
            (0, 0),
            "slots are left"
        );
        assert_eq!((stats.allocated_bytes, stats.kept_copies), (0, 0));
        self.engine.shut_down();
    }
}

//! What must hold while a test runs, and at its end.

use std::collections::HashSet;

use ghostmem_os::PAGE_SIZE;
use ghostmem_store::Place;
use ghostmem_table::PageState;

use super::World;
use crate::parts::metrics::Counter;

/// Frames beyond the limit that [`crate::fault::frame`] may take when nothing can leave.
const OVERDRAFT_MAX: i64 = 68;

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
            _ => self.ceiling.get() + OVERDRAFT_MAX.max(budget.limit() / 8),
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
        let (mut resident, mut copies) = (0, 0);
        let (mut slots, mut places) = (HashSet::new(), HashSet::new());
        for region in self.engine.regions() {
            for page in region.resident.touched_words().pages().flat_map(|group| {
                let first = group * PAGE_SIZE / 8;
                first..(first + PAGE_SIZE / 8).min(region.pages())
            }) {
                let word = region.table.load(page);
                let clean = word.state() == PageState::Resident && word.has_copy();
                resident += i64::from(word.state() == PageState::Resident);
                copies += usize::from(clean);
                match word.state() {
                    PageState::Empty
                    | PageState::Filled
                    | PageState::Resident
                    | PageState::Stored => {}
                    state => panic!("page {page} was left {state:?}"),
                }
                if clean || word.state() == PageState::Stored {
                    let new = match Place::from_bits(word.payload()).unwrap() {
                        Place::Store(slot) => slots.insert(slot.bits()),
                        Place::Cold(..) => places.insert(word.payload()),
                    };
                    assert!(new, "page {page} shares the place of another one");
                }
            }
        }
        assert_eq!(
            self.engine.budget.used(),
            resident,
            "frames taken, pages resident"
        );
        let frames = self.sim.frames() as i64;
        // A page of zeros that nobody has touched yet is a hole in guard's file.
        let has_holes = self
            .engine
            .regions()
            .any(|region| region.mapped.protects_from_loads());
        let agree = frames == resident || (has_holes && frames < resident);
        assert!(
            agree,
            "{frames} frames are mapped, {resident} pages are resident"
        );
        assert_eq!(
            self.engine.copies.sum(),
            copies,
            "copies counted, clean pages"
        );
        let stats = self.engine.stats();
        assert_eq!(
            stats.stored_pages,
            slots.len(),
            "slots in the store, of pages"
        );
        assert_eq!(
            stats.file_pages,
            places.len(),
            "places in the file, of pages"
        );
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

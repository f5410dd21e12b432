//! The steps of a fork: the child gets its own mechanism under every region, and nobody
//! ever sees zeros in place of data.

use ghostmem_fault::die;
use ghostmem_os::PAGE_SIZE;
use ghostmem_table::PageState;

use crate::parts::engine::Engine;
use crate::parts::region::Region;

impl Engine {
    pub(crate) fn release_fork_locks(&self) {
        for space in self.block_spaces() {
            space.unlock_after_fork();
        }
        self.enrolment.release_after_fork();
        self.worker.thread.release_after_fork();
        self.registrations.release_after_fork();
    }

    /// In a forked child, before its memory is registered: absent pages are
    /// holes of ordinary memory, which somebody who ran before our fork hook
    /// (a hook registered even earlier) may have touched. It saw zeros in place
    /// of data: the child must not go on with that.
    pub(crate) fn refuse_strangers(region: &Region) {
        const GROUP: usize = PAGE_SIZE / size_of::<u64>();
        let mut mapped = [0_u8; GROUP];
        for group in region.resident.touched_words().pages() {
            let first = group * GROUP;
            let mapped = &mut mapped[..GROUP.min(region.pages() - first)];
            match region.mapped.mapped(first, mapped) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => die("a forked child cannot look at its memory", error.errno),
            }
            for (page, _) in (first..).zip(mapped).filter(|(_, seen)| **seen & 1 == 1) {
                if region.table.load(page).state() != PageState::Resident
                    && !region.mapped.is_away(page)
                {
                    die(
                        "a fork handler touched ghost memory before it was restored in the child",
                        14,
                    );
                }
            }
        }
    }

    /// In a forked child: the region's pages under a mechanism of the child's
    /// own; how many are resident.
    pub(crate) fn take_over_region(&self, region: &Region) -> i64 {
        let frames = self.repair_region(region);
        let is_resident = |page: &usize| region.table.load(*page).state() == PageState::Resident;
        let resident = region.resident.all().filter(is_resident);
        if let Err(error) = region.mapped.after_fork_in_child(resident) {
            die("a forked child cannot take over a heap", error.errno);
        }
        // Where mappings have run out, not all pages were opened.
        if self.backend.splits_mappings() && region.has_pins() {
            let is_pinned = |page: &usize| region.table.load(*page).is_pinned();
            for page in region.resident.all().filter(is_pinned) {
                if let Err(error) = self.unprotect(region, page, 1) {
                    die("a pinned page cannot be opened in a child", error.errno);
                }
            }
        }
        frames
    }

    /// In a forked child write protection is gone, so no copy can be trusted
    /// to match its page: pages with one become dirty ones. How many pages are
    /// resident, each of which has a frame.
    fn repair_region(&self, region: &Region) -> i64 {
        region.resident.repair_after_fork();
        let mut frames = 0;
        for page in region.resident.all() {
            let word = region.table.load(page);
            frames += i64::from(word.state() == PageState::Resident);
            if word.has_copy() {
                self.free_slot(word);
                let word = word.without_copy().with_waiters(false);
                region.table.repair_after_fork(page, word);
            }
        }
        frames
    }
}

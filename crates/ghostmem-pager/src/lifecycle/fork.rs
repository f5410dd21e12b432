//! The steps of a fork: the child gets its own mechanism under every region, and nobody
//! ever sees zeros in place of data.
//!
//! Under a bound on a tree of processes, or in a memory group, room is made before. A
//! resident page that parent and child share is there once. Each that one of them writes is
//! there twice, without a fault that the engine sees; and evicting it from one of the two
//! frees nothing while the other has it. So no more pages stay resident than what is left
//! of the bound holds once more, for each process that may write them.

use ghostmem_fault::{Scratch, die};
use ghostmem_os::{PAGE_SIZE, clock};
use ghostmem_table::PageState;

use crate::parts::engine::Engine;
use crate::parts::region::Region;
use crate::tiers::split::MEASURE_NS;

/// Rounds of eviction that free nothing, before a fork goes on all the same.
const IDLE_ROUNDS: u32 = 8;

impl Engine {
    /// Before a fork, by the thread that forks, while pages may still move: evicts until
    /// what is left of the bound holds what stays resident once more, for the child and for
    /// each process of its tree that shares pages of a fork. No more leave than there are
    /// now, as other threads may bring them back meanwhile. Far from the bound nothing is
    /// asked of the kernel.
    pub fn make_room_for_child(&self) {
        let bound = self.bound.as_ref();
        let Some(bound) = bound.filter(|bound| bound.holds_children()) else {
            return;
        };
        let mut left = self.budget.used();
        if bound.may_fork_unseen(clock::now_ns(), self.own_bytes(), left) {
            return;
        }
        // The caller's stack may be ghost memory.
        let look = |engine: &Self, (), _: &mut _| engine.look_at_a_fork(0);
        let mut idle = u32::from(self.quietly((), look).is_err());
        while left > 0 && idle < IDLE_ROUNDS {
            match self.quietly((), Self::make_some_room) {
                Ok(None) => break,
                Ok(Some(freed)) if freed > 0 => {
                    idle = 0;
                    left = left.saturating_sub_unsigned(freed as u64);
                }
                _ => idle += 1,
            }
        }
    }

    /// One round of that: how many pages left, `None` where no more have to.
    fn make_some_room(&self, (): (), scratch: &mut Scratch) -> Option<usize> {
        let bound = self.bound.as_ref()?;
        if self.budget.used() <= bound.shareable_pages(self.own_bytes()) {
            return None;
        }
        let freed = self.reclaim_directly(scratch);
        self.look_at_a_fork(bound.interval_ns(MEASURE_NS));
        Some(freed)
    }

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
            let mut page = group * GROUP;
            let end = region.pages().min(page + GROUP);
            while page < end {
                // Where others' mappings lie the child may have none (MADV_DONTFORK).
                let first = region.mapped.next_away(page, end, false);
                page = region.mapped.next_away(first, end, true);
                let mapped = &mut mapped[..page - first];
                if !mapped.is_empty() && !Self::refuse_strangers_in(region, first, mapped) {
                    return;
                }
            }
        }
    }

    /// The same for the pages from `first` on, as many as `mapped` has places; `false`: what
    /// is mapped cannot be strangers' here.
    fn refuse_strangers_in(region: &Region, first: usize, mapped: &mut [u8]) -> bool {
        match region.mapped.mapped(first, mapped) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => die("a forked child cannot look at its memory", error.errno),
        }
        for (page, _) in (first..).zip(mapped).filter(|(_, seen)| **seen & 1 == 1) {
            if region.table.load(page).state() != PageState::Resident {
                die(
                    "a fork handler touched ghost memory before it was restored in the child",
                    14,
                );
            }
        }
        true
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

// Only there processes share a page.
#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use core::sync::atomic::Ordering;

    use ghostmem_os::map::MapArc;
    use ghostmem_os::meter::Meter;
    use ghostmem_os::tree::Tree;

    use super::*;
    use crate::Config;

    /// A heap with resident pages, under a bound for all processes together.
    fn engine(bound_bytes: u64, key: u64, pages: usize) -> MapArc<Engine> {
        let (tree, _file) = Tree::create(bound_bytes, key).unwrap();
        let config = Config {
            tree: Some(Box::leak(Box::new(tree))),
            store_capacity_bytes: 64 << 20,
            ..Config::for_tests(1 << 20)
        };
        let engine = Engine::new(config, None).unwrap();
        let address = Engine::allocate(&engine, pages, 1).unwrap();
        for page in (0..pages).step_by(64) {
            let place = address + page * PAGE_SIZE;
            engine.pin(place, 64 * PAGE_SIZE).unwrap();
            engine.unpin(place, 64 * PAGE_SIZE).unwrap();
        }
        engine
    }

    /// When the process was measured last.
    fn measured_ns(engine: &Engine) -> u64 {
        let bound = engine.bound.as_ref().unwrap();
        bound.measured_ns.load(Ordering::Relaxed)
    }

    #[test]
    fn a_fork_far_from_the_bound_makes_no_look() {
        let engine = engine(1 << 40, 21, 1024);
        let mut looks = 0;
        for _ in 0..50 {
            engine.look_again(0);
            let (looked, used) = (measured_ns(&engine), engine.budget.used());
            engine.make_room_for_child();
            looks += u32::from(measured_ns(&engine) != looked);
            assert_eq!(engine.budget.used(), used);
        }
        // Each after half a second without this thread may look.
        assert!(looks < 25, "{looks} looks at 50 forks");
        engine.shut_down();
    }

    #[test]
    fn pages_leave_before_a_fork_until_the_rest_fits_twice() {
        // 64 MiB fit once. The other tests of this process may take or free 60 MiB.
        let taken = Meter::new().process_bytes().unwrap();
        let engine = engine(taken + (128 << 20), 22, 16_384);
        let (looked, used) = (measured_ns(&engine), engine.budget.used());
        engine.make_room_for_child();
        assert_ne!(measured_ns(&engine), looked);
        let left = engine.budget.used();
        assert!(left < used, "{left} of {used} pages");
        engine.shut_down();
    }
}

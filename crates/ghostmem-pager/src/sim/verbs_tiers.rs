//! `tiers/`: copies given up, the store kept dense.

use std::cell::Cell;
use std::rc::Rc;

use ghostmem_fault::sim::{Answer, Call, Manner, Simulation};
use ghostmem_os::PAGE_SIZE;

use crate::parts::metrics::Counter;
use crate::sim::world::{Data, Touch, World, config, file};

#[test]
fn copies_are_given_up_and_their_pages_stay() {
    World::run(41, 256, |world| {
        let block = world.allocate(100);
        let pages = || (0..100).map(|page| block + page * PAGE_SIZE);
        pages().for_each(|page| world.store(page, Data::Text));
        world.evict(block, 100);
        pages().for_each(|page| world.load(page));
        assert_eq!(world.engine.stats().kept_copies, 100);
        world.engine.shed_copies(60);
        let stats = world.engine.stats();
        assert_eq!(stats.resident_bytes, 100 * PAGE_SIZE);
        assert_eq!(
            stats.kept_copies as u64,
            100 - world.count(Counter::copies_shed)
        );
        assert!(stats.kept_copies <= 40);
        world.audit();
        // Still protected: the store is seen, and finds a dirty page.
        pages().for_each(|page| world.store(page, Data::Few));
        world.evict(block, 100);
        pages().for_each(|page| world.load(page));
    });
}

#[test]
fn slots_move_and_pages_find_them() {
    World::run(42, 4096, |world| {
        let block = world.allocate(2000);
        let page = |at: usize| block + at * PAGE_SIZE;
        for at in 0..2000 {
            world.store(page(at), Data::Text);
        }
        world.evict(block, 2000);
        let held = world.engine.stats().store_held_bytes;
        // Holes in all slabs; some pages come back with their copies.
        for at in (0..2000).filter(|at| at % 8 != 0) {
            world.discard(page(at), 1);
        }
        for at in (0..2000).step_by(40) {
            world.load(page(at));
        }
        let moved = world.engine.compact_store(usize::MAX >> 1, 0);
        assert!(moved > 0);
        assert!(world.engine.stats().store_held_bytes < held / 2);
        world.audit();
        for at in 0..2000 {
            world.load(page(at));
        }
    });
}

/// A world with `pages` pages in a store that may hold 64 KiB, and a file.
fn with_a_file(seed: u64, pages: usize, test: impl FnOnce(&Rc<World>, usize)) {
    Simulation::run(seed, |sim| {
        let settings = file(64 << 10);
        let world = World::new(sim, config(Manner::Userfaultfd, 1024), Some(settings));
        let block = world.allocate(pages);
        for page in 0..pages {
            world.store(block + page * PAGE_SIZE, Data::Noise);
        }
        world.evict(block, pages);
        test(&world, block);
        world.end();
    });
}

#[test]
fn cold_pages_go_to_the_file_and_come_back() {
    with_a_file(43, 300, |world, block| {
        world.demoter_turn();
        let stats = world.engine.stats();
        assert!(
            stats.file_pages > 200 && stats.stored_pages < 100,
            "{stats:?}"
        );
        world.audit();
        for page in 0..300 {
            world.load(block + page * PAGE_SIZE);
        }
        assert!(world.count(Counter::spilled_reads) > 200);
        for page in (0..300).step_by(2) {
            world.store(block + page * PAGE_SIZE, Data::Few);
        }
        world.audit();
        world.evict(block, 300);
        world.demoter_turn();
        world.audit();
    });
}

#[test]
fn a_page_that_came_and_went_while_its_batch_was_written_is_not_the_batchs() {
    with_a_file(44, 300, |world, block| {
        let (actor, done) = (world.clone(), Cell::new(false));
        world.sim.set_hook(move |call| {
            if call == Call::DiskWrite && !done.replace(true) {
                // Stored in the same bytes of the store again, perhaps; with others of its own.
                for page in (0..300).step_by(3).map(|page| block + page * PAGE_SIZE) {
                    actor.try_touch(1, page, Touch::Store(Data::Noise));
                    actor.evict(page, 1);
                }
            }
        });
        world.demoter_turn();
        world.sim.clear_hook();
        assert!(world.count(Counter::spills_in_vain) > 0);
        world.audit();
        for page in 0..300 {
            world.load(block + page * PAGE_SIZE);
        }
    });
}

#[test]
fn a_full_disk_leaves_pages_in_memory_until_it_is_not() {
    with_a_file(45, 300, |world, block| {
        world.sim.answer_next(Call::DiskWrite, Answer::Refused(28));
        world.demoter_turn();
        assert_eq!(world.count(Counter::spill_write_errors), 1);
        assert_eq!(world.engine.stats().file_pages, 0);
        world.audit();
        world.load(block);
        world.demoter_turn();
        assert_eq!(world.engine.stats().file_pages, 0, "too soon");
        world.sim.advance(60_000_000);
        world.demoter_turn();
        assert!(world.engine.stats().file_pages > 200);
        world.audit();
    });
}

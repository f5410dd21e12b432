//! `tiers/`: copies given up, the store kept dense.

use ghostmem_os::PAGE_SIZE;

use crate::parts::metrics::Counter;
use crate::sim::world::{Data, World};

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
        let moved = world.engine.tidy_store(usize::MAX >> 1, 0);
        assert!(moved > 0);
        assert!(world.engine.stats().store_held_bytes < held / 2);
        world.audit();
        for at in 0..2000 {
            world.load(page(at));
        }
    });
}

//! `lifecycle/`: a fork, after which the simulation goes on as parent or as child.

use ghostmem_fault::sim::{Manner, Simulation};
use ghostmem_os::PAGE_SIZE;
use ghostmem_table::PageState;

use crate::parts::metrics::Counter;
use crate::sim::world::{Data, World, config};

/// A world with pages in every state, two of them pinned.
fn with_pages_in_every_state(seed: u64, manner: Manner, then: impl FnOnce(&World, usize)) {
    Simulation::run(seed, |sim| {
        let world = World::new(sim, config(manner, 64), None);
        let block = world.allocate(32);
        let page = |at: usize| block + at * PAGE_SIZE;
        for at in 0..24 {
            world.store(page(at), [Data::Text, Data::Filled, Data::Noise][at % 3]);
        }
        world.evict(block, 16);
        (0..8).for_each(|at| world.load(page(at)));
        world.engine.pin(page(20), 2 * PAGE_SIZE).unwrap();
        then(&world, block);
        (0..32).for_each(|at| world.load(page(at)));
        (0..32).for_each(|at| world.store(page(at), Data::Few));
        assert!(world.engine.is_pinned(page(20), 2 * PAGE_SIZE));
        world.engine.unpin(page(20), 2 * PAGE_SIZE).unwrap();
        assert_eq!(world.evict(block, 32), 32);
        world.end();
    });
}

#[test]
fn a_parent_goes_on_as_before() {
    for manner in [Manner::Userfaultfd, Manner::Guard, Manner::GuardByMprotect] {
        with_pages_in_every_state(61, manner, |world, _| {
            let before = world.engine.stats();
            world.fork_as_parent();
            let after = world.engine.stats();
            assert_eq!(before.stored_pages, after.stored_pages);
            assert_eq!(before.kept_copies, after.kept_copies);
            world.audit();
        });
    }
}

#[test]
fn a_child_trusts_no_copy_as_its_pages_are_not_protected() {
    for manner in [Manner::Userfaultfd, Manner::Guard, Manner::GuardByMprotect] {
        with_pages_in_every_state(62, manner, |world, block| {
            let copies = world.engine.stats().kept_copies;
            assert!(copies > 0);
            world.fork_as_child();
            assert_eq!(world.engine.stats().kept_copies, 0);
            world.audit();
            // Nobody is told of these stores.
            let faults = world.count(Counter::write_faults);
            assert_eq!(world.state(block), PageState::Resident);
            world.store(block, Data::Few);
            assert_eq!(world.count(Counter::write_faults), faults);
            world.evict(block, 1);
            // A child of the child.
            world.fork_as_child();
        });
    }
}

#[test]
fn pinned_pages_stay_open_over_a_fork() {
    for (child, manner) in [(false, Manner::Guard), (true, Manner::GuardByMprotect)] {
        with_pages_in_every_state(63, manner, |world, block| {
            match child {
                true => world.fork_as_child(),
                false => world.fork_as_parent(),
            }
            let resolved = world.count(Counter::faults) + world.count(Counter::fault_races);
            world.load(block + 20 * PAGE_SIZE);
            let after = world.count(Counter::faults) + world.count(Counter::fault_races);
            assert_eq!(resolved, after);
        });
    }
}

#[test]
fn a_child_counts_no_frame_that_a_lost_thread_had() {
    for manner in [Manner::Userfaultfd, Manner::Guard, Manner::GuardByMprotect] {
        with_pages_in_every_state(64, manner, |world, _| {
            // A thread that lowers the limit has emptied a cache, and gave nothing back.
            assert_eq!(world.engine.budget.take_up_to(16), 16);
            world.fork_as_child();
            world.audit();
        });
    }
}

//! `fault/`: from a touch to the page in place.

use ghostmem_fault::sim::{Answer, Call, Manner, Outcome, Simulation};
use ghostmem_os::PAGE_SIZE;
use ghostmem_table::PageState;

use crate::parts::metrics::Counter;
use crate::sim::world::{Data, Touch, World, config};

#[test]
fn a_first_touch_brings_zeros_and_a_refault_the_bytes() {
    World::run(11, 64, |world| {
        let block = world.allocate(8);
        // Reads zero; the model knows nothing of the page.
        world.load(block);
        world.store(block + PAGE_SIZE, Data::Text);
        assert_eq!(world.count(Counter::faults), 2);
        assert_eq!(world.evict(block, 2), 2);
        assert_eq!(world.state(block), PageState::Filled);
        assert_eq!(world.state(block + PAGE_SIZE), PageState::Stored);
        world.load(block);
        world.load(block + PAGE_SIZE);
        assert_eq!(world.count(Counter::refaults), 2);
        // Two regions' worth of addresses further on nobody has anything.
        let beyond = block + (1 << 30);
        assert_eq!(world.try_touch(0, beyond, Touch::Load), Outcome::Refused);
    });
}

#[test]
fn a_page_restored_for_reading_keeps_its_copy_until_it_is_stored_to() {
    World::run(12, 64, |world| {
        let block = world.allocate(2);
        world.store(block, Data::Text);
        world.evict(block, 1);
        world.load(block);
        assert_eq!(world.engine.stats().kept_copies, 1);
        world.store(block, Data::Few);
        assert_eq!(world.count(Counter::write_faults), 1);
        let stats = world.engine.stats();
        assert_eq!((stats.kept_copies, stats.stored_pages), (0, 0));
        world.evict(block, 1);
        // A store brings it back writable: the copy counts only once it is compared.
        world.store(block, Data::Few);
        let stats = world.engine.stats();
        assert_eq!((stats.kept_copies, stats.stored_pages), (1, 1));
        world.evict(block, 1);
        assert_eq!(world.count(Counter::verified_changed), 1);
        world.audit();
    });
}

#[test]
fn a_run_comes_in_together_however_the_kernel_cuts_it() {
    World::run(13, 1024, |world| {
        let block = world.allocate(256);
        let pages = || (0..256).map(|page| block + page * PAGE_SIZE);
        pages().for_each(|page| world.store(page, Data::Text));
        world.evict(block, 256);
        let before = world.count(Counter::faults);
        for _ in 0..20 {
            world.sim.answer_next(Call::Install, Answer::Part);
        }
        pages().for_each(|page| world.load(page));
        assert_eq!(world.sim.answers_left(), 0);
        assert!(world.count(Counter::faults) - before < 64);
        assert!(world.count(Counter::readahead_pages) > 192);
        // And from the end to the start.
        world.evict(block, 256);
        let before = world.count(Counter::faults);
        pages().rev().for_each(|page| world.load(page));
        assert!(world.count(Counter::faults) - before < 64);
        world.audit();
    });
}

#[test]
fn a_mapping_that_the_program_took_away_reads_as_zero() {
    World::run(14, 64, |world| {
        let block = world.allocate(1);
        world.load(block);
        world.sim.forget(block);
        // Twice in a row before the mapping itself is looked at.
        world.load(block);
        assert_eq!(world.state(block), PageState::Resident);
        assert!(world.count(Counter::fault_races) > 0);
        world.audit();
    });
}

#[test]
fn guard_opens_pages_that_are_closed() {
    for manner in [Manner::Guard, Manner::GuardByMprotect] {
        Simulation::run(15, |sim| {
            let world = World::new(sim, config(manner, 64), None);
            let block = world.allocate(8);
            for page in (0..8).map(|page| block + page * PAGE_SIZE) {
                world.store(page, Data::Text);
            }
            assert_eq!(world.evict(block, 8), 8);
            assert_eq!(sim.frames(), 0);
            if manner == Manner::GuardByMprotect {
                // No mapping left: others are closed for it.
                world.store(block + 7 * PAGE_SIZE, Data::Few);
                sim.answer_next(Call::Install, Answer::Refused(12));
            }
            world.load(block);
            world.audit();
            world.end();
        });
    }
}

//! `calls/`: what a program asks for.

use ghostmem_fault::sim::{Answer, Call, Manner, Odds, Simulation};
use ghostmem_os::PAGE_SIZE;
use ghostmem_table::PageState;

use crate::parts::metrics::Counter;
use crate::sim::world::{Data, World, config};

#[test]
fn pinned_pages_stay_and_so_do_their_bytes() {
    for manner in [Manner::Userfaultfd, Manner::Guard, Manner::GuardByMprotect] {
        Simulation::run(51, |sim| {
            let world = World::new(sim, config(manner, 32), None);
            let block = world.allocate(16);
            for page in (0..16).map(|page| block + page * PAGE_SIZE) {
                world.store(page, Data::Text);
            }
            world.evict(block, 16);
            world.engine.pin(block, 4 * PAGE_SIZE).unwrap();
            let faults = world.count(Counter::faults);
            // All that readahead brought with them.
            world.evict(block, 16);
            assert_eq!(sim.frames(), 4);
            world.discard(block, 16);
            for page in (0..4).map(|page| block + page * PAGE_SIZE) {
                world.load(page);
                world.store(page, Data::Few);
            }
            assert_eq!(
                world.count(Counter::faults),
                faults,
                "they are in place, open"
            );
            let too_many = world.engine.pin(block, 16 * PAGE_SIZE + 64 * PAGE_SIZE);
            assert!(too_many.is_err());
            world.engine.unpin(block, 4 * PAGE_SIZE).unwrap();
            assert!(world.evict(block, 16) >= 4);
            assert_eq!(sim.frames(), 0);
            world.end();
        });
    }
}

#[test]
fn a_pin_that_the_kernel_refuses_leaves_no_pin() {
    World::run(52, 64, |world| {
        let block = world.allocate(4);
        world.store(block, Data::Text);
        for refused in 0..2 {
            for _ in 0..refused {
                world.sim.answer_next(Call::Unprotect, Answer::Done);
            }
            world.sim.answer_next(Call::Unprotect, Answer::Refused(12));
            assert!(world.engine.pin(block, 2 * PAGE_SIZE).is_err());
            assert!(!world.engine.has_pins());
        }
        world.audit();
        assert_eq!(world.evict(block, 4), 2);
    });
}

#[test]
fn a_block_freed_while_it_is_pinned_is_free_after_the_last_pin() {
    World::run(53, 64, |world| {
        let block = world.allocate(4);
        world.store(block, Data::Text);
        world.engine.pin(block, PAGE_SIZE).unwrap();
        world.free(block);
        assert_eq!(world.sim.frames(), 1);
        assert_eq!(world.state(block), PageState::Resident);
        assert_ne!(world.allocate(4), block);
        world.engine.unpin(block, PAGE_SIZE).unwrap();
        assert_eq!(world.sim.frames(), 0);
        // Whoever has it next finds zeros.
        let next = world.allocate(4);
        world.load(next);
    });
}

#[test]
fn discarded_pages_read_as_zero_from_every_state() {
    World::run(54, 64, |world| {
        let block = world.allocate(16);
        let pages = || (0..16).map(|page| block + page * PAGE_SIZE);
        pages().for_each(|page| world.store(page, Data::Text));
        world.evict(block, 8);
        pages().step_by(3).for_each(|page| world.load(page));
        world.discard(block, 16);
        let stats = world.engine.stats();
        assert_eq!((stats.stored_pages, stats.resident_bytes), (0, 0));
        pages().for_each(|page| world.load(page));
        // A frame that the kernel keeps is a page that keeps its bytes.
        pages().for_each(|page| world.store(page, Data::Text));
        world.sim.set_odds(Odds {
            kept: 512,
            ..Odds::default()
        });
        world.discard(block, 16);
        let kept = world.sim.frames();
        assert!((1..16).contains(&kept), "{kept} pages are kept");
        pages().for_each(|page| world.load(page));
        world.sim.set_odds(Odds::default());
        world.audit();
    });
}

#[test]
fn a_block_grows_with_zeros_and_forgets_what_it_loses() {
    World::run(55, 64, |world| {
        // Room is a power of two, and what is free behind it.
        let block = world.allocate(5);
        let _behind = world.allocate(8);
        let page = |at: usize| block + at * PAGE_SIZE;
        (0..5).for_each(|at| world.store(page(at), Data::Text));
        assert!(world.resize(block, 8));
        (0..8).for_each(|at| world.load(page(at)));
        world.store(page(7), Data::Noise);
        world.evict(block, 8);
        assert!(world.resize(block, 2));
        assert_eq!(world.engine.stats().stored_pages, 2);
        assert!(world.resize(block, 8));
        (0..8).for_each(|at| world.load(page(at)));
        world.engine.pin(page(6), PAGE_SIZE).unwrap();
        assert!(!world.resize(block, 4), "a page is pinned");
        world.engine.unpin(page(6), PAGE_SIZE).unwrap();
        assert!(!world.resize(block, 9), "there is no room");
        world.audit();
    });
}

#[test]
fn prefetch_brings_pages_in_and_cold_sends_them_first() {
    World::run(56, 64, |world| {
        let block = world.allocate(32);
        let pages = || (0..32).map(|page| block + page * PAGE_SIZE);
        pages().for_each(|page| world.store(page, Data::Text));
        world.evict(block, 32);
        assert_eq!(world.engine.prefetch(block, 32 * PAGE_SIZE).unwrap(), 32);
        let faults = world.count(Counter::faults);
        pages().for_each(|page| world.load(page));
        assert_eq!(world.count(Counter::faults), faults);
        world.engine.make_cold(block, PAGE_SIZE).unwrap();
        assert!(world.engine.evict_coldest().unwrap());
        assert_eq!(world.state(block), PageState::Stored);
        world.audit();
    });
}

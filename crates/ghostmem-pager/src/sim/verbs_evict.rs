//! `evict/`: from a cold page to a slot.

use std::cell::Cell;
use std::rc::Rc;

use ghostmem_fault::sim::{Answer, Call, Manner, Outcome, Simulation};
use ghostmem_os::PAGE_SIZE;
use ghostmem_table::PageState;

use crate::parts::metrics::Counter;
use crate::sim::world::{Data, Touch, World, config};

#[test]
fn dirty_pages_are_packed_each_in_its_way_and_clean_ones_dropped() {
    World::run(21, 64, |world| {
        let block = world.allocate(3);
        let data = [Data::Filled, Data::Text, Data::Noise];
        for (page, data) in data.into_iter().enumerate() {
            world.store(block + page * PAGE_SIZE, data);
        }
        assert_eq!(world.evict(block, 3), 3);
        assert_eq!(world.count(Counter::evictions_dirty), 3);
        assert_eq!(world.count(Counter::same_filled_pages), 1);
        assert_eq!(world.count(Counter::raw_pages_evicted), 1);
        assert_eq!(world.engine.stats().stored_pages, 2);
        let compressed = world.count(Counter::compressed_pages);
        world.load(block + PAGE_SIZE);
        assert_eq!(world.evict(block, 3), 1);
        assert_eq!(world.count(Counter::evictions_clean), 1);
        assert_eq!(world.count(Counter::compressed_pages), compressed);
        world.audit();
    });
}

/// Stores to the first page of a batch at each of its calls in turn.
#[test]
fn a_page_that_is_stored_to_while_it_leaves_is_not_lost() {
    for manner in [Manner::Userfaultfd, Manner::Guard, Manner::GuardByMprotect] {
        let mut cancelled = 0;
        for moment in 0..30 {
            Simulation::run(22, |sim| {
                let world = World::new(sim, config(manner, 64), None);
                let block = world.allocate(4);
                for page in (0..4).map(|page| block + page * PAGE_SIZE) {
                    world.store(page, Data::Text);
                }
                let (calls, actor) = (Rc::new(Cell::new(0)), world.clone());
                sim.set_hook(move |_| {
                    calls.set(calls.get() + 1);
                    if calls.get() == moment + 1 {
                        let stored = actor.try_touch(1, block, Touch::Store(Data::Few));
                        assert_ne!(stored, Outcome::Refused);
                    }
                });
                let left = world.evict(block, 4);
                sim.clear_hook();
                assert!(left >= 3, "the others leave");
                cancelled += world.count(Counter::evictions_cancelled);
                world.end();
            });
        }
        assert!(
            cancelled > 3,
            "{manner:?}: {cancelled} evictions were cancelled"
        );
    }
}

#[test]
fn what_the_kernel_refuses_stays_where_it_is() {
    World::run(23, 64, |world| {
        let block = world.allocate(4);
        let pages: Vec<usize> = (0..4).map(|page| block + page * PAGE_SIZE).collect();
        let states = || {
            pages
                .iter()
                .map(|&page| world.state(page))
                .collect::<Vec<_>>()
        };
        let stored = PageState::Stored;
        for round in 0..3 {
            for &page in &pages {
                world.store(page, Data::Text);
            }
            match round {
                // The run, and then its second page.
                0 => {
                    for answer in [Answer::Refused(12), Answer::Done, Answer::Refused(11)] {
                        world.sim.answer_next(Call::Protect, answer);
                    }
                }
                1 => {
                    world.sim.answer_next(Call::Read, Answer::Done);
                    world.sim.answer_next(Call::Read, Answer::Refused(14));
                }
                _ => {
                    world.sim.answer_next(Call::Drop, Answer::Done);
                    world.sim.answer_next(Call::Drop, Answer::Refused(22));
                }
            }
            assert_eq!(world.evict(block, 4), 3);
            assert_eq!(states(), [stored, PageState::Resident, stored, stored]);
            assert_eq!(world.sim.answers_left(), 0);
            assert_eq!(
                world.engine.stats().stored_pages,
                3,
                "nothing is kept for it"
            );
            world.audit();
        }
    });
}

#[test]
fn what_the_store_does_not_hold_stays_resident() {
    Simulation::run(24, |sim| {
        let world = World::new(sim, config(Manner::Userfaultfd, 256), None);
        world.engine.store.set_byte_limit(128 << 10);
        let block = world.allocate(128);
        let pages = || (0..128).map(|page| block + page * PAGE_SIZE);
        pages().for_each(|page| world.store(page, Data::Noise));
        let left = world.evict(block, 128);
        assert!(left < 128, "the store held all of it");
        world.audit();
        pages().for_each(|page| world.load(page));
        world.end();
    });
}

/// Stored to or not, by comparing: what is as it was keeps its slot.
#[test]
fn a_page_stored_to_that_is_what_it_was_is_not_compressed_again() {
    for manner in [Manner::Userfaultfd, Manner::Guard, Manner::GuardByMprotect] {
        Simulation::run(26, |sim| {
            let world = World::new(sim, config(manner, 64), None);
            let block = world.allocate(2);
            let pages = [block, block + PAGE_SIZE];
            pages.iter().for_each(|&page| world.store(page, Data::Text));
            assert_eq!(world.evict(block, 2), 2);
            // Both come back for a store, and one of them changes.
            world.store(pages[0], Data::Same);
            world.store(pages[1], Data::Text);
            let stats = world.engine.stats();
            assert_eq!((stats.kept_copies, stats.stored_pages), (2, 2));
            world.audit();
            let compressed = world.count(Counter::compressed_pages);
            assert_eq!(world.evict(block, 2), 2);
            assert_eq!(world.count(Counter::verified_unchanged), 1);
            assert_eq!(world.count(Counter::verified_changed), 1);
            assert_eq!(world.count(Counter::compressed_pages), compressed + 1);
            world.audit();
            pages.iter().for_each(|&page| world.load(page));
            world.end();
        });
    }
}

/// Pages that came back for a store while all copies were compared are write hot. Where
/// comparing is not worth it any longer, reading them does not compress them again; a page
/// that is stored to after it was read does give its next copy up.
#[test]
fn pages_hot_since_all_were_compared_keep_their_copies_when_read() {
    World::run(30, 64, |world| {
        let engine = &world.engine;
        let block = world.allocate(16);
        let pages = || (0..16).map(|page| block + page * PAGE_SIZE);
        for _ in 0..2 {
            pages().for_each(|page| world.store(page, Data::Text));
            assert_eq!(world.evict(block, 16), 16);
        }
        assert_eq!(world.count(Counter::verified_changed), 16);
        let now = engine.clock().epoch(engine.evictions());
        (0..64).for_each(|_| engine.costs.compared((4096, 0), 4096 * 1600, now));
        assert!(!engine.costs.compares());

        let compressed = world.count(Counter::compressed_pages);
        for _ in 0..2 {
            pages().for_each(|page| world.load(page));
            assert_eq!(engine.stats().kept_copies, 16);
            assert_eq!(world.evict(block, 16), 16);
        }
        assert_eq!(world.count(Counter::compressed_pages), compressed);
        world.audit();

        // Until the epoch has passed: pages that leave in it are of that time.
        while engine.clock().epoch(engine.evictions()) == now {
            world.load(block);
            world.evict(block, 1);
        }
        pages().for_each(|page| world.load(page));
        pages().for_each(|page| world.store(page, Data::Text));
        assert_eq!(world.evict(block, 16), 16);
        pages().for_each(|page| world.load(page));
        let kept = engine.stats().kept_copies;
        assert!(kept <= 4, "{kept} pages that are stored to keep a copy");
        world.audit();
        pages().for_each(|page| world.load(page));
        world.end();
    });
}

/// A touch at each call of a comparing eviction in turn: no slot is leaked, none is
/// freed twice.
#[test]
fn a_kept_page_that_is_stored_to_while_it_leaves_is_not_lost() {
    let mut cancelled = 0;
    for (moment, data) in (0..12).flat_map(|moment| [(moment, Data::Same), (moment, Data::Few)]) {
        Simulation::run(27, |sim| {
            let world = World::new(sim, config(Manner::Userfaultfd, 64), None);
            let block = world.allocate(2);
            let pages = [block, block + PAGE_SIZE];
            pages.iter().for_each(|&page| world.store(page, Data::Text));
            assert_eq!(world.evict(block, 2), 2);
            pages.iter().for_each(|&page| world.store(page, Data::Same));
            let (calls, actor) = (Rc::new(Cell::new(0)), world.clone());
            sim.set_hook(move |_| {
                calls.set(calls.get() + 1);
                if calls.get() == moment + 1 {
                    actor.try_touch(1, block, Touch::Store(data));
                }
            });
            world.evict(block, 2);
            sim.clear_hook();
            cancelled += world.count(Counter::evictions_cancelled);
            world.audit();
            world.end();
        });
    }
    assert!(cancelled > 3, "{cancelled} evictions were cancelled");
}

/// What the kernel refuses stays, its copy too; what the store has no room for stays
/// without.
#[test]
fn a_kept_page_that_cannot_leave_is_as_it_was() {
    World::run(28, 64, |world| {
        let block = world.allocate(1);
        world.store(block, Data::Text);
        let counts = || {
            let stats = world.engine.stats();
            (stats.kept_copies, stats.stored_pages)
        };
        for (call, refused) in [(Call::Protect, 2), (Call::Read, 1), (Call::Drop, 1)] {
            assert_eq!(world.evict(block, 1), 1);
            world.store(block, Data::Same);
            assert_eq!(counts(), (1, 1), "before {call:?}");
            (0..refused).for_each(|_| world.sim.answer_next(call, Answer::Refused(12)));
            assert_eq!(world.evict(block, 1), 0, "{call:?}");
            assert_eq!(world.sim.answers_left(), 0);
            assert_eq!(counts(), (1, 1), "{call:?}");
            world.audit();
        }
        // Dropped with other bytes than the copy has, and kept by the kernel.
        world.store(block, Data::Text);
        world.sim.answer_next(Call::Drop, Answer::Refused(12));
        assert_eq!(world.evict(block, 1), 0);
        assert_eq!(counts(), (0, 0));
        world.audit();
    });
}

#[test]
fn locked_pages_and_warm_ones_are_passed_over() {
    World::run(25, 64, |world| {
        let block = world.allocate(8);
        for page in (0..8).map(|page| block + page * PAGE_SIZE) {
            world.store(page, Data::Text);
        }
        world.set_locked(block, true);
        assert_eq!(world.evict(block, 8), 7);
        world.load(block);
        world.set_locked(block, false);
        assert!(world.engine.evict_coldest().unwrap());
        assert!(!world.engine.evict_coldest().unwrap(), "none is left");
        world.audit();
    });
}

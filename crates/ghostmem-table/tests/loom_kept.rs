//! Model checks of pages that are writable and keep the slot they came from: every
//! interleaving (up to a number of preemptions) of evictors that compare with threads
//! that read, write, discard, pin, relocate and give up one page's copy.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ghostmem-table --test loom_kept --release`
//!
//! The same model and the same checks as `loom.rs`. Each rule of the protocol is taken
//! out once, and the model has to find the leak, the double free or the stale slot.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod model;

use std::collections::BTreeSet;

use ghostmem_table::PageState;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use model::{Evicted, Rule, World, explore};

const OLD: u64 = 100;
const NEW: u64 = 200;
/// Preemptions explored with two threads and with three.
const TWO: usize = 4;
const THREE: usize = 2;

fn start<T: 'static>(world: &Arc<World>, act: impl FnOnce(&World) -> T + 'static) -> JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || act(&world))
}

/// A writer beside an evictor that may not keep to a rule.
fn writer_beside(without: Option<Rule>) -> BTreeSet<Evicted> {
    explore(TWO, move || {
        let world = Arc::new(World::kept(OLD));
        let evictor = start(&world, move |world| {
            world.evict_comparing_without(1, without)
        });
        world.write(NEW);
        assert_eq!(world.read(), NEW, "a write was lost");
        let evicted = evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW, "a write was lost");
        evicted
    })
}

/// The new bytes survive, and one slot is left at most, whichever comes first.
#[test]
fn writer_beside_comparing_evictor() {
    let ends = [Evicted::Cancelled, Evicted::Committed, Evicted::Dropped];
    assert_eq!(writer_beside(None), BTreeSet::from(ends));
}

#[test]
#[should_panic(expected = "a write was lost")]
fn a_slot_used_without_comparing_loses_a_write() {
    writer_beside(Some(Rule::Compare));
}

#[test]
#[should_panic(expected = "a write was lost")]
fn a_page_compared_before_it_is_protected_loses_a_write() {
    writer_beside(Some(Rule::ProtectFirst));
}

#[test]
#[should_panic(expected = "slots against")]
fn a_cancelled_evictor_that_frees_nothing_leaks_the_slot() {
    writer_beside(Some(Rule::FreeWhenCancelled));
}

/// A reader never sees anything but the bytes, and a page that was only read leaves
/// without being compressed.
#[test]
fn reader_beside_comparing_evictor() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::kept(OLD));
        let evictor = start(&world, |world| world.evict_comparing(1));
        assert_eq!(world.read(), OLD);
        let evicted = evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), OLD);
        evicted
    });
    assert_eq!(seen, BTreeSet::from([Evicted::Dropped]));
}

/// A store of what is there already is no change.
#[test]
fn silent_store_beside_comparing_evictor() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::kept(OLD));
        let evictor = start(&world, |world| world.evict_comparing(1));
        world.write(OLD);
        let evicted = evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), OLD);
        evicted
    });
    let ends = [Evicted::Cancelled, Evicted::Dropped];
    assert_eq!(seen, BTreeSet::from(ends));
}

/// Two evictors and a writer: an eviction that slept through a cancelled one and the
/// next has a slot of its own, or none.
#[test]
fn two_comparing_evictors_beside_writer() {
    explore(THREE, || {
        let world = Arc::new(World::kept(OLD));
        let first = start(&world, |world| world.evict_comparing(1));
        let second = start(&world, |world| world.evict_comparing(2));
        world.write(NEW);
        first.join().unwrap();
        second.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW);
    });
}

fn writer_beside_abandoned(without: Option<Rule>) -> BTreeSet<bool> {
    explore(TWO, move || {
        let world = Arc::new(World::kept(OLD));
        let evictor = start(&world, move |world| world.abandon_kept(1, without));
        world.write(NEW);
        let again = evictor.join().unwrap();
        assert_eq!(world.word().has_copy(), again);
        assert_eq!(world.content_at_rest(), NEW);
        again
    })
}

/// An eviction given up leaves the page its slot, or has to free it.
#[test]
fn writer_beside_abandoned_comparing_eviction() {
    assert_eq!(writer_beside_abandoned(None), BTreeSet::from([false, true]));
}

#[test]
#[should_panic(expected = "slot")]
fn an_abandoned_eviction_that_frees_always_leaves_a_stale_slot() {
    writer_beside_abandoned(Some(Rule::KeepWhenAbandoned));
}

/// A discard frees the slot, or the evictor does, and not both.
#[test]
fn discard_beside_comparing_evictor() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::kept(OLD));
        let evictor = start(&world, |world| world.evict_comparing(1));
        world.discard();
        let evicted = evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), 0);
        evicted
    });
    let ends = [Evicted::Skipped, Evicted::Cancelled, Evicted::Dropped];
    assert_eq!(seen, BTreeSet::from(ends));
}

/// A pinned page keeps no copy.
#[test]
fn pin_beside_comparing_evictor() {
    explore(TWO, || {
        let world = Arc::new(World::kept(OLD));
        let evictor = start(&world, |world| world.evict_comparing(1));
        world.pin_without_waiting();
        evictor.join().unwrap();
        assert!(world.word().is_pinned() && !world.word().has_copy());
        assert_eq!(world.word().state(), PageState::Resident);
        assert_eq!(world.content_at_rest(), OLD);
    });
}

/// Copies are given up for room, beside an evictor that owns them for a while.
#[test]
fn shed_beside_comparing_evictor_and_writer() {
    let seen = explore(THREE, || {
        let world = Arc::new(World::kept(OLD));
        let evictor = start(&world, |world| world.evict_comparing(1));
        let shedder = start(&world, World::shed);
        world.write(NEW);
        let ends = (evictor.join().unwrap(), shedder.join().unwrap());
        assert_eq!(world.content_at_rest(), NEW);
        ends.1
    });
    assert_eq!(seen, BTreeSet::from([false, true]));
}

/// Compaction moves the slot of a kept page under its claim; the page's own bytes have
/// no part in that.
#[test]
fn relocation_beside_comparing_evictor_and_writer() {
    let seen = explore(THREE, || {
        let world = Arc::new(World::kept(OLD));
        let evictor = start(&world, |world| world.evict_comparing(1));
        let compactor = start(&world, World::relocate);
        world.write(NEW);
        evictor.join().unwrap();
        let moved = compactor.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW);
        moved
    });
    assert_eq!(seen, BTreeSet::from([false, true]));
}

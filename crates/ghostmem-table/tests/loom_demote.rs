//! Model checks of moving a stored page to the file while others touch it: every
//! interleaving (up to a number of preemptions) of the demoter with threads that
//! read, write, evict, discard and relocate one page.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ghostmem-table --test loom_demote --release`
//!
//! The same model and the same checks as `loom.rs`; besides, every place in the
//! file is freed once and none is leaked.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod model;

use std::collections::BTreeSet;

use ghostmem_table::PageState;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use model::{Demoted, Evicted, World, explore};

const OLD: u64 = 100;
const NEW: u64 = 200;
/// Preemptions explored with two threads and with three.
const TWO: usize = 4;
const THREE: usize = 2;

fn start<T: 'static>(world: &Arc<World>, act: impl FnOnce(&World) -> T + 'static) -> JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || act(&world))
}

/// A reader gets the bytes from wherever they are, and its copy stays good.
#[test]
fn reader_beside_demoter() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::stored(OLD));
        let demoter = start(&world, World::demote);
        assert_eq!(world.read(), OLD);
        let demoted = demoter.join().unwrap();
        assert!(world.word().is_clean());
        assert_eq!(world.content_at_rest(), OLD);
        demoted
    });
    let ends = [Demoted::Skipped, Demoted::Touched, Demoted::Moved];
    assert_eq!(seen, BTreeSet::from(ends));
}

/// A page that is restored, written and evicted again while its former bytes
/// are on their way keeps the new ones, though it may be in the very same slot.
fn rewrite_beside(demote: fn(&World) -> Demoted) -> BTreeSet<(Demoted, Evicted)> {
    explore(TWO, move || {
        let world = Arc::new(World::stored(OLD));
        let demoter = start(&world, demote);
        world.write(NEW);
        let evicted = world.evict(1);
        let demoted = demoter.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW, "a write was lost");
        (demoted, evicted)
    })
}

#[test]
fn rewrite_and_evict_beside_demoter() {
    let seen = rewrite_beside(World::demote);
    assert!(seen.contains(&(Demoted::Touched, Evicted::Committed)));
    assert!(seen.contains(&(Demoted::Moved, Evicted::Committed)));
}

/// Why the mark is there: by the slot alone the old bytes win, and the proof
/// that this model would notice.
#[test]
#[should_panic(expected = "a write was lost")]
fn a_slot_that_came_back_loses_a_write() {
    rewrite_beside(World::demote_by_slot);
}

/// Why a page is in a batch once: the mark that its second copy was given makes
/// the first one look right, and the old bytes win.
#[test]
#[should_panic(expected = "a write was lost")]
fn a_page_twice_in_a_batch_loses_a_write() {
    rewrite_beside(World::demote_twice_in_a_batch);
}

/// The mark of a batch that failed is never taken for that of a later one.
#[test]
fn rewrite_beside_a_demoter_whose_first_write_failed() {
    let seen = rewrite_beside(World::demote_after_a_failed_write);
    assert!(seen.contains(&(Demoted::Touched, Evicted::Committed)));
    assert!(seen.contains(&(Demoted::Moved, Evicted::Committed)));
}

/// The same on threads of their own.
#[test]
fn writer_and_evictor_beside_demoter() {
    let seen = explore(THREE, || {
        let world = Arc::new(World::stored(OLD));
        let demoter = start(&world, World::demote);
        let evictor = start(&world, |world| world.evict(1));
        world.write(NEW);
        let ends = (demoter.join().unwrap(), evictor.join().unwrap());
        assert_eq!(world.content_at_rest(), NEW);
        ends
    });
    assert!(seen.contains(&(Demoted::Touched, Evicted::Committed)));
}

/// A page read and dropped again has lost the mark and stays where it is.
#[test]
fn read_and_drop_beside_demoter() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::stored(OLD));
        let demoter = start(&world, World::demote);
        assert_eq!(world.read(), OLD);
        let evicted = world.evict(1);
        let demoted = demoter.join().unwrap();
        assert!(!world.word().is_marked() || world.word().state() == PageState::Resident);
        assert_eq!(world.content_at_rest(), OLD);
        (demoted, evicted)
    });
    assert!(seen.contains(&(Demoted::Touched, Evicted::Dropped)));
}

/// A discarded page gives back its slot or its place in the file, once.
#[test]
fn discard_beside_demoter() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::stored(OLD));
        let demoter = start(&world, World::demote);
        world.discard();
        let demoted = demoter.join().unwrap();
        assert_eq!(world.content_at_rest(), 0);
        demoted
    });
    let ends = [Demoted::Skipped, Demoted::Touched, Demoted::Moved];
    assert_eq!(seen, BTreeSet::from(ends));
}

/// Compaction beside the demoter: the page ends in one place, and a relocation
/// in the middle does not always keep it out of the file.
#[test]
fn relocation_beside_demoter() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::stored(OLD));
        let demoter = start(&world, World::demote);
        let relocated = world.relocate();
        let demoted = demoter.join().unwrap();
        assert_eq!(world.content_at_rest(), OLD);
        (relocated, demoted)
    });
    assert!(seen.contains(&(true, Demoted::Moved)));
}

/// A first store to a page whose copy is in the file, against the drop that
/// trusts that copy.
#[test]
fn write_and_drop_of_a_demoted_page() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::demoted(OLD));
        assert_eq!(world.read(), OLD);
        let evictor = start(&world, |world| world.evict(1));
        world.write(NEW);
        let evicted = evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW);
        evicted
    });
    assert!(seen.contains(&Evicted::Dropped));
    assert!(seen.contains(&Evicted::Committed));
}

/// Cleaning the file beside a reader and a writer.
#[test]
fn relocation_in_the_file_beside_touches() {
    let seen = explore(THREE, || {
        let world = Arc::new(World::demoted(OLD));
        let cleaner = start(&world, World::relocate);
        let writer = start(&world, |world| world.write(NEW));
        let seen = world.read();
        writer.join().unwrap();
        let moved = cleaner.join().unwrap();
        assert!([OLD, NEW].contains(&seen));
        assert_eq!(world.content_at_rest(), NEW);
        moved
    });
    assert_eq!(seen, BTreeSet::from([false, true]));
}

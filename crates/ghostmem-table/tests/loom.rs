//! Model checks of the page word: every interleaving (up to a number of
//! preemptions) of two or three threads that fault, write, evict, discard and
//! pin one page.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ghostmem-table --test loom --release`
//!
//! The protocols are those of the pager (see `model/protocol.rs`, which is
//! meant to be read); mapping, store and futex are mocks that panic when they
//! are misused. Checked throughout:
//!
//! * a reader sees the last value written, and never goes back in time;
//! * only the one holder of a page changes its mapping;
//! * every slot is freed once, never used after, and none is leaked;
//! * nobody sleeps with nobody to wake it (loom reports a deadlock);
//! * when all is quiet no page is left claimed, dropping or evicting.
//!
//! Every test that needs a race to be worth anything counts its outcomes and
//! fails if one of them never happened.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod model;

use std::collections::BTreeSet;

use ghostmem_table::PageState;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use model::{Evicted, World, explore};

/// Contents that take a slot.
const OLD: u64 = 100;
const NEW: u64 = 200;
/// A content that fits in the word.
const SAME: u64 = 5;

/// Preemptions explored with two threads: a reader that is cut off twice by
/// an evictor cut off twice.
const TWO: usize = 4;
/// Preemptions explored with three threads.
const THREE: usize = 2;

/// Starts a thread that does `act`.
fn start<T: 'static>(world: &Arc<World>, act: impl FnOnce(&World) -> T + 'static) -> JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || act(&world))
}

/// Two loads, as a thread that polls the page does them.
fn read_twice(world: &World) -> (u64, u64) {
    (world.read(), world.read())
}

/// The program's only store of `NEW`, which it then reads back.
fn write_new(world: &World) {
    world.write(NEW);
    assert_eq!(world.read(), NEW, "a write was lost");
}

// fault / fault

/// One of three readers restores, all see the bytes, the slot stays.
#[test]
fn readers_restore_together() {
    explore(THREE, || {
        let world = Arc::new(World::stored(OLD));
        let readers = [start(&world, World::read), start(&world, World::read)];
        assert_eq!(world.read(), OLD);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), OLD);
        }
        assert!(world.word().is_clean());
        assert_eq!(world.content_at_rest(), OLD);
    });
}

/// A reader beside a writer sees the old bytes, then the new, never back; the
/// page ends dirty and the slot freed, whoever restored it.
#[test]
fn reader_and_writer_restore_together() {
    let worlds: [fn() -> World; 3] = [|| World::stored(OLD), || World::stored(SAME), World::empty];
    for world in worlds {
        let seen = explore(TWO, move || {
            let world = Arc::new(world());
            let writer = start(&world, write_new);
            let (first, second) = read_twice(&world);
            writer.join().unwrap();
            assert!(!world.word().is_clean());
            assert_eq!(world.content_at_rest(), NEW);
            (first == NEW, second == NEW)
        });
        let in_order = [(false, false), (false, true), (true, true)];
        assert_eq!(seen, BTreeSet::from(in_order));
    }
}

// fault / evict

/// A read does not cancel an eviction and never sees a page half gone.
#[test]
fn reader_beside_evictor() {
    for content in [OLD, SAME] {
        let seen = explore(TWO, move || {
            let world = Arc::new(World::dirty(content));
            let evictor = start(&world, |world| world.evict(1));
            assert_eq!(read_twice(&world), (content, content));
            assert_eq!(evictor.join().unwrap(), Evicted::Committed);
            let came_back = world.word().state() == PageState::Resident;
            assert_eq!(world.content_at_rest(), content);
            came_back
        });
        assert_eq!(seen, BTreeSet::from([false, true]));
    }
}

/// Readers that meet a drop wait for it, are all woken, and restore from the
/// slot the page never gave up.
#[test]
fn readers_beside_clean_drop() {
    let seen = explore(THREE, || {
        let world = Arc::new(World::clean(OLD));
        let evictor = start(&world, |world| world.evict(1));
        let reader = start(&world, World::read);
        assert_eq!(world.read(), OLD);
        assert_eq!(reader.join().unwrap(), OLD);
        assert_eq!(evictor.join().unwrap(), Evicted::Dropped);
        let came_back = world.word().state() == PageState::Resident;
        assert_eq!(world.content_at_rest(), OLD);
        came_back
    });
    assert_eq!(seen, BTreeSet::from([false, true]));
}

// write / evict

/// A store to a page being evicted is never lost: it comes before the copy,
/// cancels the eviction, or restores the page.
#[test]
fn writer_beside_evictor() {
    for content in [OLD, SAME] {
        let seen = explore(TWO, move || {
            let world = Arc::new(World::dirty(content));
            let evictor = start(&world, |world| world.evict(1));
            write_new(&world);
            let evicted = evictor.join().unwrap();
            assert_eq!(world.content_at_rest(), NEW);
            evicted
        });
        assert_eq!(
            seen,
            BTreeSet::from([Evicted::Cancelled, Evicted::Committed])
        );
    }
}

/// The same with somebody watching.
#[test]
fn writer_and_reader_beside_evictor() {
    let seen = explore(THREE, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict(1));
        let writer = start(&world, |world| world.write(NEW));
        let (first, second) = read_twice(&world);
        writer.join().unwrap();
        evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW);
        (first, second)
    });
    assert_eq!(seen, BTreeSet::from([(OLD, OLD), (OLD, NEW), (NEW, NEW)]));
}

/// The first store to a clean page against the drop that trusts its slot.
#[test]
fn first_write_beside_clean_drop() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::clean(OLD));
        let evictor = start(&world, |world| world.evict(1));
        write_new(&world);
        let evicted = evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW);
        evicted
    });
    assert_eq!(
        seen,
        BTreeSet::from([
            Evicted::Skipped,
            Evicted::Cancelled,
            Evicted::Committed,
            Evicted::Dropped
        ])
    );
}

/// An eviction given up leaves a page that works, touched or not.
#[test]
fn writer_beside_abandoned_eviction() {
    explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict_and_abandon(1));
        write_new(&world);
        evictor.join().unwrap();
        assert_eq!(world.word().state(), PageState::Resident);
        assert_eq!(world.content_at_rest(), NEW);
    });
}

// evict / discard, restore / discard

/// A page discarded while it is evicted is gone, its slot with it.
#[test]
fn discard_beside_evictor() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict(1));
        world.discard();
        let evicted = evictor.join().unwrap();
        assert_eq!(world.word().state(), PageState::Empty);
        assert_eq!(world.content_at_rest(), 0);
        evicted
    });
    assert_eq!(
        seen,
        BTreeSet::from([Evicted::Skipped, Evicted::Cancelled, Evicted::Committed])
    );
}

/// Why an evictor steadies the page while it copies: a discard may have taken
/// the mapping away, and the copy would fault inside the engine.
#[test]
#[should_panic(expected = "copied from an absent page")]
fn copy_that_does_not_steady_finds_the_page_gone() {
    explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict_without_steadying(1));
        world.discard();
        evictor.join().unwrap();
    });
}

/// The same for a clean page, whose slot two threads know of.
#[test]
fn discard_beside_clean_drop() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::clean(OLD));
        let evictor = start(&world, |world| world.evict(1));
        world.discard();
        let evicted = evictor.join().unwrap();
        assert_eq!(world.word().state(), PageState::Empty);
        assert_eq!(world.content_at_rest(), 0);
        evicted
    });
    assert_eq!(seen, BTreeSet::from([Evicted::Skipped, Evicted::Dropped]));
}

/// A page is discarded and used anew while an evictor still holds on to its
/// former life.
#[test]
fn discard_and_write_beside_evictor() {
    explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict(1));
        world.discard();
        write_new(&world);
        evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW);
    });
}

/// A reader of a page that is being discarded sees its bytes or zeros, and
/// zeros for good.
#[test]
fn discard_beside_reader() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::stored(OLD));
        let discarder = start(&world, World::discard);
        let seen = read_twice(&world);
        discarder.join().unwrap();
        assert_eq!(world.content_at_rest(), 0);
        seen
    });
    assert_eq!(seen, BTreeSet::from([(OLD, OLD), (OLD, 0), (0, 0)]));
}

/// A store into a page that is being discarded lands before or after.
#[test]
fn discard_beside_writer() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::stored(OLD));
        let discarder = start(&world, World::discard);
        world.write(NEW);
        discarder.join().unwrap();
        world.content_at_rest()
    });
    assert_eq!(seen, BTreeSet::from([0, NEW]));
}

/// All three at once: whoever sleeps is woken, no slot is lost.
#[test]
fn discard_beside_reader_and_evictor() {
    explore(THREE, || {
        let world = Arc::new(World::clean(OLD));
        let evictor = start(&world, |world| world.evict(1));
        let discarder = start(&world, World::discard);
        let (first, second) = read_twice(&world);
        assert!([(OLD, OLD), (OLD, 0), (0, 0)].contains(&(first, second)));
        discarder.join().unwrap();
        evictor.join().unwrap();
        assert_eq!(world.content_at_rest(), 0);
    });
}

// cancel, then a second evictor

/// An evictor sleeps before its commit while its eviction is cancelled by a
/// write and another begins.
fn stale_evictor(first_nonce: u64, second_nonce: u64) -> BTreeSet<(Evicted, Evicted)> {
    explore(TWO, move || {
        let world = Arc::new(World::dirty(OLD));
        let stale = start(&world, move |world| world.evict(first_nonce));
        world.write(NEW);
        let second = world.evict(second_nonce);
        let first = stale.join().unwrap();
        assert_eq!(world.content_at_rest(), NEW, "a write was lost");
        (first, second)
    })
}

/// With a nonce for each batch the stale commit fails and the second stands.
#[test]
fn stale_evictor_cannot_commit() {
    let seen = stale_evictor(1, 2);
    assert!(seen.contains(&(Evicted::Cancelled, Evicted::Committed)));
    assert!(seen.contains(&(Evicted::Committed, Evicted::Skipped)));
}

/// With equal nonces it commits bytes from before the write: what the nonce is
/// for, and the proof that this model would notice.
#[test]
#[should_panic(expected = "a write was lost")]
fn equal_nonces_lose_a_write() {
    stale_evictor(1, 1);
}

/// Two evictors and a writer, each on a thread of its own.
#[test]
fn two_evictors_beside_writer() {
    let seen = explore(THREE, || {
        let world = Arc::new(World::dirty(OLD));
        let first = start(&world, |world| world.evict(1));
        let second = start(&world, |world| world.evict(2));
        write_new(&world);
        let ends = (first.join().unwrap(), second.join().unwrap());
        assert_eq!(world.content_at_rest(), NEW);
        ends
    });
    assert!(seen.contains(&(Evicted::Cancelled, Evicted::Committed)));
    assert!(seen.contains(&(Evicted::Committed, Evicted::Cancelled)));
}

// pin / evict

/// A pinned page is present and stays so, and the kernel may write to it: no
/// late evictor is left that could protect it.
#[test]
fn pin_beside_evictor() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict_batch(1));
        world.pin();
        world.kernel_write(NEW);
        let evicted = evictor.join().unwrap();
        assert_eq!(world.word().state(), PageState::Resident);
        assert!(world.word().is_pinned());
        assert_eq!(world.content_at_rest(), NEW);
        evicted
    });
    assert_eq!(
        seen,
        BTreeSet::from([Evicted::Skipped, Evicted::Cancelled, Evicted::Committed])
    );
}

/// The same for a clean page: the drop comes before the pin or not at all.
#[test]
fn pin_beside_clean_drop() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::clean(OLD));
        let evictor = start(&world, |world| world.evict_batch(1));
        world.pin();
        world.kernel_write(NEW);
        let evicted = evictor.join().unwrap();
        assert!(world.word().is_pinned());
        assert_eq!(world.content_at_rest(), NEW);
        evicted
    });
    assert_eq!(seen, BTreeSet::from([Evicted::Skipped, Evicted::Dropped]));
}

/// The same beside an evictor of the pages around it, which would be protected
/// in one call with this one between them.
#[test]
fn pin_beside_evictor_of_neighbours() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, World::protect_around);
        world.pin();
        world.kernel_write(NEW);
        evictor.join().unwrap();
        world.kernel_write(NEW);
        world.content_at_rest()
    });
    assert_eq!(seen, BTreeSet::from([NEW]));
}

/// Why an evictor says that it protects before it asks for pins.
#[test]
#[should_panic(expected = "a pinned page refused the kernel")]
fn evictor_that_asks_for_pins_first_fails_the_kernel() {
    explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, World::ask_then_protect_around);
        world.pin();
        evictor.join().unwrap();
        world.kernel_write(NEW);
    });
}

/// Why a pin waits for evictors that protect: a late one protects the
/// page under the kernel's hands.
#[test]
#[should_panic(expected = "a pinned page refused the kernel")]
fn pin_that_does_not_wait_fails_the_kernel() {
    explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict_batch(1));
        world.pin_without_waiting();
        world.kernel_write(NEW);
        evictor.join().unwrap();
    });
}

/// A resident page that a late evictor left protected still takes a store.
#[test]
fn write_after_a_late_protect() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict(1));
        world.pin_without_waiting();
        evictor.join().unwrap();
        assert!(!world.word().is_clean());
        let protected = world.is_protected();
        write_new(&world);
        assert_eq!(world.content_at_rest(), NEW);
        protected
    });
    assert_eq!(seen, BTreeSet::from([false, true]));
}

// policy bits / evict

/// Advice that loses against an evictor, or wins, leaves the page whole.
#[test]
fn amend_beside_evictor() {
    let seen = explore(TWO, || {
        let world = Arc::new(World::dirty(OLD));
        let evictor = start(&world, |world| world.evict(1));
        let amended = world.amend(|word| word.with_heat(9));
        let evicted = evictor.join().unwrap();
        let heat = if amended { 9 } else { 0 };
        assert_eq!(world.word().heat(), heat);
        assert_eq!(world.content_at_rest(), OLD);
        (amended, evicted)
    });
    let ends = [
        (false, Evicted::Committed),
        (true, Evicted::Committed),
        (true, Evicted::Skipped),
    ];
    assert_eq!(seen, BTreeSet::from(ends));
}

/// A pin set in the word of a resident page keeps every eviction from
/// beginning.
#[test]
fn pin_in_place_beside_evictor() {
    for world in [World::dirty, World::clean] {
        let seen = explore(TWO, move || {
            let world = Arc::new(world(OLD));
            let evictor = start(&world, |world| world.evict(1));
            let pinned = world.amend(|word| word.with_pinned(true));
            let evicted = evictor.join().unwrap();
            assert_eq!(world.word().is_pinned(), pinned);
            assert_eq!(world.content_at_rest(), OLD);
            (pinned, evicted == Evicted::Skipped)
        });
        assert_eq!(seen, BTreeSet::from([(false, false), (true, true)]));
    }
}

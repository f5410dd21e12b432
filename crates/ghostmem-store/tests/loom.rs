//! The slab protocol under the model checker: the very source files of the
//! store, on loom's atomics, with two classes and at most two tiny slabs.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ghostmem-store --release --test loom`
//!
//! Every slot has a loom cell beside it that its owner writes, so that loom
//! reports a slot given to two threads, or handed on without ordering.
#![cfg(loom)]
#![allow(dead_code, reason = "the models do not use all of the sources")]
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../src/class.rs"]
mod class;
#[path = "../../ghostmem-table/tests/model/explore.rs"]
mod explore;
#[path = "../src/list.rs"]
mod list;
#[path = "../src/maintain.rs"]
mod maintain;
#[path = "../src/memory.rs"]
mod memory;
#[path = "../src/slabs.rs"]
mod slabs;
#[path = "../src/state.rs"]
mod state;

use std::collections::BTreeSet;

use loom::cell::Cell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use class::Geometry;
use explore::{Steps, explore};
use memory::{Memory, Word};
use slabs::{Prefer, Slabs, SlotRef};
use state::{GLOBALS, Global, Phase, row};

/// An atomic word whose every access is a step of the model's.
struct Ticked {
    value: AtomicU64,
    steps: Arc<Steps>,
}

impl Ticked {
    fn step(&self) -> &AtomicU64 {
        self.steps.tick();
        &self.value
    }
}

impl Word for Ticked {
    fn load(&self, order: Ordering) -> u64 {
        self.step().load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.step().store(value, order);
    }

    fn swap_if(&self, current: u64, new: u64, order: Ordering) -> Result<u64, u64> {
        self.step()
            .compare_exchange(current, new, order, Ordering::Acquire)
    }

    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.step().fetch_or(bits, order)
    }

    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.step().fetch_and(bits, order)
    }

    fn fetch_add(&self, amount: u64, order: Ordering) -> u64 {
        self.step().fetch_add(amount, order)
    }

    fn fetch_sub(&self, amount: u64, order: Ordering) -> u64 {
        self.step().fetch_sub(amount, order)
    }
}

const CLASSES: usize = 2;
const SLOTS: usize = 2;

struct Model {
    slabs: Vec<[Ticked; 8]>,
    lists: Vec<[Ticked; 8]>,
    globals: Vec<Ticked>,
    /// The slab that the one processor used last, for each class; none in most models.
    last: Vec<Ticked>,
    cells: Vec<Cell<u32>>,
}

fn word(steps: &Arc<Steps>) -> Ticked {
    Ticked {
        value: AtomicU64::new(0),
        steps: steps.clone(),
    }
}

fn row_of(steps: &Arc<Steps>) -> [Ticked; 8] {
    core::array::from_fn(|_| word(steps))
}

impl Memory for Model {
    type Word = Ticked;

    fn slab(&self, slab: u32) -> &[Ticked; 8] {
        &self.slabs[slab as usize]
    }

    fn list(&self, list: usize) -> &[Ticked; 8] {
        &self.lists[list]
    }

    fn global(&self, name: Global) -> &Ticked {
        &self.globals[name as usize]
    }

    fn last_slab(&self, class: u8) -> Option<(&Ticked, usize)> {
        Some((self.last.get(class as usize)?, 1))
    }

    fn slab_count(&self) -> u32 {
        self.slabs.len() as u32
    }

    fn class_count(&self) -> usize {
        CLASSES
    }

    fn geometry(&self, _: u8) -> Geometry {
        Geometry {
            slot_bytes: 4096,
            slots: SLOTS as u32,
        }
    }

    fn prepare(&self, _: u32, _: u8) -> bool {
        true
    }

    fn decommit(&self, runs: &[(u32, u32)]) -> bool {
        // The kernel wipes the slabs: nobody may be using a slot of them.
        for slab in runs.iter().flat_map(|&(first, count)| first..first + count) {
            for word in &self.slab(slab)[row::BITMAP..] {
                assert_eq!(
                    word.load(Ordering::Relaxed),
                    0,
                    "an empty slab has no bit set"
                );
            }
            for index in 0..SLOTS as u32 {
                self.touch(slab, index);
            }
        }
        true
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

impl Model {
    /// Writes the slot, as only its owner may.
    fn touch(&self, slab: u32, index: u32) {
        let cell = &self.cells[slab as usize * SLOTS + index as usize];
        cell.set(cell.get() + 1);
    }
}

fn store(slab_count: usize) -> Arc<Slabs<Model>> {
    store_with(slab_count, 0)
}

/// A store that remembers what the processor used last, for `kept` classes.
fn store_with(slab_count: usize, kept: usize) -> Arc<Slabs<Model>> {
    let steps = &Arc::new(Steps::new());
    let mem = Model {
        slabs: (0..slab_count).map(|_| row_of(steps)).collect(),
        lists: (0..CLASSES + 2).map(|_| row_of(steps)).collect(),
        globals: (0..GLOBALS).map(|_| word(steps)).collect(),
        last: (0..kept).map(|_| word(steps)).collect(),
        cells: (0..slab_count * SLOTS).map(|_| Cell::new(0)).collect(),
    };
    mem.globals[Global::Limit as usize].store(u64::MAX, Ordering::Relaxed);
    Arc::new(Slabs { mem })
}

/// Takes a slot and writes it.
fn take(slabs: &Slabs<Model>, class: u8) -> Option<SlotRef> {
    let at = slabs.allocate(class, Prefer::Spare)?;
    assert!(at.class >= class, "only a larger class may lend");
    slabs.mem.touch(at.slab, at.index);
    Some(at)
}

/// Writes a slot once more and gives it back.
fn give(slabs: &Slabs<Model>, at: SlotRef) {
    slabs.mem.touch(at.slab, at.index);
    assert!(slabs.release(at.slab, at.index));
}

/// All slots have been given back: everything must be returnable.
fn finish(slabs: &Slabs<Model>) {
    let turn = slabs.maintenance_turn().unwrap();
    turn.rebuild_lists();
    turn.release_spares(0);
    drop(turn);
    for name in [Global::Held, Global::SpareBytes, Global::Empties] {
        let value = slabs.mem.global(name).load(Ordering::Acquire);
        assert_eq!(value, 0, "{name:?}");
    }
    for slab in 0..slabs.bump() {
        assert!(slabs.state(slab).is(Phase::Unbacked));
    }
}

/// Preemptions explored.
const PREEMPTIONS: usize = 3;

fn check(model: impl Fn() + Sync + Send + 'static) {
    let _nothing_to_tell = explore(PREEMPTIONS, model);
}

/// What two threads can see of a word that one of them loads and then swaps:
/// the other's load before the swap and after it.
#[test]
fn no_order_of_a_swap_and_a_load_is_missed() {
    let seen = explore(PREEMPTIONS, || {
        let steps = Arc::new(Steps::new());
        let word = Arc::new(word(&steps));
        let other = {
            let word = word.clone();
            thread::spawn(move || {
                let seen = Word::load(&*word, Ordering::Acquire);
                let _swapped = word.swap_if(seen, 1, Ordering::AcqRel);
            })
        };
        let seen = Word::load(&*word, Ordering::Acquire);
        other.join().unwrap();
        seen
    });
    assert_eq!(seen, BTreeSet::from([0, 1]));
}

/// A thread that sleeps between reading the head and swapping it is not fooled
/// by a slab that left and came back.
#[test]
fn a_list_never_hands_one_slab_to_two() {
    check(|| {
        let slabs = store(2);
        let list = slabs.unbacked_list();
        slabs.push(list, 1);
        slabs.push(list, 0);
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                let (first, second) = (slabs.pop(list), slabs.pop(list));
                if let Some(first) = first {
                    slabs.push(list, first);
                }
                second
            })
        };
        let ours = slabs.pop(list);
        let theirs = other.join().unwrap();
        let left = slabs.pop(list);
        let mut seen: Vec<u32> = [ours, theirs, left].into_iter().flatten().collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1], "each slab is in one hand");
    });
}

/// Two threads take and give back slots of one class: never the same slot,
/// and a third slot opens the second slab.
#[test]
fn takers_of_one_class_never_share_a_slot() {
    check(|| {
        let slabs = store(2);
        let first = take(&slabs, 0).unwrap();
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                let at = take(&slabs, 0).unwrap();
                give(&slabs, at);
                take(&slabs, 0).unwrap()
            })
        };
        let second = take(&slabs, 0).unwrap();
        give(&slabs, first);
        let third = other.join().unwrap();
        assert_ne!(second, third);
        give(&slabs, second);
        give(&slabs, third);
        finish(&slabs);
    });
}

/// Two threads of one processor go by the same note of the slab used last, which is
/// emptied, or serves another class, by the time one of them looks.
#[test]
fn a_slab_that_a_processor_used_last_is_taken_only_as_what_it_is() {
    let seen = explore(2, || {
        let slabs = store_with(1, CLASSES);
        let first = take(&slabs, 0).unwrap();
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                give(&slabs, first);
                take(&slabs, 1)
            })
        };
        let ours = take(&slabs, 0);
        let theirs = other.join().unwrap();
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            assert_ne!(ours.index, theirs.index);
            assert_eq!(ours.class, theirs.class, "one slab serves one class");
        }
        let classes = [ours, theirs].map(|at| at.map(|at| at.class));
        for at in [ours, theirs].into_iter().flatten() {
            give(&slabs, at);
        }
        finish(&slabs);
        classes
    });
    // The note was of use, and in vain.
    assert!(seen.contains(&[Some(0), None]), "{seen:?}");
    assert!(
        seen.iter().any(|[_, theirs]| *theirs == Some(1)),
        "{seen:?}"
    );
}

/// A slab that is full loses its place on the list and gets it back, whoever
/// wins: afterwards its free slot is found.
#[test]
fn a_free_slot_of_a_full_slab_is_found_again() {
    check(|| {
        let slabs = store(1);
        let (first, second) = (take(&slabs, 0).unwrap(), take(&slabs, 0).unwrap());
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || give(&slabs, first))
        };
        let early = take(&slabs, 0);
        other.join().unwrap();
        let late = early.or_else(|| take(&slabs, 0)).unwrap();
        give(&slabs, second);
        give(&slabs, late);
        finish(&slabs);
    });
}

/// The only slab is emptied by one thread and wanted for another class by a
/// second: it changes class only when it is empty, and does then.
#[test]
fn an_empty_slab_changes_class_in_place() {
    check(|| {
        let slabs = store(1);
        let at = take(&slabs, 0).unwrap();
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                give(&slabs, at);
                take(&slabs, 0)
            })
        };
        let early = take(&slabs, 1);
        let theirs = other.join().unwrap();
        if let (Some(early), Some(theirs)) = (early, theirs) {
            assert_eq!(early.class, theirs.class, "one slab serves one class");
        }
        for at in [early, theirs].into_iter().flatten() {
            give(&slabs, at);
        }
        let late = take(&slabs, 1).unwrap();
        give(&slabs, late);
        finish(&slabs);
    });
}

/// Trimming while slots are taken and given back: a slab in use stays, and at
/// rest all of it is accounted for.
#[test]
fn trim_takes_only_empty_slabs() {
    check(|| {
        let slabs = store(2);
        let at = take(&slabs, 0).unwrap();
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                give(&slabs, at);
                let at = take(&slabs, 0).unwrap();
                give(&slabs, at);
            })
        };
        let turn = slabs.maintenance_turn().unwrap();
        turn.rebuild_lists();
        turn.release_spares(0);
        drop(turn);
        other.join().unwrap();
        finish(&slabs);
    });
}

/// Draining while another thread gives back and takes: nothing new goes into
/// the draining slab, and it leaves or returns with its counts right.
#[test]
fn draining_ends_well_under_concurrent_removes_and_inserts() {
    check(|| {
        let slabs = store(2);
        let at = take(&slabs, 0).unwrap();
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                give(&slabs, at);
                let at = take(&slabs, 0).unwrap();
                give(&slabs, at);
            })
        };
        let turn = slabs.maintenance_turn().unwrap();
        let state = slabs.state(0);
        if state.is(Phase::Active) && state.used() > 0 {
            let _ = slabs.change(0, state, state.with_phase(Phase::Draining));
        }
        turn.rebuild_lists();
        turn.finish_drain(0);
        drop(turn);
        other.join().unwrap();
        finish(&slabs);
    });
}

/// The same for a bounded compaction, which gives the memory of what became empty
/// back before the draining ends, whether or not the slab is on a list.
#[test]
fn what_is_drained_loses_its_memory_only_while_nobody_has_a_slot_of_it() {
    check(|| {
        let slabs = store(2);
        let at = take(&slabs, 0).unwrap();
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                give(&slabs, at);
                let at = take(&slabs, 0).unwrap();
                give(&slabs, at);
            })
        };
        let turn = slabs.maintenance_turn().unwrap();
        let state = slabs.state(0);
        if state.is(Phase::Active) && state.used() > 0 {
            let _ = slabs.change(0, state, state.with_phase(Phase::Draining));
        }
        turn.give_back_drained(0..slabs.bump());
        drop(turn);
        other.join().unwrap();
        finish(&slabs);
    });
}

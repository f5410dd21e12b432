//! Full stores, byte limits, and memory that goes back.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{Random, page_bytes};
use ghostmem_store::{MAX_SLOT_BYTES, Owner, SlabStore, Slot};

const DATA: [u8; MAX_SLOT_BYTES] = [3; MAX_SLOT_BYTES];

fn fill(store: &SlabStore, len: usize) -> Vec<Slot> {
    core::iter::from_fn(|| store.insert(Owner::new(1), 0, &DATA[..len])).collect()
}

#[test]
fn raw_pages_cost_exactly_a_page_each() {
    let store = SlabStore::new(1 << 20).unwrap();
    for _ in 0..160 {
        store.insert(Owner::new(9), 0, &DATA).unwrap();
    }
    let stats = store.stats();
    assert_eq!(stats.raw_slots, 160);
    assert_eq!(stats.held_bytes, 160 * 4096);
}

#[test]
fn a_slab_is_held_page_by_page() {
    let store = SlabStore::new(1 << 20).unwrap();
    store.insert(Owner::new(0), 0, &DATA[..1000]).unwrap();
    assert_eq!(store.held_bytes(), 4096, "not a whole slab");
}

#[test]
fn lengths_out_of_range_are_refused() {
    let store = SlabStore::new(1 << 20).unwrap();
    assert_eq!(store.insert(Owner::new(0), 0, &[]), None);
    assert_eq!(store.insert(Owner::new(0), 0, &[0; 4097]), None);
    assert_eq!(store.stats().held_bytes, 0);
}

#[test]
fn the_byte_limit_is_used_up_and_never_passed() {
    let store = SlabStore::new(64 << 20).unwrap();
    store.set_byte_limit(2 << 20);
    let mut random = Random(5);
    let mut refused = 0;
    while refused < 50 {
        let len = page_bytes(&mut random, 0);
        let slot = store.insert(Owner::new(7), 0, &DATA[..len]);
        refused += usize::from(slot.is_none());
        assert!(store.held_bytes() <= 2 << 20);
    }
    let stats = store.stats();
    assert!(
        stats.data_bytes * 100 >= stats.held_bytes * 85,
        "refused with room left: {stats:?}"
    );
}

#[test]
fn a_limit_below_what_is_held_refuses_until_memory_went_back() {
    let store = SlabStore::new(8 << 20).unwrap();
    let mut slots: Vec<Slot> = (0..512)
        .map(|_| store.insert(Owner::new(7), 0, &DATA).unwrap())
        .collect();
    store.set_byte_limit(1 << 20);
    assert_eq!(store.held_bytes(), 2 << 20, "nothing is taken away");
    assert_eq!(store.insert(Owner::new(8), 0, &DATA), None);
    for slot in slots.drain(..) {
        store.remove(slot);
    }
    store.trim(0);
    assert_eq!(fill(&store, 4096).len(), 256);
}

#[test]
fn empty_slabs_of_any_class_serve_any_other_before_the_store_is_full() {
    let store = SlabStore::new(4 << 20).unwrap();
    let full = fill(&store, 4096).len();
    let store = SlabStore::new(4 << 20).unwrap();
    // Every slab has served another class and sits on that class's list.
    for len in [2000, 700, 1300, 3000] {
        let slots = fill(&store, len);
        assert!(slots.len() * len > 4 << 20, "address space for the payload");
        for slot in slots {
            store.remove(slot);
        }
    }
    assert_eq!(fill(&store, 4096).len(), full, "no trim came between");
}

#[test]
fn at_the_byte_limit_memory_held_by_other_classes_is_found() {
    let store = SlabStore::new(64 << 20).unwrap();
    store.set_byte_limit(1 << 20);
    for slot in fill(&store, 2000) {
        store.remove(slot);
    }
    assert_eq!(store.held_bytes(), 1 << 20, "held, though all is free");
    assert_eq!(fill(&store, 4096).len(), 256, "no trim came between");
}

#[test]
fn trim_keeps_the_spare_memory_asked_for_and_returns_the_rest() {
    let store = SlabStore::new(64 << 20).unwrap();
    let slots: Vec<Slot> = (0..4096)
        .map(|_| store.insert(Owner::new(7), 0, &DATA).unwrap())
        .collect();
    for slot in slots {
        store.remove(slot);
    }
    assert_eq!(store.held_bytes(), 16 << 20);
    store.trim(1 << 20);
    let stats = store.stats();
    assert_eq!((stats.held_bytes, stats.spare_bytes), (1 << 20, 1 << 20));
    store.trim(0);
    let stats = store.stats();
    assert_eq!((stats.held_bytes, stats.spare_bytes), (0, 0));
    store.insert(Owner::new(7), 0, &DATA).unwrap();
    assert_eq!(store.held_bytes(), 4096, "given back slabs serve again");
}

#[test]
fn a_tiny_store_still_serves_every_class() {
    let store = SlabStore::new(1).unwrap();
    for len in (16..=4096).step_by(16) {
        let slot = store.insert(Owner::new(len as u64), 2, &DATA[..len]);
        let info = store.info(slot.unwrap());
        assert_eq!((info.len, info.codec), (len, 2));
    }
}

#[test]
fn compaction_only_sees_live_slots_and_refusals_leave_them_alone() {
    let store = SlabStore::new(64 << 20).unwrap();
    let slots: Vec<Slot> = (0..5000)
        .map(|i| store.insert(Owner::new(i), 0, &DATA[..1000]).unwrap())
        .collect();
    let (gone, kept): (Vec<_>, Vec<_>) = slots.iter().enumerate().partition(|(i, _)| i % 3 != 0);
    for (_, &slot) in gone {
        store.remove(slot);
    }
    let mut seen = 0;
    let moved = store.compact(usize::MAX, &mut |owner, slot| {
        seen += 1;
        assert_eq!(slots[owner.get() as usize], slot);
        assert_eq!(owner.get() % 3, 0);
        false
    });
    assert!(moved == 0 && seen > 100);
    let before = store.held_bytes();
    store.trim(0);
    assert_eq!(store.held_bytes(), before, "no slab became empty");
    for (i, &slot) in kept {
        assert_eq!(store.info(slot).owner, Owner::new(i as u64));
        store.remove(slot);
    }
    store.trim(0);
    assert_eq!(store.held_bytes(), 0);
}

#[test]
fn compaction_does_not_start_for_little() {
    let store = SlabStore::new(64 << 20).unwrap();
    let slots: Vec<Slot> = (0..5000)
        .map(|i| store.insert(Owner::new(i), 0, &DATA[..1000]).unwrap())
        .collect();
    for &slot in slots.iter().step_by(100) {
        store.remove(slot);
    }
    let moved = store.compact(usize::MAX, &mut |_, _| panic!("1 % is not worth it"));
    assert_eq!(moved, 0);
}

#[test]
fn only_one_thread_maintains_at_a_time() {
    let store = SlabStore::new(64 << 20).unwrap();
    let slots: Vec<Slot> = (0..3000)
        .map(|i| store.insert(Owner::new(i), 0, &DATA[..1000]).unwrap())
        .collect();
    for (_, &slot) in slots.iter().enumerate().filter(|(i, _)| i % 3 != 0) {
        store.remove(slot);
    }
    let mut calls = 0;
    store.compact(usize::MAX, &mut |_, _| {
        calls += 1;
        assert_eq!(store.compact(usize::MAX, &mut |_, _| unreachable!()), 0);
        store.trim(0);
        false
    });
    assert!(calls > 0);
    assert!(store.stats().relocations == 0 && store.held_bytes() > 0);
}

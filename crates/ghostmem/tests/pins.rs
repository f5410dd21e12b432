//! Pins outlive the block they were taken on: its memory stays theirs.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::thread;

use common::{BACKENDS, PAGE_SIZE, Watchdog, heap};
use ghostmem::{Error, Heap};

mod common;

/// More than a small object has.
const PAGES: usize = 12;

fn layout() -> Layout {
    Layout::from_size_align(PAGES * PAGE_SIZE, PAGE_SIZE).unwrap()
}

fn allocate(heap: &Heap) -> NonNull<u8> {
    heap.allocate(layout()).unwrap().cast()
}

fn range(block: NonNull<u8>) -> *const [u8] {
    NonNull::slice_from_raw_parts(block, PAGES * PAGE_SIZE).as_ptr()
}

fn free(heap: &Heap, block: NonNull<u8>) -> Result<(), Error> {
    // SAFETY: the tests' own blocks, used afterwards only through pins.
    unsafe { heap.deallocate(block, layout()) }
}

#[test]
fn a_block_freed_while_pinned_stays_until_the_last_pin_is_gone() {
    for backend in BACKENDS {
        let heap = heap(backend, 64);
        let block = allocate(&heap);
        let first = heap.pin(range(block)).unwrap();
        // SAFETY: ours, and pinned.
        unsafe { block.write_bytes(7, PAGES * PAGE_SIZE) };
        let second = heap.pin(range(block)).unwrap();
        free(&heap, block).unwrap();
        // Freed is freed.
        let address = block.as_ptr().addr();
        assert_eq!(free(&heap, block), Err(Error::NotAllocated { address }));
        assert!(heap.pin(range(block)).is_err(), "nothing to pin any more");
        drop(first);
        // A device may still write there: it is nobody else's, and is there.
        let other = allocate(&heap);
        assert_ne!(other, block, "{backend}");
        // SAFETY: the pages are pinned still.
        let seen = unsafe { block.add(PAGE_SIZE).read_volatile() };
        assert_eq!(seen, 7, "{backend}");
        let others = heap.pin(range(other)).unwrap();
        drop(second);
        // The later pin is untouched by the earlier ones' end.
        assert_eq!(heap.evict(range(other)).unwrap(), 0, "{backend}");
        drop(others);
        assert_eq!(heap.evict(range(other)).unwrap(), PAGES, "{backend}");
        // And now the memory is free.
        let again = allocate(&heap);
        assert_eq!(again, block, "{backend}");
        // SAFETY: ours.
        let seen = unsafe { again.add(PAGE_SIZE).read_volatile() };
        assert_eq!(seen, 0, "{backend}");
        free(&heap, again).unwrap();
        free(&heap, other).unwrap();
        let stats = heap.stats();
        assert_eq!((stats.allocated_bytes, stats.resident_bytes), (0, 0));
    }
}

#[test]
fn pins_and_frees_of_one_block_may_race() {
    let _watchdog = Watchdog::new("pins against frees", 60);
    let heap = heap(BACKENDS[0], 64);
    for _ in 0..common::steps(2000) {
        let block = allocate(&heap).as_ptr() as usize;
        let start = Barrier::new(3);
        let block_of = |address: usize| NonNull::new(address as *mut u8).unwrap();
        let freed = thread::scope(|scope| {
            let pinner = scope.spawn(|| {
                start.wait();
                // Refused when it comes after the free.
                drop(heap.pin(range(block_of(block))));
            });
            let frees = [0, 1].map(|_| {
                scope.spawn(|| {
                    start.wait();
                    free(&heap, block_of(block)).is_ok()
                })
            });
            pinner.join().unwrap();
            frees.map(|free| usize::from(free.join().unwrap()))
        });
        assert_eq!(freed.iter().sum::<usize>(), 1, "freed once");
        // And free: nobody is left who would keep it from being so.
        assert_eq!(heap.stats().allocated_bytes, 0);
        let again = allocate(&heap);
        assert_eq!(again.as_ptr() as usize, block);
        free(&heap, again).unwrap();
    }
}

#[test]
fn a_block_made_shorter_beside_pins_keeps_no_bytes_it_lost() {
    let _watchdog = Watchdog::new("pins against shrinking", 60);
    for backend in [BACKENDS[0], BACKENDS[BACKENDS.len() - 1]] {
        let heap = heap(backend, 64);
        let block = allocate(&heap);
        let last = PAGES - 1;
        let mut outcomes = [0; 2];
        for _ in 0..common::steps(2000) {
            // SAFETY: inside the block, whose length is PAGES.
            let tail = unsafe { block.add(last * PAGE_SIZE) };
            // SAFETY: as above.
            unsafe { tail.write_volatile(7) };
            let start = Barrier::new(2);
            let address = tail.as_ptr().addr();
            let shrunk = thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    // Refused once the page is lost.
                    let page = core::ptr::slice_from_raw_parts(address as *const u8, PAGE_SIZE);
                    drop(heap.pin(page));
                });
                start.wait();
                // SAFETY: nobody uses what it loses: a pin touches no byte.
                unsafe { heap.resize_in_place(block, PAGE_SIZE) }
            });
            outcomes[usize::from(shrunk)] += 1;
            if shrunk {
                // SAFETY: the test's own block.
                assert!(unsafe { heap.resize_in_place(block, PAGES * PAGE_SIZE) });
                // SAFETY: inside the block again.
                let found = unsafe { tail.read_volatile() };
                assert_eq!(found, 0, "{backend}: {outcomes:?}");
            }
        }
        free(&heap, block).unwrap();
        assert_eq!(heap.stats().allocated_bytes, 0, "{backend}");
    }
}

//! A small object that is freed while it is pinned: free for the program, and
//! its bytes are nobody else's until the last pin is gone.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::thread;

use common::{BACKENDS, Watchdog, heap};
use ghostmem::{Error, Heap, Pinned};

mod common;

fn allocate(heap: &Heap, layout: Layout) -> NonNull<u8> {
    heap.allocate(layout).unwrap().cast()
}

fn pin(heap: &Heap, object: NonNull<u8>, size: usize) -> Pinned {
    heap.pin(NonNull::slice_from_raw_parts(object, size).as_ptr())
        .unwrap()
}

fn free(heap: &Heap, object: NonNull<u8>, layout: Layout) -> Result<(), Error> {
    // SAFETY: the tests' own objects, used afterwards only through pins.
    unsafe { heap.deallocate(object, layout) }
}

/// More objects of one size than the allocator sets aside at a time.
fn many(heap: &Heap, layout: Layout) -> Vec<NonNull<u8>> {
    let count = (2 << 20) / layout.size();
    (0..count).map(|_| allocate(heap, layout)).collect()
}

#[test]
fn an_object_freed_while_pinned_is_nobodys_until_the_last_pin_is_gone() {
    for backend in BACKENDS {
        for size in [32, 1000, 5000, 32 << 10] {
            let heap = heap(backend, 128);
            let layout = Layout::from_size_align(size, 8).unwrap();
            // Neighbours on both sides, for one that is pinned is in a used page.
            let others = many(&heap, layout);
            let (object, others) = others.split_first().unwrap();
            let first = pin(&heap, *object, size);
            let second = pin(&heap, *object, size);
            // SAFETY: ours, and pinned.
            unsafe { object.write_bytes(7, size) };
            free(&heap, *object, layout).unwrap();
            // Freed is freed.
            let address = object.as_ptr().addr();
            let again = free(&heap, *object, layout);
            assert_eq!(again, Err(Error::NotAllocated { address }), "{backend}");
            for other in others {
                free(&heap, *other, layout).unwrap();
            }
            drop(first);
            // A device may still write there.
            let new = many(&heap, layout);
            for other in &new {
                let distance = other.as_ptr().addr().abs_diff(address);
                assert!(distance >= size, "{backend}: {size} bytes handed out again");
            }
            for i in 0..size {
                // SAFETY: pinned still, and written before.
                let byte = unsafe { object.add(i).read_volatile() };
                assert_eq!(byte, 7, "{backend}: byte {i} of {size}");
            }
            drop(second);
            // And now its room is used again.
            let newer = many(&heap, layout);
            let found = newer.iter().any(|other| other == object);
            assert!(found, "{backend}: {size} bytes are not reused");
            for other in new.into_iter().chain(newer) {
                free(&heap, other, layout).unwrap();
            }
            assert_eq!(heap.stats().allocated_bytes, 0, "{backend}");
        }
    }
}

#[test]
fn the_last_pin_and_the_free_may_race() {
    let _watchdog = Watchdog::new("last pin against free", 60);
    let heap = heap(BACKENDS[0], 64);
    let layout = Layout::from_size_align(20_000, 8).unwrap();
    let mut places = BTreeSet::new();
    for _ in 0..common::steps(3000) {
        let object = allocate(&heap, layout);
        let address = object.as_ptr().addr();
        places.insert(address);
        let pinned = pin(&heap, object, layout.size());
        let start = Barrier::new(2);
        thread::scope(|scope| {
            let (heap, start) = (&heap, &start);
            scope.spawn(move || {
                start.wait();
                drop(pinned);
            });
            scope.spawn(move || {
                start.wait();
                let object = NonNull::new(address as *mut u8).unwrap();
                free(heap, object, layout).unwrap();
            });
        });
    }
    // Whoever came last gave the room back: it does not run away.
    assert!(places.len() < 500, "{} places", places.len());
    assert_eq!(heap.stats().allocated_bytes, 0);
}

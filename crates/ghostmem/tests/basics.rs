//! Data survives eviction on every backend, limits hold, and misuse has a
//! defined answer.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use ghostmem::{Backend, Error, Heap};

#[cfg(windows)]
const BACKENDS: [Backend; 1] = [Backend::Veh];
#[cfg(not(windows))]
const BACKENDS: [Backend; 4] = [
    Backend::Inline,
    Backend::Monitor,
    Backend::Guard,
    Backend::GuardMprotect,
];

/// A deterministic word, different for every index, that compresses badly
/// enough to need slots of many sizes.
fn word(index: usize, round: u64) -> u64 {
    let mixed = (index as u64 ^ round << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    if index & 512 == 0 {
        mixed
    } else {
        mixed >> (index % 61)
    }
}

/// Bytes resident in the longest test, and touches at random in it: a fault
/// under Wine takes a hundred times what it takes elsewhere.
const LIMIT: usize = if cfg!(windows) { 1 << 19 } else { 2 << 20 };
const TOUCHES: usize = if cfg!(windows) { 4000 } else { 200_000 };
/// Wine writes a byte for each page of the address space that a heap reserves.
const LIVES: u64 = if cfg!(windows) { 20 } else { 150 };

#[test]
fn data_eight_times_the_limit_survives_rewriting_on_every_backend() {
    for backend in BACKENDS {
        let heap = Heap::builder()
            .resident_limit(LIMIT)
            .backend(backend)
            .build()
            .unwrap();
        let count = 8 * LIMIT / 8;
        let mut data = heap.slice_from_fn(count, |i| word(i, 0)).unwrap();
        for round in 0..3_u64 {
            for (i, value) in data.iter_mut().enumerate() {
                assert_eq!(
                    *value,
                    word(i, round),
                    "{backend}: word {i} in round {round}"
                );
                *value = word(i, round + 1);
            }
            let stats = heap.stats();
            assert!(stats.resident_bytes <= LIMIT, "{backend}: {stats:?}");
        }
        // In an order no readahead follows.
        let mut at = 1_usize;
        for _ in 0..TOUCHES {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let i = (at >> 33) % count;
            assert_eq!(data[i], word(i, 3), "{backend}: word {i}");
        }
        let stats = heap.stats();
        assert_eq!(stats.overdrafts, 0, "{backend}");
        assert!(
            stats.evictions_dirty > 0 && stats.refaults > 0,
            "{backend}: {stats:?}"
        );
    }
}

#[test]
fn the_smallest_limit_works() {
    for backend in BACKENDS {
        let heap = Heap::builder()
            .resident_limit(5 * 4096)
            .backend(backend)
            .build()
            .unwrap();
        let mut data = heap.slice_from_fn(100_000, |i| i as u64).unwrap();
        data.reverse();
        assert!(data.iter().rev().copied().eq(0..100_000), "{backend}");
        assert!(heap.stats().resident_bytes <= 5 * 4096, "{backend}");
    }
}

#[test]
fn limits_too_small_are_refused_with_the_least_that_works() {
    let error = Heap::builder()
        .resident_limit(4 * 4096)
        .build()
        .unwrap_err();
    assert_eq!(
        error,
        Error::LimitTooSmall {
            limit_bytes: 16384,
            least_bytes: 20480
        }
    );
    assert!(error.to_string().contains("20480"));
    assert!(Heap::builder().resident_limit(0).build().is_err());
    assert!(Heap::builder().heap_limit(4096).build().is_err());
}

#[test]
fn every_layout_is_served_aligned_and_zeroed_when_asked() {
    let heap = Heap::builder().resident_limit(1 << 20).build().unwrap();
    for size in [
        0,
        1,
        7,
        16,
        100,
        4095,
        4096,
        4097,
        32 << 10,
        (32 << 10) + 1,
        5 << 20,
    ] {
        for shift in [0, 3, 6, 12, 16, 21] {
            let layout = Layout::from_size_align(size, 1 << shift).unwrap();
            let block = heap.allocate_zeroed(layout).unwrap();
            let start = block.cast::<u8>();
            assert_eq!(start.addr().get() % layout.align(), 0);
            assert_eq!(block.len(), size);
            // SAFETY: the block has `size` bytes and is ours.
            let bytes = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), size) };
            assert!(
                bytes.iter().all(|&b| b == 0),
                "size {size} align {}",
                layout.align()
            );
            bytes.fill(0xAB);
            // SAFETY: nobody uses the block any more.
            unsafe { heap.deallocate(start, layout) }.unwrap();
        }
    }
    let huge = Layout::from_size_align(1 << 46, 4096).unwrap();
    assert_eq!(
        heap.allocate(huge).unwrap_err(),
        Error::OutOfMemory { bytes: 1 << 46 }
    );
}

#[test]
fn double_free_foreign_and_interior_pointers_are_errors() {
    let heap = Heap::builder().resident_limit(1 << 20).build().unwrap();
    for size in [16, 4096, 1 << 20] {
        let layout = Layout::from_size_align(size, 16).unwrap();
        let block = heap.allocate(layout).unwrap().cast::<u8>();
        // SAFETY: inside the block.
        let inside = unsafe { block.add(size / 2) };
        // SAFETY: refused pointers change nothing, and the block is not used.
        let free = |at| unsafe { heap.deallocate(at, layout) };
        assert!(matches!(free(inside), Err(Error::NotAllocated { .. })));
        free(block).unwrap();
        assert!(matches!(free(block), Err(Error::NotAllocated { .. })));
        let mut own = 0_u64;
        let foreign = NonNull::from(&mut own).cast();
        assert!(matches!(free(foreign), Err(Error::NotAllocated { .. })));
    }
}

#[test]
fn freed_blocks_give_their_memory_back() {
    let heap = Heap::builder().resident_limit(8 << 20).build().unwrap();
    for _ in 0..4 {
        let data = heap.slice_from_fn(4 << 20, |i| word(i, 9)).unwrap();
        assert!(heap.stats().store_data_bytes > 1 << 20);
        drop(data);
        // An eviction that the free cancelled gives its slot back a moment
        // later.
        let mut held = (1, 1, 1);
        for _ in 0..2000 {
            let stats = heap.stats();
            held = (
                stats.allocated_bytes,
                stats.resident_bytes,
                stats.store_data_bytes,
            );
            if held == (0, 0, 0) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(held, (0, 0, 0), "allocated, resident, stored");
    }
}

#[test]
fn many_heaps_live_and_die() {
    for round in 0..LIVES {
        let heap = Heap::builder().resident_limit(64 << 10).build().unwrap();
        let data = heap.slice_from_fn(50_000, |i| word(i, round)).unwrap();
        let boxed = allocator_api2::boxed::Box::new_in(round, heap.clone());
        assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, round)));
        assert_eq!(*boxed, round);
    }
    let heaps: Vec<_> = (0..40)
        .map(|_| {
            Heap::builder()
                .resident_limit(64 << 10)
                .background(false)
                .build()
                .unwrap()
        })
        .collect();
    let slices: Vec<_> = heaps
        .iter()
        .enumerate()
        .map(|(n, h)| h.slice_from_fn(20_000, |i| word(i, n as u64)).unwrap())
        .collect();
    for (n, slice) in slices.iter().enumerate() {
        assert!(
            slice
                .iter()
                .enumerate()
                .all(|(i, &w)| w == word(i, n as u64))
        );
    }
}

#[test]
fn advice_does_what_it_says() {
    for backend in BACKENDS {
        let heap = Heap::builder()
            .resident_limit(8 << 20)
            .backend(backend)
            .build()
            .unwrap();
        let mut data = heap.slice_from_fn(1 << 18, |i| word(i, 1)).unwrap();
        let range: *const [u64] = &raw const *data;
        // Monitors let the program go on a moment before they are done with
        // the last windows they restored: ask again for those.
        let mut evicted = 0;
        let end = Instant::now() + Duration::from_secs(10);
        while evicted < 512 && Instant::now() < end {
            evicted += heap.evict(range).unwrap();
        }
        assert_eq!(evicted, 512, "{backend}: {:?}", heap.stats());
        assert_eq!(heap.is_resident(&data[0]), Some(false));
        let prefetched = heap.prefetch(range).unwrap();
        assert_eq!(prefetched, evicted, "{backend}");
        assert_eq!(heap.is_resident(&data[0]), Some(true));
        heap.make_cold(range).unwrap();
        assert!(heap.evict_coldest().unwrap());
        assert!(
            data.iter().enumerate().all(|(i, &w)| w == word(i, 1)),
            "{backend}"
        );
        let all: *mut [u64] = &raw mut *data;
        // SAFETY: no reference into the slice is held here.
        unsafe { heap.discard(all) }.unwrap();
        assert!(
            data.iter().all(|&w| w == 0),
            "{backend}: discarded pages read as zero"
        );
        assert!(heap.evict(BACKENDS.as_slice()).is_err());
    }
}

//! Small objects that cannot be set up: pages serve them instead, and the next
//! heap has its own.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::alloc::Layout;
use std::collections::HashSet;
use std::ptr::NonNull;

use common::{Watchdog, alone_on_each, heap};
use ghostmem::{Backend, Heap};
use ghostmem_small::seam;

mod common;

const COUNT: usize = 3000;

/// Allocates, pushes out and reads again; the blocks' addresses.
fn use_blocks(heap: &Heap, mark: u8) -> Vec<usize> {
    let layout = Layout::from_size_align(100, 8).unwrap();
    let blocks: Vec<NonNull<u8>> = (0..COUNT)
        .map(|_| heap.allocate(layout).unwrap().cast())
        .collect();
    for &block in &blocks {
        // SAFETY: 100 bytes of our own.
        unsafe { block.as_ptr().write_bytes(mark, 100) };
    }
    while heap.evict_coldest().unwrap() {}
    for &block in &blocks {
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), 100) };
        assert!(bytes.iter().all(|&byte| byte == mark));
        // SAFETY: nobody uses it any more.
        unsafe { heap.deallocate(block, layout) }.unwrap();
    }
    blocks.iter().map(|block| block.as_ptr().addr()).collect()
}

fn every_step_may_fail(backend: Backend) {
    let mut arenas = HashSet::new();
    let mut refused = 0;
    for failing in 0.. {
        let without = heap(backend, 64);
        seam::fail_after(failing);
        let blocks = use_blocks(&without, 1);
        let passed = seam::fail_none();
        let small = blocks.iter().filter(|&&at| without.is_among_small(at));
        // All or none: some failures only make the arena smaller.
        let small = small.count();
        assert!(
            small == COUNT || small == 0 && !passed,
            "{small} small objects"
        );
        refused += usize::from(small == 0);
        // Another heap while the first is there, and one after it.
        for keep in [true, false] {
            let next = heap(backend, 64);
            let blocks = use_blocks(&next, 2);
            assert!(blocks.iter().all(|&at| next.is_among_small(at)));
            assert!(blocks.iter().all(|&at| !without.is_ghost(at as *const u8)));
            arenas.insert(blocks[0] >> 33);
            if keep {
                assert_eq!(use_blocks(&without, 3).len(), COUNT);
            }
        }
        drop(without);
        if passed {
            assert!(failing >= 7, "only {failing} steps can fail");
            assert!(refused >= 4, "only {refused} failures matter");
            break;
        }
    }
    assert!(arenas.len() <= 6, "{} arenas for two heaps", arenas.len());
}

#[test]
fn a_heap_without_small_objects_leaves_the_next_one_its_own() {
    alone_on_each(
        "a_heap_without_small_objects_leaves_the_next_one_its_own",
        |backend| {
            let _watchdog = Watchdog::new("small objects that cannot be set up", 50);
            every_step_may_fail(backend);
        },
    );
}

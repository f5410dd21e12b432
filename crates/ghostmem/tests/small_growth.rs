//! Small objects beyond one step of their arena, on ghost memory.
#![cfg(not(windows))] // where an arena has one step
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::ptr::NonNull;

use common::{Watchdog, alone_on_each, fork, heap, wait_for};
use ghostmem::{Error, Heap};
use ghostmem_small::{SIZE_MAX, STEP_BYTES_MIN, seam};

mod common;

/// Largest objects that a step has room for, about.
const IN_A_STEP: usize = STEP_BYTES_MIN / SIZE_MAX;

fn layout(i: usize) -> Layout {
    let size = if i.is_multiple_of(8) { 100 } else { SIZE_MAX };
    Layout::from_size_align(size, 8).unwrap()
}

fn fill(heap: &Heap, count: usize) -> Vec<NonNull<u8>> {
    (0..count)
        .map(|i| {
            let block: NonNull<u8> = heap.allocate(layout(i)).unwrap().cast();
            // SAFETY: that many bytes are ours.
            unsafe { block.cast::<usize>().write(i) };
            // SAFETY: as above.
            unsafe { block.as_ptr().add(layout(i).size() - 1).write(i as u8) };
            block
        })
        .collect()
}

fn check_and_free(heap: &Heap, blocks: &[NonNull<u8>]) {
    for (i, &block) in blocks.iter().enumerate() {
        assert!(heap.is_ghost(block.as_ptr()));
        assert!(heap.block_bytes(block).unwrap() >= layout(i).size());
        // SAFETY: filled before, by this process or its parent.
        assert_eq!(unsafe { block.cast::<usize>().read() }, i);
        // SAFETY: as above; an odd size is not aligned to more.
        let last = unsafe { block.as_ptr().add(layout(i).size() - 1).read() };
        assert_eq!(last, i as u8);
    }
    for (i, &block) in blocks.iter().enumerate() {
        // SAFETY: nobody uses it any more.
        unsafe { heap.deallocate(block, layout(i)) }.unwrap();
        // SAFETY: as above, and it is refused.
        let again = unsafe { heap.deallocate(block, layout(i)) };
        assert!(matches!(again, Err(Error::NotAllocated { .. })));
    }
}

#[test]
fn objects_beyond_a_step_are_small_objects_still() {
    alone_on_each("objects_beyond_a_step_are_small_objects_still", |backend| {
        let _watchdog = Watchdog::new("growth", 55);
        seam::set_step_bytes(STEP_BYTES_MIN);
        let mut starts = Vec::new();
        for _ in 0..2 {
            let heap = heap(backend, 256);
            let blocks = fill(&heap, IN_A_STEP * 3);
            starts.push(blocks[0]);
            assert!(
                blocks
                    .iter()
                    .all(|b| heap.is_among_small(b.as_ptr().addr())),
                "an object has pages of its own"
            );
            let (low, high) = (blocks.iter().min().unwrap(), blocks.iter().max().unwrap());
            let far = high.as_ptr().addr() - low.as_ptr().addr();
            assert!(far > STEP_BYTES_MIN * 2, "objects in {far} bytes");
            let (start, bytes) = heap.spans().last().unwrap();
            assert!(start <= low.as_ptr().addr() && high.as_ptr().addr() < start + bytes);
            let child = fork(|| {
                check_and_free(&heap, &blocks);
                let more = fill(&heap, IN_A_STEP * 4);
                assert!(more.iter().all(|b| heap.is_among_small(b.as_ptr().addr())));
                check_and_free(&heap, &more);
            });
            assert!(wait_for(child).success());
            assert!(heap.stats().refaults > 0);
            check_and_free(&heap, &blocks);
            assert_eq!(heap.stats().allocated_bytes, 0);
        }
        let near = starts[0]
            .as_ptr()
            .addr()
            .abs_diff(starts[1].as_ptr().addr());
        assert!(
            near < STEP_BYTES_MIN,
            "the second heap has an arena of its own"
        );
    });
}

#[test]
fn where_no_step_is_to_be_had_pages_serve() {
    alone_on_each("where_no_step_is_to_be_had_pages_serve", |backend| {
        let _watchdog = Watchdog::new("growth that fails", 55);
        seam::set_step_bytes(STEP_BYTES_MIN);
        for failing in 0.. {
            let heap = heap(backend, 256);
            let first = fill(&heap, 1);
            seam::fail_after(failing);
            let blocks = fill(&heap, IN_A_STEP * 3 / 2);
            let passed = seam::fail_none();
            let small = blocks
                .iter()
                .filter(|b| heap.is_among_small(b.as_ptr().addr()));
            assert_eq!(small.count() == blocks.len(), passed);
            check_and_free(&heap, &blocks);
            check_and_free(&heap, &first);
            assert_eq!(heap.stats().allocated_bytes, 0);
            if passed {
                assert_eq!(failing, 4, "steps that can fail");
                break;
            }
        }
    });
}

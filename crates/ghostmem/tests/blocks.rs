//! Blocks freed without a layout: their sizes, what is refused, what is counted.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

mod common;

use std::alloc::Layout;
use std::ptr::NonNull;

use common::{PAGE_SIZE, Random};
use ghostmem::{Backend, Error, Heap};

fn heap() -> Heap {
    common::heap(Backend::Auto, 64)
}

#[test]
fn what_was_allocated_is_freed_to_the_last_byte() {
    let heap = heap();
    let mut random = Random::new(7);
    let mut live: Vec<(NonNull<u8>, usize, u8)> = Vec::new();
    let mut held = 0;
    for round in 0..common::steps(20_000) {
        if random.below(2) == 0 || live.is_empty() {
            let size = match random.below(8) {
                0 => random.below(20 * PAGE_SIZE),
                1..=2 => random.below(2 * PAGE_SIZE),
                _ => random.below(200),
            };
            let align = 1 << random.below(13);
            let layout = Layout::from_size_align(size, align).unwrap();
            let zeroed = random.below(2) == 0;
            let block = heap.allocate_block(layout, zeroed).unwrap();
            assert!(block.len() >= size.max(1), "{} for {layout:?}", block.len());
            let start = block.cast::<u8>();
            assert!(start.addr().get().is_multiple_of(align), "{layout:?}");
            assert_eq!(heap.block_bytes(start), Some(block.len()));
            if zeroed && size > 0 {
                for at in [0, size / 2, size - 1] {
                    // SAFETY: inside the block.
                    assert_eq!(unsafe { start.add(at).read() }, 0);
                }
            }
            let mark = round as u8;
            // SAFETY: the block's own bytes.
            unsafe { start.as_ptr().write_bytes(mark, block.len()) };
            held += block.len();
            live.push((start, block.len(), mark));
        } else {
            let (start, bytes, mark) = live.swap_remove(random.below(live.len()));
            for at in [0, bytes / 2, bytes - 1] {
                // SAFETY: inside the block.
                assert_eq!(unsafe { start.add(at).read() }, mark);
            }
            // SAFETY: nobody uses it any more.
            assert_eq!(unsafe { heap.deallocate_block(start) }, Ok(bytes));
            held -= bytes;
        }
        if round % 1000 == 0 {
            assert_eq!(heap.stats().allocated_bytes, held, "round {round}");
            assert_eq!(heap.allocated_bytes(), held, "round {round}");
        }
    }
    for (start, bytes, _) in live {
        // SAFETY: nobody uses it any more.
        assert_eq!(unsafe { heap.deallocate_block(start) }, Ok(bytes));
    }
    assert_eq!(heap.stats().allocated_bytes, 0);
}

/// A request that is refused has freed small objects give their memory back. One for more
/// than an address space holds does not: nothing makes room for it.
#[test]
fn what_no_address_space_holds_costs_nobody_a_page() {
    let heap = heap();
    let layout = Layout::from_size_align(1000, 16).unwrap();
    for (size, align) in [(1 << 47, 1), (1 << 50, 4096), (1 << 62, 1), (5, 1 << 47)] {
        let freed = heap.allocate_block(layout, false).unwrap().cast::<u8>();
        // SAFETY: the block's own bytes.
        unsafe { freed.as_ptr().write_bytes(3, 1000) };
        // SAFETY: nobody uses it any more.
        unsafe { heap.deallocate_block(freed) }.unwrap();
        let before = heap.stats().resident_bytes;
        assert!(before > 0);
        let hopeless = Layout::from_size_align(size, align).unwrap();
        let refused = Err(Error::OutOfMemory { bytes: size });
        assert_eq!(heap.allocate_block(hopeless, false), refused);
        assert_eq!(heap.allocate(hopeless), refused);
        assert_eq!(heap.stats().resident_bytes, before, "{size:#x}, {align:#x}");
        assert_eq!(heap.stats().allocated_bytes, 0);
    }
}

#[test]
fn what_is_no_blocks_start_is_refused() {
    let heap = heap();
    for size in [1, 100, 5000, 40_000] {
        let layout = Layout::from_size_align(size, 1).unwrap();
        let block = heap.allocate_block(layout, false).unwrap().cast::<u8>();
        // SAFETY: inside the block, or one past a block of one byte, which has
        // more than it asked for.
        let middle = unsafe { block.add(1) };
        assert_eq!(heap.block_bytes(middle), None);
        let refused = |at: NonNull<u8>| {
            Err(Error::NotAllocated {
                address: at.addr().get(),
            })
        };
        // SAFETY: nobody uses them.
        assert_eq!(unsafe { heap.deallocate_block(middle) }, refused(middle));
        // SAFETY: nobody uses it.
        assert!(unsafe { heap.deallocate_block(block) }.is_ok());
        // SAFETY: nobody uses it.
        assert_eq!(unsafe { heap.deallocate_block(block) }, refused(block));
        assert_eq!(heap.block_bytes(block), None);
    }
    let mut elsewhere = 0_u8;
    let elsewhere = NonNull::from(&mut elsewhere);
    // SAFETY: refused, nothing is done to it.
    assert!(unsafe { heap.deallocate_block(elsewhere) }.is_err());
}

#[test]
fn taking_back_more_than_was_lent_does_not_use_up_the_memory_limit() {
    let heap = Heap::builder()
        .resident_limit(64 * PAGE_SIZE)
        .heap_limit(16 << 20)
        .build()
        .unwrap();
    // 100 bytes counted, the whole block taken back.
    let layout = Layout::from_size_align(100, 1).unwrap();
    for _ in 0..1000 {
        let block = heap.allocate(layout).unwrap().cast::<u8>();
        // SAFETY: nobody uses it any more.
        assert!(unsafe { heap.deallocate_block(block) }.unwrap() > 100);
        assert_eq!(heap.stats().allocated_bytes, 0);
    }
}

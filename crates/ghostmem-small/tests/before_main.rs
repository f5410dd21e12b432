//! A heap made before mimalloc's own constructor ran, and before main.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Block, Plain};
use ghostmem_small::{Arena, SmallHeap};

static FREED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn early() {
    let Ok(arena) = Arena::acquire() else { return };
    let Ok(heap) = SmallHeap::new(arena, Plain::new()) else {
        return;
    };
    let mut blocks = [const { None }; 200];
    for (i, place) in blocks.iter_mut().enumerate() {
        let size = 1 + i * 150;
        *place = heap
            .allocate(size, 8, i % 2 == 0)
            .map(|at| Block::fill(at, size, i as u8));
    }
    for block in blocks.into_iter().flatten() {
        block.check();
        // SAFETY: ours alone.
        if unsafe { heap.deallocate(block.at) }.is_ok() {
            FREED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// Priority 1: before mimalloc's (101) and this crate's (100).
#[used]
#[unsafe(link_section = ".init_array.00001")]
static EARLY: extern "C" fn() = early;

#[test]
fn a_heap_works_before_main_and_the_process_is_sound_afterwards() {
    assert_eq!(FREED.load(Ordering::Relaxed), 200);
    let heap = SmallHeap::new(Arena::acquire().unwrap(), Plain::new()).unwrap();
    let at = heap.allocate(100, 8, true).unwrap();
    assert!(heap.assumptions_hold());
    // SAFETY: ours alone.
    unsafe { heap.deallocate(at) }.unwrap();
}

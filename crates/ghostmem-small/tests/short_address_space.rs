//! With little address space arenas are smaller, and a full one says so.
#![cfg(target_os = "linux")] // rlimits

mod common;

use common::Plain;
use ghostmem_small::{ARENA_BYTES, ARENA_BYTES_MIN, Arena, SIZE_MAX, SmallHeap};

#[test]
fn a_small_arena_fills_up_says_none_and_recovers() {
    let limit = libc::rlimit {
        rlim_cur: 3 << 29,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: sets a limit of this process from a valid structure.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(rc, 0);
    let arena = Arena::acquire().unwrap();
    assert!((ARENA_BYTES_MIN..ARENA_BYTES).contains(&arena.len()));
    let heap = SmallHeap::new(arena, Plain::new()).unwrap();
    let (_, bytes) = heap.arena().ghost_range();
    let mut blocks = Vec::new();
    while let Some(at) = heap.allocate(SIZE_MAX, 1, false) {
        blocks.push(at);
        assert!(
            blocks.len() * SIZE_MAX <= bytes,
            "more than the arena holds"
        );
    }
    assert!(
        blocks.len() * SIZE_MAX > bytes * 3 / 4,
        "full at {} of {bytes}",
        blocks.len() * SIZE_MAX
    );
    for at in blocks.drain(..) {
        // SAFETY: nobody uses it.
        unsafe { heap.deallocate(at) }.unwrap();
    }
    assert!(heap.allocate(SIZE_MAX, 1, false).is_some());
}

//! Fresh memory of small objects comes by the group while there is room for
//! everything, and page by page when there is not.
#![allow(clippy::unwrap_used)]

use core::alloc::Layout;

use ghostmem::Heap;

const LIMIT: usize = 64 << 20;

/// Allocates objects of 24 sizes in turn, which looks like no run of pages,
/// until so many bytes are resident.
fn fill(heap: &Heap, resident_bytes: usize) {
    let mut turn = 0;
    while heap.stats().resident_bytes < resident_bytes {
        for _ in 0..64 {
            let size = 640 + turn % 24 * 640;
            let block = heap
                .allocate(Layout::from_size_align(size, 16).unwrap())
                .unwrap();
            // SAFETY: `size` bytes were handed out.
            unsafe { block.cast::<u8>().as_ptr().write_bytes(turn as u8, size) };
            turn += 1;
        }
    }
}

#[test]
fn small_objects_fill_fresh_memory_by_the_group_while_there_is_room() {
    let heap = Heap::builder().resident_limit(LIMIT).build().unwrap();
    fill(&heap, LIMIT / 4);
    let early = heap.stats();
    let pages = early.resident_bytes / 4096;
    assert!(
        early.faults as usize * 4 < pages,
        "{} faults for {pages} pages",
        early.faults
    );
    // Past half of the limit nothing comes that was not asked for, but for runs: of
    // objects larger than a page, and of groups that begin one after the other.
    fill(&heap, LIMIT * 5 / 8);
    let middle = heap.stats();
    fill(&heap, LIMIT * 7 / 8);
    let late = heap.stats();
    let pages = (late.resident_bytes - middle.resident_bytes) / 4096;
    let faults = (late.faults - middle.faults) as usize;
    assert!(faults * 4 > pages, "{faults} faults for {pages} pages");
}

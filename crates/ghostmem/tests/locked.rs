//! Memory that the program locked with mlock(2) and freed: whoever gets it next
//! reads zeros, and his pages can be evicted. Whatever the kernel offers for that.
#![cfg(target_os = "linux")] // Windows has no such lock
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::ptr::NonNull;

use common::{PAGE_SIZE, heap, stats_at_rest};
use ghostmem::{Backend, Heap};
use refuse::refuse;

mod common;
#[path = "common/refuse.rs"]
mod refuse;

/// More than a small object has, less than anybody may lock.
const PAGES: usize = 12;
/// `MADV_DONTNEED_LOCKED`, of Linux 5.18.
const DONTNEED_LOCKED: u32 = 24;

fn layout() -> Layout {
    Layout::from_size_align(PAGES * PAGE_SIZE, PAGE_SIZE).unwrap()
}

fn allocate(heap: &Heap) -> NonNull<u8> {
    heap.allocate(layout()).unwrap().cast()
}

fn fill(block: NonNull<u8>) {
    for page in 0..PAGES {
        // No page of one value, which would take no slot.
        // SAFETY: inside the test's own block.
        unsafe { block.add(page * PAGE_SIZE).cast::<[u8; 2]>().write([7, 9]) };
    }
}

fn assert_zero(block: NonNull<u8>, what: &str) {
    for at in 0..PAGES * PAGE_SIZE {
        // SAFETY: inside the test's own block.
        let byte = unsafe { block.add(at).read_volatile() };
        assert_eq!(byte, 0, "{what}: byte {at}");
    }
}

/// A block, full and locked.
fn locked(heap: &Heap) -> NonNull<u8> {
    let block = allocate(heap);
    fill(block);
    // SAFETY: the test's own block, all of it resident.
    let rc = unsafe { libc::mlock(block.as_ptr().cast(), PAGES * PAGE_SIZE) };
    assert_eq!(rc, 0, "mlock: {}", std::io::Error::last_os_error());
    block
}

fn free(heap: &Heap, block: NonNull<u8>) {
    // SAFETY: the test's own block, not used afterwards.
    unsafe { heap.deallocate(block, layout()) }.unwrap();
}

fn reuse_after_a_lock(backend: Backend) {
    let heap = heap(backend, 64);
    let block = locked(&heap);
    free(&heap, block);
    assert_eq!(stats_at_rest(&heap).resident_bytes, 0, "{backend}");
    let again = allocate(&heap);
    assert_eq!(again, block, "{backend}: not handed out again");
    assert_zero(again, "handed out again");
    // The lock went with the block that it was asked for: this ends.
    fill(again);
    let range = NonNull::slice_from_raw_parts(again, PAGES * PAGE_SIZE);
    let mut evicted = 0;
    while evicted < PAGES {
        // A monitor may have its hand on the last page still.
        evicted += heap.evict(range.as_ptr()).unwrap();
    }
    free(&heap, again);
}

/// Proves that a block's lock ends with it.
#[test]
fn freed_memory_that_was_locked_is_as_good_as_new() {
    common::alone_on_each(
        "freed_memory_that_was_locked_is_as_good_as_new",
        reuse_after_a_lock,
    );
}

/// The same on a kernel before 5.18.
#[test]
fn without_the_advice_for_locked_memory_too() {
    common::alone_on_each("without_the_advice_for_locked_memory_too", |backend| {
        let refused = [(2, DONTNEED_LOCKED)];
        refuse(libc::SYS_madvise, &refused, libc::EINVAL);
        reuse_after_a_lock(backend);
    });
}

/// Proves that memory which keeps its lock and its bytes, whatever is tried, is
/// nobody's again: blocks read zero all the same.
#[test]
fn memory_that_keeps_its_bytes_is_not_handed_out_again() {
    let name = "memory_that_keeps_its_bytes_is_not_handed_out_again";
    common::alone_on_each(name, |backend| {
        refuse(libc::SYS_madvise, &[(2, DONTNEED_LOCKED)], libc::EINVAL);
        refuse(libc::SYS_munlock, &[], libc::ENOMEM);
        let heap = heap(backend, 64);
        let block = locked(&heap);
        free(&heap, block);
        let again = allocate(&heap);
        assert_zero(again, "a new block");
        free(&heap, again);
    });
}

/// Proves that a block which is made shorter forgets what it loses, locked or not.
#[test]
fn what_a_locked_block_loses_is_zero_when_it_grows_again() {
    let name = "what_a_locked_block_loses_is_zero_when_it_grows_again";
    common::alone_on_each(name, |backend| {
        refuse(libc::SYS_madvise, &[(2, DONTNEED_LOCKED)], libc::EINVAL);
        let heap = heap(backend, 64);
        let block = locked(&heap);
        // SAFETY: the test's own block, which nobody else resizes.
        let resize = |bytes| unsafe { heap.resize_in_place(block, bytes) };
        assert!(resize(PAGE_SIZE) && resize(PAGES * PAGE_SIZE), "{backend}");
        // SAFETY: inside the block.
        unsafe { block.write_bytes(0, PAGE_SIZE) };
        assert_zero(block, "grown again");
        free(&heap, block);
    });
}

//! A pin that the kernel refuses leaves nothing pinned, and takes no pin's room.
#![cfg(target_os = "linux")] // the answers are chosen by seccomp
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;

use common::{PAGE_SIZE, heap};
use ghostmem::{Backend, Heap};
use refuse::refuse;

mod common;
#[path = "common/refuse.rs"]
mod refuse;

/// Pages that can be pinned: the limit less 5.
const ROOM: usize = 3;
const PAGES: usize = 12;
/// `MADV_GUARD_REMOVE`, of Linux 6.13.
const GUARD_REMOVE: u32 = 103;

/// Pages of a fresh block, of which the first `ROOM` are resident.
fn block(heap: &Heap) -> *mut u8 {
    let layout = Layout::from_size_align(PAGES * PAGE_SIZE, PAGE_SIZE).unwrap();
    let block = heap.allocate(layout).unwrap().as_ptr().cast::<u8>();
    for page in 0..ROOM {
        // SAFETY: inside the block.
        unsafe { block.wrapping_add(page * PAGE_SIZE).write_volatile(7) };
    }
    block
}

fn pages(block: *mut u8, first: usize, count: usize) -> *const [u8] {
    core::ptr::slice_from_raw_parts(block.wrapping_add(first * PAGE_SIZE), count * PAGE_SIZE)
}

/// Makes opening pages fail where the argument `index` of the call is `value`, on
/// both kinds of guard.
fn refuse_opening(index: u32, value: usize) {
    let argument = (index, value as u32);
    refuse(
        libc::SYS_madvise,
        &[argument, (2, GUARD_REMOVE)],
        libc::EAGAIN,
    );
    let open = (libc::PROT_READ | libc::PROT_WRITE) as u32;
    refuse(libc::SYS_mprotect, &[argument, (2, open)], libc::EAGAIN);
}

fn is_guard(backend: Backend) -> bool {
    matches!(backend, Backend::Guard | Backend::GuardMprotect)
}

/// Proves that a page which cannot be opened is not counted, nor are those before it.
#[test]
fn a_page_that_cannot_be_opened_is_not_pinned() {
    common::alone_on_each("a_page_that_cannot_be_opened_is_not_pinned", |backend| {
        let heap = heap(backend, 5 + ROOM);
        let block = block(&heap);
        refuse_opening(0, block.addr() + PAGE_SIZE);
        // What opens pages of a userfaultfd cannot be told from what closes them.
        for _ in 0..ROOM + 1 {
            let pinned = heap.pin(pages(block, 0, 2));
            assert_eq!(pinned.is_err(), is_guard(backend), "{backend}");
        }
        let all = heap.pin(pages(block, 4, ROOM)).unwrap();
        drop(all);
        assert_eq!(
            heap.evict(pages(block, 4, ROOM)).unwrap(),
            ROOM,
            "{backend}"
        );
    });
}

/// Proves that pins go again when the range cannot be opened as a whole at the end.
#[test]
fn a_range_that_cannot_be_opened_is_not_pinned() {
    common::alone_on_each("a_range_that_cannot_be_opened_is_not_pinned", |backend| {
        let heap = heap(backend, 5 + ROOM);
        let block = block(&heap);
        refuse_opening(1, ROOM * PAGE_SIZE);
        for _ in 0..2 {
            let pinned = heap.pin(pages(block, 0, ROOM));
            assert_eq!(pinned.is_err(), is_guard(backend), "{backend}");
        }
        let mut evicted = 0;
        for _ in 0..1000 {
            // A monitor may have its hand on the last page still.
            evicted += heap.evict(pages(block, 0, ROOM)).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(evicted, ROOM, "{backend}");
    });
}

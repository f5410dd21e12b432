//! The record of a heap has the touches that were made, in their order.
#![cfg(target_os = "linux")] // fork(2)
#![allow(clippy::unwrap_used)]

use core::alloc::Layout;
use core::ptr::NonNull;
use std::time::{Duration, Instant};

use ghostmem::record::{Recording, SeenTouch};
use ghostmem::{Backend, Heap};
use ghostmem_os::PAGE_SIZE;

const PAGES: usize = 64;

/// A heap of five pages with a block of 64, and its record from now on.
fn recorded(backend: Backend) -> Option<(Heap, NonNull<u8>, Recording)> {
    let built = Heap::builder()
        .resident_limit(5 * PAGE_SIZE)
        .backend(backend)
        .readahead(false)
        .background(false)
        .build();
    let heap = match built {
        Ok(heap) => heap,
        Err(error) => {
            println!("{backend} is not tested: {error}");
            return None;
        }
    };
    let layout = Layout::from_size_align(PAGES * PAGE_SIZE, PAGE_SIZE).unwrap();
    let block = heap.allocate(layout).unwrap().cast::<u8>();
    let recording = Recording::new().unwrap();
    assert!(heap.record(recording.recorder()));
    assert!(!heap.record(recording.recorder()), "one record a heap");
    Some((heap, block, recording))
}

fn touch(block: NonNull<u8>, page: usize, write: bool) {
    // SAFETY: the block has 64 pages.
    let at = unsafe { block.as_ptr().add(page * PAGE_SIZE + 8) };
    if write {
        // SAFETY: in the block, which no reference is into.
        unsafe { at.write_volatile(1) };
    } else {
        // SAFETY: as above; ghost memory is zero at first.
        unsafe { at.read_volatile() };
    }
}

/// Page numbers and kinds within the block, in the order recorded.
fn taken(block: NonNull<u8>, recording: &mut Recording) -> Vec<(usize, bool)> {
    let first = block.as_ptr() as u64 / PAGE_SIZE as u64;
    std::iter::from_fn(|| recording.take())
        .filter_map(|SeenTouch { page, write, .. }| {
            let page = page.checked_sub(first)? as usize;
            (page < PAGES).then_some((page, write))
        })
        .collect()
}

/// Three passes in different orders, each page far from its touch before: every
/// touch is in the record, and nothing else.
#[test]
fn known_touches_give_the_known_record() {
    for backend in [Backend::Inline, Backend::Monitor, Backend::Guard] {
        let Some((_heap, block, mut recording)) = recorded(backend) else {
            continue;
        };
        let mut made = Vec::new();
        for (stride, write) in [(1, true), (17, false), (23, true), (37, false)] {
            for at in 0..PAGES {
                made.push((at * stride % PAGES, write));
            }
        }
        for &(page, write) in &made {
            touch(block, page, write);
        }
        let mut seen = taken(block, &mut recording);
        if backend == Backend::Monitor {
            // Engine threads note a touch after the program goes on: the last
            // ones may come late, and neighbours out of order.
            let start = Instant::now();
            while seen.len() < made.len() && start.elapsed() < Duration::from_secs(10) {
                seen.extend(taken(block, &mut recording));
            }
            seen.sort_unstable();
            made.sort_unstable();
        }
        assert_eq!(seen, made, "{backend}");
        assert_eq!(recording.lost(), 0);
    }
}

/// A store to a page that was brought in for a load is one more entry, as it
/// faults; a second load is none.
#[test]
fn what_does_not_fault_is_not_seen() {
    let Some((_heap, block, mut recording)) = recorded(Backend::Inline) else {
        return;
    };
    for page in 0..PAGES {
        touch(block, page, true);
    }
    taken(block, &mut recording);
    for write in [false, false, true, true, false] {
        touch(block, 7, write);
    }
    // The page is not all one value, so that it has a slot to keep.
    assert_eq!(taken(block, &mut recording), [(7, false), (7, true)]);
}

/// Threads have numbers of their own, and a forked child leaves no trace.
#[test]
fn threads_are_told_apart_and_children_left_out() {
    let Some((_heap, block, mut recording)) = recorded(Backend::Auto) else {
        return;
    };
    touch(block, 0, true);
    let address = block.as_ptr() as usize;
    std::thread::spawn(move || {
        touch(NonNull::new(address as *mut u8).unwrap(), 30, true);
    })
    .join()
    .unwrap();
    // SAFETY: the child touches memory and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        for page in 0..PAGES {
            touch(block, page, true);
        }
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: our own child, a valid place.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
    touch(block, 60, true);
    let first = address as u64 / PAGE_SIZE as u64;
    let seen: Vec<_> = std::iter::from_fn(|| recording.take())
        .filter(|touch| touch.page >= first && touch.page < first + PAGES as u64)
        .collect();
    let pages: Vec<u64> = seen.iter().map(|touch| touch.page - first).collect();
    assert_eq!(pages, [0, 30, 60]);
    assert_ne!(seen[0].thread, seen[1].thread);
    assert_eq!(seen[0].thread, seen[2].thread);
}

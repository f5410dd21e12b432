//! Pages that become other mappings with what they hold.
#![cfg(not(windows))]
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use core::ptr::{self, NonNull, slice_from_raw_parts_mut};

use common::{BACKENDS, PAGE_SIZE};
use ghostmem::{Error, Heap};

mod common;

/// Filled and evicted, filled and in memory, and never touched.
const STORED: usize = 150;
const RESIDENT: usize = 150;
const EMPTY: usize = 2000;
const PAGES: usize = STORED + RESIDENT + EMPTY;

fn range(address: usize, pages: usize) -> *mut [u8] {
    slice_from_raw_parts_mut(ptr::with_exposed_provenance_mut(address), pages * PAGE_SIZE)
}

fn byte_of(at: usize) -> u8 {
    (at * 7 + at / PAGE_SIZE) as u8
}

/// What a byte of the block is to be.
fn expected(at: usize) -> u8 {
    if at / PAGE_SIZE < STORED + RESIDENT {
        byte_of(at)
    } else {
        0
    }
}

fn load(address: usize) -> u8 {
    // SAFETY: a byte of the block, or of what took its place.
    unsafe { ptr::with_exposed_provenance::<u8>(address).read_volatile() }
}

/// A block with pages of each kind.
fn filled(heap: &Heap) -> usize {
    let layout = core::alloc::Layout::from_size_align(PAGES * PAGE_SIZE, PAGE_SIZE).unwrap();
    let block = heap.allocate_block(layout, true).unwrap();
    let block = block.cast::<u8>().as_ptr().expose_provenance();
    let fill = |from: usize, pages: usize| {
        for at in from * PAGE_SIZE..(from + pages) * PAGE_SIZE {
            // SAFETY: a byte of the block.
            unsafe { ptr::with_exposed_provenance_mut::<u8>(block + at).write(byte_of(at)) };
        }
    };
    fill(0, STORED);
    heap.evict(range(block, STORED).cast_const()).unwrap();
    fill(STORED, RESIDENT);
    block
}

/// Fresh memory of so many pages.
fn fresh(pages: usize) -> usize {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let bytes = pages * PAGE_SIZE;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let made = unsafe { libc::mmap(ptr::null_mut(), bytes, access, flags, -1, 0) };
    assert_ne!(made, libc::MAP_FAILED);
    made.expose_provenance()
}

/// Hands pages over from `first` on, up to `end` or the first refusal; how far it came.
fn hand_over(
    heap: &Heap,
    block: usize,
    room: usize,
    (first, end): (usize, usize),
) -> (usize, Option<Error>) {
    let mut page = first;
    while page < end {
        let place = NonNull::new(ptr::with_exposed_provenance_mut(room + page * PAGE_SIZE));
        let left = range(block + page * PAGE_SIZE, end - page);
        // SAFETY: as many pages of a mapping made for it, and no reference into the block.
        match unsafe { heap.hand_over(left, place.unwrap()) } {
            Ok(bytes) => page += bytes / PAGE_SIZE,
            Err(error) => return (page, Some(error)),
        }
    }
    (page, None)
}

fn is_whole(block: usize) {
    for at in (0..PAGES * PAGE_SIZE).step_by(509) {
        assert_eq!(load(block + at), expected(at), "byte {at}");
    }
}

fn on_every_backend(body: impl Fn(&Heap)) {
    for backend in BACKENDS {
        body(&common::heap(backend, 400));
    }
}

/// Proves that what takes the place of pages holds what they held, wherever that was, and that
/// the heap has none of it any more; and that they are zero pages when they come back.
#[test]
fn pages_of_every_kind_are_handed_over_whole() {
    on_every_backend(|heap| {
        let block = filled(heap);
        let room = fresh(PAGES);
        assert_eq!(hand_over(heap, block, room, (0, PAGES)), (PAGES, None));
        is_whole(block);
        let stats = common::stats_at_rest(heap);
        assert_eq!((stats.resident_bytes, stats.stored_pages), (0, 0));
        assert_eq!(stats.allocated_bytes, 0);
        let away = heap.away_run(block, PAGES * PAGE_SIZE);
        assert_eq!(away, Some((true, PAGES * PAGE_SIZE)));
        let again = hand_over(heap, block, room, (0, 1));
        assert!(
            matches!(again, (0, Some(Error::NotGhost { .. }))),
            "{again:?}"
        );
        // What is away is nobody's to open.
        heap.open_holes(range(block, PAGES).cast_const()).unwrap();
        assert_eq!(heap.stats().allocated_bytes, 0);
        is_whole(block);
        // SAFETY: nobody refers to what lies there.
        unsafe { heap.retake(range(block, PAGES)) }.unwrap();
        heap.fill_holes(range(block, PAGES).cast_const()).unwrap();
        for page in 0..PAGES {
            assert_eq!(load(block + page * PAGE_SIZE + 77), 0, "page {page}");
        }
        let start = NonNull::new(ptr::with_exposed_provenance_mut(block)).unwrap();
        // SAFETY: the block, which nobody uses any more.
        unsafe { heap.deallocate_block(start) }.unwrap();
    });
}

/// Proves that a page that is to stay stops it: what lies before has moved, all else is as it
/// was, and it goes on from there.
#[test]
fn a_pinned_page_is_not_handed_over() {
    on_every_backend(|heap| {
        let block = filled(heap);
        let room = fresh(PAGES);
        let pin = heap
            .pin(range(block + 200 * PAGE_SIZE, 1).cast_const())
            .unwrap();
        let (reached, refused) = hand_over(heap, block, room, (0, PAGES));
        assert_eq!(reached, 200);
        assert!(
            matches!(refused, Some(Error::NotGhost { .. })),
            "{refused:?}"
        );
        is_whole(block);
        drop(pin);
        heap.evict(range(block + 200 * PAGE_SIZE, 20).cast_const())
            .unwrap();
        is_whole(block);
        assert_eq!(hand_over(heap, block, room, (200, PAGES)), (PAGES, None));
        is_whole(block);
    });
}

/// Proves that a room that the kernel does not move changes nothing, whatever the pages hold.
#[test]
fn what_the_kernel_refuses_changes_nothing() {
    on_every_backend(|heap| {
        let block = filled(heap);
        let room = fresh(PAGES);
        let bytes = PAGES * PAGE_SIZE;
        // mseal(2), Linux 6.10: stores are as before, and it stays where it is.
        // SAFETY: our own mapping, which stays until the end.
        let sealed = unsafe { libc::syscall(462, room, bytes, 0) };
        if sealed != 0 {
            println!("SKIPPED: this kernel has no mseal(2)");
            return;
        }
        for first in [0, STORED, STORED + 50, STORED + RESIDENT + 1000] {
            let (reached, refused) = hand_over(heap, block, room, (first, PAGES));
            assert_eq!(reached, first);
            assert!(
                matches!(refused, Some(Error::OutOfMemory { .. })),
                "{refused:?}"
            );
            is_whole(block);
        }
        for page in 0..PAGES {
            let at = ptr::with_exposed_provenance_mut::<u8>(block + page * PAGE_SIZE);
            // SAFETY: a byte of the block.
            unsafe { at.write(expected(page * PAGE_SIZE)) };
        }
        heap.evict(range(block, PAGES).cast_const()).unwrap();
        is_whole(block);
        assert_eq!(heap.stats().allocated_bytes, bytes);
    });
}

/// Proves that pages which were opened, and handed over before anything was written there, are
/// not hoped for any more: others that ask for as much are refused what a bound does not hold.
#[cfg(target_os = "linux")]
#[test]
fn what_was_opened_and_handed_over_is_no_more_to_be_hoped_for() {
    const MIB: usize = 1 << 20;
    const MUCH: usize = 4096 * MIB;
    let heap = Heap::builder().memory(512 * MIB).build().unwrap();
    let block = heap.reserve_block(MUCH).unwrap();
    let block = block.as_ptr().expose_provenance();
    let pages = MUCH / PAGE_SIZE;
    heap.open_holes(range(block, pages).cast_const()).unwrap();
    let layout = core::alloc::Layout::from_size_align(MUCH, PAGE_SIZE).unwrap();
    assert!(heap.allocate_block(layout, true).is_err(), "beside it");
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a fresh mapping at an address of the kernel's choice.
    let room = unsafe { libc::mmap(ptr::null_mut(), MUCH, access, flags, -1, 0) };
    assert_ne!(room, libc::MAP_FAILED);
    let handed = hand_over(&heap, block, room.expose_provenance(), (0, pages));
    assert_eq!(handed, (pages, None));
    assert!(heap.allocate_block(layout, true).is_err(), "in its place");
}

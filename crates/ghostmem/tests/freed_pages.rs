//! Faults and pins that race with the free of their block leave nothing
//! behind: no page is resident in memory that is free, and none holds the old
//! bytes when the memory is handed out again.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog, heap, stats_at_rest};
use ghostmem::Heap;

mod common;

/// More than a small object has.
const PAGES: usize = 12;
/// Fewer than that: bringing a page in takes its time.
const LIMIT_PAGES: usize = 9;
const PINNERS: usize = 3;
const ROUNDS: usize = 200;

/// The block of the moment, and who may be using it.
struct Shared<'a> {
    heap: &'a Heap,
    /// 0: none, everybody is to leave.
    block: AtomicUsize,
    busy: AtomicUsize,
    pins: AtomicUsize,
    stop: AtomicBool,
}

impl Shared<'_> {
    /// Pins two pages of the block over and over, freed or not.
    fn pin(&self, seed: usize) {
        let mut random = Random::new(seed as u64);
        while !self.stop.load(Ordering::Relaxed) {
            self.busy.fetch_add(1, Ordering::SeqCst);
            let block = self.block.load(Ordering::SeqCst);
            if block != 0 {
                let first = block + random.below(PAGES - 1) * PAGE_SIZE;
                let range = std::ptr::slice_from_raw_parts(first as *const u8, 2 * PAGE_SIZE);
                // Refused once it is free, and when others pin too much.
                let pinned = self.heap.pin(range);
                self.pins
                    .fetch_add(usize::from(pinned.is_ok()), Ordering::Relaxed);
            }
            self.busy.fetch_sub(1, Ordering::SeqCst);
            if block == 0 {
                thread::yield_now();
            }
        }
    }

    /// Waits until nobody uses the block.
    fn clear(&self) {
        self.block.store(0, Ordering::SeqCst);
        while self.busy.load(Ordering::SeqCst) != 0 {
            thread::yield_now();
        }
    }
}

/// Sets a flag when dropped: also when a check fails.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn pins_against_frees_leave_no_page_and_no_byte() {
    let _watchdog = Watchdog::new("pins against frees", 120);
    let layout = Layout::from_size_align(PAGES * PAGE_SIZE, PAGE_SIZE).unwrap();
    for backend in BACKENDS {
        let heap = heap(backend, LIMIT_PAGES);
        let shared = Shared {
            heap: &heap,
            block: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            pins: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        };
        thread::scope(|scope| {
            let shared = &shared;
            let _stopper = Stopper(&shared.stop);
            for seed in 0..PINNERS {
                scope.spawn(move || shared.pin(seed));
            }
            let mut random = Random::new(99);
            for round in 0..ROUNDS {
                let block = heap.allocate(layout).unwrap().cast::<u8>();
                // Pages that hold something, or that nobody has touched.
                if round % 2 == 0 {
                    for page in 0..PAGES {
                        // SAFETY: inside the block, nobody else knows it yet.
                        let word = unsafe { block.cast::<u64>().add(page * PAGE_SIZE / 8) };
                        // SAFETY: as before.
                        let found = unsafe { word.read_volatile() };
                        assert_eq!(found, 0, "{backend}: round {round}, page {page}");
                        // SAFETY: as before.
                        unsafe { word.write_volatile(7 + page as u64) };
                    }
                }
                let pins = shared.pins.load(Ordering::Relaxed);
                shared.block.store(block.as_ptr().addr(), Ordering::SeqCst);
                if round % 4 < 2 {
                    // Not before somebody is at it.
                    while shared.pins.load(Ordering::Relaxed) == pins {
                        thread::yield_now();
                    }
                }
                for _ in 0..random.below(2000) {
                    std::hint::spin_loop();
                }
                free(&heap, block, layout);
                shared.clear();
                let stats = stats_at_rest(&heap);
                assert_eq!(
                    (
                        stats.allocated_bytes,
                        stats.resident_bytes,
                        stats.stored_pages
                    ),
                    (0, 0, 0),
                    "{backend}: round {round}"
                );
            }
        });
    }
}

/// Proves the same for pages in parts of a region where none was ever touched,
/// which a free passes over.
#[test]
fn first_touches_against_frees_leave_no_page() {
    /// As many pages as have their words on one page.
    const GROUP: usize = 512;
    let _watchdog = Watchdog::new("first touches against frees", 120);
    let layout = Layout::from_size_align(GROUP * PAGE_SIZE, GROUP * PAGE_SIZE).unwrap();
    let heap = heap(BACKENDS[0], 64);
    let mut random = Random::new(7);
    // Each block lies where none was before: its page stays in use.
    let kept = Layout::from_size_align(GROUP / 2 * PAGE_SIZE, PAGE_SIZE).unwrap();
    for round in 0..common::steps(2000) {
        let block = heap.allocate(layout).unwrap().cast::<u8>();
        let address = block.as_ptr().addr();
        let start = Barrier::new(2);
        let (heap, start) = (&heap, &start);
        thread::scope(|scope| {
            scope.spawn(move || {
                let page = std::ptr::slice_from_raw_parts(address as *const u8, PAGE_SIZE);
                start.wait();
                // Refused once it is free.
                drop(heap.pin(page));
            });
            start.wait();
            for _ in 0..random.below(8000) {
                std::hint::spin_loop();
            }
            free(heap, block, layout);
        });
        assert_eq!(stats_at_rest(heap).resident_bytes, 0, "round {round}");
        let _untouched = heap.allocate(kept).unwrap();
    }
}

fn free(heap: &Heap, block: NonNull<u8>, layout: Layout) {
    // SAFETY: the test's own block, used afterwards only through pins.
    unsafe { heap.deallocate(block, layout) }.unwrap();
}

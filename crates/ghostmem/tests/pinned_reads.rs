//! The kernel writes to pinned pages while everything around them is evicted, over
//! and over: it never finds one protected.
#![cfg(target_os = "linux")] // the system call is Linux's
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog, heap};
use ghostmem::Heap;

mod common;

const PAGES: usize = 96;
const LIMIT_PAGES: usize = 64;
/// Most pages pinned at once.
const PINNED: usize = 3;
const ROUNDS: usize = 4000;

fn pages(block: usize, first: usize, count: usize) -> *const [u8] {
    core::ptr::slice_from_raw_parts((block + first * PAGE_SIZE) as *const u8, count * PAGE_SIZE)
}

/// Stores to every page and sends all of them away, but for those that are pinned.
fn evict(heap: &Heap, block: usize, stop: &AtomicBool, seed: u64) {
    let mut random = Random::new(seed);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..PAGES / 2 {
            let word = (block + random.below(PAGES) * PAGE_SIZE + PAGE_SIZE - 8) as *mut u64;
            // SAFETY: inside the block; the last word of a page is nobody's.
            unsafe { word.write_volatile(random.next()) };
        }
        heap.evict(pages(block, 0, PAGES)).unwrap();
    }
}

#[test]
fn a_pinned_page_is_never_protected_from_the_kernel() {
    let _watchdog = Watchdog::new("reads into pinned pages", 200);
    let file = std::fs::File::open("/dev/zero").unwrap();
    for backend in BACKENDS {
        let heap = heap(backend, LIMIT_PAGES);
        let layout = Layout::from_size_align(PAGES * PAGE_SIZE, PAGE_SIZE).unwrap();
        let start = heap.allocate(layout).unwrap().cast::<u8>();
        let block = start.as_ptr().addr();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (heap, stop) = (&heap, &stop);
            for seed in 0..2 {
                scope.spawn(move || evict(heap, block, stop, seed));
            }
            let mut random = Random::new(3);
            let mut failed = None;
            for round in 0..ROUNDS {
                let count = 1 + random.below(PINNED);
                let first = random.below(PAGES - count);
                let pinned = heap.pin(pages(block, first, count)).unwrap();
                // All but the last word of the last page.
                let bytes = count * PAGE_SIZE - 8;
                let to = (block + first * PAGE_SIZE) as *mut libc::c_void;
                // SAFETY: inside the block; what it overwrites is nobody's.
                let got = unsafe { libc::read(file.as_raw_fd(), to, bytes) };
                drop(pinned);
                if got != bytes as isize {
                    let error = std::io::Error::last_os_error();
                    failed = Some(format!(
                        "{backend}, round {round}: {got} of {bytes}, {error}"
                    ));
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
        // SAFETY: nobody uses it any more.
        unsafe { heap.deallocate(start, layout) }.unwrap();
    }
}

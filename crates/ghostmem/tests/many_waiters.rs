//! More threads than there are sets of buffers wait for a frame at once: who
//! frees memory, or has the right to go on, is not held up by them.
#![cfg(target_os = "linux")] // mlock2(2)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{PAGE_SIZE, Watchdog, alone_on_each, heap};
use ghostmem::Backend;

mod common;

const WAITERS: usize = 140;
const LIMIT_PAGES: usize = 64;
/// Pages that a heap may have when none can be evicted (docs/limits.md).
const MOST_PAGES: usize = LIMIT_PAGES + 68;

#[test]
fn freeing_lets_any_number_of_waiting_threads_go_on() {
    let name = "freeing_lets_any_number_of_waiting_threads_go_on";
    alone_on_each(name, |backend| {
        if !matches!(backend, Backend::Inline | Backend::Monitor) {
            // Guarded pages are not locked as they come in.
            return;
        }
        let _watchdog = Watchdog::new("many waiters", 50);
        let heap = heap(backend, LIMIT_PAGES);
        let layout = Layout::from_size_align(MOST_PAGES * PAGE_SIZE, PAGE_SIZE).unwrap();
        let locked = heap.allocate(layout).unwrap().cast::<u8>();
        let other = Layout::from_size_align(WAITERS * PAGE_SIZE, PAGE_SIZE).unwrap();
        let wanted = heap.allocate(other).unwrap().cast::<u8>();
        // SAFETY: our own block; every page is locked as it comes in.
        let rc = unsafe { libc::mlock2(locked.as_ptr().cast(), layout.size(), 1) };
        if rc != 0 {
            eprintln!("SKIPPED: this machine does not allow to lock {MOST_PAGES} pages");
            return;
        }
        for page in 0..MOST_PAGES {
            // SAFETY: inside the block.
            unsafe { locked.add(page * PAGE_SIZE).write_volatile(1) };
        }
        let begun = AtomicUsize::new(0);
        let done = AtomicUsize::new(0);
        let address = wanted.as_ptr().expose_provenance();
        thread::scope(|scope| {
            for me in 0..WAITERS {
                let (begun, done) = (&begun, &done);
                scope.spawn(move || {
                    begun.fetch_add(1, Ordering::Relaxed);
                    let page: *mut u8 =
                        std::ptr::with_exposed_provenance_mut(address + me * PAGE_SIZE);
                    // SAFETY: this thread's own page.
                    unsafe { page.write_volatile(me as u8) };
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            while begun.load(Ordering::Relaxed) < WAITERS {
                thread::yield_now();
            }
            // Until they are where they wait; they do for three seconds.
            thread::sleep(Duration::from_millis(700));
            assert_eq!(
                done.load(Ordering::Relaxed),
                0,
                "{backend}: no frame is left"
            );
            // SAFETY: allocated above, used no more.
            unsafe { heap.deallocate(locked, layout) }.unwrap();
        });
        assert_eq!(done.load(Ordering::Relaxed), WAITERS);
        for me in 0..WAITERS {
            // SAFETY: inside the block.
            let seen = unsafe { wanted.add(me * PAGE_SIZE).read_volatile() };
            assert_eq!(seen, me as u8);
        }
        // SAFETY: allocated above, used no more.
        unsafe { heap.deallocate(wanted, other) }.unwrap();
    });
}

//! Nothing here calls the program's allocator, and nothing is printed.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Plain, Random};
use ghostmem_small::{Arena, SmallHeap};

struct Watched;

static CALLS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

fn note() {
    if WATCHING.try_with(Cell::get).unwrap_or(false) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note();
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) };
    }
}

#[global_allocator]
static GLOBAL: Watched = Watched;

fn work() {
    let arena = Arena::acquire().expect("an arena");
    let heap = SmallHeap::new(arena, Plain::new()).expect("a heap");
    let mut random = Random(3);
    let mut held = [None; 100];
    for _ in 0..50_000 {
        let place = &mut held[random.below(100)];
        if let Some(at) = place.take() {
            // SAFETY: nobody else has it.
            unsafe { heap.deallocate(at) }.expect("a live block");
        }
        *place = heap.allocate(
            1 + random.below(8000),
            1 << random.below(9),
            random.below(2) == 0,
        );
    }
    heap.trim();
}

#[test]
fn heaps_live_and_die_without_the_global_allocator() {
    // The watch itself works.
    WATCHING.set(true);
    drop(std::hint::black_box(Box::new(1)));
    WATCHING.set(false);
    assert_eq!(CALLS.swap(0, Ordering::Relaxed), 2);

    WATCHING.set(true);
    work();
    work();
    WATCHING.set(false);
    assert_eq!(CALLS.load(Ordering::Relaxed), 0);

    // A thread's first use, and its farewell after Rust's own.
    std::thread::spawn(|| {
        WATCHING.set(true);
        work();
    })
    .join()
    .unwrap();
    // What the standard library frees while the thread ends is its own.
    let on_exit = CALLS.load(Ordering::Relaxed);
    assert!(on_exit <= 8, "{on_exit} calls");
}

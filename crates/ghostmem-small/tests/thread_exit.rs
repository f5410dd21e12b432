//! Threads that end at the worst moment.

mod common;

use std::thread;

use common::Plain;
use ghostmem_small::{Arena, SmallHeap};

fn heap() -> SmallHeap<Plain> {
    SmallHeap::new(Arena::acquire().expect("an arena"), Plain::new()).expect("a heap")
}

/// Threads end while the heap they used is destroyed: mimalloc by itself
/// follows a null pointer here now and then.
#[test]
fn threads_may_end_while_their_heap_is_dropped() {
    for round in 0..1000_usize {
        let heap = std::sync::Arc::new(heap());
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let heap = heap.clone();
                thread::spawn(move || {
                    let _ = heap.allocate(40 * (i + 1) + round % 7, 8, false);
                    let _ = heap.allocate(1100 * (i + 1) + round % 7, 8, false);
                })
            })
            .collect();
        drop(heap);
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

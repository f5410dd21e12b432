//! How fast blocks come and go, with one thread and with two.
//!
//! `cargo run --release -p ghostmem-small --example alloc_rate`
//! Each thread keeps 64 blocks and replaces them in turn, on ordinary memory.

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use ghostmem_small::{Arena, SmallHeap, Space};

/// Memory that is simply kept.
struct Kept;

impl Space for Kept {
    fn discard(&self, _address: usize, _bytes: usize) {}
}

const OPERATIONS: usize = 4_000_000;
const RUNS: usize = 5;

fn replace(heap: &SmallHeap<Kept>, size: usize) {
    let mut held: [Option<NonNull<u8>>; 64] = [None; 64];
    for i in 0..OPERATIONS {
        let place = &mut held[i % 64];
        if let Some(block) = place.take() {
            // SAFETY: this thread's own block, used by nobody.
            unsafe { heap.deallocate(block) }.expect("a live block");
        }
        let block = heap.allocate(size, 8, false).expect("room for 64 blocks");
        // SAFETY: at least one byte was handed out.
        unsafe { black_box(block).as_ptr().write(1) };
        *place = Some(block);
    }
    for block in held.into_iter().flatten() {
        // SAFETY: as above.
        unsafe { heap.deallocate(block) }.expect("a live block");
    }
}

/// Allocate-and-free pairs per second of all threads together, best of
/// [`RUNS`].
fn rate(heap: &SmallHeap<Kept>, size: usize, threads: usize) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let start = Barrier::new(threads + 1);
        let end = Barrier::new(threads + 1);
        let elapsed = thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    start.wait();
                    replace(heap, size);
                    end.wait();
                });
            }
            start.wait();
            let begin = Instant::now();
            end.wait();
            begin.elapsed()
        });
        best = best.min(elapsed);
    }
    (OPERATIONS * threads) as f64 / best.as_secs_f64()
}

fn main() {
    let arena = Arena::acquire().expect("an arena");
    let heap = SmallHeap::new(arena, Kept).expect("a heap");
    println!("block   1 thread [M/s]   2 threads [M/s]   ratio");
    for size in [64, 4096] {
        let one = rate(&heap, size, 1);
        let two = rate(&heap, size, 2);
        println!(
            "{size:>5}   {:>14.1}   {:>15.1}   {:>5.2}",
            one / 1e6,
            two / 1e6,
            two / one
        );
    }
}

//! The four ways to use ghost memory from many threads, the concurrent
//! allocation test, and the habits that go with them.
//!
//! ```sh
//! cargo run --release -p ghostmem --example seed_patterns
//! ```
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::alloc::Layout;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use allocator_api2::vec::Vec as GhostVec;
use ghostmem::{Error, Heap};

/// Pattern 1: every thread has vectors of its own. Their sums.
pub(crate) fn independent_allocations(heap: &Heap) -> Vec<u64> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u64)
            .map(|id| {
                scope.spawn(move || {
                    let mut data = GhostVec::new_in(heap);
                    for i in 0..100_000 {
                        data.push(id * 100_000 + i);
                    }
                    data.iter().sum()
                })
            })
            .collect();
        threads.into_iter().filter_map(|t| t.join().ok()).collect()
    })
}

/// Pattern 2 (and "pre-allocate in a single thread"): filled once, read by
/// many. The sums the readers found.
pub(crate) fn shared_read_only(heap: &Heap) -> Vec<u64> {
    let mut shared = GhostVec::with_capacity_in(1_000_000, heap);
    shared.extend(0..1_000_000_u64);
    thread::scope(|scope| {
        let shared = &shared;
        let readers: Vec<_> = (0..4)
            .map(|_| scope.spawn(move || shared.iter().sum()))
            .collect();
        readers.into_iter().filter_map(|t| t.join().ok()).collect()
    })
}

/// Pattern 3 (and "external synchronisation for modifications"): a queue in
/// ghost memory behind a mutex. How many values the consumers got, and their
/// sum.
pub(crate) fn producer_consumer(heap: &Heap) -> (usize, u64) {
    let queue = Mutex::new((GhostVec::new_in(heap), false));
    let changed = Condvar::new();
    let lock = || queue.lock().unwrap_or_else(|e| e.into_inner());
    thread::scope(|scope| {
        scope.spawn(|| {
            for value in 0..1000_u64 {
                lock().0.push(value);
                changed.notify_one();
            }
            lock().1 = true;
            changed.notify_all();
        });
        let consume = || {
            let (mut count, mut sum) = (0, 0);
            let mut held = lock();
            loop {
                if let Some(value) = held.0.pop() {
                    count += 1;
                    sum += value;
                } else if held.1 {
                    return (count, sum);
                } else {
                    held = changed.wait(held).unwrap_or_else(|e| e.into_inner());
                }
            }
        };
        let consumers = [scope.spawn(consume), scope.spawn(consume)];
        consumers
            .into_iter()
            .filter_map(|c| c.join().ok())
            .fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    })
}

/// Pattern 4, and the concurrent allocation test: 8 threads, `each`
/// allocations of a page each, every one used. How many succeeded.
pub(crate) fn concurrent_allocations(heap: &Heap, each: usize) -> usize {
    let page = Layout::new::<[i32; 1024]>();
    let successes = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut blocks = Vec::new();
                for _ in 0..each {
                    let Ok(block) = heap.allocate(page) else {
                        continue;
                    };
                    let data = block.cast::<i32>();
                    // SAFETY: a fresh block of this thread's own.
                    unsafe { data.write(42) };
                    // SAFETY: written just now.
                    if unsafe { data.read() } == 42 {
                        successes.fetch_add(1, Ordering::Relaxed);
                    }
                    blocks.push(block);
                }
                for block in blocks {
                    // SAFETY: not used after this.
                    let freed = unsafe { heap.deallocate(block.cast(), page) };
                    assert_eq!(freed, Ok(()));
                }
            });
        }
    });
    successes.into_inner()
}

/// What once was to be avoided: allocate, use briefly, free, in many threads.
/// How many times.
pub(crate) fn rapid_allocation(heap: &Heap, each: usize) -> usize {
    let page = Layout::new::<[u64; 512]>();
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for me in 0..8_u64 {
            let done = &done;
            scope.spawn(move || {
                for _ in 0..each {
                    let Ok(block) = heap.allocate(page) else {
                        continue;
                    };
                    let first = block.cast::<u64>();
                    // SAFETY: a fresh block of this thread's own.
                    unsafe { first.write(me) };
                    // SAFETY: written just now.
                    let kept = unsafe { first.read() } == me;
                    // SAFETY: not used after this.
                    let freed = unsafe { heap.deallocate(block.cast(), page) };
                    done.fetch_add(usize::from(kept && freed.is_ok()), Ordering::Relaxed);
                }
            });
        }
    });
    done.into_inner()
}

#[allow(dead_code, reason = "the tests call the patterns one by one")]
fn main() -> Result<(), Error> {
    // 5 pages, as little as there can be, and then something more usual.
    for limit in [5 * 4096, 1 << 20] {
        let heap = Heap::builder().resident_limit(limit).build()?;
        println!("limit of {limit} bytes, {} backend", heap.backend());
        println!("  independent: sums {:?}", independent_allocations(&heap));
        println!("  shared reading: sums {:?}", shared_read_only(&heap));
        let (count, sum) = producer_consumer(&heap);
        println!("  producer and consumers: {count} values, sum {sum}");
        let successes = concurrent_allocations(&heap, 100);
        println!("  concurrent allocations: {successes} of 800 succeeded");
        let done = rapid_allocation(&heap, 1000);
        println!("  rapid allocate and free: {done} of 8000");
    }
    Ok(())
}

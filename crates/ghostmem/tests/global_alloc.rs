//! A whole program, the test harness included, on ghost memory under a small
//! limit.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::collections::HashMap;
use std::thread;

use common::{alone_with, word};
use ghostmem::{GhostAlloc, Heap};

mod common;

#[global_allocator]
static ALLOCATOR: GhostAlloc = GhostAlloc::new();

const LIMIT: usize = 1 << 20;

/// Runs `body` in a process whose global heap has 1 MiB, and makes sure it
/// was used.
fn on_a_small_heap(name: &str, body: impl FnOnce()) {
    alone_with(name, &[("GHOSTMEM_LIMIT", &LIMIT.to_string())], || {
        body();
        let stats = Heap::global().unwrap().stats();
        assert_eq!(stats.resident_limit_bytes, LIMIT);
        assert!(stats.resident_bytes <= LIMIT, "{stats:?}");
        assert!(stats.refaults > 0, "{stats:?}");
    });
}

#[test]
fn vectors_grow_past_the_limit() {
    on_a_small_heap("vectors_grow_past_the_limit", || {
        let mut words = Vec::new();
        for i in 0..500_000 {
            words.push(word(i, 1));
        }
        assert!(Heap::global().unwrap().is_ghost(words.as_ptr()));
        assert!(words.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
        words.retain(|w| w % 2 == 0);
        words.sort_unstable();
        assert!(words.is_sorted());
    });
}

#[test]
fn strings_and_maps_live_there() {
    on_a_small_heap("strings_and_maps_live_there", || {
        let mut map = HashMap::new();
        for i in 0..20_000_usize {
            map.insert(format!("key {i}"), format!("value {}", word(i, 2)));
        }
        for i in 0..20_000 {
            assert_eq!(map[&format!("key {i}")], format!("value {}", word(i, 2)));
        }
        for i in (0..20_000).step_by(2) {
            assert!(map.remove(&format!("key {i}")).is_some());
        }
        assert_eq!(map.len(), 10_000);
    });
}

#[test]
fn threads_allocate_there() {
    on_a_small_heap("threads_allocate_there", || {
        let threads: Vec<_> = (0..8)
            .map(|me| {
                thread::spawn(move || {
                    let mut lists = Vec::new();
                    for n in 0..200_usize {
                        lists.push((0..n).map(|i| word(i, me)).collect::<Vec<_>>());
                    }
                    (me, lists)
                })
            })
            .collect();
        for thread in threads {
            let (me, lists) = thread.join().unwrap();
            for (n, list) in lists.iter().enumerate() {
                assert_eq!(list.len(), n);
                assert!(list.iter().enumerate().all(|(i, &w)| w == word(i, me)));
            }
        }
        // Other heaps and their threads come and go beside it.
        for backend in common::BACKENDS {
            let heap = common::heap(backend, 8);
            let data = heap.slice_from_fn(20_000, |i| word(i, 3)).unwrap();
            assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 3)));
        }
    });
}

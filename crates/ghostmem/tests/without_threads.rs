//! A heap whose threads stand aside for calls. One test in a process of its own: threads are
//! counted by their names.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, Instant};

use ghostmem::{Heap, Spill};

/// Names of this process's threads that are an engine's.
fn engine_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let mut ours: Vec<String> = names
        .map(|name| name.trim().to_owned())
        .filter(|name| name.starts_with("ghost-"))
        .collect();
    ours.sort();
    ours
}

/// The kernel counts a thread that has ended for a moment longer, and one that starts names
/// itself.
fn comes_to_have(wanted: &[&str]) -> bool {
    let end = Instant::now() + Duration::from_secs(10);
    while engine_threads() != wanted {
        if Instant::now() > end {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// Proves that the threads are gone while the call is made and there again afterwards, and
/// that pages are evicted, written to the file and restored before, meanwhile and after.
#[test]
fn threads_are_gone_for_a_call_and_come_back() {
    let heap = Heap::builder()
        .resident_limit(1 << 20)
        .spill(Spill::dir("/var/tmp").store_limit(1 << 20))
        .build()
        .unwrap();
    let mut words = allocator_api2::vec::Vec::new_in(heap.clone());
    let look = |words: &mut allocator_api2::vec::Vec<u64, Heap>, round: u64| {
        for (place, word) in words.iter_mut().enumerate() {
            assert_eq!(*word, place as u64 * 3 + round);
            *word += 1;
        }
    };
    for place in 0..1_000_000_u64 {
        words.push(place * 3);
    }
    assert!(comes_to_have(&["ghost-demote", "ghost-evict"]));
    for round in 0..6 {
        if round % 2 == 0 {
            look(&mut words, round);
            continue;
        }
        let before = heap.stats().refaults;
        heap.without_threads(|| {
            assert!(comes_to_have(&[]));
            look(&mut words, round);
        });
        assert!(heap.stats().refaults > before);
        assert!(comes_to_have(&["ghost-demote", "ghost-evict"]));
    }
    look(&mut words, 6);

    // Several at once wait for each other, and one that panics brings them back as well.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    heap.without_threads(std::thread::yield_now);
                }
            });
        }
        look(&mut words, 7);
    });
    let panics = std::panic::AssertUnwindSafe(|| heap.without_threads(|| panic!("on purpose")));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert!(comes_to_have(&["ghost-demote", "ghost-evict"]));
    look(&mut words, 8);
}

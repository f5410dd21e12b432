//! `HeapBuilder::slowdown`: as little stays resident as the program bears.
#![cfg(target_os = "linux")] // user time, told finely
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::hint::black_box;

use common::{Random, Watchdog};
use ghostmem::{Error, GhostSlice, Heap, HeapBuilder};

mod common;

const MIB: usize = 1 << 20;
const DATA: usize = 48 * MIB;
const WORDS: usize = DATA / 8;

/// Data that compresses.
fn data(heap: &Heap) -> GhostSlice<u64> {
    heap.slice_from_fn(WORDS, |i| i as u64 / 5).unwrap()
}

/// Some milliseconds of the program's own time.
fn compute() {
    let mut random = Random::new(1);
    for _ in 0..1_000_000 {
        black_box(random.next());
    }
}

/// Computes until `done`; a watchdog ends what never is.
fn compute_until(what: &'static str, done: impl Fn() -> bool) {
    let _watchdog = Watchdog::new(what, 100);
    while !done() {
        compute();
    }
}

fn limited() -> HeapBuilder {
    Heap::builder().resident_limit(256 * MIB)
}

#[test]
fn what_is_idle_leaves_and_comes_back_when_it_is_used() {
    let heap = limited().slowdown(5.0).build().unwrap();
    let data = data(&heap);
    assert_eq!(heap.stats().slowdown_asked_ppm, 50_000);
    compute_until("data that is idle stays", || {
        heap.stats().resident_bytes < DATA / 3
    });
    let stats = heap.stats();
    assert!(stats.resident_limit_bytes < DATA / 2, "{stats:?}");
    assert!(stats.slowdown_reached_ppm > 0, "{stats:?}");
    assert!(stats.slowdown_reached_ppm < 1_000_000, "{stats:?}");
    // All of it is in use again.
    let mut random = Random::new(2);
    let watchdog = Watchdog::new("data that is used stays away", 100);
    while heap.stats().resident_bytes < DATA / 10 * 9 {
        for _ in 0..10_000 {
            let at = random.below(WORDS);
            assert_eq!(data[at], at as u64 / 5);
        }
    }
    drop(watchdog);
}

/// Counted in faults, not in time: a fault may take as long as it likes. At a twentieth of
/// the time a fault of 2 us comes once in a thousand touches at most; with half of the data
/// resident it would be every second touch.
#[test]
fn data_that_is_all_in_use_stays() {
    let heap = limited().slowdown(5.0).readahead(false).build().unwrap();
    let data = data(&heap);
    let mut random = Random::new(3);
    let watchdog = Watchdog::new("a hundred million touches", 100);
    let mut sum = 0_u64;
    for _ in 0..100 {
        for _ in 0..1_000_000 {
            sum = sum.wrapping_add(data[random.below(WORDS)]);
        }
    }
    drop(watchdog);
    black_box(sum);
    let stats = heap.stats();
    assert!(stats.resident_bytes > DATA / 2, "{stats:?}");
    assert!(stats.refaults < 1_000_000, "{stats:?}");
}

/// Pages that cannot leave are no idle ones: the limit leaves room beside them, while they
/// lie there and when more are pinned.
#[test]
fn pages_that_are_pinned_leave_room_for_others() {
    let heap = limited().slowdown(5.0).build().unwrap();
    let block = heap.slice_from_fn(WORDS, |i| i as u64).unwrap();
    let (early, late) = block.split_at(WORDS / 2);
    let pins = heap.pin(early).unwrap();
    // The rest is idle, and leaves. After that nothing faults.
    compute_until("data beside what is pinned stays", || {
        heap.stats().resident_bytes < DATA / 8 * 5
    });
    for _ in 0..1000 {
        compute();
    }
    let stats = heap.stats();
    assert!(stats.resident_limit_bytes > DATA / 2, "{stats:?}");
    let watchdog = Watchdog::new("no room beside what is pinned", 100);
    let fresh = heap.slice_from_fn(8 * MIB / 8, |i| i as u64).unwrap();
    assert!(fresh.iter().enumerate().all(|(i, &word)| word == i as u64));
    let more = heap.pin(late).unwrap();
    assert!(fresh.iter().enumerate().all(|(i, &word)| word == i as u64));
    drop(watchdog);
    let stats = heap.stats();
    assert!(stats.resident_limit_bytes > DATA, "{stats:?}");
    assert_eq!(stats.overdrafts, 0, "{stats:?}");
    drop((pins, more));
}

#[test]
fn the_limit_that_was_asked_for_is_kept_and_can_be_changed() {
    let heap = limited().slowdown(5.0).build().unwrap();
    heap.set_resident_limit(16 * MIB).unwrap();
    let data = data(&heap);
    assert!(heap.stats().resident_limit_bytes <= 16 * MIB);
    compute_until("no page leaves below the limit", || {
        heap.stats().resident_limit_bytes < 12 * MIB
    });
    let mut random = Random::new(4);
    for _ in 0..100_000 {
        let at = random.below(WORDS);
        assert_eq!(data[at], at as u64 / 5);
    }
    let stats = heap.stats();
    assert!(stats.resident_limit_bytes <= 16 * MIB, "{stats:?}");
}

#[test]
fn shares_that_make_no_sense_are_refused() {
    for percent in [0.0, 0.4, 51.0, -5.0, f64::NAN, f64::INFINITY] {
        let error = limited().slowdown(percent).build().unwrap_err();
        assert_eq!(error, Error::Slowdown, "{percent}");
    }
    let error = limited().slowdown(5.0).background(false).build();
    assert_eq!(error.unwrap_err(), Error::SlowdownWithoutThread);
    let stats = limited().build().unwrap().stats();
    assert_eq!(
        (stats.slowdown_asked_ppm, stats.slowdown_reached_ppm),
        (0, 0)
    );
}

#[test]
fn under_a_bound_on_the_process_idle_data_leaves_as_well() {
    let heap = Heap::builder().memory(1 << 30).slowdown(5.0);
    let heap = heap.build().unwrap();
    let data = data(&heap);
    compute_until("data that is idle stays under a bound", || {
        heap.stats().resident_bytes < DATA / 2
    });
    let stats = heap.stats();
    assert_eq!(stats.process_bound_bytes, 1 << 30);
    assert_eq!(stats.bound_overruns, 0, "{stats:?}");
    for at in (0..WORDS).step_by(1009) {
        assert_eq!(data[at], at as u64 / 5);
    }
}

#[test]
fn a_forked_child_without_a_thread_that_looks_is_not_limited() {
    const NAME: &str = "a_forked_child_without_a_thread_that_looks_is_not_limited";
    common::alone(NAME, || {
        let heap = limited().slowdown(5.0).background_in_children(false);
        let heap = heap.build().unwrap();
        let data = data(&heap);
        compute_until("data that is idle stays", || {
            heap.stats().resident_limit_bytes < DATA / 2
        });
        let child = common::fork(|| {
            let stats = heap.stats();
            assert_eq!(stats.resident_limit_bytes, 256 * MIB);
            for at in 0..WORDS {
                assert_eq!(data[at], at as u64 / 5);
            }
            let stats = heap.stats();
            assert!(stats.resident_bytes > DATA / 10 * 9, "{stats:?}");
            assert!(stats.slowdown_reached_ppm > 0, "{stats:?}");
        });
        assert!(common::wait_for(child).success());
    });
}

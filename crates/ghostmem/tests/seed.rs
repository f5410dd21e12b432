//! The seed's patterns, habits and concurrent allocation test hold on every
//! backend.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use common::{BACKENDS, Watchdog, heap};

mod common;
#[path = "../examples/seed_patterns.rs"]
mod patterns;

#[test]
fn independent_allocations() {
    for backend in BACKENDS {
        let sums = patterns::independent_allocations(&heap(backend, 64));
        let right = (0..4).map(|id| (id * 100_000..(id + 1) * 100_000).sum::<u64>());
        assert!(sums.iter().copied().eq(right), "{backend}: {sums:?}");
    }
}

#[test]
fn shared_read_only_access() {
    for backend in BACKENDS {
        let sums = patterns::shared_read_only(&heap(backend, 256));
        assert_eq!(sums, [499_999_500_000; 4], "{backend}");
    }
}

#[test]
fn producer_and_consumers() {
    for backend in BACKENDS {
        let got = patterns::producer_consumer(&heap(backend, 5));
        assert_eq!(got, (1000, 499_500), "{backend}");
    }
}

#[test]
fn the_concurrent_allocation_test() {
    let _watchdog = Watchdog::new("concurrent allocation", 60);
    for backend in BACKENDS {
        let heap = heap(backend, 5);
        assert_eq!(
            patterns::concurrent_allocations(&heap, 100),
            800,
            "{backend}"
        );
        assert_eq!(heap.stats().allocated_bytes, 0, "{backend}");
    }
}

#[test]
fn rapid_allocation_and_freeing_across_threads() {
    for backend in BACKENDS {
        let heap = heap(backend, 64);
        assert_eq!(patterns::rapid_allocation(&heap, 300), 2400, "{backend}");
        assert_eq!(heap.stats().allocated_bytes, 0, "{backend}");
    }
}

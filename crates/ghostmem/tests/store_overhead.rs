//! The store's overhead stays small while a program rewrites without pause: the
//! background thread compacts between batches of reclaim, as hard as needed.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use common::{PAGE_SIZE, Random, Watchdog};
use ghostmem::Heap;

mod common;

/// 192 MiB, about 110 MiB compressed.
const PAGES: usize = 192 << 8;

/// Fills a page with `len` bytes that do not compress, and zeros.
fn write(page: &mut [u64], len: usize, random: &mut Random) {
    let (noise, rest) = page.split_at_mut(len / 8);
    noise.fill_with(|| random.next());
    rest.fill(0);
}

#[test]
fn overhead_stays_below_six_per_cent_while_pages_are_rewritten() {
    let _watchdog = Watchdog::new("rewriting", 120);
    // Never a free frame for long: the background thread never rests.
    let heap = Heap::builder().resident_limit(8 << 20).build().unwrap();
    let mut random = Random::new(7);
    let mut data = heap
        .slice_from_fn(PAGES * PAGE_SIZE / 8, |_| 0_u64)
        .unwrap();
    let (mut peak, mut fresh): (f64, f64) = (0.0, 0.0);
    for round in 0..PAGES * 5 {
        // First all pages, then random ones; the sizes drift, so that
        // some classes shrink while others grow.
        let page = if round < PAGES {
            round
        } else {
            random.below(PAGES)
        };
        let drift = round / 512;
        let len = 1024 + drift + random.below(1024);
        write(
            &mut data[page * PAGE_SIZE / 8..][..PAGE_SIZE / 8],
            len,
            &mut random,
        );
        if round >= PAGES && round.is_multiple_of(64) {
            let stats = heap.stats();
            let all = (stats.store_held_bytes + stats.metadata_bytes) as f64;
            let overhead = 100.0 * (all / stats.store_data_bytes as f64 - 1.0);
            if fresh == 0.0 {
                fresh = overhead;
            }
            peak = peak.max(overhead);
        }
    }
    assert!(peak <= 6.0, "{fresh:.2} % fresh, {peak:.2} % at most");
}

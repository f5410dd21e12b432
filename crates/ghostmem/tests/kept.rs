//! Pages that are stored to keep their copies: one that is what it was when it leaves is
//! not compressed again, one that changed keeps the change. Not on Windows, where a fault
//! under Wine takes a hundred times as long.
#![cfg(not(windows))]
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::hint::black_box;

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog};
use ghostmem::GhostSlice;

mod common;

const PAGES: usize = 1024;
const RESIDENT_PAGES: usize = 256;
const PAGE_WORDS: usize = PAGE_SIZE / 8;

/// The word at a place, of data of which each page shrinks to about a half.
fn half(random: &mut Random, index: usize) -> u64 {
    if index % 512 < 256 { random.next() } else { 7 }
}

/// A count in each page goes up and down again, as references are counted.
fn count_up_and_down(data: &mut GhostSlice<u64>) {
    for page in 0..PAGES {
        let word = &mut data[page * PAGE_WORDS + 400];
        *word = black_box(*word + 1);
        *word = black_box(*word - 1);
    }
}

#[test]
fn what_is_stored_to_and_not_changed_is_not_compressed_again() {
    let _watchdog = Watchdog::new("silent stores", 120);
    for backend in BACKENDS {
        let heap = common::heap(backend, RESIDENT_PAGES);
        let mut random = Random::new(3);
        let mut data = heap
            .slice_from_fn(PAGES * PAGE_WORDS, |index| half(&mut random, index))
            .unwrap();
        count_up_and_down(&mut data);
        let before = heap.stats();
        (0..4).for_each(|_| count_up_and_down(&mut data));
        let after = heap.stats();
        let unchanged = after.verified_unchanged - before.verified_unchanged;
        let compressed = after.compressed_pages - before.compressed_pages;
        assert!(unchanged > 2000, "{backend}: {after:?}");
        assert!(compressed < unchanged / 2, "{backend}: {after:?}");
        // What changes, in every other page, is not taken for what it was.
        for round in 0..3 {
            for page in (0..PAGES).step_by(2) {
                data[page * PAGE_WORDS + 401] = round;
            }
            count_up_and_down(&mut data);
        }
        let changed = heap.stats().verified_changed - after.verified_changed;
        assert!(changed > 0, "{backend}: {:?}", heap.stats());
        let mut random = Random::new(3);
        for (index, &word) in data.iter().enumerate() {
            let (page, place) = (index / PAGE_WORDS, index % PAGE_WORDS);
            let first = half(&mut random, index);
            let expected = match (page % 2, place) {
                (0, 401) => 2,
                _ => first,
            };
            assert_eq!(word, expected, "{backend}: word {place} of page {page}");
        }
        drop(data);
        let stats = common::stats_at_rest(&heap);
        assert_eq!((stats.kept_copies, stats.stored_pages), (0, 0), "{backend}");
    }
}

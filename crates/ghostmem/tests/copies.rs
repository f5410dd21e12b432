//! What kept copies of clean resident pages may take of memory. Not on Windows, where a
//! fault under Wine takes a hundred times as long, and these need ten thousands.
#![cfg(not(windows))]
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog};
use ghostmem::{Heap, Stats};

mod common;

/// Bytes that the memory limit counts.
fn held_bytes(stats: &Stats) -> usize {
    stats.resident_bytes + stats.store_held_bytes + stats.metadata_bytes
}

/// The word at a place of data of which each page shrinks to about a half.
fn half(random: &mut Random, index: usize) -> u64 {
    if index % 512 < 256 { random.next() } else { 7 }
}

/// Data that fits the limit once, but not with a copy of every resident page
/// beside it, is only read: the total stays within the limit, and memory that is
/// left is granted.
#[test]
fn reading_alone_stays_within_the_memory_limit() {
    const LIMIT: usize = 24 << 20;
    const RESIDENT: usize = 8 << 20;
    const CHUNK_WORDS: usize = (256 << 10) / 8;
    const CHUNKS: usize = 136;
    let _watchdog = Watchdog::new("reading under a memory limit", 120);
    for backend in BACKENDS {
        let heap = Heap::builder()
            .heap_limit(LIMIT)
            .resident_limit(RESIDENT)
            .backend(backend)
            .build()
            .unwrap();
        let chunks: Vec<_> = (0..CHUNKS)
            .map(|chunk| {
                let mut random = Random::new(chunk as u64);
                heap.slice_from_fn(CHUNK_WORDS, |index| half(&mut random, index))
                    .unwrap_or_else(|error| panic!("{backend}: chunk {chunk}: {error}"))
            })
            .collect();
        let mut most = 0;
        let mut look = |heap: &Heap| {
            let stats = heap.stats();
            most = most.max(held_bytes(&stats));
            assert!(
                held_bytes(&stats) <= LIMIT,
                "{backend}: {} bytes held: {stats:?}",
                held_bytes(&stats)
            );
        };
        let mut at = Random::new(5);
        for turn in 0..40_000 {
            let (chunk, page) = (at.below(CHUNKS), at.below(CHUNK_WORDS * 8 / PAGE_SIZE));
            assert_eq!(chunks[chunk][page * PAGE_SIZE / 8 + 300], 7, "{backend}");
            if turn % 64 == 0 {
                look(&heap);
            }
        }
        for (seed, chunk) in chunks.iter().enumerate() {
            let mut random = Random::new(seed as u64);
            for (index, &word) in chunk.iter().enumerate() {
                assert_eq!(word, half(&mut random, index), "{backend}");
            }
            look(&heap);
        }
        // Nothing was given up for nothing: the limit is nearly used.
        assert!(most > LIMIT / 4 * 3, "{backend}: {most} bytes at the most");
        let more = heap.slice_from_fn(64 << 7, |_| 0_u64);
        assert!(more.is_ok(), "{backend}: {:?}", heap.stats());
    }
}

/// A page that does not shrink costs as much in the store as it does resident: it
/// is in one of the two places.
#[test]
fn pages_that_do_not_shrink_keep_no_copy() {
    const PAGES: usize = 2048;
    const RESIDENT_PAGES: usize = 512;
    for backend in BACKENDS {
        let heap = common::heap(backend, RESIDENT_PAGES);
        let mut random = Random::new(9);
        let data = heap
            .slice_from_fn(PAGES * PAGE_SIZE / 8, |_| random.next())
            .unwrap();
        let mut again = Random::new(9);
        for turn in 0..3 {
            let mut most = 0;
            for (index, &word) in data.iter().enumerate() {
                if turn == 2 {
                    assert_eq!(word, again.next(), "{backend}");
                }
                if index.is_multiple_of(64 * PAGE_SIZE / 8) {
                    most = most.max(heap.stats().stored_pages);
                }
            }
            // Frames kept free ahead of demand, and those of a batch under way.
            let absent = PAGES - RESIDENT_PAGES + RESIDENT_PAGES / 2;
            assert!(most <= absent, "{backend}: {most} pages stored");
        }
    }
}

/// Copies are given up before an allocation is refused for the room they take.
#[test]
fn copies_make_room_before_an_allocation_is_refused() {
    const LIMIT: usize = 24 << 20;
    const CHUNK_WORDS: usize = (256 << 10) / 8;
    for backend in BACKENDS {
        let heap = Heap::builder()
            .heap_limit(LIMIT)
            .resident_limit(8 << 20)
            .backend(backend)
            .build()
            .unwrap();
        let chunk = |seed: usize| {
            let mut random = Random::new(seed as u64);
            heap.slice_from_fn(CHUNK_WORDS, |index| half(&mut random, index))
        };
        let data: Vec<_> = (0..96).map(|seed| chunk(seed).unwrap()).collect();
        // What is resident after a second look has a copy.
        for (seed, chunk) in data.iter().enumerate().chain(data.iter().enumerate()) {
            let mut random = Random::new(seed as u64);
            for (index, &word) in chunk.iter().enumerate() {
                assert_eq!(word, half(&mut random, index), "{backend}");
            }
        }
        let copies = heap.stats().kept_copies;
        assert!(copies > 1000, "{backend}: {copies} copies");
        // At the data's ratio this fits in what the copies take, and in no less.
        let layout = std::alloc::Layout::from_size_align(10 << 20, PAGE_SIZE).unwrap();
        let block = heap.allocate(layout);
        assert!(block.is_ok(), "{backend}: {:?}", heap.stats());
        assert!(heap.stats().kept_copies < copies, "{backend}");
    }
}

/// Every way in which a copy can end is counted once.
#[test]
fn no_copy_is_left_when_its_page_is_gone() {
    const PAGES: usize = 256;
    for backend in BACKENDS {
        let heap = common::heap(backend, 64);
        let mut random = Random::new(2);
        let mut data = heap
            .slice_from_fn(PAGES * PAGE_SIZE / 8, |index| half(&mut random, index))
            .unwrap();
        for round in 0..8 {
            let sum = data.iter().step_by(PAGE_SIZE / 8).fold(0, |a, b| a ^ b);
            assert_ne!(sum, 1, "{backend}");
            let copies = heap.stats().kept_copies;
            assert!(copies <= 64, "{backend}: {copies} copies of 64 pages");
            let at = round * 32 * PAGE_SIZE / 8;
            assert_eq!(data[at + 300], 7, "{backend}");
            match round % 4 {
                0 => data[at..at + PAGE_SIZE].fill(round as u64),
                1 => drop(heap.pin(&raw const data[at..at + PAGE_SIZE]).unwrap()),
                2 => drop(heap.evict(&raw const data[at..at + 8 * PAGE_SIZE]).unwrap()),
                // SAFETY: words that nobody refers to; zero is a word.
                _ => unsafe { heap.discard(&raw mut data[at..at + PAGE_SIZE]) }.unwrap(),
            }
        }
        drop(data);
        let stats = common::stats_at_rest(&heap);
        assert_eq!(
            (stats.kept_copies, stats.stored_pages),
            (0, 0),
            "{backend}: {stats:?}"
        );
    }
}

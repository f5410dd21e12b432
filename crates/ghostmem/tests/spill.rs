//! Data many times as large as the memory for it, in a file: every word comes
//! back, from every backend, on many threads, while it is rewritten.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::thread;
use std::time::Duration;

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog, alone_on_each, word};
use ghostmem::{Backend, Heap, Spill, Stats};

mod common;

/// Pages resident at most, and bytes of packed pages in memory.
const RESIDENT: usize = 512;
const STORE: usize = 2 << 20;
/// Words of one thread's part.
const PART: usize = 12 << 20 >> 3;

fn heap(backend: Backend, spill: Spill) -> Heap {
    Heap::builder()
        .resident_limit(RESIDENT * PAGE_SIZE)
        .backend(backend)
        .spill(spill.store_limit(STORE))
        .build()
        .unwrap()
}

fn dir() -> Spill {
    Spill::dir("/var/tmp")
}

/// Waits until the heap's figures are as they should be.
fn wait_until(heap: &Heap, what: &str, right: impl Fn(&Stats) -> bool) -> Stats {
    for _ in 0..5000 {
        let stats = heap.stats();
        if right(&stats) {
            return stats;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("{what}: {:?}", heap.stats());
}

#[test]
fn ten_times_the_stores_share_comes_back_word_for_word() {
    alone_on_each(
        "ten_times_the_stores_share_comes_back_word_for_word",
        |backend| {
            let _watchdog = Watchdog::new("spill", 50);
            let heap = heap(backend, dir());
            // Four parts of which half does not compress: 24 MiB and more packed.
            thread::scope(|scope| {
                for part in 0..4_u64 {
                    let heap = &heap;
                    scope.spawn(move || {
                        let mut random = Random::new(part);
                        let mut rounds = vec![part; PART * 8 / PAGE_SIZE];
                        let mut data = heap.slice_from_fn(PART, |i| word(i, part)).unwrap();
                        for _ in 0..4000 {
                            let page = random.below(rounds.len());
                            let first = page * PAGE_SIZE / 8;
                            let round = &mut rounds[page];
                            for i in first..first + PAGE_SIZE / 8 {
                                assert_eq!(data[i], word(i, *round), "word {i} of {part}");
                            }
                            if random.next() & 3 == 0 {
                                *round += 4;
                                for i in first..first + PAGE_SIZE / 8 {
                                    data[i] = word(i, *round);
                                }
                            }
                        }
                        for (i, value) in data.iter().enumerate() {
                            assert_eq!(
                                *value,
                                word(i, rounds[i * 8 / PAGE_SIZE]),
                                "word {i} of {part}"
                            );
                        }
                    });
                }
            });
            // The parts are gone, and with them what was in the file.
            let stats = wait_until(&heap, "freed pages stay", |stats| {
                stats.file_pages + stats.stored_pages == 0
            });
            assert!(stats.pages_spilled > 4000, "{stats:?}");
            assert!(stats.spilled_reads > 4000, "{stats:?}");
            assert_eq!(
                (stats.spill_write_errors, stats.spilled_read_errors),
                (0, 0)
            );
            assert_eq!(stats.file_data_bytes, 0);
        },
    );
}

#[test]
fn the_store_in_memory_stays_about_its_share() {
    for backend in BACKENDS {
        let heap = heap(backend, dir());
        let _watchdog = Watchdog::new("share of the store", 60);
        let most = STORE + STORE / 8 + (4 << 20);
        let data = heap
            .slice_from_fn(8 << 20, |i| {
                if i % (1 << 16) == 0 {
                    let held = heap.stats().store_held_bytes;
                    assert!(held <= most, "{held} bytes in memory at word {i}");
                }
                word(i, 1)
            })
            .unwrap();
        let at_rest = |stats: &Stats| stats.store_held_bytes <= STORE;
        let stats = wait_until(&heap, "the store stays above its share", at_rest);
        assert!(stats.file_data_bytes > 20 << 20, "{stats:?}");
        assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
        // Read-only passes put nothing new in memory beside copies.
        wait_until(&heap, "the store stays above its share", at_rest);
    }
}

#[test]
fn pages_leave_at_once_where_memory_has_no_share() {
    let _watchdog = Watchdog::new("no share", 60);
    let heap = heap(Backend::Auto, dir());
    drop(heap);
    let heap = Heap::builder()
        .resident_limit(RESIDENT * PAGE_SIZE)
        .spill(dir().store_limit(0))
        .build()
        .unwrap();
    let data = heap.slice_from_fn(4 << 20, |i| word(i, 1)).unwrap();
    let stats = wait_until(&heap, "pages stay in memory", |stats| {
        stats.store_held_bytes <= 1 << 20
    });
    let absent = (32 << 20) / PAGE_SIZE - stats.resident_bytes / PAGE_SIZE;
    assert!(stats.file_pages + 300 >= absent, "{absent} of {stats:?}");
    assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
}

#[test]
fn pages_go_raw_where_they_are_not_to_be_compressed() {
    let _watchdog = Watchdog::new("raw pages", 60);
    let heap = heap(Backend::Auto, dir().compress(false).encrypt(false));
    let data = heap.slice_from_fn(4 << 20, |i| i as u64).unwrap();
    let stats = wait_until(&heap, "pages stay in memory", |stats| {
        stats.store_held_bytes <= STORE
    });
    let bytes_per_page = stats.file_data_bytes / stats.file_pages as u64;
    assert_eq!(bytes_per_page, PAGE_SIZE as u64, "{stats:?}");
    assert!(data.iter().enumerate().all(|(i, &w)| w == i as u64));
}

#[test]
fn a_clean_copy_in_the_file_serves_again() {
    let _watchdog = Watchdog::new("clean copies", 60);
    let heap = heap(Backend::Inline, dir());
    let data = heap.slice_from_fn(4 << 20, |i| word(i, 1)).unwrap();
    wait_until(&heap, "pages stay in memory", |stats| {
        stats.store_held_bytes <= STORE
    });
    let before = heap.stats();
    for _ in 0..2 {
        assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
    }
    let after = heap.stats();
    let clean = after.evictions_clean - before.evictions_clean;
    let dirty = after.evictions_dirty - before.evictions_dirty;
    assert!(clean > 8 * dirty, "{clean} clean evictions, {dirty} dirty");
    let spilled = after.pages_spilled - before.pages_spilled;
    assert!(spilled < 2000, "{spilled} pages were written again");
}

/// Proves that pages which went to the file while they were cold, and are then read
/// again and again, get their copies back into memory, although nobody writes them.
#[test]
fn what_is_read_again_and_again_leaves_the_file() {
    const PAGES: usize = 12_000;
    const HOT: usize = 800;
    let heap = Heap::builder()
        .resident_limit(RESIDENT * PAGE_SIZE)
        .spill(dir().store_limit(4 << 20))
        .build()
        .unwrap();
    let _watchdog = Watchdog::new("a hot set in the file", 50);
    let words_per_page = PAGE_SIZE / 8;
    let data = heap
        .slice_from_fn(PAGES * words_per_page, |i| word(i, 1))
        .unwrap();
    // Written first: by now they are in the file.
    let mut random = Random::new(1);
    let mut reads = Vec::new();
    for _ in 0..40 {
        let before = heap.stats().spilled_reads;
        for _ in 0..HOT {
            let at = random.below(HOT) * words_per_page;
            assert_eq!(data[at], word(at, 1));
        }
        reads.push(heap.stats().spilled_reads - before);
    }
    let (first, last) = (reads[0], reads[35..].iter().sum::<u64>() / 5);
    assert!(first > 200 && last < first / 10, "{reads:?}");
    assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
}

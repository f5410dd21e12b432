//! fork(2) with pages in the file: parent and child each go on with all of them,
//! write to files of their own, and neither sees the other's stores. Each case in
//! a process of its own.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{PAGE_SIZE, Random, Watchdog, alone, alone_on_each, fork, stamped, wait_for};
use ghostmem::{Backend, GhostSlice, Heap, Spill};
use ghostmem_file::{Faults, Injected};

mod common;

type Words = GhostSlice<AtomicU64>;

/// Words of one thread's part: 320 pages.
const PART: usize = 320 * PAGE_SIZE / 8;
const PARTS: usize = 4;

fn words(backend: Backend) -> Words {
    let heap = Heap::builder()
        .resident_limit(128 * PAGE_SIZE)
        .backend(backend)
        .spill(Spill::dir("/var/tmp").store_limit(64 * PAGE_SIZE))
        .build()
        .unwrap();
    heap.slice_from_fn(PARTS * PART, |i| AtomicU64::new(mixed(i, 0)))
        .unwrap()
}

/// As `stamped`, but nothing that compresses.
fn mixed(index: usize, round: u64) -> u64 {
    let word = stamped(index, round);
    word ^ (word & 0xFFFF_FFFF) << 32
}

fn fill(words: &Words, round: u64) {
    for (i, value) in words.iter().enumerate() {
        value.store(mixed(i, round), Ordering::Relaxed);
    }
}

fn check(words: &Words, round: u64) {
    for (i, value) in words.iter().enumerate() {
        let seen = value.load(Ordering::Relaxed);
        assert_eq!(seen, mixed(i, round), "word {i} of round {round}");
    }
}

#[test]
fn both_sides_keep_what_was_in_the_file_and_write_their_own() {
    let name = "both_sides_keep_what_was_in_the_file_and_write_their_own";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("fork with a file", 55);
        let words = words(backend);
        // In the background, and a fault waits for it a tenth of a second at most.
        while words.heap().stats().pages_spilled <= 500 {
            thread::sleep(Duration::from_millis(2));
        }
        for turn in 0..3 {
            let child = fork(|| {
                check(&words, turn);
                let before = words.heap().stats().pages_spilled;
                fill(&words, 70 + turn);
                check(&words, 70 + turn);
                // A grandchild, whose pages lie in two files.
                let grandchild = fork(|| {
                    check(&words, 70 + turn);
                    fill(&words, 90);
                    check(&words, 90);
                });
                fill(&words, 71 + turn);
                check(&words, 71 + turn);
                assert!(wait_for(grandchild).success());
                let stats = words.heap().stats();
                assert!(stats.pages_spilled > before + 500, "{stats:?}");
                assert_eq!(stats.spilled_read_errors, 0);
            });
            // Both at once.
            fill(&words, turn + 1);
            check(&words, turn + 1);
            let status = wait_for(child);
            assert!(status.success(), "{backend}, child {turn}: {status}");
            check(&words, turn + 1);
        }
        assert_eq!(words.heap().stats().spilled_read_errors, 0);
    });
}

#[test]
fn forks_in_the_middle_of_spilling_leave_both_sides_whole() {
    let name = "forks_in_the_middle_of_spilling_leave_both_sides_whole";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("fork while spilling", 55);
        let words = words(backend);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (number, part) in words.chunks(PART).enumerate() {
                let stop = &stop;
                scope.spawn(move || {
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        for (i, value) in part.iter().enumerate() {
                            let seen = value.load(Ordering::Relaxed);
                            assert_eq!(seen, mixed(number * PART + i, round), "word {i}");
                            value.store(mixed(number * PART + i, round + 1), Ordering::Relaxed);
                        }
                        round += 1;
                    }
                });
            }
            for turn in 0..5 {
                let before = words.heap().stats().pages_spilled;
                while words.heap().stats().pages_spilled < before + 100 {
                    thread::sleep(Duration::from_millis(1));
                }
                let child = fork(|| {
                    // Each part was caught at some word of some round: the first
                    // one, where its thread has not stored a word yet.
                    for (number, part) in words.chunks(PART).enumerate() {
                        let first = part[0].load(Ordering::Relaxed);
                        let round = (0..100_000)
                            .find(|round| mixed(number * PART, *round) == first)
                            .unwrap();
                        let border = (0..PART)
                            .find(|i| {
                                let word = mixed(number * PART + i, round);
                                part[*i].load(Ordering::Relaxed) != word
                            })
                            .unwrap_or(PART);
                        for (i, value) in part.iter().enumerate().skip(border) {
                            let word = mixed(number * PART + i, round.wrapping_sub(1));
                            assert_eq!(value.load(Ordering::Relaxed), word, "word {i}");
                        }
                    }
                    fill(&words, 1000);
                    check(&words, 1000);
                });
                let status = wait_for(child);
                assert!(status.success(), "{backend}, child {turn}: {status}");
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn a_childs_end_gives_the_parent_its_file_back() {
    let name = "a_childs_end_gives_the_parent_its_file_back";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("file after children", 55);
        let words = words(backend);
        for turn in 1..8 {
            let child = fork(|| check(&words, turn - 1));
            fill(&words, turn);
            assert!(wait_for(child).success());
        }
        check(&words, 7);
        // Eight times the data were written; what is kept is one of them.
        let bytes = (PARTS * PART * 8) as u64;
        for _ in 0..10_000 {
            if words.heap().stats().file_bytes < 2 * bytes {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("{:?}", words.heap().stats());
    });
}

/// A child that has no thread to write to a file waits for none.
#[test]
fn a_child_without_background_threads_does_not_wait_for_the_file() {
    let name = "a_child_without_background_threads_does_not_wait_for_the_file";
    alone(name, || {
        let _watchdog = Watchdog::new("a child without threads", 55);
        let heap = Heap::builder()
            .resident_limit(256 * PAGE_SIZE)
            .background_in_children(false)
            .spill(Spill::dir("/var/tmp").store_limit(1 << 20))
            .build()
            .unwrap();
        let child = fork(|| {
            let mut random = Random::new(3);
            let data = heap.slice_from_fn(8 << 17, |_| random.next()).unwrap();
            let stats = heap.stats();
            assert_eq!((stats.spill_waits, stats.pages_spilled), (0, 0));
            drop(data);
        });
        assert!(wait_for(child).success());
    });
}

/// A disk on which a write takes its time.
#[derive(Debug)]
struct Slow {
    writes: AtomicU64,
    is_slow: AtomicBool,
}

impl Faults for Slow {
    fn read(&self, _offset: u64, _len: usize) -> Injected {
        Injected::Nothing
    }

    fn write(&self, _offset: u64, _len: usize) -> Injected {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if self.is_slow.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(30));
        }
        Injected::Nothing
    }

    fn punch(&self, _offset: u64, _len: u64) -> Injected {
        Injected::Nothing
    }
}

/// A fork while pages are being written leaves no place in the file that only the
/// thread knew of which the child does not have.
#[test]
fn a_child_inherits_no_place_that_is_nobodys() {
    alone("a_child_inherits_no_place_that_is_nobodys", || {
        static DISK: Slow = Slow {
            writes: AtomicU64::new(0),
            is_slow: AtomicBool::new(true),
        };
        let _watchdog = Watchdog::new("forks while writing", 55);
        let spill = Spill::dir("/var/tmp").store_limit(1 << 20);
        let heap = Heap::builder()
            .resident_limit(256 * PAGE_SIZE)
            .spill(spill.faults(&DISK))
            .build()
            .unwrap();
        for turn in 0..10 {
            let before = DISK.writes.load(Ordering::Relaxed);
            let mut data = Some(heap.slice_from_fn(1 << 19, |i| mixed(i, turn)).unwrap());
            while DISK.writes.load(Ordering::Relaxed) == before {
                thread::yield_now();
            }
            let child = fork(|| {
                drop(data.take());
                for _ in 0..1000 {
                    if heap.stats().file_pages == 0 {
                        return;
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                panic!("{:?}", heap.stats());
            });
            assert!(wait_for(child).success(), "turn {turn}");
        }
    });
}

/// A heap that a child drops is gone there: its file is closed and its memory
/// unmapped, although the threads it had are the parent's.
#[test]
fn a_heap_that_a_child_drops_closes_its_files() {
    fn files() -> usize {
        let ours = |path: std::path::PathBuf| {
            path.starts_with("/var/tmp") && path.to_string_lossy().contains("(deleted)")
        };
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .filter(|path| ours(path.clone()))
            .count()
    }
    alone("a_heap_that_a_child_drops_closes_its_files", || {
        let _watchdog = Watchdog::new("a heap dropped in a child", 55);
        let before = files();
        let heap = Heap::builder()
            .resident_limit(256 * PAGE_SIZE)
            .spill(Spill::dir("/var/tmp").store_limit(1 << 20))
            .build()
            .unwrap();
        let data = heap.slice_from_fn(1 << 20, |i| mixed(i, 1)).unwrap();
        let mut all = Some((data, heap));
        assert!(files() > before);
        let child = fork(|| {
            drop(all.take());
            assert_eq!(files(), before);
        });
        assert!(wait_for(child).success());
        drop(all.take());
        assert_eq!(files(), before);
    });
}

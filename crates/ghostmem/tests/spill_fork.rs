//! fork(2) with pages in the file: parent and child each go on with all of them,
//! write to files of their own, and neither sees the other's stores. Each case in
//! a process of its own.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{PAGE, Watchdog, alone_on_each, fork, stamped, wait_for};
use ghostmem::{Backend, GhostSlice, Heap, Spill};

mod common;

type Words = GhostSlice<AtomicU64>;

/// Words of one thread's part: 320 pages.
const PART: usize = 320 * PAGE / 8;
const PARTS: usize = 4;

fn words(backend: Backend) -> Words {
    let heap = Heap::builder()
        .resident_limit(128 * PAGE)
        .backend(backend)
        .spill(Spill::dir(std::env::temp_dir()).store_limit(64 * PAGE))
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
        assert!(words.heap().stats().pages_spilled > 500);
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
                    // Each part was caught at some word of some round.
                    for (number, part) in words.chunks(PART).enumerate() {
                        let first = part[0].load(Ordering::Relaxed);
                        let round = (1..)
                            .find(|round| mixed(number * PART, *round) == first)
                            .unwrap();
                        let border = (0..PART)
                            .find(|i| {
                                let word = mixed(number * PART + i, round);
                                part[*i].load(Ordering::Relaxed) != word
                            })
                            .unwrap_or(PART);
                        for (i, value) in part.iter().enumerate().skip(border) {
                            let word = mixed(number * PART + i, round - 1);
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

//! fork(2) at any moment: parent and child each go on with all the memory,
//! and neither sees the other's stores. Each case in a process of its own.
#![cfg(target_os = "linux")] // fork(2)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{PAGE_SIZE, Watchdog, alone_on_each, fork, heap, stamped, wait_for};
use ghostmem::{Backend, GhostSlice, Heap};

mod common;

/// Words of one thread's part: 64 pages.
const PART: usize = 64 * PAGE_SIZE / 8;
const PARTS: usize = 4;

type Words = GhostSlice<AtomicU64>;

/// Rewrites a part round after round, from the front to the back, checking
/// each word first, until told to stop.
fn rewrite(part: &[AtomicU64], stop: &AtomicBool) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        for (i, value) in part.iter().enumerate() {
            let seen = value.load(Ordering::Relaxed);
            assert_eq!(seen, stamped(i, round), "word {i} in round {round}");
            value.store(stamped(i, round + 1), Ordering::Relaxed);
        }
        round += 1;
    }
    round
}

/// A part caught at any moment of [`rewrite`]: one round up to some word, the
/// round before from there on.
fn check_snapshot(part: &[AtomicU64]) {
    let mut round = part[0].load(Ordering::Relaxed) >> 32;
    let mut drops = 0;
    for (i, value) in part.iter().enumerate() {
        let seen = value.load(Ordering::Relaxed);
        if seen >> 32 != round {
            assert_eq!((seen >> 32) + 1, round, "word {i} is of a wrong round");
            round -= 1;
            drops += 1;
        }
        assert_eq!(seen, stamped(i, round), "word {i}");
    }
    assert!(drops <= 1, "{drops} borders between rounds");
}

/// What a child does with all the memory: check, rewrite, check.
fn use_everything(words: &Words, mark: u64) {
    words.chunks(PART).for_each(check_snapshot);
    for pass in [mark, mark + 1] {
        for (i, value) in words.iter().enumerate() {
            value.store(stamped(i, pass), Ordering::Relaxed);
        }
        for (i, value) in words.iter().enumerate() {
            assert_eq!(value.load(Ordering::Relaxed), stamped(i, pass), "word {i}");
        }
    }
}

fn words(backend: Backend) -> Words {
    heap(backend, 96)
        .slice_from_fn(PARTS * PART, |i| AtomicU64::new(stamped(i % PART, 0)))
        .unwrap()
}

/// Runs `body` while a thread for each part rewrites it.
fn while_faulting(words: &Words, body: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = words
            .chunks(PART)
            .map(|part| scope.spawn(|| rewrite(part, &stop)))
            .collect();
        let under_way = |part: &[AtomicU64]| part[PART - 1].load(Ordering::Relaxed) >> 32 > 0;
        while !words.chunks(PART).all(under_way) {
            thread::sleep(Duration::from_millis(2));
        }
        body();
        thread::sleep(Duration::from_millis(20));
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            assert!(writer.join().unwrap() > 0);
        }
    });
    words.chunks(PART).for_each(check_snapshot);
}

#[test]
fn forks_in_the_middle_of_faulting_leave_both_sides_whole() {
    alone_on_each(
        "forks_in_the_middle_of_faulting_leave_both_sides_whole",
        |backend| {
            let _watchdog = Watchdog::new("fork while faulting", 50);
            let words = words(backend);
            while_faulting(&words, || {
                for turn in 0..6 {
                    let child = fork(|| {
                        use_everything(&words, 100 + turn);
                        // The child's heap is a whole one.
                        let more = words.heap().slice_from_fn(PART, |i| i).unwrap();
                        assert!(more.iter().copied().eq(0..PART));
                        assert!(words.heap().stats().resident_bytes <= 96 * PAGE_SIZE);
                    });
                    let status = wait_for(child);
                    assert!(status.success(), "{backend}, child {turn}: {status}");
                }
            });
        },
    );
}

#[test]
fn children_can_fork_and_start_threads() {
    alone_on_each("children_can_fork_and_start_threads", |backend| {
        let _watchdog = Watchdog::new("nested fork", 50);
        let words = words(backend);
        while_faulting(&words, || {
            let child = fork(|| {
                words.chunks(PART).for_each(check_snapshot);
                let grandchild = fork(|| {
                    use_everything(&words, 200);
                    thread::scope(|scope| {
                        for part in words.chunks(PART) {
                            scope.spawn(move || {
                                for value in part {
                                    value.fetch_add(1, Ordering::Relaxed);
                                }
                            });
                        }
                    });
                    let right = |(i, value): (usize, &AtomicU64)| {
                        value.load(Ordering::Relaxed) == stamped(i, 201) + 1
                    };
                    assert!(words.iter().enumerate().all(right));
                });
                use_everything(&words, 300);
                assert!(wait_for(grandchild).success());
            });
            let status = wait_for(child);
            assert!(status.success(), "{backend}: {status}");
        });
    });
}

#[test]
fn programs_can_be_started_while_faulting() {
    alone_on_each("programs_can_be_started_while_faulting", |backend| {
        let _watchdog = Watchdog::new("posix_spawn", 50);
        let words = words(backend);
        while_faulting(&words, || {
            for _ in 0..5 {
                // posix_spawn, then fork and exec.
                assert!(Command::new("true").status().unwrap().success());
                let mut command = Command::new("true");
                // SAFETY: the closure does nothing.
                unsafe { command.pre_exec(|| Ok(())) };
                assert!(command.status().unwrap().success());
            }
        });
    });
}

#[test]
fn small_objects_live_on_in_both_sides() {
    use allocator_api2::boxed::Box;
    alone_on_each("small_objects_live_on_in_both_sides", |backend| {
        let _watchdog = Watchdog::new("small objects and fork", 50);
        let heap = heap(backend, 16);
        let boxed = |from: u64| -> Vec<_> {
            (0..4000)
                .map(|i| Box::new_in([from + i; 5], heap.clone()))
                .collect()
        };
        let right = |all: &[Box<[u64; 5], ghostmem::Heap>], from: u64| {
            all.iter().zip(from..).all(|(b, i)| **b == [i; 5])
        };
        let mut old = boxed(0);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for me in 1..4 {
                let (boxed, right, stop) = (&boxed, &right, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        assert!(right(&boxed(me << 32), me << 32));
                    }
                });
            }
            for turn in 0..5 {
                thread::sleep(Duration::from_millis(10));
                let child = fork(|| {
                    assert!(right(&old, 0));
                    old.truncate(1000);
                    let new = boxed(7 << 40);
                    assert!(right(&old, 0) && right(&new, 7 << 40));
                    drop(new);
                    let threads: Vec<_> = (0..2)
                        .map(|_| {
                            let heap = heap.clone();
                            thread::spawn(move || *Box::new_in(11, heap))
                        })
                        .collect();
                    assert!(threads.into_iter().all(|t| t.join().unwrap() == 11));
                });
                let status = wait_for(child);
                assert!(status.success(), "{backend}, child {turn}: {status}");
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(right(&old, 0), "{backend}: the parent's objects changed");
    });
}

#[test]
fn a_raw_clone_is_stopped_rather_than_given_zeros() {
    alone_on_each(
        "a_raw_clone_is_stopped_rather_than_given_zeros",
        |backend| {
            let _watchdog = Watchdog::new("raw clone", 50);
            let words = words(backend);
            let heap = words.heap().clone();
            for resident in [false, true] {
                let page = &words[..512];
                if resident {
                    heap.prefetch(&raw const *page).unwrap();
                } else {
                    heap.evict(&raw const *words).unwrap();
                }
                assert_eq!(heap.is_resident(page), Some(resident));
                // SAFETY: the child touches one word and ends.
                let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
                assert!(child >= 0);
                if child == 0 {
                    // SAFETY: a live word.
                    let seen = unsafe { page[5].as_ptr().read_volatile() };
                    // SAFETY: ends the child.
                    unsafe { libc::_exit(if seen == stamped(5, 0) { 3 } else { 4 }) };
                }
                let status = wait_for(child as libc::pid_t);
                assert_eq!(
                    status.signal(),
                    Some(libc::SIGSEGV),
                    "{backend}, resident {resident}: {status}"
                );
                // What the child tried has not touched the parent.
                assert!(heap.stats().resident_bytes <= 96 * PAGE_SIZE);
                for (i, value) in words.iter().enumerate() {
                    let seen = value.load(Ordering::Relaxed);
                    assert_eq!(seen, stamped(i % PART, 0), "{backend}: word {i}");
                }
            }
            use_everything(&words, 1);
        },
    );
}

/// A child made by clone(2), which runs no fork hooks.
fn raw_clone(child: impl FnOnce() -> i32) -> ExitStatus {
    // SAFETY: the child does what the test wants and ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    assert!(pid >= 0);
    if pid == 0 {
        let code = child();
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    wait_for(pid as libc::pid_t)
}

#[test]
fn a_raw_clone_does_nothing_to_its_parents_memory() {
    let name = "a_raw_clone_does_nothing_to_its_parents_memory";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("a heap in a raw clone", 50);
        let words = words(backend);
        let heap = words.heap().clone();
        heap.evict(&raw const *words).unwrap();
        let status = raw_clone(|| {
            let limit = Heap::builder().resident_limit(64 << 10);
            i32::from(limit.backend(backend).build().is_ok())
        });
        assert_eq!(status.code(), Some(0), "{backend}, a new heap: {status}");
        // Stopped, or done to the child's own memory.
        let _status = raw_clone(|| i32::from(heap.prefetch(&words[..512]).is_ok()));
        // Some pages resident, that the parent must not lose.
        assert_eq!(heap.prefetch(&raw const words[..8 * 512]), Ok(8));
        let status = raw_clone(|| {
            // SAFETY: the child has a copy of its own to drop.
            drop(unsafe { core::ptr::read(&raw const words) });
            // SAFETY: as above: the last two handles of the heap.
            drop(unsafe { core::ptr::read(&raw const heap) });
            0
        });
        assert_eq!(status.code(), Some(0), "{backend}, a drop: {status}");
        assert_eq!(heap.is_resident(&raw const words[0]), Some(true));
        use_everything(&words, 1);
    });
}

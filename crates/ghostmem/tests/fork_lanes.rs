//! What a forked child opens at once, and what it opens for its threads. Each case in a
//! process of its own.
#![cfg(target_os = "linux")] // fork(2)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ghostmem::{Backend, GhostSlice};
use ghostmem_os::machine;
use ghostmem_os::shards::shards;

use common::{PAGE_SIZE, Watchdog, alone_on_each, fork, heap, stamped, wait_for};

mod common;

const WORDS: usize = 400 * PAGE_SIZE / 8;

/// The process's descriptors that pages are put in place by.
fn opened() -> usize {
    let numbers = std::fs::read_dir("/proc/self/fd").unwrap();
    let files = numbers.filter_map(|number| std::fs::read_link(number.unwrap().path()).ok());
    files
        .filter(|file| file == Path::new("anon_inode:[userfaultfd]"))
        .count()
}

/// As many as threads can use at once.
fn all() -> usize {
    if machine::cpus() > 1 {
        shards().min(8)
    } else {
        1
    }
}

fn check(words: &[AtomicU64], round: u64) {
    for (index, word) in words.iter().enumerate() {
        let seen = word.load(Ordering::Relaxed);
        assert_eq!(seen, stamped(index, round), "word {index}");
    }
}

/// Each thread takes every fourth page from one round to the next.
fn go_on_by_threads(words: &[AtomicU64], round: u64) {
    const PAGE: usize = PAGE_SIZE / 8;
    thread::scope(|scope| {
        for first in 0..4 {
            scope.spawn(move || {
                for start in (first * PAGE..WORDS).step_by(4 * PAGE) {
                    for (at, word) in words[start..start + PAGE].iter().enumerate() {
                        let index = start + at;
                        let seen = word.swap(stamped(index, round + 1), Ordering::Relaxed);
                        assert_eq!(seen, stamped(index, round), "word {index}");
                    }
                }
            });
        }
    });
    check(words, round + 1);
}

/// The body in a child that a library around libc's calls makes.
fn child(body: impl FnOnce()) -> i32 {
    let answer = ghostmem::fork::around_call(|| {
        // SAFETY: as fork(2).
        let answer = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        answer as isize
    });
    if answer == 0 {
        let done = catch_unwind(AssertUnwindSafe(body));
        // SAFETY: ends the child.
        unsafe { libc::_exit(if done.is_ok() { 0 } else { 101 }) };
    }
    i32::try_from(answer).unwrap()
}

/// Proves that a child has its pages by one descriptor, and all of them once it makes threads;
/// so has a child of its own.
#[test]
fn a_child_opens_one_descriptor_and_the_rest_before_its_first_thread() {
    let name = "a_child_opens_one_descriptor_and_the_rest_before_its_first_thread";
    alone_on_each(name, |backend| {
        if backend != Backend::Inline {
            return;
        }
        let _watchdog = Watchdog::new("lanes of a child", 50);
        let words = words(backend);
        assert_eq!(opened(), all());
        ghostmem::fork::freeze_at_the_call();
        let status = wait_for(child(|| {
            check(&words, 0);
            assert_eq!(opened(), 1);
            ghostmem::fork::before_a_thread();
            assert_eq!(opened(), all());
            go_on_by_threads(&words, 0);
            let grandchild = child(|| {
                check(&words, 1);
                assert_eq!(opened(), 1);
                for round in 1..4 {
                    ghostmem::fork::before_a_thread();
                    assert_eq!(opened(), all());
                    go_on_by_threads(&words, round);
                }
            });
            go_on_by_threads(&words, 1);
            assert!(wait_for(grandchild).success());
            assert_eq!(opened(), all());
        }));
        assert!(status.success(), "{status}");
        check(&words, 0);
        // The parent's are as they were: nothing waits for a thread.
        ghostmem::fork::before_a_thread();
        assert_eq!(opened(), all());
    });
}

/// Proves that where nobody says when threads are made, a child has all at once.
#[test]
fn a_child_whose_threads_nobody_tells_of_has_all_descriptors() {
    let name = "a_child_whose_threads_nobody_tells_of_has_all_descriptors";
    alone_on_each(name, |backend| {
        if backend != Backend::Inline {
            return;
        }
        let _watchdog = Watchdog::new("descriptors of a child", 50);
        let words = words(backend);
        let status = wait_for(fork(|| {
            check(&words, 0);
            assert_eq!(opened(), all());
            go_on_by_threads(&words, 0);
        }));
        assert!(status.success(), "{status}");
    });
}

/// Proves that a child that has made threads without a word has its pages all the same.
#[test]
fn threads_of_a_child_with_one_descriptor_have_their_pages() {
    let name = "threads_of_a_child_with_one_descriptor_have_their_pages";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("threads on one descriptor", 50);
        let words = words(backend);
        ghostmem::fork::freeze_at_the_call();
        let status = wait_for(child(|| go_on_by_threads(&words, 0)));
        assert!(status.success(), "{backend}: {status}");
        check(&words, 0);
    });
}

fn words(backend: Backend) -> GhostSlice<AtomicU64> {
    let heap = heap(backend, 64);
    heap.slice_from_fn(WORDS, |index| AtomicU64::new(stamped(index, 0)))
        .unwrap()
}

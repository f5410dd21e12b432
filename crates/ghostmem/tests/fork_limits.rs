//! fork(2) in a process that has all the descriptors it may have. Each case in a
//! process of its own.
#![cfg(target_os = "linux")] // fork(2)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::sync::atomic::{AtomicU64, Ordering};

use ghostmem::Backend;

use common::{PAGE_SIZE, Watchdog, alone_on_each, fork, heap, stamped, wait_for};

mod common;

const WORDS: usize = 300 * PAGE_SIZE / 8;

/// Opens descriptors until the process may have no more; those that were opened.
fn open_all() -> Vec<i32> {
    let mut opened = Vec::with_capacity(1 << 16);
    loop {
        // SAFETY: a NUL-terminated path.
        let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
        if fd < 0 {
            return opened;
        }
        opened.push(fd);
    }
}

fn limit_descriptors(most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: a valid limit.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(rc, 0);
}

/// Leaves no descriptor to be had, nor one of those that a heap keeps spare.
fn take_every_number() {
    limit_descriptors(64);
    open_all();
    for fd in 3..64 {
        // SAFETY: puts a descriptor over another one.
        assert_eq!(unsafe { libc::dup2(0, fd) }, fd);
    }
}

fn check(words: &[AtomicU64], round: u64) {
    for (index, word) in words.iter().enumerate() {
        let seen = word.load(Ordering::Relaxed);
        assert_eq!(seen, stamped(index, round), "word {index}");
    }
}

fn rewrite(words: &[AtomicU64], round: u64) {
    for (index, word) in words.iter().enumerate() {
        word.store(stamped(index, round), Ordering::Relaxed);
    }
}

#[test]
fn a_fork_without_a_descriptor_left_gives_the_child_its_memory() {
    let name = "a_fork_without_a_descriptor_left_gives_the_child_its_memory";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("fork without descriptors", 50);
        let heap = heap(backend, 64);
        let words = heap
            .slice_from_fn(WORDS, |index| AtomicU64::new(stamped(index, 0)))
            .unwrap();
        // Small objects lie in a region of their own.
        let small = allocator_api2::boxed::Box::new_in([7_u64; 20], heap.clone());
        // Lower than the numbers of the engine's own.
        limit_descriptors(64);
        let taken = open_all();
        assert!(!taken.is_empty());
        for turn in 0..3 {
            let child = fork(|| {
                check(&words, turn);
                rewrite(&words, 90);
                assert_eq!(*small, [7; 20]);
                let grandchild = fork(|| {
                    check(&words, 90);
                    rewrite(&words, 91);
                    check(&words, 91);
                });
                rewrite(&words, 92);
                assert!(wait_for(grandchild).success());
                check(&words, 92);
            });
            let status = wait_for(child);
            assert!(status.success(), "{backend}, child {turn}: {status}");
            check(&words, turn);
            rewrite(&words, turn + 1);
            // What the fork took is the program's again at most, never more.
            // SAFETY: a NUL-terminated path.
            let more = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
            assert_eq!(more, -1, "{backend}: the spare was not taken back");
        }
    });
}

#[test]
fn a_parent_goes_on_where_its_child_cannot() {
    let name = "a_parent_goes_on_where_its_child_cannot";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("fork without descriptors or spare", 50);
        let heap = heap(backend, 64);
        let words = heap
            .slice_from_fn(WORDS, |index| AtomicU64::new(stamped(index, 0)))
            .unwrap();
        take_every_number();
        let child = fork(|| {
            check(&words, 0);
            rewrite(&words, 1);
        });
        // It has its memory, or it ended with a message; it never saw other bytes.
        let status = wait_for(child);
        assert_ne!(status.code(), Some(101), "{backend}: {status}");
        check(&words, 0);
        rewrite(&words, 2);
        check(&words, 2);
        for fd in 3..64 {
            // SAFETY: looks at a number.
            let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
            assert!(
                flags >= 0,
                "{backend}: descriptor {fd} of the program's is gone"
            );
        }
    });
}

#[test]
fn a_fork_whose_call_can_be_refused_is_refused() {
    let name = "a_fork_whose_call_can_be_refused_is_refused";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("a refused fork", 50);
        let heap = heap(backend, 64);
        let words = heap
            .slice_from_fn(WORDS, |index| AtomicU64::new(stamped(index, 0)))
            .unwrap();
        ghostmem::fork::freeze_at_the_call();
        take_every_number();
        let shares_a_file = matches!(backend, Backend::Guard | Backend::GuardMprotect);
        for round in 0..2 {
            let mut called = false;
            let answer = ghostmem::fork::around_call(|| {
                called = true;
                -1
            });
            // What needs nothing before the call is not refused.
            assert_eq!(called, !shares_a_file, "{backend}");
            let refused = if shares_a_file { -libc::EAGAIN } else { -1 };
            assert_eq!(answer, refused as isize, "{backend}");
            check(&words, round);
            rewrite(&words, round + 1);
        }
        // As soon as there is one again:
        // SAFETY: nobody uses them.
        (40..64).for_each(|fd| assert_eq!(unsafe { libc::close(fd) }, 0));
        let mut called = false;
        ghostmem::fork::around_call(|| {
            called = true;
            -1
        });
        assert!(called, "{backend}");
        check(&words, 2);
    });
}

//! Ghost memory that the program locks by mlock(2): it stays, everything else
//! goes on.
#![cfg(target_os = "linux")] // mlock2(2)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::sync::atomic::{AtomicU64, Ordering};

use ghostmem::Backend;

use common::{PAGE_SIZE, Watchdog, alone_on_each, fork, heap, stamped, wait_for};

mod common;

const LOCKED_PAGES: usize = 24;
const PAGES: usize = 600;
const LIMIT_PAGES: usize = 64;
const PAGE_WORDS: usize = PAGE_SIZE / 8;

/// Locks whole pages as they come in; `false` where the machine does not allow it.
fn lock(words: &[AtomicU64]) -> bool {
    let at = words[0].as_ptr();
    // SAFETY: a live range; locking changes no contents.
    let rc = unsafe { libc::mlock2(at.cast(), size_of_val(words), 1) };
    if rc != 0 {
        println!(
            "not shown: this machine does not allow to lock {} bytes of memory",
            size_of_val(words)
        );
    }
    rc == 0
}

fn check(words: &[AtomicU64], round: u64) {
    for (index, word) in words.iter().enumerate() {
        assert_eq!(
            word.load(Ordering::Relaxed),
            stamped(index, round),
            "word {index}"
        );
    }
}

fn write(words: &[AtomicU64], round: u64) {
    for (index, word) in words.iter().enumerate() {
        word.store(stamped(index, round), Ordering::Relaxed);
    }
}

#[test]
fn pages_beside_locked_ones_are_evicted() {
    alone_on_each("pages_beside_locked_ones_are_evicted", |backend| {
        let _watchdog = Watchdog::new("pages beside locked ones", 50);
        let heap = heap(backend, LIMIT_PAGES);
        let words = heap
            .slice_from_fn(PAGES * PAGE_WORDS, |index| {
                AtomicU64::new(stamped(index, 0))
            })
            .unwrap();
        // Every fifth of the first pages, so that others are their neighbours.
        for page in (0..LOCKED_PAGES).map(|at| at * 5) {
            if !lock(&words[page * PAGE_WORDS..(page + 1) * PAGE_WORDS]) {
                return;
            }
        }
        for round in 0..6 {
            check(&words, round);
            write(&words, round + 1);
            let stats = heap.stats();
            assert!(
                stats.resident_bytes <= LIMIT_PAGES * PAGE_SIZE && stats.overdrafts == 0,
                "{backend}: {} bytes resident, {} overdrafts",
                stats.resident_bytes,
                stats.overdrafts
            );
        }
        let child = fork(|| {
            check(&words, 6);
            write(&words, 7);
            check(&words, 7);
        });
        assert!(wait_for(child).success(), "{backend}");
        check(&words, 6);
    });
}

#[test]
fn a_block_that_was_locked_before_it_was_touched_can_be_used() {
    let name = "a_block_that_was_locked_before_it_was_touched_can_be_used";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("a locked block", 50);
        let heap = heap(backend, 256);
        // In memory that nothing was put in so far.
        let layout =
            std::alloc::Layout::from_size_align(LOCKED_PAGES * PAGE_SIZE, PAGE_SIZE).unwrap();
        let far = heap
            .allocate(std::alloc::Layout::from_size_align(1 << 28, PAGE_SIZE).unwrap())
            .unwrap();
        let far = far.cast::<AtomicU64>();
        // SAFETY: a fresh block, zero, in the middle of which these words lie.
        let words = unsafe {
            std::slice::from_raw_parts(far.add((100 << 20) / 8).as_ptr(), layout.size() / 8)
        };
        if !lock(words) {
            return;
        }
        write(words, 1);
        // SAFETY: its neighbours, in the block.
        let after = unsafe {
            std::slice::from_raw_parts(words.as_ptr().add(words.len()), 400 * PAGE_WORDS)
        };
        write(after, 2);
        check(words, 1);
        check(after, 2);
        // Pages closed by mprotect(2) are given back however locked they are.
        let stays = (backend != Backend::GuardMprotect).then_some(true);
        assert_eq!(stays.and(heap.is_resident(&words[0])), stays, "{backend}");
    });
}

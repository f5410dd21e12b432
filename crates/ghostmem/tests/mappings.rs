//! A process that has no mapping left (`vm.max_map_count`): ghost memory goes on.
#![cfg(target_os = "linux")] // mmap(2)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::sync::atomic::{AtomicU64, Ordering};
use std::{ptr, thread};

use common::{PAGE_SIZE, Random, Watchdog, alone_on_each, fork, heap, stamped, wait_for};

mod common;

const PAGE_WORDS: usize = PAGE_SIZE / 8;

/// Leaves the process about `spare` mappings: takes all others, as neighbours that
/// may be accessed differently.
fn take_all_mappings_but(spare: usize) {
    let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: new address space.
    let base = unsafe { libc::mmap(ptr::null_mut(), (most + 2) * PAGE_SIZE, 0, flags, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED);
    let open = |at: usize, prot| {
        // SAFETY: inside the mapping above, which nobody uses.
        unsafe { libc::mprotect(base.byte_add(at * PAGE_SIZE), PAGE_SIZE, prot) == 0 }
    };
    let mut taken = 0;
    while open(2 * taken + 1, libc::PROT_READ) {
        taken += 1;
    }
    assert!(taken > spare, "only {taken} mappings to take");
    for at in 0..spare / 2 {
        assert!(open(2 * at + 1, libc::PROT_NONE));
    }
}

#[test]
fn scattered_resident_pages_may_be_more_than_there_are_mappings() {
    const PAGES: usize = 6000;
    let name = "scattered_resident_pages_may_be_more_than_there_are_mappings";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("more pages than mappings", 50);
        let heap = heap(backend, PAGES / 2);
        let words = heap
            .slice_from_fn(PAGES * PAGE_WORDS, |_| AtomicU64::new(0))
            .unwrap();
        let pinned = &words[(PAGES - 40) * PAGE_WORDS..];
        for (index, word) in pinned.iter().enumerate() {
            word.store(stamped(index, 1), Ordering::Relaxed);
        }
        let pin = heap.pin(&raw const *pinned).unwrap();
        let to_kernel = || {
            // SAFETY: a live buffer; the descriptor is an empty memory file.
            let fd = unsafe { libc::memfd_create(c"test".as_ptr(), 0) };
            // SAFETY: as above.
            let put =
                unsafe { libc::pwrite(fd, pinned[0].as_ptr().cast(), size_of_val(pinned), 0) };
            // SAFETY: our own.
            unsafe { libc::close(fd) };
            assert_eq!(put, size_of_val(pinned) as isize, "{backend}");
        };
        // Out, so that every second page coming in stands alone.
        heap.evict(&raw const words[..(PAGES - 40) * PAGE_WORDS])
            .unwrap();
        take_all_mappings_but(700);
        let pages: Vec<usize> = (0..PAGES - 40).filter(|page| page % 3 != 2).collect();
        let mut random = Random::new(3);
        let mut rounds = vec![0_u64; PAGES];
        for turn in 0..20_000 {
            // In order at first: pages with gaps between them.
            let page = match turn {
                0..4000 => pages[turn % pages.len()] & !1,
                _ => random.below(PAGES - 40),
            };
            let word = &words[page * PAGE_WORDS + page % PAGE_WORDS];
            let expected = match rounds[page] {
                0 => 0,
                round => stamped(page, round),
            };
            assert_eq!(
                word.load(Ordering::Relaxed),
                expected,
                "{backend}, page {page}"
            );
            rounds[page] += 1;
            word.store(stamped(page, rounds[page]), Ordering::Relaxed);
            if turn % 1000 == 0 {
                to_kernel();
            }
        }
        let check = || {
            for (page, &round) in rounds.iter().enumerate().take(PAGES - 40) {
                let seen = words[page * PAGE_WORDS + page % PAGE_WORDS].load(Ordering::Relaxed);
                let expected = if round == 0 { 0 } else { stamped(page, round) };
                assert_eq!(seen, expected, "{backend}, page {page}");
            }
        };
        check();
        to_kernel();
        let child = fork(|| {
            to_kernel();
            check();
            to_kernel();
        });
        assert!(wait_for(child).success(), "{backend}");
        drop(pin);
        // Both of two threads get on.
        thread::scope(|scope| {
            for part in words.chunks(PAGES / 2 * PAGE_WORDS) {
                scope.spawn(|| {
                    for word in part.iter().step_by(3 * PAGE_WORDS) {
                        word.fetch_add(0, Ordering::Relaxed);
                    }
                });
            }
        });
        check();
    });
}

#[test]
fn a_large_block_may_be_used_anywhere_without_a_mapping_left() {
    let name = "a_large_block_may_be_used_anywhere_without_a_mapping_left";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("a block without mappings", 50);
        let heap = heap(backend, 64);
        let layout = std::alloc::Layout::from_size_align(1 << 30, PAGE_SIZE).unwrap();
        let block = heap.allocate(layout).unwrap().cast::<AtomicU64>();
        // SAFETY: a fresh block, all zero.
        let words = unsafe { std::slice::from_raw_parts(block.as_ptr(), layout.size() / 8) };
        take_all_mappings_but(100);
        let at = |group: usize| &words[group * 512 * PAGE_WORDS + group];
        for group in (0..512).step_by(3) {
            assert_eq!(at(group).swap(stamped(group, 1), Ordering::Relaxed), 0);
        }
        for group in 0..512 {
            let expected = if group % 3 == 0 { stamped(group, 1) } else { 0 };
            assert_eq!(at(group).load(Ordering::Relaxed), expected, "{backend}");
        }
    });
}

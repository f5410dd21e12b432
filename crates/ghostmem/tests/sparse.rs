//! Blocks far larger than what is used of them: what is not touched costs nothing,
//! not in page tables either.
#![cfg(target_os = "linux")] // proc(5)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::sync::Barrier;
use std::thread;

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog, alone_on_each, fork, heap, wait_for};
use ghostmem::{Backend, Heap};

mod common;

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// Memory of the process's page tables, bytes (`VmPTE` of proc_pid_status(5)).
fn page_tables() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmPTE:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .count()
}

fn block(heap: &Heap, bytes: usize) -> *mut u64 {
    let layout = Layout::from_size_align(bytes, PAGE_SIZE).unwrap();
    heap.allocate(layout).unwrap().cast().as_ptr()
}

/// A word of a page, which depends on the page.
fn value(page: usize) -> u64 {
    (page as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn write(block: *mut u64, page: usize) {
    // SAFETY: callers name pages of their block.
    unsafe {
        block
            .add(page * PAGE_SIZE / 8 + 3)
            .write_volatile(value(page))
    };
}

fn check(block: *mut u64, page: usize) {
    // SAFETY: as in `write`.
    let (zero, seen) = unsafe {
        let page = block.add(page * PAGE_SIZE / 8);
        (page.read_volatile(), page.add(3).read_volatile())
    };
    assert_eq!((zero, seen), (0, value(page)), "page {page}");
}

#[test]
fn a_large_block_costs_page_tables_where_it_is_used() {
    let name = "a_large_block_costs_page_tables_where_it_is_used";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("a large block", 50);
        let heap = heap(backend, 64);
        let first = block(&heap, MIB);
        write(first, 0);
        let (tables, metadata) = (page_tables(), heap.stats().metadata_bytes);
        let block = block(&heap, 16 * GIB);
        let used: Vec<usize> = (0..40)
            .map(|at| at * (400 * MIB / PAGE_SIZE) + at)
            .collect();
        used.iter().for_each(|&page| write(block, page));
        let grown = page_tables() - tables;
        // One page table for each, the ones above it, and the engine's own
        // tables; all of the block is 32 MiB of them.
        assert!(grown < 2 * MIB, "{backend}: {grown} bytes of page tables");
        if backend == Backend::Guard {
            // What stays is counted.
            let counted = heap.stats().metadata_bytes - metadata;
            assert!(counted >= 40 * PAGE_SIZE, "{counted} bytes counted");
        }
        used.iter().for_each(|&page| check(block, page));
        let child = fork(|| used.iter().for_each(|&page| check(block, page)));
        assert!(wait_for(child).success(), "{backend}");
    });
}

#[test]
fn scattered_pages_do_not_use_up_the_process_s_mappings() {
    let name = "scattered_pages_do_not_use_up_the_process_s_mappings";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("scattered pages", 50);
        let heap = heap(backend, 128);
        let block = block(&heap, 16 * GIB);
        // Every other group of 512 pages, in no order.
        let mut pages: Vec<usize> = (0..4096).map(|at| at * 1024 + at % 1024).collect();
        let mut random = Random::new(5);
        for at in (1..pages.len()).rev() {
            pages.swap(at, random.below(at + 1));
        }
        for &page in &pages {
            write(block, page);
        }
        let count = mappings();
        assert!(count < 5000, "{backend}: {count} mappings");
        pages.iter().for_each(|&page| check(block, page));
        // What lies between is fresh.
        for page in (0..4095).map(|at| at * 1024 + 700) {
            // SAFETY: inside the block.
            let seen = unsafe { block.add(page * PAGE_SIZE / 8).read_volatile() };
            assert_eq!(seen, 0);
        }
    });
}

#[test]
fn threads_may_touch_neighbours_for_the_first_time_together() {
    const THREADS: usize = 4;
    for backend in BACKENDS {
        let _watchdog = Watchdog::new("first touches", 50);
        let heap = heap(backend, 256);
        let block = block(&heap, GIB) as usize;
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for me in 0..THREADS {
                let start = &start;
                scope.spawn(move || {
                    let block = block as *mut u64;
                    for group in 0..200 {
                        start.wait();
                        write(block, group * 1024 + me);
                        check(block, group * 1024 + me);
                    }
                });
            }
        });
        for group in 0..200 {
            (0..THREADS).for_each(|me| check(block as *mut u64, group * 1024 + me));
        }
    }
}

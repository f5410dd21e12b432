//! A heap that nobody uses costs no processor time: the background thread does
//! not move the part-filled slabs of a small store round for ever.
#![cfg(target_os = "linux")] // /proc
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::fs;
use std::time::Duration;

use common::{PAGE_SIZE, Random};
use ghostmem::Heap;

mod common;

/// Processor time of the background threads so far (proc_pid_schedstat), ns.
fn background_ns() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter(|task| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            name.trim_end() == "ghost-evict"
        })
        .map(|task| {
            let figures = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let ran = figures.split(' ').next();
            ran.and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0)
        })
        .sum()
}

#[test]
fn the_background_thread_of_an_idle_heap_rests() {
    let heap = Heap::builder().resident_limit(4 << 20).build().unwrap();
    // Pages of every compressed size: each class has a part-filled slab.
    let pages = 16 << 8;
    let mut random = Random::new(3);
    let mut data = heap
        .slice_from_fn(pages * PAGE_SIZE / 8, |_| 0_u64)
        .unwrap();
    for (number, page) in data.chunks_mut(PAGE_SIZE / 8).enumerate() {
        let noise = number % 480 + 8;
        page[..noise].fill_with(|| random.next());
    }
    // A third goes again, scattered, so that there is free space to win.
    for page in data.chunks_mut(PAGE_SIZE / 8).step_by(3) {
        page.fill(1);
    }
    assert!(heap.stats().evictions_dirty > 0);
    assert!(background_ns() > 0, "there is a background thread to watch");
    std::thread::sleep(Duration::from_millis(1500));
    let before = background_ns();
    std::thread::sleep(Duration::from_secs(2));
    let spent = Duration::from_nanos(background_ns() - before);
    // Of processor time, not of the clock: however slow the machine, an idle
    // thread looks round once or twice.
    assert!(
        spent < Duration::from_millis(40),
        "{spent:?} in two seconds"
    );
}

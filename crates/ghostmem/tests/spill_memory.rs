//! What a heap with a file takes of memory: within its memory limit, the page
//! cache of the file counted, with ten times as much data. In a process of its own.
#![cfg(target_os = "linux")] // /proc
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::fs;
use std::path::Path;

use common::{PAGE_SIZE, Random, Watchdog, alone};
use ghostmem::{Heap, Spill};

mod common;

const MEMORY: usize = 24 << 20;
/// Words of the data: ten times the memory, and half of it does not compress.
const WORDS: usize = MEMORY * 10 / 8;

/// `VmHWM` or `VmRSS` of this process, bytes.
fn memory(name: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// Bytes of the page cache that the file of this process in a folder takes.
fn cached_bytes(folder: &Path) -> usize {
    let (mut cached, mut files) = (0, 0);
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let fd: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let to = fs::read_link(entry.path()).unwrap_or_default();
        if !to.starts_with(folder) {
            continue;
        }
        let len = fs::metadata(entry.path()).unwrap().len() as usize;
        // SAFETY: a new mapping, which nobody else knows of.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        let mut pages = vec![0_u8; len.div_ceil(PAGE_SIZE)];
        // SAFETY: the mapping above and a byte for each of its pages.
        let rc = unsafe { libc::mincore(at, len, pages.as_mut_ptr()) };
        assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: the mapping above, used no more.
        unsafe { libc::munmap(at, len) };
        files += 1;
        cached += pages.iter().filter(|page| **page & 1 == 1).count() * PAGE_SIZE;
    }
    assert_eq!(files, 1, "files in {}", folder.display());
    cached
}

#[test]
fn ten_times_the_memory_stays_within_it_page_cache_counted() {
    alone(
        "ten_times_the_memory_stays_within_it_page_cache_counted",
        || {
            let _watchdog = Watchdog::new("memory with a file", 55);
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
                .canonicalize()
                .unwrap();
            let before = memory("VmRSS");
            let heap = Heap::builder()
                .heap_limit(MEMORY)
                .resident_limit(MEMORY / 3)
                .spill(Spill::dir(&folder))
                .build()
                .unwrap();
            let mut random = Random::new(1);
            let word = |random: &mut Random, i: usize| match i & 512 {
                0 => random.next(),
                _ => i as u64,
            };
            let mut data = heap.slice_from_fn(WORDS, |i| word(&mut random, i)).unwrap();
            for turn in 0..WORDS / 64 {
                let i = random.below(WORDS);
                if turn & 1 == 0 {
                    data[i] = data[i].wrapping_add(1).wrapping_sub(1);
                }
            }
            let mut random = Random::new(1);
            assert!((0..WORDS).all(|i| data[i] == word(&mut random, i)));
            let stats = heap.stats();
            assert!(stats.file_data_bytes > 4 * MEMORY as u64, "{stats:?}");
            // Buffers that leases and the file's own thread have, beside the limit.
            let buffers = 6 << 20;
            let peak = memory("VmHWM") - before;
            assert!(
                peak < MEMORY + buffers,
                "{peak} bytes at the peak: {stats:?}"
            );
            let cached = cached_bytes(&folder);
            assert!(
                cached < 1 << 20,
                "{cached} bytes of {} are in the page cache",
                stats.file_bytes
            );
            let held = stats.resident_bytes + stats.store_held_bytes + stats.metadata_bytes;
            assert!(held <= MEMORY, "{held}: {stats:?}");
        },
    );
}

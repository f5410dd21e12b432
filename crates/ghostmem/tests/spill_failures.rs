//! A file tier that fails: what cannot be written stays in memory, what cannot be
//! read is never replaced by other bytes, and either is said.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{PAGE_SIZE, Random, Watchdog, role, word};
use ghostmem::{Error, Heap, LostDecision, LostPage, Spill, Stats};
use ghostmem_file::{Faults, Injected};

mod common;

const RESIDENT: usize = 256;
const STORE: usize = 1 << 20;

fn builder(spill: Spill) -> ghostmem::HeapBuilder {
    Heap::builder()
        .resident_limit(RESIDENT * PAGE_SIZE)
        .spill(spill.store_limit(STORE))
}

fn dir() -> Spill {
    Spill::dir("/var/tmp")
}

fn wait_until(heap: &Heap, what: &str, right: impl Fn(&Stats) -> bool) -> Stats {
    for _ in 0..10_000 {
        let stats = heap.stats();
        if right(&stats) {
            return stats;
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("{what}: {:?}", heap.stats());
}

/// Errors for reads and writes while they are not 0, and bits turned over.
#[derive(Debug)]
struct Disk {
    write_errno: AtomicI32,
    read_errno: AtomicI32,
    /// One read in so many fails.
    read_one_in: AtomicU64,
    flip: AtomicI32,
    /// Bytes a read ends after, or 0.
    short: AtomicI32,
    reads: AtomicU64,
}

impl Disk {
    const fn new() -> Self {
        Self {
            write_errno: AtomicI32::new(0),
            read_errno: AtomicI32::new(0),
            read_one_in: AtomicU64::new(1),
            flip: AtomicI32::new(0),
            short: AtomicI32::new(0),
            reads: AtomicU64::new(0),
        }
    }
}

impl Faults for Disk {
    fn read(&self, _offset: u64, _len: usize) -> Injected {
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        let chosen = number.is_multiple_of(self.read_one_in.load(Ordering::Relaxed));
        let flip = self.flip.load(Ordering::Relaxed);
        let short = self.short.load(Ordering::Relaxed);
        match self.read_errno.load(Ordering::Relaxed) {
            0 if short > 0 && chosen => Injected::Short(short as usize, 0),
            0 if flip != 0 && chosen => Injected::Flip(number as usize * 77, flip as u8),
            0 => Injected::Nothing,
            errno if chosen => Injected::Errno(errno),
            _ => Injected::Nothing,
        }
    }

    fn write(&self, _offset: u64, _len: usize) -> Injected {
        match self.write_errno.load(Ordering::Relaxed) {
            0 => Injected::Nothing,
            errno => Injected::Errno(errno),
        }
    }

    fn punch(&self, _offset: u64, _len: u64) -> Injected {
        Injected::Nothing
    }
}

#[test]
fn a_disk_that_takes_no_writes_leaves_pages_in_memory_until_it_does() {
    static DISK: Disk = Disk::new();
    let _watchdog = Watchdog::new("no writes", 60);
    let heap = builder(dir().faults(&DISK)).build().unwrap();
    for errno in [libc::ENOSPC, libc::EDQUOT, libc::EIO] {
        DISK.write_errno.store(errno, Ordering::Relaxed);
        let before = heap.stats();
        let data = heap.slice_from_fn(1 << 20, |i| word(i, 1)).unwrap();
        let failing = |stats: &Stats| stats.spill_write_errors > before.spill_write_errors;
        wait_until(&heap, "no write was tried", failing);
        assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
        assert_eq!(heap.stats().pages_spilled, before.pages_spilled);
        // The disk is well again: what memory has too much of leaves.
        DISK.write_errno.store(0, Ordering::Relaxed);
        wait_until(&heap, "pages stay in memory", |stats| {
            stats.store_held_bytes <= STORE
        });
        assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
        assert_eq!(heap.stats().spilled_read_errors, 0);
    }
}

#[test]
fn past_the_memory_limit_a_full_disk_makes_allocations_fail() {
    static DISK: Disk = Disk::new();
    let _watchdog = Watchdog::new("memory limit", 60);
    let limited = |spill: Option<Spill>| {
        let builder = Heap::builder()
            .resident_limit(RESIDENT * PAGE_SIZE)
            .heap_limit(8 << 20);
        match spill {
            Some(spill) => builder.spill(spill),
            None => builder,
        }
        .build()
        .unwrap()
    };
    // Bytes that do not compress, in blocks of 1 MiB, until no more is given.
    let fill = |heap: &Heap, most: usize| {
        let mut blocks = Vec::new();
        while blocks.len() < most {
            let mut random = Random::new(blocks.len() as u64);
            match heap.slice_from_fn(1 << 17, |_| random.next()) {
                Ok(block) => blocks.push(block),
                Err(error) => {
                    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
                    break;
                }
            }
        }
        for (index, block) in blocks.iter().enumerate() {
            let mut random = Random::new(index as u64);
            assert!(block.iter().all(|&w| w == random.next()), "block {index}");
        }
        blocks.len()
    };
    assert!(fill(&limited(None), 100) < 9, "what memory alone holds");
    let heap = limited(Some(dir().faults(&DISK)));
    assert_eq!(fill(&heap, 40), 40, "with a file");
    // As much as the file may hold, and memory.
    let small = limited(Some(dir().limit(16 << 20)));
    let blocks = fill(&small, 100);
    assert!(
        (10..25).contains(&blocks),
        "{blocks} MiB with 16 MiB of file"
    );
    DISK.write_errno.store(libc::ENOSPC, Ordering::Relaxed);
    let full = limited(Some(dir().faults(&DISK)));
    let blocks = fill(&full, 100);
    assert!(blocks < 24, "{blocks} MiB with a full disk");
    assert!(full.stats().spill_write_errors > 0);
}

#[test]
fn a_handler_may_have_a_page_read_again() {
    static DISK: Disk = Disk::new();
    static ASKED: AtomicU64 = AtomicU64::new(0);
    fn retry(lost: &LostPage) -> LostDecision {
        ASKED.fetch_add(1, Ordering::Relaxed);
        assert!(lost.address.is_multiple_of(PAGE_SIZE) && lost.tries < 1000);
        LostDecision::Retry
    }
    let _watchdog = Watchdog::new("retries", 60);
    let heap = builder(dir().faults(&DISK)).on_lost(retry).build().unwrap();
    let data = heap.slice_from_fn(2 << 20, |i| word(i, 1)).unwrap();
    // Now and then: an error, bits turned over, a short read.
    DISK.read_one_in.store(7, Ordering::Relaxed);
    for kind in 0..3 {
        DISK.read_errno
            .store(if kind == 0 { libc::EIO } else { 0 }, Ordering::Relaxed);
        DISK.flip.store(i32::from(kind == 1) * 4, Ordering::Relaxed);
        DISK.short
            .store(i32::from(kind == 2) * 100, Ordering::Relaxed);
        let before = (
            ASKED.load(Ordering::Relaxed),
            heap.stats().spilled_read_errors,
        );
        thread::scope(|scope| {
            for thread in 0..3 {
                let data = &data;
                scope.spawn(move || {
                    let mut random = Random::new(thread);
                    for _ in 0..3000 {
                        let i = random.below(data.len());
                        assert_eq!(data[i], word(i, 1), "word {i}");
                    }
                });
            }
        });
        assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 1)));
        assert!(ASKED.load(Ordering::Relaxed) > before.0, "kind {kind}");
        assert!(heap.stats().spilled_read_errors > before.1, "kind {kind}");
    }
}

#[test]
fn parallel_faults_are_read_in_parallel() {
    // Every read waits until another one is under way: alone none would end.
    #[derive(Debug)]
    struct Pairs(AtomicU64, AtomicU64);
    impl Faults for Pairs {
        fn read(&self, _offset: u64, _len: usize) -> Injected {
            if self.1.load(Ordering::Relaxed) == 0 {
                return Injected::Nothing;
            }
            let mine = self.0.fetch_add(1, Ordering::Relaxed);
            for _ in 0..100_000 {
                if self.0.load(Ordering::Relaxed) > mine + 1 {
                    self.1.fetch_add(1, Ordering::Relaxed);
                    return Injected::Nothing;
                }
                thread::yield_now();
            }
            Injected::Nothing
        }
        fn write(&self, _offset: u64, _len: usize) -> Injected {
            Injected::Nothing
        }
        fn punch(&self, _offset: u64, _len: u64) -> Injected {
            Injected::Nothing
        }
    }
    static PAIRS: Pairs = Pairs(AtomicU64::new(0), AtomicU64::new(0));
    let _watchdog = Watchdog::new("parallel reads", 60);
    let heap = builder(dir().faults(&PAIRS)).build().unwrap();
    let data = heap.slice_from_fn(2 << 20, |i| word(i, 1)).unwrap();
    wait_until(&heap, "pages stay in memory", |stats| {
        stats.store_held_bytes <= STORE
    });
    PAIRS.1.store(1, Ordering::Relaxed);
    thread::scope(|scope| {
        for thread in 0..2 {
            let data = &data;
            scope.spawn(move || {
                let mut random = Random::new(thread);
                for _ in 0..200 {
                    let i = random.below(data.len());
                    assert_eq!(data[i], word(i, 1), "word {i}");
                }
            });
        }
    });
    let met = PAIRS.1.load(Ordering::Relaxed);
    assert!(met > 20, "{met} reads met another one");
}

/// What the stopped processes do: a heap whose file gives back nothing.
fn touch_what_is_lost(kind: &str) {
    static DISK: Disk = Disk::new();
    let spill = dir().encrypt(kind != "checksum").faults(&DISK);
    let heap = builder(spill).build().unwrap();
    let data = heap.slice_from_fn(1 << 20, |i| word(i, 1)).unwrap();
    wait_until(&heap, "pages stay in memory", |stats| {
        stats.store_held_bytes <= STORE
    });
    match kind {
        "error" => DISK.read_errno.store(libc::EIO, Ordering::Relaxed),
        "short" => DISK.short.store(10, Ordering::Relaxed),
        _ => DISK.flip.store(1, Ordering::Relaxed),
    }
    // A prefetch is refused; the touch ends the process.
    let refused = heap.prefetch(&raw const data[..]);
    assert!(
        matches!(refused, Err(Error::PageLost { .. })),
        "{refused:?}"
    );
    let sum = data.iter().fold(0_u64, |sum, w| sum.wrapping_add(*w));
    println!("went on with {sum}");
}

#[test]
fn an_access_to_what_cannot_be_read_stops_the_process_with_a_line() {
    let name = "an_access_to_what_cannot_be_read_stops_the_process_with_a_line";
    if let Some(kind) = role() {
        return touch_what_is_lost(&kind);
    }
    for (kind, reason) in [
        ("error", "EIO"),
        ("short", "cut short"),
        ("bits", "wrong tag"),
        ("checksum", "wrong checksum"),
    ] {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env("GHOSTMEM_TEST_ROLE", kind)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.signal(), Some(libc::SIGBUS | libc::SIGSEGV)),
            "{kind}: {}\n{said}",
            output.status
        );
        let line = said
            .lines()
            .find(|line| line.starts_with("ghostmem: page "));
        let line = line.unwrap_or_else(|| panic!("{kind}: no line in {said}"));
        for part in [reason, "offset", "region", "/var/tmp"] {
            assert!(line.contains(part), "{kind}: {line}");
        }
        let heard = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!heard.contains("went on"), "{kind}: {heard}");
    }
}

/// Pages that readahead wanted are not lost, and nobody is asked about them,
/// because a read of one of them failed.
#[test]
fn only_the_page_that_is_touched_can_be_lost() {
    static DISK: Disk = Disk::new();
    static TOUCHED: AtomicU64 = AtomicU64::new(0);
    static OTHERS: AtomicU64 = AtomicU64::new(0);
    fn count(lost: &LostPage) -> LostDecision {
        let touched = TOUCHED.load(Ordering::Relaxed);
        OTHERS.fetch_add(
            u64::from(lost.address / PAGE_SIZE != touched as usize / PAGE_SIZE),
            Ordering::Relaxed,
        );
        LostDecision::Retry
    }
    let _watchdog = Watchdog::new("lost pages ahead", 55);
    let heap = builder(dir().faults(&DISK)).on_lost(count).build().unwrap();
    let data = heap.slice_from_fn(2 << 20, |i| word(i, 1)).unwrap();
    wait_until(&heap, "the store stays full", |stats| {
        stats.store_held_bytes <= STORE
    });
    DISK.read_one_in.store(2, Ordering::Relaxed);
    DISK.read_errno.store(libc::EIO, Ordering::Relaxed);
    for i in (0..data.len()).step_by(64) {
        TOUCHED.store((&raw const data[i]).addr() as u64, Ordering::Relaxed);
        assert_eq!(data[i], word(i, 1));
    }
    assert!(heap.stats().spilled_read_errors > 0);
    assert_eq!(OTHERS.load(Ordering::Relaxed), 0);
}

/// A lost page gives its place in the file up, so that the file shrinks and is left
/// alone once its block is freed.
#[test]
fn lost_pages_keep_no_place_in_the_file() {
    static DISK: Disk = Disk::new();
    let _watchdog = Watchdog::new("places of lost pages", 55);
    let heap = builder(dir().faults(&DISK)).build().unwrap();
    let data = heap.slice_from_fn(2 << 20, |i| word(i, 1)).unwrap();
    wait_until(&heap, "the store stays full", |stats| {
        stats.store_held_bytes <= STORE
    });
    DISK.read_errno.store(libc::EIO, Ordering::Relaxed);
    let lost = data
        .chunks(PAGE_SIZE / 8 * 100)
        .filter(|chunk| {
            matches!(
                heap.prefetch(&raw const chunk[..]),
                Err(Error::PageLost { .. })
            )
        })
        .count();
    assert!(lost > 10, "{lost}");
    DISK.read_errno.store(0, Ordering::Relaxed);
    drop(data);
    wait_until(&heap, "lost pages keep their places", |stats| {
        stats.file_pages == 0 && stats.file_bytes < 8 << 20
    });
}

//! fork(2) while other threads pin, unpin and evict, and while the kernel works
//! on pinned pages for them. Each case in a process of its own.
#![cfg(target_os = "linux")] // fork(2)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{PAGE_SIZE, Watchdog, alone_on_each, fork, heap, stamped, wait_for};

mod common;

/// Words of one thread's part.
const PART: usize = 24 * PAGE_SIZE / 8;
const PARTS: usize = 3;

/// A word that some round wrote at its place.
fn is_stamped(index: usize, seen: u64) -> bool {
    seen == stamped(index, seen >> 32)
}

#[test]
fn a_call_into_a_pinned_buffer_works_during_forks() {
    let name = "a_call_into_a_pinned_buffer_works_during_forks";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("calls into pinned buffers", 50);
        let heap = heap(backend, 256);
        let other = heap
            .slice_from_fn(160 * PAGE_SIZE / 8, |index| {
                AtomicU64::new(stamped(index, 1))
            })
            .unwrap();
        let buffer = heap
            .slice_from_fn(PART, |index| AtomicU64::new(stamped(index, 1)))
            .unwrap();
        let mut file = std::fs::File::from(memory_file());
        for index in 0..PART {
            file.write_all(&stamped(index, 2).to_ne_bytes()).unwrap();
        }
        let bytes = PART * 8;
        let pinned = heap.pin(&raw const buffer[..]).unwrap();
        let (stop, calls) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let at = buffer[0].as_ptr();
                    // SAFETY: a live buffer of atomics, of this many bytes.
                    let got = unsafe { libc::pread(file.as_raw_fd(), at.cast(), bytes, 0) };
                    let error = std::io::Error::last_os_error();
                    assert_eq!(got, bytes as isize, "{backend}: {error}");
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
            for turn in 0..25 {
                let before = calls.load(Ordering::Relaxed);
                while calls.load(Ordering::Relaxed) == before {
                    thread::yield_now();
                }
                let child = fork(|| {
                    for words in [&buffer[..], &other[..]] {
                        for (index, word) in words.iter().enumerate() {
                            let seen = word.load(Ordering::Relaxed);
                            assert!(is_stamped(index, seen), "word {index}: {seen:#x}");
                        }
                    }
                    // Open for the kernel in the child too.
                    // SAFETY: as above.
                    let got = unsafe {
                        libc::pread(file.as_raw_fd(), buffer[0].as_ptr().cast(), bytes, 0)
                    };
                    assert_eq!(got, bytes as isize);
                    assert_eq!(
                        buffer[PART - 1].load(Ordering::Relaxed),
                        stamped(PART - 1, 2)
                    );
                });
                let status = wait_for(child);
                assert!(status.success(), "{backend}, child {turn}: {status}");
            }
            stop.store(true, Ordering::Relaxed);
        });
        drop(pinned);
    });
}

fn memory_file() -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd as _;
    // SAFETY: a name, and no flags.
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: just made, and nobody else's.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) }
}

#[test]
fn pages_that_are_unpinned_and_evicted_around_a_fork_keep_their_bytes() {
    let name = "pages_that_are_unpinned_and_evicted_around_a_fork_keep_their_bytes";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("pins and evictions around forks", 50);
        let heap = heap(backend, PARTS * 24 + 64);
        let words = heap
            .slice_from_fn(PARTS * PART, |index| AtomicU64::new(stamped(index, 0)))
            .unwrap();
        let stop = AtomicBool::new(false);
        let rounds = AtomicU64::new(0);
        thread::scope(|scope| {
            for part in 0..PARTS {
                let (words, heap, stop, rounds) = (&words, &heap, &stop, &rounds);
                scope.spawn(move || {
                    let first = part * PART;
                    let mine = &words[first..first + PART];
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let pin = heap.pin(&raw const *mine).unwrap();
                        for (index, word) in mine.iter().enumerate() {
                            let seen = word.load(Ordering::Relaxed);
                            assert_eq!(seen, stamped(first + index, round), "{backend}");
                            word.store(stamped(first + index, round + 1), Ordering::Relaxed);
                        }
                        round += 1;
                        drop(pin);
                        // One page after the other, so that some go at any moment.
                        for page in mine.chunks(PAGE_SIZE / 8) {
                            heap.evict(&raw const *page).unwrap();
                        }
                        // A touch, not a pin: a hole would read as zero.
                        for (index, word) in mine.iter().enumerate().step_by(PAGE_SIZE / 8) {
                            let seen = word.load(Ordering::Relaxed);
                            assert_eq!(seen, stamped(first + index, round), "{backend}");
                        }
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for turn in 0..15 {
                let before = rounds.load(Ordering::Relaxed);
                while rounds.load(Ordering::Relaxed) == before {
                    thread::sleep(Duration::from_micros(100));
                }
                let child = fork(|| {
                    for (index, word) in words.iter().enumerate() {
                        let seen = word.load(Ordering::Relaxed);
                        assert!(is_stamped(index, seen), "word {index}: {seen:#x}");
                    }
                });
                let status = wait_for(child);
                assert!(status.success(), "{backend}, child {turn}: {status}");
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

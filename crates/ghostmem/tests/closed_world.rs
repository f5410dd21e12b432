//! No allocation while the engine owns a page: a global allocator, and the C
//! library's malloc, that abort when they are called with signals blocked, as
//! they are in a fault handler and on the engine's threads.
#![cfg(target_os = "linux")] // signals and libc's malloc
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::{GlobalAlloc, Layout, System};
use std::mem::zeroed;
use std::os::unix::process::ExitStatusExt;
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{BACKENDS, Random, Watchdog, alone_on_each, heap, word};
use common::{role, run_alone};

mod common;

static ARMED: AtomicBool = AtomicBool::new(false);

/// Aborts when armed and on a fault handler (or wherever else the engine has
/// blocked every signal).
fn check() {
    if !ARMED.load(Ordering::Relaxed) {
        return;
    }
    // SAFETY: all zeros is a valid set.
    let mut set: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: only reads the mask into `set`.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set) };
    // SAFETY: a valid set.
    if unsafe { libc::sigismember(&raw const set, libc::SIGUSR1) } == 1 {
        // SAFETY: no preconditions.
        unsafe { libc::abort() };
    }
}

struct Checked;

// SAFETY: the system's allocator.
unsafe impl GlobalAlloc for Checked {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        check();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static CHECKED: Checked = Checked;

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut libc::c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut libc::c_void;
}

/// What C code calls.
///
/// # Safety
/// As malloc(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut libc::c_void {
    check();
    // SAFETY: the caller's promise.
    unsafe { __libc_malloc(size) }
}

/// What C code calls.
///
/// # Safety
/// As calloc(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut libc::c_void {
    check();
    // SAFETY: the caller's promise.
    unsafe { __libc_calloc(count, size) }
}

#[test]
fn nothing_is_allocated_while_faults_are_resolved() {
    alone_on_each(
        "nothing_is_allocated_while_faults_are_resolved",
        |backend| {
            let _watchdog = Watchdog::new("closed world", 40);
            let heap = heap(backend, 32);
            let mut parts: Vec<_> = (0..4)
                .map(|_| heap.slice_from_fn(64 * 512, |i| word(i, 0)).unwrap())
                .collect();
            let ready = Barrier::new(5);
            thread::scope(|scope| {
                for part in &mut parts {
                    let (ready, heap) = (&ready, &heap);
                    scope.spawn(move || {
                        ready.wait();
                        ready.wait();
                        let mut random = Random::new(3);
                        for round in 0..4 {
                            for (i, value) in part.iter_mut().enumerate() {
                                assert_eq!(*value, word(i, round), "{backend}: word {i}");
                                *value = word(i, round + 1);
                            }
                            for _ in 0..500 {
                                let i = random.below(part.len());
                                assert_eq!(part[i], word(i, round + 1), "{backend}: word {i}");
                            }
                            heap.evict(&raw const part[..4096]).unwrap();
                            heap.prefetch(&raw const part[..4096]).unwrap();
                            let small = allocator_api2::boxed::Box::new_in(round, heap);
                            assert_eq!(*small, round);
                            let large = heap.slice_from_fn(20_000, |i| i).unwrap();
                            assert!(large.iter().copied().eq(0..20_000));
                        }
                        ready.wait();
                    });
                }
                ready.wait();
                ARMED.store(true, Ordering::Relaxed);
                ready.wait();
                ready.wait();
                ARMED.store(false, Ordering::Relaxed);
            });
            let stats = heap.stats();
            assert!(
                stats.refaults > 100 && stats.evictions_dirty > 100,
                "{backend}: {stats:?}"
            );
        },
    );
}

/// The check itself: it must be able to fail.
#[test]
fn an_allocation_with_signals_blocked_would_abort() {
    const NAME: &str = "an_allocation_with_signals_blocked_would_abort";
    let Some(role) = role() else {
        for call in ["rust", "c"] {
            let status = run_alone(NAME, call, &[]);
            assert_eq!(status.signal(), Some(libc::SIGABRT), "{call}: {status}");
        }
        assert_eq!(BACKENDS.len(), 4);
        return;
    };
    // SAFETY: all zeros is a valid set.
    let mut all: libc::sigset_t = unsafe { zeroed() };
    // SAFETY: a valid set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: a valid set.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut()) };
    ARMED.store(true, Ordering::Relaxed);
    if role == "c" {
        // SAFETY: no preconditions.
        std::hint::black_box(unsafe { libc::malloc(100) });
    } else {
        std::hint::black_box(Box::new(5));
    }
    ARMED.store(false, Ordering::Relaxed);
}

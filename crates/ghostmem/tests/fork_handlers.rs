//! The program's own fork handlers and ours: theirs may use ghost memory, and
//! whoever comes too early is stopped, not handed zeros.
#![cfg(target_os = "linux")] // fork(2)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread;

use common::{Watchdog, alone, alone_on_each, fork, heap, run_alone, wait_for, word};
use ghostmem::{Backend, GhostSlice, Heap};

mod common;

const WORDS: usize = 256 * 512;

unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> i32;
}

static DATA: OnceLock<GhostSlice<u64>> = OnceLock::new();
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// Looks at data most of which is absent.
fn look(data: &[u64]) {
    for (i, &seen) in data.iter().enumerate().step_by(509) {
        if seen != word(i, 3) {
            // SAFETY: ends the process at once, whichever it is.
            unsafe { libc::_exit(90) };
        }
    }
    CALLS.fetch_add(1, Ordering::Relaxed);
}

/// Looks, and allocates in small and large.
extern "C" fn use_everything() {
    let Some(data) = DATA.get() else { return };
    look(data);
    for words in [3, 5000] {
        let more = data.heap().slice_from_fn(words, |i| i as u64).unwrap();
        if more.iter().sum::<u64>() != (0..words as u64).sum() {
            // SAFETY: as above.
            unsafe { libc::_exit(91) };
        }
    }
}

#[test]
fn handlers_registered_before_the_first_heap_use_it_as_usual() {
    let name = "handlers_registered_before_the_first_heap_use_it_as_usual";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("fork handlers", 30);
        let all = Some(use_everything as extern "C" fn());
        // SAFETY: a function that stays.
        assert_eq!(unsafe { pthread_atfork(all, all, all) }, 0);
        let data = heap(backend, 64).slice_from_fn(WORDS, |i| word(i, 3));
        DATA.set(data.unwrap()).unwrap();
        for turn in 1..=3 {
            let status = wait_for(fork(|| {
                assert_eq!(CALLS.load(Ordering::Relaxed), 2 * turn, "prepare and child");
                use_everything();
            }));
            assert!(status.success(), "{backend}: {status}");
            assert_eq!(CALLS.load(Ordering::Relaxed), 2 * turn);
        }
    });
}

/// What the handler below does in the child, before ours.
static EARLY: AtomicPtr<u64> = AtomicPtr::new(core::ptr::null_mut());
static SIGNAL: AtomicBool = AtomicBool::new(false);

extern "C" fn early_in_child() {
    if SIGNAL.load(Ordering::Relaxed) {
        // SAFETY: a valid signal number.
        unsafe { libc::raise(libc::SIGUSR1) };
    }
    let address = EARLY.load(Ordering::Relaxed);
    if !address.is_null() {
        // SAFETY: mapped, or a fault that ends the child.
        unsafe { address.read_volatile() };
    }
}

/// The handler below uses ghost memory after ours have run before the fork.
static LOOK_BEFORE: AtomicBool = AtomicBool::new(false);

extern "C" fn early_before_fork() {
    if LOOK_BEFORE.load(Ordering::Relaxed) {
        DATA.get().into_iter().for_each(|data| look(data));
    }
    let address = STORE_BEFORE.load(Ordering::Relaxed);
    if !address.is_null() {
        // SAFETY: a word of memory that stays.
        unsafe { address.write_volatile(0) };
    }
}

extern "C" fn register_early() {
    // SAFETY: functions that stay.
    unsafe { pthread_atfork(Some(early_before_fork), None, Some(early_in_child)) };
}

/// As early as a program can: before ours.
#[used]
#[unsafe(link_section = ".init_array.00010")]
static REGISTER_EARLY: extern "C" fn() = register_early;

#[test]
fn a_handler_that_runs_before_ours_is_stopped_rather_than_read_zeros() {
    let name = "a_handler_that_runs_before_ours_is_stopped_rather_than_read_zeros";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("early fork handler", 30);
        let data = heap(backend, 64)
            .slice_from_fn(WORDS, |i| word(i, 3))
            .unwrap();
        let heap = data.heap();
        let absent = data.iter().position(|w| heap.is_resident(w) == Some(false));
        let absent = core::ptr::from_ref(&data[absent.unwrap()]).cast_mut();
        EARLY.store(absent, Ordering::Relaxed);
        let status = wait_for(fork(|| ()));
        assert!(
            matches!(status.signal(), Some(libc::SIGABRT | libc::SIGSEGV)),
            "{backend}: {status}"
        );
        EARLY.store(core::ptr::null_mut(), Ordering::Relaxed);
        let status = wait_for(fork(|| {
            assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 3)));
        }));
        assert!(status.success(), "{backend}: {status}");
    });
}

#[test]
fn a_handler_that_runs_after_ours_before_the_fork_reads_absent_pages() {
    let name = "a_handler_that_runs_after_ours_before_the_fork_reads_absent_pages";
    alone_on_each(name, |backend| {
        if matches!(backend, Backend::Guard | Backend::GuardMprotect) {
            // The child's copies are made by then: see the next test.
            return;
        }
        let _watchdog = Watchdog::new("late handler before the fork", 40);
        let data = heap(backend, 64).slice_from_fn(WORDS, |i| word(i, 3));
        let data = DATA.get_or_init(|| data.unwrap());
        LOOK_BEFORE.store(true, Ordering::Relaxed);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            // More threads than a monitor has, all waiting while pages stand still.
            for me in 0..8 {
                let over = &over;
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let sum = data.iter().skip(me).step_by(509).fold(0, |a, &b| a ^ b);
                        std::hint::black_box(sum);
                    }
                });
            }
            for turn in 0..5 {
                let status = wait_for(fork(|| {
                    assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 3)));
                }));
                assert!(status.success(), "{backend}, turn {turn}: {status}");
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(CALLS.load(Ordering::Relaxed), 5);
    });
}

/// The handler above stores to this word after ours have run before the fork.
static STORE_BEFORE: AtomicPtr<u64> = AtomicPtr::new(core::ptr::null_mut());

#[test]
fn a_child_has_what_a_handler_did_after_ours_before_the_fork_or_is_stopped() {
    let name = "a_child_has_what_a_handler_did_after_ours_before_the_fork_or_is_stopped";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("late use before the fork", 40);
        let mut data = heap(backend, 64)
            .slice_from_fn(WORDS, |i| word(i, 3))
            .unwrap();
        let is_copied = matches!(backend, Backend::Guard | Backend::GuardMprotect);
        for resident in [false, true] {
            let heap = data.heap();
            let place = (0..WORDS).find(|&i| heap.is_resident(&data[i]) == Some(resident));
            let place = place.unwrap();
            STORE_BEFORE.store(&raw mut data[place], Ordering::Relaxed);
            let status = wait_for(fork(|| assert_eq!(data[place], 0)));
            STORE_BEFORE.store(core::ptr::null_mut(), Ordering::Relaxed);
            if is_copied {
                assert_eq!(status.signal(), Some(libc::SIGABRT), "{backend}: {status}");
            } else {
                assert!(status.success(), "{backend}: {status}");
            }
            assert_eq!(data[place], 0);
            // The next one is as good as any.
            data[place] = word(place, 3);
            let status = wait_for(fork(|| {
                assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 3)));
            }));
            assert!(status.success(), "{backend}: {status}");
        }
    });
}

extern "C" fn on_signal(_: i32) {
    DATA.get().into_iter().for_each(|data| look(data));
}

#[test]
fn a_signal_in_the_child_waits_until_its_memory_is_there() {
    let name = "a_signal_in_the_child_waits_until_its_memory_is_there";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("signal while forking", 30);
        let data = heap(backend, 64).slice_from_fn(WORDS, |i| word(i, 3));
        DATA.set(data.unwrap()).unwrap();
        // SAFETY: the handler only reads memory that stays.
        unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as usize) };
        SIGNAL.store(true, Ordering::Relaxed);
        let status = wait_for(fork(|| {
            assert_eq!(CALLS.load(Ordering::Relaxed), 1, "the handler ran");
        }));
        assert!(status.success(), "{backend}: {status}");
    });
}

#[test]
fn forks_while_heaps_and_small_objects_are_set_up_leave_children_able() {
    let name = "forks_while_heaps_and_small_objects_are_set_up_leave_children_able";
    alone(name, || {
        let _watchdog = Watchdog::new("fork while setting up", 50);
        for turn in 0..60 {
            let heap = heap(Backend::Auto, 64);
            let begun = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    begun.store(true, Ordering::Release);
                    drop(heap.slice_from_fn(3, |i| i).unwrap());
                });
                while !begun.load(Ordering::Acquire) {
                    core::hint::spin_loop();
                }
                for _ in 0..turn * 50 {
                    core::hint::spin_loop();
                }
                let status = wait_for(fork(|| {
                    // SAFETY: ends a child that hangs.
                    unsafe { libc::alarm(10) };
                    assert_eq!(heap.slice_from_fn(9, |i| i).unwrap()[8], 8);
                }));
                assert!(status.success(), "turn {turn}: {status}");
            });
        }
    });
}

#[test]
fn a_fork_while_the_global_heap_is_built_leaves_the_child_able() {
    let name = "a_fork_while_the_global_heap_is_built_leaves_the_child_able";
    if common::role().is_none() {
        for turn in 0..20 {
            let status = run_alone(name, &turn.to_string(), &[]);
            assert!(status.success(), "turn {turn}: {status}");
        }
        return;
    }
    let turn: u32 = common::role().unwrap().parse().unwrap();
    let begun = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            begun.store(true, Ordering::Release);
            Heap::global().unwrap();
        });
        while !begun.load(Ordering::Acquire) {
            core::hint::spin_loop();
        }
        for _ in 0..turn * 1500 {
            core::hint::spin_loop();
        }
        let status = wait_for(fork(|| {
            // SAFETY: ends a child that hangs.
            unsafe { libc::alarm(10) };
            let heap = Heap::global().unwrap();
            assert_eq!(heap.slice_from_fn(9, |i| i).unwrap()[8], 8);
        }));
        assert!(status.success(), "turn {turn}: {status}");
    });
}

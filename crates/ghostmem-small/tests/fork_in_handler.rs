//! Forks in handlers, wherever these come at the gate: on a thread that enters or leaves
//! it, that is inside, and beside others in the same place.
#![cfg(target_os = "linux")] // fork(2), timers of a thread
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ghostmem_small::fork;

/// Threads in which a fork is under way.
static FORKS: AtomicUsize = AtomicUsize::new(0);
/// What every fork holds, from before the gate is closed on.
static HELD: Mutex<()> = Mutex::new(());
static MADE: AtomicUsize = AtomicUsize::new(0);

/// What stands around a fork, without the call: it shows as well who is let through.
fn fork_around() {
    let _held = fork::before(|| HELD.lock().unwrap());
    FORKS.fetch_add(1, Ordering::SeqCst);
    FORKS.fetch_sub(1, Ordering::SeqCst);
    MADE.fetch_add(1, Ordering::SeqCst);
    fork::after(false);
}

extern "C" fn on_signal(_: libc::c_int) {
    fork_around();
}

/// There is one gate: a test at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Runs it on a thread of its own, and fails where it takes as long as no wait here does.
fn in_time(what: &str, test: impl FnOnce() + Send + 'static) {
    let _one = ONE.lock().unwrap();
    let (done, ended) = channel();
    let thread = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    let outcome = ended.recv_timeout(Duration::from_secs(60));
    let is_late = outcome == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
    assert!(!is_late, "hangs: {what}");
    thread.join().unwrap();
}

/// Signals of the calling thread, every `ns` nanoseconds, until dropped.
struct Ticks(libc::timer_t);

impl Ticks {
    fn every(ns: libc::c_long) -> Self {
        // SAFETY: an all-zero event is one; the fields that matter are set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGUSR1;
        // SAFETY: no preconditions.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = std::ptr::null_mut();
        // SAFETY: an event and a place for the timer.
        let rc =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        assert_eq!(rc, 0);
        let each = libc::timespec {
            tv_sec: 0,
            tv_nsec: ns,
        };
        let times = libc::itimerspec {
            it_interval: each,
            it_value: each,
        };
        // SAFETY: a timer of ours, and times that are read.
        let rc = unsafe { libc::timer_settime(timer, 0, &raw const times, std::ptr::null_mut()) };
        assert_eq!(rc, 0);
        Self(timer)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        // SAFETY: a timer of ours, deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}

/// Enters and leaves for a while, interrupted by a handler that forks. While it is inside
/// no other thread forks.
fn go_in_and_out(until: Instant) {
    let _ticks = Ticks::every(20_000);
    while Instant::now() < until {
        for _ in 0..1000 {
            let outer = fork::keep_out();
            let inner = fork::keep_out();
            assert_eq!(
                FORKS.load(Ordering::SeqCst),
                0,
                "a fork beside a thread that is inside"
            );
            drop(inner);
            drop(outer);
        }
    }
}

#[test]
fn a_handler_forks_wherever_it_comes() {
    // SAFETY: a handler of one argument that calls what is made for handlers.
    unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as usize) };
    in_time("a thread alone", || {
        go_in_and_out(Instant::now() + Duration::from_secs(2));
        assert!(MADE.load(Ordering::SeqCst) > 100, "hardly a signal came");
    });
    in_time("two threads, and one that only forks", || {
        let until = Instant::now() + Duration::from_secs(2);
        thread::scope(|scope| {
            let workers = [(); 2].map(|()| scope.spawn(move || go_in_and_out(until)));
            while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
                fork_around();
                thread::sleep(Duration::from_micros(100));
            }
        });
    });
}

#[test]
fn who_is_stopped_inside_goes_first() {
    in_time("a fork beside a thread that forks inside", || {
        for _ in 0..50 {
            let waits = AtomicBool::new(false);
            thread::scope(|scope| {
                let inside = fork::keep_out();
                let other = scope.spawn(|| {
                    waits.store(true, Ordering::SeqCst);
                    fork_around();
                });
                while !waits.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                thread::sleep(Duration::from_millis(1));
                // As a handler does here.
                fork_around();
                assert!(
                    !other.is_finished(),
                    "it forked beside a thread that is inside"
                );
                drop(inside);
            });
        }
    });
    in_time("two threads that fork inside", || {
        for _ in 0..50 {
            let both = Barrier::new(2);
            let fork_inside = || {
                let _inside = fork::keep_out();
                both.wait();
                fork_around();
            };
            thread::scope(|scope| {
                scope.spawn(fork_inside);
                scope.spawn(fork_inside);
            });
        }
    });
}

#[test]
fn who_is_stopped_inside_does_not_wait_for_one_that_waits_for_it() {
    in_time("a fork beside a thread that waits inside", || {
        let lock = Mutex::new(());
        thread::scope(|scope| {
            let inside = fork::keep_out();
            let locked = lock.lock().unwrap();
            let (entered, is_in) = channel();
            let lock = &lock;
            scope.spawn(move || {
                let _inside = fork::keep_out();
                entered.send(()).unwrap();
                drop(lock.lock().unwrap());
            });
            is_in.recv().unwrap();
            fork_around();
            drop(locked);
            drop(inside);
        });
    });
}

#[test]
fn a_handler_forks_amid_a_fork() {
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as usize) };
    in_time("a handler in the midst of fork(3)", || {
        let _ticks = Ticks::every(30_000);
        for _ in 0..300 {
            // SAFETY: the child does nothing but end.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: no preconditions.
                unsafe { libc::_exit(0) };
            }
            assert!(child > 0);
            let mut status = 0;
            // SAFETY: a child of this process, and a place for its status.
            while unsafe { libc::waitpid(child, &raw mut status, 0) } != child {}
            assert_eq!(status, 0);
        }
    });
}

#[test]
fn more_threads_than_seats_keep_forks_out() {
    /// There are 2048 seats.
    const THREADS: usize = 2200;
    in_time("more threads than seats", || {
        let all_in = Barrier::new(THREADS + 1);
        let all_but_one = Barrier::new(THREADS + 1);
        let last = Barrier::new(2);
        thread::scope(|scope| {
            for index in 0..THREADS {
                let (all_in, all_but_one, last) = (&all_in, &all_but_one, &last);
                let thread = thread::Builder::new().stack_size(64 << 10);
                let run = move || {
                    let mut inside = Some(fork::keep_out());
                    all_in.wait();
                    // A thread of those that came last, which found no seat.
                    let stays = index == THREADS - 1;
                    if !stays {
                        inside = None;
                    }
                    all_but_one.wait();
                    if stays {
                        last.wait();
                    }
                    drop(inside);
                };
                thread.spawn_scoped(scope, run).unwrap();
            }
            all_in.wait();
            all_but_one.wait();
            let other = scope.spawn(fork_around);
            thread::sleep(Duration::from_millis(50));
            assert!(!other.is_finished(), "a fork beside the last one");
            last.wait();
        });
    });
}

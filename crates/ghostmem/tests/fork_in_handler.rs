//! A signal handler forks by a call that runs no handlers (`_Fork`), on a thread that is
//! about to fork and has closed the gate of small objects.
#![cfg(not(windows))] // no fork there
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::Watchdog;
use ghostmem::Heap;

mod common;

static FORKS: AtomicUsize = AtomicUsize::new(0);

/// As the library for other programs forks where no handlers run.
fn fork_around() {
    // SAFETY: fork(2) by itself: the child does nothing but end.
    let answer = ghostmem::fork::around_call(|| unsafe { libc::syscall(libc::SYS_fork) } as isize);
    if answer == 0 {
        // SAFETY: no preconditions.
        unsafe { libc::_exit(0) };
    }
    assert!(answer > 0);
    let mut status = 0;
    // SAFETY: a child of this process, and a place for its status.
    let waited = unsafe { libc::waitpid(answer as i32, &raw mut status, 0) };
    assert_eq!((waited as isize, status), (answer, 0));
    FORKS.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn on_signal(_: i32) {
    fork_around();
}

#[test]
fn a_handler_that_forks_does_not_wait_for_the_fork_it_interrupted() {
    let _watchdog = Watchdog::new("a fork in a handler, in a fork", 50);
    let heap = Heap::builder().build().unwrap();
    let block = heap.allocate(Layout::new::<u64>()).unwrap();
    ghostmem::fork::freeze_at_the_call();
    // SAFETY: a handler of one argument that makes system calls only.
    unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as usize) };
    for round in 1..=3 {
        // The other thread's fork waits at the gate for this one.
        let inside = ghostmem_small::fork::keep_out();
        let other = thread::spawn(fork_around);
        // It has closed the gate by then, most likely.
        thread::sleep(Duration::from_millis(50));
        // SAFETY: a thread that was not joined.
        unsafe { libc::pthread_kill(other.as_pthread_t(), libc::SIGUSR1) };
        thread::sleep(Duration::from_millis(20));
        drop(inside);
        other.join().unwrap();
        assert_eq!(FORKS.load(Ordering::SeqCst), 2 * round);
    }
    // SAFETY: allocated above, used by nobody.
    unsafe { heap.deallocate(block.cast(), Layout::new::<u64>()) }.unwrap();
}

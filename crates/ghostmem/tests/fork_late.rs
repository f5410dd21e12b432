//! A library takes over what the fork handlers do, while a fork is between those before
//! the call and those after it: what the first closed, the others open.
#![cfg(not(windows))] // no fork there
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Watchdog, fork, wait_for};
use ghostmem::Heap;
use ghostmem::fork::{Call, before_call};

mod common;

static ARMED: AtomicBool = AtomicBool::new(false);

/// Runs before a fork, after the engine's handlers.
extern "C" fn late() {
    if ARMED.swap(false, Ordering::SeqCst) {
        thread::spawn(ghostmem::fork::freeze_at_the_call)
            .join()
            .unwrap();
        // What the library does next, at this very fork.
        assert_eq!(before_call(|| {}).0, Call::Strange);
    }
}

extern "C" fn register() {
    // SAFETY: a handler that may run at any fork.
    unsafe { libc::pthread_atfork(Some(late), None, None) };
}

// Ahead of the engine's: handlers before a fork run in the reverse order.
// SAFETY: the loader calls what stands there, with arguments that it ignores.
#[used]
#[unsafe(link_section = ".init_array.00001")]
static REGISTER: extern "C" fn() = register;

#[test]
fn the_gate_that_a_handler_closed_is_opened_whoever_took_over_meanwhile() {
    let _watchdog = Watchdog::new("a fork while a library takes over", 50);
    let heap = Heap::builder().build().unwrap();
    let block = heap.allocate(Layout::new::<u64>()).unwrap();
    ARMED.store(true, Ordering::SeqCst);
    let child = fork(|| {});
    assert!(wait_for(child).success());
    assert!(!ARMED.load(Ordering::SeqCst), "the handler has run");
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        drop(ghostmem_small::fork::keep_out());
        done.send(()).unwrap();
    });
    let opened = is_done.recv_timeout(Duration::from_secs(20));
    assert!(opened.is_ok(), "the gate stayed closed");
    // SAFETY: allocated above, used by nobody.
    unsafe { heap.deallocate(block.cast(), Layout::new::<u64>()) }.unwrap();
}

//! A heap that could not take new address space for a while, because the
//! program had put too many signal handlers in front of GhostMem's, takes as
//! much as ever afterwards.
#![cfg(target_os = "linux")] // signal handlers
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::mem::zeroed;
use std::ptr;

use common::{Watchdog, alone_on_each, heap, word};
use ghostmem::Heap;

mod common;

/// The action for SIGSEGV, replaced by `new` if there is one.
fn action(new: Option<&libc::sigaction>) -> libc::sigaction {
    // SAFETY: all zeros is a valid sigaction.
    let mut before: libc::sigaction = unsafe { zeroed() };
    let new = new.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: null or a whole action; a valid place.
    let rc = unsafe { libc::sigaction(libc::SIGSEGV, new, &raw mut before) };
    assert_eq!(rc, 0);
    before
}

#[test]
fn refused_registrations_cost_a_heap_no_region() {
    alone_on_each("refused_registrations_cost_a_heap_no_region", |backend| {
        let _watchdog = Watchdog::new("refused regions", 60);
        let data = heap(backend, 64).slice_from_fn(256 * 512, |i| word(i, 4));
        let data = data.unwrap();
        // Has no region yet.
        let late = heap(backend, 64);
        let ours = action(None);
        // Handlers are told apart by address and flags; none of these is called.
        let refused = (1..).find(|&number| {
            let mut other = ours;
            other.sa_sigaction = ours.sa_sigaction + number;
            action(Some(&other));
            Heap::rearm().is_err()
        });
        assert!(refused.is_some_and(|number| number > 8), "{refused:?}");
        for _ in 0..100 {
            assert!(late.slice_from_fn(256 * 512, |i| word(i, 5)).is_err());
        }
        action(Some(&ours));
        let more = late.slice_from_fn(256 * 512, |i| word(i, 5)).unwrap();
        assert!(more.iter().enumerate().all(|(i, &w)| w == word(i, 5)));
        assert!(data.iter().enumerate().all(|(i, &w)| w == word(i, 4)));
    });
}

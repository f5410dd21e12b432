//! A child of fork has none of the other threads, but their pages. A new thread
//! there may get the identity of one of them, and with it nothing else.
#![cfg(target_os = "linux")] // fork(2)
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::Plain;
use ghostmem_small::{Arena, SmallError, SmallHeap};

const COUNT: usize = 500;

/// What the threads have in common.
struct Common {
    heap: SmallHeap<Plain>,
    blocks: Vec<AtomicUsize>,
    owner: AtomicUsize,
}

extern "C" fn allocate_and_stay(common: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: made from this reference, which lives as long as the process.
    let common = unsafe { &*common.cast::<Common>() };
    for (index, block) in common.blocks.iter().enumerate() {
        let new = common.heap.allocate(16 + index * 7 % 2000, 8, false);
        block.store(
            new.map_or(0, |new| new.as_ptr().expose_provenance()),
            Ordering::SeqCst,
        );
    }
    // SAFETY: no preconditions.
    let me = unsafe { libc::pthread_self() };
    common.owner.store(me as usize, Ordering::SeqCst);
    loop {
        thread::park();
    }
}

extern "C" fn free_as_its_double(common: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: as above.
    let common = unsafe { &*common.cast::<Common>() };
    // SAFETY: no preconditions.
    let me = unsafe { libc::pthread_self() };
    let mut outcome = 7;
    if me as usize != common.owner.load(Ordering::SeqCst) {
        outcome = 2;
    }
    for block in &common.blocks {
        let address = block.load(Ordering::SeqCst);
        let Some(block) = NonNull::new(std::ptr::with_exposed_provenance_mut(address)) else {
            return 3 as *mut libc::c_void;
        };
        if common.heap.is_page_own(block) {
            outcome = 4;
        }
        // SAFETY: nobody else is in this process.
        if unsafe { common.heap.deallocate(block) }.is_err() {
            outcome = 5;
        }
        // SAFETY: as above.
        let again = unsafe { common.heap.deallocate(block) };
        if !matches!(again, Err(SmallError::NotLive { .. })) {
            outcome = 6;
        }
        if common.heap.allocate(100, 8, false).is_none() {
            outcome = 8;
        }
    }
    outcome as *mut libc::c_void
}

fn start(
    act: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void,
    common: &'static Common,
) -> libc::pthread_t {
    let mut thread = 0;
    let with = std::ptr::from_ref(common).cast_mut().cast();
    // SAFETY: valid pointers, and `common` lives as long as the process.
    let rc = unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), act, with) };
    assert_eq!(rc, 0);
    thread
}

#[test]
fn a_new_thread_of_a_child_does_not_take_up_a_lost_threads_pages() {
    let common: &Common = Box::leak(Box::new(Common {
        heap: SmallHeap::new(Arena::acquire().unwrap(), Plain::new()).unwrap(),
        blocks: (0..COUNT).map(|_| AtomicUsize::new(0)).collect(),
        owner: AtomicUsize::new(0),
    }));
    let _stays = start(allocate_and_stay, common);
    while common.owner.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    // SAFETY: the child uses heaps, threads of libc and its stack, and leaves by
    // _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let thread = start(free_as_its_double, common);
        let mut outcome = std::ptr::null_mut();
        // SAFETY: joins the thread just made, once.
        let rc = unsafe { libc::pthread_join(thread, &raw mut outcome) };
        let code = if rc == 0 { outcome as i32 } else { 1 };
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child, with a valid pointer.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert!(libc::WIFEXITED(status), "the child was killed");
    let what = match libc::WEXITSTATUS(status) {
        2 => "libc gave the new thread another identity: nothing was tried",
        4 => "the new thread owns the lost one's pages",
        5 => "a live block was refused",
        6 => "a second free was not refused",
        code => {
            assert_eq!(code, 7);
            return;
        }
    };
    panic!("{what}");
}

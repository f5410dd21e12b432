//! fork in the middle of everything: the child's heaps go on working.
#![cfg(target_os = "linux")] // fork(2)

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Block, Plain, Random};
use ghostmem_small::{Arena, SmallHeap};

fn heap() -> SmallHeap<Plain> {
    SmallHeap::new(Arena::acquire().expect("an arena"), Plain::new()).expect("a heap")
}

/// Forks, runs `child` there and reports
/// whether it came to its end within ten seconds.
fn forked(child: impl FnOnce()) -> bool {
    // SAFETY: the child runs `child`, which uses nothing but heaps, raw
    // system calls and stack, and leaves by _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child();
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { libc::_exit(7) };
    }
    assert!(pid > 0);
    let begin = Instant::now();
    loop {
        let mut status = 0;
        // SAFETY: waits for our own child, with a valid pointer.
        let got = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if got == pid {
            return libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7;
        }
        if begin.elapsed() > Duration::from_secs(10) {
            // SAFETY: signals our own child, which was not waited for yet.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            return false;
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Ends the child with a failure: a panic would need the parent's locks.
fn must(holds: bool) {
    if !holds {
        // SAFETY: ends this process.
        unsafe { libc::_exit(1) };
    }
}

/// A thread of the child, without the standard library's allocations.
fn on_a_new_thread(
    act: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void,
    with: *mut libc::c_void,
) {
    let mut thread = 0;
    // SAFETY: valid pointers; the thread is joined before `with` ends.
    let rc = unsafe { libc::pthread_create(&raw mut thread, std::ptr::null(), act, with) };
    must(rc == 0);
    // SAFETY: joins the thread just made, once.
    must(unsafe { libc::pthread_join(thread, std::ptr::null_mut()) } == 0);
}

extern "C" fn allocate_some(heap: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `on_a_new_thread` was given this reference.
    let heap = unsafe { &*heap.cast::<SmallHeap<Plain>>() };
    churn(heap, 99, 2000);
    std::ptr::null_mut()
}

fn churn(heap: &SmallHeap<Plain>, seed: u64, rounds: usize) {
    let mut random = Random(seed);
    let mut held: [Option<Block>; 64] = [const { None }; 64];
    for _ in 0..rounds {
        let place = random.below(held.len());
        if let Some(block) = held[place].take() {
            block.check();
            // SAFETY: ours alone.
            must(unsafe { heap.deallocate(block.at) }.is_ok());
        }
        let size = 1 + random.below(9000);
        let at = heap.allocate(size, 8, false);
        must(at.is_some());
        held[place] = at.map(|at| Block::fill(at, size, random.next() as u8));
    }
    for block in held.into_iter().flatten() {
        block.check();
        // SAFETY: ours alone.
        must(unsafe { heap.deallocate(block.at) }.is_ok());
    }
}

#[test]
fn children_of_a_busy_process_allocate_free_and_make_heaps() {
    let shared = heap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for me in 0..3_u64 {
            let (shared, stop) = (&shared, &stop);
            scope.spawn(move || {
                let mut seed = me + 1;
                while !stop.load(Ordering::Relaxed) {
                    churn(shared, seed * 7919, 300);
                    // Threads that come and go, and heaps of their own.
                    thread::scope(|inner| {
                        inner.spawn(|| churn(shared, seed * 31, 50));
                    });
                    let own = heap();
                    churn(&own, seed, 50);
                    seed += 3;
                }
            });
        }
        let kept: Vec<_> = (1..200)
            .map(|i| Block::fill(shared.allocate(i * 37, 8, false).unwrap(), i * 37, i as u8))
            .collect();
        for round in 0..25 {
            let mine = heap();
            churn(&mine, 5, 100);
            let ended = forked(|| {
                for block in &kept {
                    block.check();
                    // SAFETY: this process's copy is ours alone.
                    must(unsafe { shared.deallocate(block.at) }.is_ok());
                }
                churn(&shared, 11, 2000);
                on_a_new_thread(allocate_some, (&raw const shared).cast_mut().cast());
                let fresh = heap();
                churn(&fresh, 12, 2000);
                on_a_new_thread(allocate_some, (&raw const fresh).cast_mut().cast());
                drop(fresh);
                // Older than the fork: leaves its arena alone, but ends.
                drop(mine);
            });
            if !ended {
                stop.store(true, Ordering::Relaxed);
                panic!("round {round}: the child hung or failed");
            }
        }
        stop.store(true, Ordering::Relaxed);
        for block in kept {
            block.check();
        }
    });
}

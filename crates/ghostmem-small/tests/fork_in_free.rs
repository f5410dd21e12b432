//! A fork while another thread frees: what that thread holds of mimalloc's is
//! free in the child.
#![cfg(target_os = "linux")] // fork(2)
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ghostmem_small::{Arena, SmallHeap, Space};

static SLOW: AtomicBool = AtomicBool::new(false);
static INSIDE: AtomicBool = AtomicBool::new(false);
static DISCARDED: AtomicUsize = AtomicUsize::new(0);

/// Takes its time once, in the middle of mimalloc's purge.
struct Slow;

impl Space for Slow {
    fn discard(&self, _address: usize, bytes: usize) {
        DISCARDED.fetch_add(bytes, Ordering::SeqCst);
        if SLOW.swap(false, Ordering::SeqCst) {
            INSIDE.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(500));
            INSIDE.store(false, Ordering::SeqCst);
        }
    }
}

const BYTES: usize = 8 << 10;

fn allocate(heap: &SmallHeap<Slow>, count: usize) -> Vec<NonNull<u8>> {
    (0..count)
        .map(|_| heap.allocate(BYTES, 16, false).unwrap())
        .collect()
}

fn free(heap: &SmallHeap<Slow>, blocks: &[NonNull<u8>]) -> bool {
    blocks.iter().all(|&block| {
        // SAFETY: nobody uses the tests' blocks.
        unsafe { heap.deallocate(block) }.is_ok()
    })
}

#[test]
fn a_fork_waits_for_a_free_that_purges() {
    let heap = SmallHeap::new(Arena::acquire().unwrap(), Slow).unwrap();
    thread::scope(|scope| {
        let heap = &heap;
        scope.spawn(move || {
            let blocks = allocate(heap, 1000);
            let (first, second) = blocks.split_at(500);
            assert!(free(heap, first));
            // mimalloc purges what was free for a second, when pages are freed.
            thread::sleep(Duration::from_millis(1500));
            SLOW.store(true, Ordering::SeqCst);
            assert!(free(heap, second));
            assert!(!SLOW.load(Ordering::SeqCst), "no free ever purged");
        });
        let begin = Instant::now();
        while !INSIDE.load(Ordering::SeqCst) {
            assert!(begin.elapsed() < Duration::from_secs(30), "no purge seen");
            thread::yield_now();
        }
        // SAFETY: the child uses heaps and its stack, and leaves by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let blocks = allocate(heap, 500);
            let before = DISCARDED.load(Ordering::SeqCst);
            let freed = free(heap, &blocks);
            heap.trim();
            let discarded = DISCARDED.load(Ordering::SeqCst) - before;
            let code = match (INSIDE.load(Ordering::SeqCst), freed) {
                (true, _) => 2,
                (_, false) => 3,
                _ if discarded < 250 * BYTES => 4,
                _ => 7,
            };
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child, with a valid pointer.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFEXITED(status), "the child was killed");
        let what = match libc::WEXITSTATUS(status) {
            2 => "the child was forked in the middle of a purge",
            3 => "the child could not free",
            4 => "free memory is kept in the child",
            code => {
                assert_eq!(code, 7);
                return;
            }
        };
        panic!("{what}");
    });
}

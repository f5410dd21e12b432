//! Thread cancellation: a thread that is cancelled while it walks ghost memory
//! ends where the program says, never inside a fault.
#![cfg(target_os = "linux")] // pthread_cancel(3)
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{PAGE_SIZE, Watchdog, alone_on_each, heap, stamped};
use ghostmem::GhostSlice;

mod common;

/// Twice what is resident.
const WORDS: usize = 128 * PAGE_SIZE / 8;
const LIMIT_PAGES: usize = 64;

static DATA: OnceLock<GhostSlice<AtomicU64>> = OnceLock::new();
/// Rounds that the walking threads have begun.
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// What a walk that met no wrong word returns.
const WALKED: usize = 1234;

/// Reads and rewrites all of the data, a few rounds, in which it calls nothing.
extern "C" fn walk(_: *mut libc::c_void) -> *mut libc::c_void {
    let words = DATA.get().unwrap();
    let mut wrong = 0;
    for _ in 0..6 {
        ROUNDS.fetch_add(1, Ordering::SeqCst);
        for (index, word) in words.iter().enumerate() {
            let seen = word.load(Ordering::Relaxed);
            wrong += usize::from(seen != stamped(index, 0));
            word.store(seen, Ordering::Relaxed);
        }
    }
    std::ptr::without_provenance_mut(WALKED + wrong)
}

#[test]
fn a_cancelled_thread_does_not_end_inside_a_fault() {
    let name = "a_cancelled_thread_does_not_end_inside_a_fault";
    alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("cancelled threads", 50);
        let words = heap(backend, LIMIT_PAGES)
            .slice_from_fn(WORDS, |index| AtomicU64::new(stamped(index, 0)))
            .unwrap();
        let words = DATA.get_or_init(|| words);
        for turn in 0..8 {
            let begun = ROUNDS.load(Ordering::SeqCst);
            let mut thread = 0;
            // SAFETY: a valid place, and a function of the right type.
            let rc = unsafe {
                libc::pthread_create(
                    &raw mut thread,
                    std::ptr::null(),
                    walk,
                    std::ptr::null_mut(),
                )
            };
            assert_eq!(rc, 0);
            while ROUNDS.load(Ordering::SeqCst) == begun {
                std::thread::yield_now();
            }
            // SAFETY: a thread that was not joined yet.
            assert_eq!(unsafe { libc::pthread_cancel(thread) }, 0);
            let mut answer = std::ptr::null_mut();
            // SAFETY: as above, and a valid place.
            assert_eq!(unsafe { libc::pthread_join(thread, &raw mut answer) }, 0);
            assert_eq!(answer.addr(), WALKED, "{backend}, turn {turn}");
        }
        for (index, word) in words.iter().enumerate() {
            assert_eq!(word.load(Ordering::Relaxed), stamped(index, 0), "{backend}");
        }
    });
}

#[test]
fn a_fault_leaves_errno_alone() {
    alone_on_each("a_fault_leaves_errno_alone", |backend| {
        let words = heap(backend, LIMIT_PAGES)
            .slice_from_fn(WORDS, |index| AtomicU64::new(stamped(index, 0)))
            .unwrap();
        for turn in 0..2 {
            for index in (0..WORDS).step_by(PAGE_SIZE / 8) {
                // SAFETY: the calling thread's own.
                unsafe { *libc::__errno_location() = 77 };
                let seen = words[index].fetch_add(0, Ordering::Relaxed);
                // SAFETY: as above.
                let errno = unsafe { *libc::__errno_location() };
                assert_eq!(
                    (seen, errno),
                    (stamped(index, 0), 77),
                    "{backend}, turn {turn}"
                );
            }
        }
    });
}

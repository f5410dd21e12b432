//! Memory that is committed when it is touched, on Windows: threads that touch a
//! piece first at the same time all keep what they store there.
#![cfg(windows)]
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::sync::Barrier;
use std::thread;

use ghostmem_os::map::{Access, Reservation};

const PIECE: usize = 1 << 16;
const PIECES: usize = 1000;
const THREADS: usize = 4;

#[test]
fn first_touches_at_once_lose_no_store() {
    for align in [4096, PIECE] {
        let space = Reservation::new(PIECES * PIECE, align, Access::ReadWrite).unwrap();
        let base = space.base();
        let word = |piece: usize, me: usize| {
            std::ptr::with_exposed_provenance_mut::<usize>(base + piece * PIECE).wrapping_add(me)
        };
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for me in 0..THREADS {
                let start = &start;
                scope.spawn(move || {
                    for piece in 0..PIECES {
                        if piece % 8 == 0 {
                            start.wait();
                        }
                        // SAFETY: committed by the touch; a word of this thread's.
                        unsafe { word(piece, me).write_volatile(piece + 1) };
                    }
                });
            }
        });
        for piece in 0..PIECES {
            for me in 0..THREADS {
                // SAFETY: written above.
                let found = unsafe { word(piece, me).read_volatile() };
                assert_eq!(
                    found,
                    piece + 1,
                    "thread {me}, piece {piece}, align {align}"
                );
            }
        }
    }
}

//! Segments of shared memory (shmat(2)) that the program attached in the heap's place.
//!
//! shmdt(2) is told where a segment was attached and not how long it is. The kernel would
//! unmap it and leave its addresses to the next mapping, whoever makes it; and the heap would
//! take them back one day, with what lies there then. So shmdt(2) of these is carried out as
//! munmap(2) is, and what lies where is noted here.
//!
//! ```text
//!   shmat ─► a piece ── part unmapped, or mapped over ─► shorter, or two
//!               │                                           │
//!               └── mremap ─► elsewhere                     └── shmdt ─► none
//! ```
//! A piece is found by where its segment begins, or would begin. Entries are changed under a
//! lock, and the word that says whether they count is written last: a fork in the midst of
//! that finds an entry whole or not at all.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::alone::Alone;
use crate::raw::{Answer, failed, own};
use crate::signals::Blocked;

/// Pieces at most.
const MOST: usize = 1024;

/// A piece of an attached segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// Where the segment begins.
    segment: usize,
    start: usize,
    end: usize,
}

/// Where the segment begins, where the piece does, and where it ends; 0 there: free.
struct Entry([AtomicUsize; 3]);

static ENTRIES: [Entry; MOST] = [const { Entry([const { AtomicUsize::new(0) }; 3]) }; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static CHANGES: Alone = Alone::new();

fn with<R>(body: impl FnOnce() -> R) -> R {
    let _blocked = Blocked::new();
    let _alone = CHANGES.take();
    body()
}

impl Entry {
    fn get(&self) -> Option<Piece> {
        let [segment, start, end] = [0, 1, 2].map(|index| self.0[index].load(Ordering::Acquire));
        (end != 0).then_some(Piece {
            segment,
            start,
            end,
        })
    }

    fn free(&self) {
        self.0[2].store(0, Ordering::Release);
        COUNT.fetch_sub(1, Ordering::Release);
    }
}

fn put(piece: Piece) -> bool {
    let Some(entry) = ENTRIES.iter().find(|entry| entry.get().is_none()) else {
        return false;
    };
    entry.0[0].store(piece.segment, Ordering::Relaxed);
    entry.0[1].store(piece.start, Ordering::Relaxed);
    entry.0[2].store(piece.end, Ordering::Release);
    COUNT.fetch_add(1, Ordering::Release);
    true
}

/// A segment is attached; `false`: there are too many.
pub(crate) fn note(start: usize, end: usize) -> bool {
    with(|| {
        put(Piece {
            segment: start,
            start,
            end,
        })
    })
}

/// A range is unmapped, or other things are mapped there. One load where nothing is attached.
pub(crate) fn forget(start: usize, end: usize) {
    if COUNT.load(Ordering::Acquire) == 0 {
        return;
    }
    with(|| {
        for entry in &ENTRIES {
            let Some(piece) = entry.get() else { continue };
            if piece.end <= start || piece.start >= end {
                continue;
            }
            entry.free();
            let (before, behind) = (
                Piece {
                    end: start,
                    ..piece
                },
                Piece {
                    start: end,
                    ..piece
                },
            );
            // There is room for one; where there is none for the other, shmdt(2) leaves it.
            let _room = before.start >= before.end || put(before);
            let _room = behind.start >= behind.end || put(behind);
        }
    });
}

/// A range was moved by mremap(2): so were the pieces in it, and where they are told from.
pub(crate) fn follow(start: usize, end: usize, to: usize) {
    if COUNT.load(Ordering::Acquire) == 0 {
        return;
    }
    let moved = |at: usize| at.wrapping_sub(start).wrapping_add(to);
    with(|| {
        for entry in &ENTRIES {
            let Some(piece) = entry.get() else { continue };
            let (from, until) = (piece.start.max(start), piece.end.min(end));
            if from < until {
                let _room = put(Piece {
                    segment: moved(piece.segment),
                    start: moved(from),
                    end: moved(until),
                });
            }
        }
    });
}

/// Takes a piece of a segment that begins, or would begin, at an address: first address and
/// end. Of those who ask for it at once one has it.
pub(crate) fn take(segment: usize) -> Option<(usize, usize)> {
    if COUNT.load(Ordering::Acquire) == 0 {
        return None;
    }
    with(|| {
        let of_it = |entry: &&Entry| entry.get().is_some_and(|piece| piece.segment == segment);
        let entry = ENTRIES.iter().find(of_it)?;
        let piece = entry.get()?;
        entry.free();
        Some((piece.start, piece.end))
    })
}

/// How long a segment is, bytes, by shmctl(2): who may attach it may ask. The kernel's refusal.
pub(crate) fn length_of(segment: usize) -> Result<usize, Answer> {
    const LENGTH_AT: usize = 6;
    let mut about = [0_usize; 14];
    let (what, place) = (libc::IPC_STAT, about.as_mut_ptr());
    let asked = own!(libc::SYS_shmctl, segment, what, place);
    if failed(asked) {
        return Err(asked);
    }
    Ok(about[LENGTH_AT])
}

/// In a forked child: whoever was here in the parent is not.
pub(crate) fn forget_others() {
    CHANGES.forget_others();
}

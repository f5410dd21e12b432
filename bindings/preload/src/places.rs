//! Programs that reserve memory at a place of their choice, or not at all.
//!
//! A mapping that is taken lies where the heap has room, wherever mmap(2) was asked to put
//! it. Most programs take any place after a few tries (Java's other collectors), or after a
//! hundred (Go). ZGC asks thousands of times, and ends. What it puts there is a file, never
//! ghost memory. So reservations of one length that were given back so often, each at once
//! and unused, are the kernel's from then on where they name a place.

use core::sync::atomic::{AtomicUsize, Ordering};

/// Whether a program asks for a place that 32 bits can name: it keeps addresses in as many, or
/// looks where a loop of its own wraps. (Java asks for one for its heap, closed at first, and
/// takes any other.)
pub(crate) fn is_low(hint: usize) -> bool {
    hint != 0 && hint < 1 << 32
}

/// So many times in a row.
const TRIES: usize = 512;

/// The reservation that was taken last elsewhere than where it was asked for; 0: it was
/// given back.
static START: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// How many of that length were given back, one after the other.
static TRIED: AtomicUsize = AtomicUsize::new(0);
/// Reservations of this length are the kernel's; 0: none.
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Whether a reservation that names a place is left to the kernel.
pub(crate) fn are_insisted_on(bytes: usize) -> bool {
    LEFT.load(Ordering::Relaxed) == bytes
}

/// A reservation was taken, elsewhere than where it was asked for.
pub(crate) fn note_reserved(start: usize, bytes: usize) {
    let kept = START.swap(start, Ordering::Relaxed) != 0;
    if BYTES.swap(bytes, Ordering::Relaxed) != bytes || kept {
        TRIED.store(0, Ordering::Relaxed);
    }
}

/// Whether these are the pages that were reserved last.
pub(crate) fn is_last(start: usize, bytes: usize) -> bool {
    START.load(Ordering::Relaxed) == start && BYTES.load(Ordering::Relaxed) == bytes
}

/// They were given back, and nothing was ever opened of them. Whether so many were, one after
/// the other, that the program looks for a place.
pub(crate) fn note_given_back() -> bool {
    /// Who reserves more to have an address that is round tries twice, or a little more often.
    const LOOKS_FROM: usize = 16;
    START.store(0, Ordering::Relaxed);
    let tried = TRIED.fetch_add(1, Ordering::Relaxed) + 1;
    if tried >= TRIES {
        LEFT.store(BYTES.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    tried >= LOOKS_FROM
}

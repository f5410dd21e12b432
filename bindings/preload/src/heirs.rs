//! Ranges that a forked child does not get as they are (madvise(2)): zeros with
//! `MADV_WIPEONFORK`, no mapping with `MADV_DONTFORK`.
//!
//! The child's copies are taken away in the child, before the program runs there. A
//! child that shares its parent's memory (vfork(2)) keeps it, as the kernel has it.
//! What is freed or unmapped is forgotten.
//!
//! Entries are changed under a lock, with a word that says whether they count written
//! last: a fork in the midst of that finds an entry whole or not at all.

use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem::{Heap, Hole};

use crate::alone::Alone;
use crate::holds;
use crate::signals::Blocked;
use crate::thread::{self, EngineScope};

/// What a child gets in place of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Gets {
    Zeros = 1,
    Nothing = 2,
}

/// Ranges at most; libraries have one each.
const MOST: usize = 1024;

struct Entry {
    /// 0: free; else a [`Gets`].
    gets: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
}

static ENTRIES: [Entry; MOST] = [const {
    Entry {
        gets: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; MOST];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static CHANGES: Alone = Alone::new();

fn with<R>(body: impl FnOnce() -> R) -> R {
    let _blocked = Blocked::new();
    let _alone = CHANGES.take();
    body()
}

impl Entry {
    fn bounds(&self) -> (usize, usize) {
        (
            self.start.load(Ordering::Relaxed),
            self.end.load(Ordering::Relaxed),
        )
    }

    fn free(&self) {
        self.gets.store(0, Ordering::Release);
        COUNT.fetch_sub(1, Ordering::Release);
    }
}

fn put(gets: usize, start: usize, end: usize) -> bool {
    let free = |entry: &&Entry| entry.gets.load(Ordering::Relaxed) == 0;
    let Some(entry) = ENTRIES.iter().find(free) else {
        return false;
    };
    entry.start.store(start, Ordering::Relaxed);
    entry.end.store(end, Ordering::Relaxed);
    entry.gets.store(gets, Ordering::Release);
    COUNT.fetch_add(1, Ordering::Release);
    true
}

/// Takes a range out of the entries of one kind; all kinds without one.
fn take(gets: Option<Gets>, start: usize, end: usize) -> bool {
    let mut all = true;
    for entry in &ENTRIES {
        let kind = entry.gets.load(Ordering::Relaxed);
        let (from, to) = entry.bounds();
        if kind == 0 || gets.is_some_and(|gets| gets as usize != kind) || to <= start || from >= end
        {
            continue;
        }
        // What stays has its entry before the whole has none.
        all &= from >= start || put(kind, from, start);
        all &= to <= end || put(kind, end, to);
        entry.free();
    }
    all
}

/// A child is to get this in place of a range's copy; `false` when there are too many
/// such ranges.
pub(crate) fn promise(gets: Gets, start: usize, bytes: usize) -> bool {
    with(|| take(Some(gets), start, start + bytes) && put(gets as usize, start, start + bytes))
}

/// A child is to get a copy of a range again, as far as this kind goes.
pub(crate) fn withdraw(gets: Gets, start: usize, bytes: usize) -> bool {
    COUNT.load(Ordering::Acquire) == 0 || with(|| take(Some(gets), start, start + bytes))
}

/// The range's contents move, and what a child gets of them.
pub(crate) fn follow(start: usize, bytes: usize, to: usize) {
    if !any() {
        return;
    }
    with(|| {
        for entry in &ENTRIES {
            let kind = entry.gets.load(Ordering::Relaxed);
            let (from, end) = entry.bounds();
            let (from, end) = (from.max(start), end.min(start + bytes));
            if kind != 0 && from < end {
                put(kind, to + (from - start), to + (end - start));
            }
        }
    });
}

/// The first part of a range that a child does not get as it is, and what it gets.
pub(crate) fn next(start: usize, end: usize) -> Option<(usize, usize, Gets)> {
    if !any() {
        return None;
    }
    with(|| {
        let promised = ENTRIES.iter().filter_map(|entry| {
            let gets = match entry.gets.load(Ordering::Relaxed) {
                1 => Gets::Zeros,
                2 => Gets::Nothing,
                _ => return None,
            };
            let (from, to) = entry.bounds();
            let (from, to) = (from.max(start), to.min(end));
            (from < to).then_some((from, to, gets))
        });
        promised.min_by_key(|&(from, ..)| from)
    })
}

/// Whether a child is promised anything. One load.
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::Acquire) > 0
}

/// The range is gone.
pub(crate) fn forget(start: usize, bytes: usize) {
    if COUNT.load(Ordering::Acquire) > 0 {
        with(|| take(None, start, start.saturating_add(bytes)));
    }
}

/// In a forked child, before the program runs there.
pub(crate) fn settle_in_child(heap: Option<&Heap>) {
    CHANGES.forget_others();
    let Some(heap) = heap.filter(|_| COUNT.load(Ordering::Acquire) > 0) else {
        return;
    };
    let _inside = EngineScope::new(thread::current());
    for entry in &ENTRIES {
        let kind = entry.gets.load(Ordering::Acquire);
        let (start, end) = entry.bounds();
        let range = core::ptr::slice_from_raw_parts_mut(start as *mut u8, end - start);
        if kind == Gets::Zeros as usize {
            if holds::any(start, end - start) {
                holds::clear(start, end - start);
            }
            // SAFETY: the program wants zeros here.
            let _of_this_heap = unsafe { heap.discard(range) };
        } else if kind == Gets::Nothing as usize {
            // The entry, too: no mapping, no promise about it.
            holds::forget(heap, start, end - start);
            // SAFETY: the program wants no mapping here.
            let _of_this_heap = unsafe { heap.make_holes(range, Hole::Unmapped) };
        }
    }
}

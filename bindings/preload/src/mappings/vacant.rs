//! Places of mappings that the program has unmapped, all of them: kept for a while.
//!
//! ```text
//!   mapped ── munmap ─► vacant ── MAP_FIXED, a hint, shmat ─► mapped
//!                         │
//!                         └── too many, a new mapping as long, no address space ─► free
//! ```
//! A program may reserve a place, unmap it, and map other things there at once: a buffer that
//! is mapped twice in a row, code in a place of its own, shared memory. Until then nothing
//! else may come there, blocks of malloc least of all. So the block stays, all of it holes
//! ([`ghostmem::Hole::Unmapped`]), and counts as nothing. A mapping that names no place may get it, as
//! the kernel may give it such a place: one as long frees it first.
//!
//! Used by who has the table of mapped ranges alone: that is the lock.

use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem::Heap;

use super::{BLOCK_BYTES_MIN, free_block, range, unmap_pages};
use crate::taken::{self, Table};

/// So many places are kept.
const PLACES: usize = 1024;
/// All of them are so long together, at most: a quarter of a region.
const BYTES_MAX: usize = 16 << 30;
/// Those but the last one that held something, likewise: new mappings get other addresses
/// meanwhile, and each page that is used has entries in tables.
const USED_BYTES_MAX: usize = 256 << 20;
/// So much of used addresses may stay unused where a mapping as long is made.
const LITTLE_BYTES: usize = 16 << 20;

/// A place that is kept.
#[derive(Clone, Copy)]
struct Vacancy {
    start: usize,
    bytes: usize,
    /// As many if it held something, else 0.
    used: usize,
}

/// Its words; the place unmapped last is at the end.
static KEPT: [[AtomicUsize; 3]; PLACES] = [const { [const { AtomicUsize::new(0) }; 3] }; PLACES];
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn get(index: usize) -> Vacancy {
    let [start, bytes, used] = KEPT[index].each_ref();
    let [start, bytes, used] = [start, bytes, used].map(|word| word.load(Ordering::Relaxed));
    Vacancy { start, bytes, used }
}

fn set(index: usize, vacancy: Vacancy) {
    let words = [vacancy.start, vacancy.bytes, vacancy.used];
    for (word, value) in KEPT[index].iter().zip(words) {
        word.store(value, Ordering::Relaxed);
    }
}

fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

fn find(block: usize) -> Option<usize> {
    (0..count()).find(|&index| get(index).start == block)
}

/// Takes one out of the list; where it is.
fn remove(index: usize) -> usize {
    let start = get(index).start;
    (index + 1..count()).for_each(|at| set(at - 1, get(at)));
    COUNT.fetch_sub(1, Ordering::Relaxed);
    start
}

/// Whether any place is kept. One load.
pub(crate) fn any() -> bool {
    count() > 0
}

/// Nothing of a block is mapped any more: its place is kept, or is free where that cannot be.
pub(super) fn keep(_alone: &mut Table, heap: &Heap, block: usize) {
    if find(block).is_some() {
        return;
    }
    let Some((start, bytes)) = heap.pages_around(block) else {
        return;
    };
    let pages = range(start, bytes);
    if bytes > BYTES_MAX {
        // Holes first: what was closed for a move is open again by that.
        unmap_pages(heap, pages);
        free_block(heap, start);
        return;
    }
    let was_used = heap.next_contents(start, bytes).is_some();
    let is_hole = unmap_pages(heap, pages);
    // What the kernel is at work on just now stays until it is done.
    if !is_hole || heap.next_contents(start, bytes).is_some() {
        free_block(heap, start);
        return;
    }
    while count() > 0 && !has_room(bytes) {
        free_block(heap, remove(0));
    }
    let used = if was_used { bytes } else { 0 };
    set(count(), Vacancy { start, bytes, used });
    COUNT.fetch_add(1, Ordering::Relaxed);
}

/// Whether one more of so many bytes is to be kept beside those there are.
fn has_room(bytes: usize) -> bool {
    let all = || (0..count()).map(get);
    count() < PLACES
        && all().map(|vacancy| vacancy.bytes).sum::<usize>() + bytes <= BYTES_MAX
        && all().map(|vacancy| vacancy.used).sum::<usize>() <= USED_BYTES_MAX
}

/// Whether a block's place is kept.
pub(crate) fn is_kept(_alone: &mut Table, block: usize) -> bool {
    find(block).is_some()
}

/// The program has mapped something in a block: its place is none to keep any more.
pub(crate) fn is_mapped(_alone: &mut Table, block: usize) {
    if let Some(index) = find(block) {
        remove(index);
    }
}

/// A mapping of so many bytes is made, anywhere. Of places that are as long the first is free
/// for it; the last one only if that is a large one.
pub(super) fn free_one_like(heap: &Heap, bytes: usize) {
    let room = |bytes: usize| bytes.max(BLOCK_BYTES_MIN).checked_next_power_of_two();
    if any() {
        taken::with(|_| {
            let mut like = (0..count()).filter(|&index| room(get(index).bytes) == room(bytes));
            let (first, has_another) = (like.next(), like.next().is_some());
            if let Some(index) = first.filter(|&at| has_another || get(at).used > LITTLE_BYTES) {
                free_block(heap, remove(index));
            }
        });
    }
}

/// There is no address space for something else: all places are free. Whether there were any.
pub(crate) fn free_all(heap: &Heap) -> bool {
    any()
        && taken::with(|_| {
            let had = any();
            while any() {
                free_block(heap, remove(0));
            }
            had
        })
}

//! Blocks of pages that were freed a moment ago, for the next who asks.
//!
//! Freeing a block of pages forgets its contents page by page, and a fresh one
//! faults for every page: tens of microseconds that a program which allocates
//! the same 100 KiB over and over pays each time. So some freed blocks are kept
//! as they are and handed out again, dirty; calloc clears what it gets.
//!
//! Kept blocks count as resident memory and are evicted like any other, so
//! their sum is kept small. Shelves are by size: four to each power of two. A
//! thread that finds a shelf in use goes on without it.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem_os::PAGE_SIZE;

/// Smallest and largest block kept, in bytes: smaller ones are not blocks of
/// pages.
const LEAST: usize = 36 << 10;
const MOST: usize = 4 << 20;
/// Blocks on a shelf.
const PLACES: usize = 8;
const SHELVES: usize = 32;

struct Shelf {
    busy: AtomicBool,
    blocks: [AtomicUsize; PLACES],
}

static SHELF: [Shelf; SHELVES] = [const {
    Shelf {
        busy: AtomicBool::new(false),
        blocks: [const { AtomicUsize::new(0) }; PLACES],
    }
}; SHELVES];
/// Bytes of kept blocks, and how many they may be.
static KEPT: AtomicUsize = AtomicUsize::new(0);
static ROOM: AtomicUsize = AtomicUsize::new(0);

/// Keeps up to so many bytes from now on.
pub(crate) fn set_room(bytes: usize) {
    ROOM.store(bytes, Ordering::Relaxed);
}

/// The size blocks for `size` bytes are allocated with, and the shelf they
/// belong on; `None` for sizes that are not kept. Wastes address space only:
/// pages nobody touches have no frame.
pub(crate) fn class_of(size: usize) -> Option<(usize, usize)> {
    if !(LEAST..=MOST).contains(&size) {
        return None;
    }
    // The quarter of the power of two that reaches `size`.
    let power = usize::BITS - 1 - (size - 1).leading_zeros();
    let quarter = 1_usize << (power - 2);
    let class = size.next_multiple_of(quarter);
    let index = (power as usize - 15) * 4 + (class >> (power - 2)) - 5;
    (index < SHELVES && class.is_multiple_of(PAGE_SIZE)).then_some((class, index))
}

/// A kept block from a shelf.
pub(crate) fn take(shelf: usize, class: usize) -> Option<usize> {
    let shelf = SHELF.get(shelf)?;
    if KEPT.load(Ordering::Relaxed) == 0 || shelf.busy.swap(true, Ordering::Acquire) {
        return None;
    }
    let place = shelf
        .blocks
        .iter()
        .rev()
        .find(|place| place.load(Ordering::Relaxed) != 0);
    let block = place.map(|place| place.swap(0, Ordering::Relaxed));
    shelf.busy.store(false, Ordering::Release);
    if block.is_some() {
        KEPT.fetch_sub(class, Ordering::Relaxed);
    }
    block
}

/// What became of a freed block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Kept,
    /// No room: free it.
    Full,
    /// It was freed already.
    Twice,
}

/// Keeps a freed block, if there is room.
pub(crate) fn put(shelf: usize, class: usize, block: usize) -> Put {
    let Some(shelf) = SHELF.get(shelf) else {
        return Put::Full;
    };
    if shelf.busy.swap(true, Ordering::Acquire) {
        return Put::Full;
    }
    let mut result = Put::Full;
    if shelf
        .blocks
        .iter()
        .any(|place| place.load(Ordering::Relaxed) == block)
    {
        result = Put::Twice;
    } else if KEPT.load(Ordering::Relaxed) + class <= ROOM.load(Ordering::Relaxed)
        && let Some(place) = shelf
            .blocks
            .iter()
            .find(|place| place.load(Ordering::Relaxed) == 0)
    {
        place.store(block, Ordering::Relaxed);
        KEPT.fetch_add(class, Ordering::Relaxed);
        result = Put::Kept;
    }
    shelf.busy.store(false, Ordering::Release);
    result
}

/// Takes a kept block, whichever; `None` when there are no more.
pub(crate) fn take_any() -> Option<usize> {
    (0..SHELVES).find_map(|index| take(index, class_at(index)))
}

/// Bytes of the blocks kept.
pub(crate) fn kept_bytes() -> usize {
    KEPT.load(Ordering::Relaxed)
}

/// In a forked child: shelves that somebody was busy with stay so, unused.
pub(crate) fn forget_others() {
    KEPT.store(0, Ordering::Relaxed);
    for (index, shelf) in SHELF.iter().enumerate() {
        if shelf.busy.load(Ordering::Relaxed) {
            continue;
        }
        let blocks = shelf.blocks.iter();
        let count = blocks
            .filter(|place| place.load(Ordering::Relaxed) != 0)
            .count();
        KEPT.fetch_add(count * class_at(index), Ordering::Relaxed);
    }
}

/// The size of blocks on a shelf.
const fn class_at(shelf: usize) -> usize {
    (5 + shelf % 4) << (shelf / 4 + 13)
}

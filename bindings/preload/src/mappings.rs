//! Anonymous mappings as ghost memory (`--mmap`).
//!
//! A large private anonymous mapping that is readable and writable becomes a
//! block of pages of the heap. What the program later does to it by munmap,
//! mremap or a fixed mmap is carried out on the block; the block is freed when
//! no page of it is mapped any more. A part that was unmapped reads as zero
//! instead of faulting until then.
//!
//! The list of live ranges is a fixed array: this runs inside libc's malloc
//! too, which maps memory with its own lock held. When it is full, mappings
//! are ordinary ones again.

use core::cell::UnsafeCell;
use core::ptr::{NonNull, slice_from_raw_parts_mut};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem::Heap;
use ghostmem_os::PAGE_SIZE;

use crate::calls::{Done, error};
use crate::raw::{self, Answer, failed, own};
use crate::thread::{self, EngineScope};
use crate::{ghost, holds};

const RANGES_MAX: usize = 4096;

/// Mappings of at least so many bytes are taken; 0: none.
static FROM: AtomicUsize = AtomicUsize::new(0);

/// A range of a block that is mapped as far as the program knows.
#[derive(Debug, Clone, Copy)]
struct Range {
    block: usize,
    start: usize,
    end: usize,
}

const FREE: Range = Range {
    block: 0,
    start: 0,
    end: 0,
};

struct List(UnsafeCell<[Range; RANGES_MAX]>);
// SAFETY: used only by `with`, one thread at a time.
unsafe impl Sync for List {}

static LIST: List = List(UnsafeCell::new([FREE; RANGES_MAX]));
static BUSY: AtomicBool = AtomicBool::new(false);
/// No range stands at or behind this place.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Runs `body` on the part of the list in use and one free place behind it.
fn with<R>(body: impl FnOnce(&mut [Range]) -> R) -> R {
    while BUSY.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
    let used = USED.load(Ordering::Relaxed);
    // SAFETY: BUSY was clear, so this is the only thread here; `body` does not
    // come back to this function.
    let list = unsafe { &mut *LIST.0.get() };
    // Cutting one range out of another adds one.
    let part = &mut list[..(used + 2).min(RANGES_MAX)];
    let result = body(part);
    let last = part.iter().rposition(|range| range.block != 0);
    USED.store(last.map_or(0, |last| last + 1), Ordering::Relaxed);
    BUSY.store(false, Ordering::Release);
    result
}

/// Takes mappings from this size on.
pub(crate) fn take_from(bytes: usize) {
    FROM.store(bytes, Ordering::Relaxed);
}

/// In a forked child: whoever was here in the parent is not.
pub(crate) fn forget_others() {
    BUSY.store(false, Ordering::Release);
}

fn add(range: Range) -> bool {
    with(|list| {
        let place = list.iter_mut().find(|place| place.block == 0);
        place.map(|place| *place = range).is_some()
    })
}

/// mmap.
pub(crate) fn map(args: [usize; 6]) -> Done {
    let [_hint, bytes, access, flags, ..] = args;
    let has = |flag: i32| flags & flag as usize != 0;
    if has(libc::MAP_FIXED) || has(libc::MAP_FIXED_NOREPLACE) {
        return map_over(args);
    }
    let plain = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_POPULATE;
    if bytes < FROM.load(Ordering::Relaxed)
        || access != (libc::PROT_READ | libc::PROT_WRITE) as usize
        || flags & !(plain as usize) != 0
        || !has(libc::MAP_PRIVATE)
        || !has(libc::MAP_ANONYMOUS)
        || !ghost::is_on()
    {
        return Done::Asis;
    }
    let Some(bytes) = bytes.checked_next_multiple_of(PAGE_SIZE) else {
        return Done::Asis;
    };
    match allocate(bytes) {
        Some(start) => Done::With(start as Answer),
        None => Done::Asis,
    }
}

/// A block of zero pages, on the list.
fn allocate(bytes: usize) -> Option<usize> {
    // More than small objects, so that it is a block of pages.
    let start = ghost::allocate(thread::current(), bytes.max(64 << 10), PAGE_SIZE, true) as usize;
    if start == 0 {
        return None;
    }
    let range = Range {
        block: start,
        start,
        end: start + bytes,
    };
    if add(range) {
        return Some(start);
    }
    free_block(start);
    None
}

fn free_block(start: usize) {
    if let (Some(heap), Some(block)) = (ghost::heap(), NonNull::new(start as *mut u8)) {
        // SAFETY: a block of this module's that no mapping refers to.
        unsafe { ghost::free(thread::current(), heap, block) };
    }
}

/// A mapping at an address that is ghost memory: fresh zero pages are the
/// same as forgetting what is there. Anything else cannot be put there.
fn map_over(args: [usize; 6]) -> Done {
    let [address, bytes, _, flags, ..] = args;
    let Some(heap) = ghost::owner(address) else {
        return Done::Asis;
    };
    if flags & libc::MAP_FIXED_NOREPLACE as usize == libc::MAP_FIXED_NOREPLACE as usize {
        return error(libc::EEXIST);
    }
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    if flags & private != private || !address.is_multiple_of(PAGE_SIZE) {
        return error(libc::ENOMEM);
    }
    let Some(bytes) = bytes.checked_next_multiple_of(PAGE_SIZE) else {
        return error(libc::ENOMEM);
    };
    holds::forget(heap, address, bytes);
    let _inside = EngineScope::new(thread::current());
    let range = slice_from_raw_parts_mut(address as *mut u8, bytes);
    // SAFETY: the program replaced what was there.
    match unsafe { heap.discard(range) } {
        Ok(()) => Done::With(address as Answer),
        Err(_) => error(libc::ENOMEM),
    }
}

/// munmap of ghost memory.
pub(crate) fn unmap(heap: &Heap, address: usize, bytes: usize) -> Done {
    if !address.is_multiple_of(PAGE_SIZE) || bytes == 0 {
        return error(libc::EINVAL);
    }
    holds::forget(heap, address, bytes);
    let end = address + bytes;
    // One block at a time, until none of the range is mapped.
    while let Some((from, to, rest)) = with(|list| cut(list, address, end)) {
        if let Some(block) = rest {
            free_block(block);
        } else {
            let _inside = EngineScope::new(thread::current());
            let range = slice_from_raw_parts_mut(from as *mut u8, to - from);
            // SAFETY: the program unmapped it.
            let _kept = unsafe { heap.discard(range) };
        }
    }
    Done::With(0)
}

/// Takes the first mapped piece inside a range off the list: the piece, and
/// its block when nothing else of that is mapped.
fn cut(list: &mut [Range], start: usize, end: usize) -> Option<(usize, usize, Option<usize>)> {
    let found = list
        .iter()
        .position(|range| range.block != 0 && range.start < end && start < range.end)?;
    let Range {
        block,
        start: was_start,
        end: was_end,
    } = list[found];
    let (from, to) = (start.max(was_start), end.min(was_end));
    list[found] = FREE;
    for (start, end) in [(was_start, from), (to, was_end)] {
        // The list is lent with a place to spare for this.
        if start < end
            && let Some(place) = list.iter_mut().find(|place| place.block == 0)
        {
            *place = Range { block, start, end };
        }
    }
    let more = list.iter().any(|range| range.block == block);
    Some((from, to, (!more).then_some(block)))
}

/// mremap of ghost memory: shrinking gives the end back, growing moves.
pub(crate) fn remap(heap: &Heap, args: [usize; 6]) -> Done {
    let [address, old, new, flags, fixed, _] = args;
    let (Some(old), Some(new)) = (
        old.checked_next_multiple_of(PAGE_SIZE),
        new.checked_next_multiple_of(PAGE_SIZE),
    ) else {
        return error(libc::EINVAL);
    };
    if !address.is_multiple_of(PAGE_SIZE) || new == 0 || old == 0 {
        return error(libc::EINVAL);
    }
    const KNOWN: i32 = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let has = |flag: i32| flags & flag as usize != 0;
    let moves = has(libc::MREMAP_MAYMOVE);
    let to_a_place = has(libc::MREMAP_FIXED);
    if flags & !(KNOWN as usize) != 0 || (to_a_place && !moves) {
        return error(libc::EINVAL);
    }
    if has(libc::MREMAP_DONTUNMAP) {
        // The pages move, and zero pages stay.
        return match (moves && old == new, to_a_place) {
            (false, _) => error(libc::EINVAL),
            // Nobody is known to need this of both.
            (true, true) => error(libc::ENOMEM),
            (true, false) => leave_zeros(heap, address, old),
        };
    }
    if to_a_place {
        let overlaps = fixed < address.saturating_add(old) && address < fixed.saturating_add(new);
        if !fixed.is_multiple_of(PAGE_SIZE) || overlaps {
            return error(libc::EINVAL);
        }
        return move_to(heap, address, old, new, fixed);
    }
    if new <= old {
        if new < old {
            let _done = unmap(heap, address + new, old - new);
        }
        return Done::With(address as Answer);
    }
    if !moves {
        return error(libc::ENOMEM);
    }
    let Some(moved) = allocate(new) else {
        return error(libc::ENOMEM);
    };
    // Protected pages are read, too.
    holds::forget(heap, address, old);
    raw::copy(moved, address, old);
    let _done = unmap(heap, address, old);
    Done::With(moved as Answer)
}

/// mremap with `MREMAP_DONTUNMAP`: the old range stays, as zero pages.
fn leave_zeros(heap: &Heap, address: usize, bytes: usize) -> Done {
    let Some(moved) = allocate(bytes) else {
        return error(libc::ENOMEM);
    };
    holds::forget(heap, address, bytes);
    raw::copy(moved, address, bytes);
    let _inside = EngineScope::new(thread::current());
    let range = slice_from_raw_parts_mut(address as *mut u8, bytes);
    // SAFETY: the program moved what was there.
    match unsafe { heap.discard(range) } {
        Ok(()) => Done::With(moved as Answer),
        Err(_) => error(libc::ENOMEM),
    }
}

/// mremap to a place of the program's choice: an ordinary mapping there, or the
/// ghost memory that is there, with other contents.
fn move_to(heap: &Heap, address: usize, old: usize, new: usize, place: usize) -> Done {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let args = [place, new, access as usize, flags as usize, usize::MAX, 0];
    let mapped = match map_over(args) {
        Done::With(answer) => answer,
        Done::Asis if ghost::is_ghost(place.saturating_add(new - 1)) => return error(libc::ENOMEM),
        Done::Asis => own!(libc::SYS_mmap, place, new, access, flags, -1_isize, 0),
    };
    if failed(mapped) {
        return Done::With(mapped);
    }
    holds::forget(heap, address, old);
    raw::copy(place, address, old.min(new));
    let _done = unmap(heap, address, old);
    Done::With(mapped)
}

//! Anonymous mappings as ghost memory (`--mmap`).
//!
//! A large private anonymous mapping that is readable and writable becomes a
//! block of pages of the heap. What the program later does to it by munmap,
//! mremap or a fixed mmap is carried out on the block; the block is freed when
//! no page of it is mapped any more. A part that was unmapped before is a hole in
//! it: a touch faults, as where nothing is mapped.
//!
//! The list of live ranges is a fixed array: this runs inside libc's malloc
//! too, which maps memory with its own lock held. When it is full, mappings
//! are ordinary ones again.

use core::cell::UnsafeCell;
use core::ptr::{NonNull, slice_from_raw_parts_mut};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem::{Heap, Hole};
use ghostmem_os::PAGE_SIZE;

use crate::calls::{Done, error};
use crate::raw::{self, Answer, call, failed, own};
use crate::thread::{self, EngineScope};
use crate::{ghost, guarded, heirs, holds};

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
    // Cutting one range out of another adds one, and another may take its place.
    let part = &mut list[..(used + 3).min(RANGES_MAX)];
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
        unsafe { ghost::unmap(thread::current(), heap, block) };
    }
}

/// Makes holes of what blocks have of a range.
fn make_holes(heap: &Heap, start: usize, end: usize, hole: Hole) {
    let _inside = EngineScope::new(thread::current());
    let mut from = start;
    while from < end {
        let Some((block, bytes)) = heap.pages_around(from) else {
            from += PAGE_SIZE;
            continue;
        };
        let to = end.min(block + bytes);
        let range = slice_from_raw_parts_mut(from as *mut u8, to - from);
        // SAFETY: the program gave the range up.
        let _of_this_heap = unsafe { heap.make_holes(range, hole) };
        from = to;
    }
}

/// A mapping at an address that is ghost memory. Fresh pages are the same as forgetting
/// what is there, and a private mapping of a file is its bytes: whether it shows what
/// others write to the file later is not specified (mmap(2)). What is shared cannot be
/// put there, and is refused with a line.
fn map_over(args: [usize; 6]) -> Done {
    let [address, bytes, access, flags, ..] = args;
    let Some(heap) = ghost::owner(address) else {
        // The kernel would put it over ghost memory that begins later.
        let overlaps = flags & FIXED_ONLY == libc::MAP_FIXED as usize
            && bytes > 0
            && ghost::is_ghost(address.saturating_add(bytes - 1));
        return if overlaps { refuse() } else { Done::Asis };
    };
    if !address.is_multiple_of(PAGE_SIZE) || bytes == 0 {
        return error(libc::EINVAL);
    }
    let end = bytes
        .checked_next_multiple_of(PAGE_SIZE)
        .and_then(|bytes| address.checked_add(bytes));
    let Some(end) = end else {
        return error(libc::ENOMEM);
    };
    let mut pages = (address..end).step_by(PAGE_SIZE);
    if flags & libc::MAP_FIXED_NOREPLACE as usize != 0
        && !pages
            .clone()
            .all(|page| heap.hole_at(page) == Some(Hole::Unmapped))
    {
        return error(libc::EEXIST);
    }
    // Pages of no block are not the program's to map over.
    let has_blocks = |page| {
        heap.is_among_small(page) || ghost::is_ghost(page) && heap.pages_around(page).is_some()
    };
    if flags & libc::MAP_PRIVATE as usize == 0 || !pages.all(has_blocks) {
        return refuse();
    }
    let file = if flags & libc::MAP_ANONYMOUS as usize == 0 {
        match Bytes::of(args) {
            Ok(file) => Some(file),
            Err(refused) => return Done::With(refused),
        }
    } else {
        None
    };
    holds::forget(heap, address, end - address);
    if fresh(heap, address, end).is_err() {
        return error(libc::ENOMEM);
    }
    add_again(heap, address, end);
    if let Some(file) = file {
        let has = file.len.min(end - address);
        if guarded::copy(address, file.start, has).is_err() {
            return error(libc::EACCES);
        }
        // Behind the last page of a file nothing can be touched.
        make_holes(
            heap,
            address + has.next_multiple_of(PAGE_SIZE),
            end,
            Hole::Unmapped,
        );
    }
    let bytes = end - address;
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    if access & open == 0 && access & libc::PROT_EXEC as usize == 0 && !heap.is_among_small(address)
    {
        make_holes(heap, address, end, Hole::Closed);
    } else if access != open {
        let protected = crate::calls::protect_fresh(heap, [address, bytes, access, 0, 0, 0]);
        if protected != Done::With(0) {
            return protected;
        }
    }
    Done::With(address as Answer)
}

/// The bits that tell MAP_FIXED from MAP_FIXED_NOREPLACE.
const FIXED_ONLY: usize = (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as usize;

/// What cannot be put over ghost memory, said once.
#[cold]
fn refuse() -> Done {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        raw::say(
            b"ghostmem: this program maps shared memory, or memory at an address of its own \
              choice, over ghost memory: mmap answers ENOMEM\n",
        );
    }
    error(libc::ENOMEM)
}

/// A file's bytes, mapped elsewhere for as long as this lives.
struct Bytes {
    start: usize,
    len: usize,
    mapped: usize,
}

impl Bytes {
    /// What a private mapping with these arguments would show; the kernel's refusal of
    /// one.
    fn of(args: [usize; 6]) -> Result<Self, Answer> {
        let [_, bytes, access, flags, file, offset] = args;
        let access = access | libc::PROT_READ as usize;
        let flags = flags & !FIXED_ONLY;
        let mapped = call!(libc::SYS_mmap, 0, bytes, access, flags, file, offset);
        if failed(mapped) {
            return Err(mapped);
        }
        // SAFETY: all zero is a structure of numbers.
        let mut status: libc::stat = unsafe { core::mem::zeroed() };
        let _known = own!(libc::SYS_fstat, file, &raw mut status);
        let len = usize::try_from(status.st_size).unwrap_or(0);
        Ok(Self {
            start: mapped as usize,
            len: len.saturating_sub(offset).min(bytes),
            mapped: bytes,
        })
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        let _gone = own!(libc::SYS_munmap, self.start, self.mapped);
    }
}

/// Makes a range zero pages that can be loaded from and stored to.
fn fresh(heap: &Heap, start: usize, end: usize) -> Result<(), ghostmem::Error> {
    let _inside = EngineScope::new(thread::current());
    let range = slice_from_raw_parts_mut(start as *mut u8, end - start);
    // SAFETY: the program replaced what was there.
    unsafe { heap.discard(range) }?;
    heap.fill_holes(range.cast_const())
}

/// Puts what was unmapped of a range, in blocks that this module has, back on the list.
fn add_again(heap: &Heap, start: usize, end: usize) {
    let mut from = start;
    while let Some((block, bytes)) = heap.pages_around(from) {
        let to = end.min(block + bytes);
        with(|list| {
            if !list.iter().any(|range| range.block == block) {
                return;
            }
            while cut(list, from, to).is_some() {}
            if let Some(place) = list.iter_mut().find(|place| place.block == 0) {
                *place = Range {
                    block,
                    start: from,
                    end: to,
                };
            }
        });
        from = to;
        if from >= end {
            return;
        }
    }
}

/// munmap of ghost memory.
pub(crate) fn unmap(heap: &Heap, address: usize, bytes: usize) -> Done {
    if !address.is_multiple_of(PAGE_SIZE) || bytes == 0 {
        return error(libc::EINVAL);
    }
    holds::forget(heap, address, bytes);
    let end = address + bytes;
    // While no block of the range can be somebody else's yet.
    make_holes(heap, address, end, Hole::Unmapped);
    // One block at a time, until none of the range is mapped.
    while let Some(rest) = with(|list| cut(list, address, end)) {
        if let Some(block) = rest {
            free_block(block);
        }
    }
    Done::With(0)
}

/// Takes the first mapped piece inside a range off the list: its block, when nothing
/// else of that is mapped.
fn cut(list: &mut [Range], start: usize, end: usize) -> Option<Option<usize>> {
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
    Some((!more).then_some(block))
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
    heirs::follow(address, old, moved);
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

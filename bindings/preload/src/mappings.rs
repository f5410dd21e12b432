//! Anonymous mappings as ghost memory (`--mmap`).
//!
//! A private anonymous mapping of some size becomes a block of pages of the heap, whether
//! it can be used at once or is only reserved (`PROT_NONE`). What the program later does
//! to it by munmap, mremap, mprotect or a fixed mmap is carried out on the block; the
//! block is freed some time after no page of it is mapped any more.
//!
//! ```text
//!   of the program's                    of the heap's
//!   mmap, PROT_READ|PROT_WRITE          a block
//!   the same with MAP_NORESERVE         the same; what is not free is promised
//!   mmap, PROT_NONE                     a block of holes, that counts as nothing
//!   mprotect to PROT_NONE               holes, where nothing was stored; else held (`holds`)
//!   mprotect to PROT_READ|PROT_WRITE    holes are opened, holds released
//!   fixed mmap over it, anonymous       contents are gone; open, or holes
//!   fixed mmap over it, anything else   the pages leave the heap: `Heap::give_away`
//!   mprotect to code                    the same, with what they hold
//!   munmap of a part                    holes, and no range in the table (`taken`)
//!   munmap of all that is left          the same, for a while (`vacant`)
//!   mmap where something was unmapped   as a fixed one, if only asked for, too
//! ```
//! What has no place here stays an ordinary mapping, and is counted. What libc maps for
//! itself is never taken: blocks of its own malloc go back there by their address.

use core::alloc::Layout;
use core::ptr::{NonNull, slice_from_raw_parts_mut};
use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem::{Heap, Hole};
use ghostmem_os::PAGE_SIZE;

use crate::calls::{Done, error, table};
use crate::raw::{self, Answer, failed};
use crate::taken::{self, Range, Table};
use crate::thread::{self, EngineScope, Undisturbed};
use crate::{attached, foreign, ghost, holds, moving, own_limits, places};

mod moves;
pub(crate) mod vacant;

pub(crate) use moves::remap;

/// Mappings of at least so many bytes are taken; 0: none.
static FROM: AtomicUsize = AtomicUsize::new(0);

/// What is taken of address space at once, at most: a region has twice as much. What
/// programs reserve beyond that (cages of interpreters, shadows of checkers) they never
/// fill.
const MOST_BYTES: usize = 32 << 30;

/// Less than this would be small objects.
const BLOCK_BYTES_MIN: usize = 64 << 10;

/// Private anonymous mappings that were large enough and stayed ordinary ones.
static ORDINARY: AtomicUsize = AtomicUsize::new(0);
/// Their bytes.
static ORDINARY_BYTES: AtomicUsize = AtomicUsize::new(0);

pub(crate) const OPEN: usize = (libc::PROT_READ | libc::PROT_WRITE) as usize;
/// What says that an address is no hint.
pub(crate) const FIXED: usize = (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) as usize;
const CLOSED: usize = libc::PROT_NONE as usize;

/// Takes mappings from this size on.
pub(crate) fn take_from(bytes: usize) {
    FROM.store(bytes, Ordering::Relaxed);
}

/// How many mappings of that size stayed ordinary ones, and how long they were together.
pub(crate) fn left_ordinary() -> (usize, usize) {
    (
        ORDINARY.load(Ordering::Relaxed),
        ORDINARY_BYTES.load(Ordering::Relaxed),
    )
}

/// In a forked child: whoever was here in the parent is not.
pub(crate) fn forget_others() {
    moving::forget_others();
    taken::forget_others();
}

pub(crate) const fn has(flags: usize, flag: i32) -> bool {
    flags & flag as usize == flag as usize
}

/// Whether an mmap call asks for memory that is taken over, as far as its size and its
/// being private and anonymous say.
pub(crate) fn is_large_and_private([_, bytes, _, flags, ..]: [usize; 6]) -> bool {
    let from = FROM.load(Ordering::Relaxed);
    from > 0
        && bytes >= from
        && has(flags, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        && !has(flags, libc::MAP_FIXED)
        && !has(flags, libc::MAP_FIXED_NOREPLACE)
}

/// Whether a mapping can be taken: it has no wish beside its size that the heap does not
/// grant.
fn can_be_taken([_, bytes, access, flags, ..]: [usize; 6]) -> bool {
    let plain = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_POPULATE;
    (access == OPEN || access == CLOSED)
        && has(flags, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
        && flags & !(plain as usize) == 0
        && bytes <= MOST_BYTES
}

/// mmap.
pub(crate) fn map(args: [usize; 6]) -> Done {
    let [hint, bytes, access, flags, ..] = args;
    if has(flags, libc::MAP_FIXED) || has(flags, libc::MAP_FIXED_NOREPLACE) {
        return map_over(args);
    }
    if let Some(done) = map_where_unmapped(args) {
        return done;
    }
    if !is_large_and_private(args) || !ghost::is_on() {
        return Done::Asis;
    }
    let names_a_place = hint != 0 && access == CLOSED;
    if places::is_low(hint) && access == OPEN || names_a_place && places::are_insisted_on(bytes) {
        note_ordinary(bytes);
        return Done::Asis;
    }
    let unreserved = access == OPEN && has(flags, libc::MAP_NORESERVE);
    // Allocators (jemalloc, mimalloc) map so all that they hand out, and programs write it.
    let promised = unreserved && ghost::heap().is_some_and(|heap| heap.may_promise(bytes));
    let taken = match bytes.checked_next_multiple_of(PAGE_SIZE) {
        Some(bytes) if can_be_taken(args) && promised => take(bytes, |heap| promise(heap, bytes)),
        Some(bytes) if can_be_taken(args) => allocate(bytes, access),
        _ => Err(Refused::NoPlace),
    };
    match taken {
        Ok(start) => {
            if names_a_place && start != hint {
                places::note_reserved(start, bytes);
            }
            Done::With(start as Answer)
        }
        // What is too large to be ever written in full is the kernel's to overcommit.
        Err(Refused::Full) if !unreserved || promised => error(libc::ENOMEM),
        Err(_) => {
            note_ordinary(bytes);
            Done::Asis
        }
    }
}

/// A mapping that is asked for where the program has unmapped something gets the place, as
/// the kernel would give it. `None`: it does not ask for such a place, or cannot have it.
fn map_where_unmapped([hint, bytes, access, flags, file, offset]: [usize; 6]) -> Option<Done> {
    let place = hint & !(PAGE_SIZE - 1);
    let end = end_of(place, bytes).filter(|&end| end > place)?;
    let heap = ghost::region_owner(place, end - place)?;
    let wants_low = has(flags, libc::MAP_32BIT);
    let is_counted = has(flags, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) && access == OPEN;
    if wants_low
        || !is_unmapped(heap, place, end)
        || is_counted && own_limits::refuses(heap, end - place)
    {
        return None;
    }
    let flags = flags | libc::MAP_FIXED_NOREPLACE as usize;
    let done = map_over([place, bytes, access, flags, file, offset]);
    (done == Done::With(place as Answer)).then_some(done)
}

/// Whether the program had mapped all of a range once, and has unmapped it.
pub(crate) fn is_unmapped(heap: &Heap, address: usize, end: usize) -> bool {
    heap.hole_run(address, end - address) == Some((Some(Hole::Unmapped), end - address))
}

/// Why a mapping was not taken.
enum Refused {
    /// The bound on memory does not hold it.
    Full,
    /// No address space, or no place in the table.
    NoPlace,
}

/// brk(2): what it adds stays ordinary memory, and is asked for as mappings are. Allocators
/// come here when a mapping was refused.
pub(crate) fn move_break(args: [usize; 6]) -> Done {
    let from = FROM.load(Ordering::Relaxed);
    let Some(heap) = ghost::heap().filter(|_| from > 0 && ghost::is_on()) else {
        return Done::Asis;
    };
    let now = raw::syscall(table::BRK, [0; 6]);
    let more = args[0].saturating_sub(now as usize);
    if more < from {
        return Done::Asis;
    }
    let _inside = EngineScope::new(thread::current());
    match heap.holds_ordinary(more) {
        true => Done::Asis,
        // As the kernel refuses it: the end stays where it is.
        false => Done::With(now),
    }
}

/// Why a block of `bytes` could not be had.
fn why_not(heap: &Heap, bytes: usize) -> Refused {
    match heap.has_memory_limit() && heap.has_place(bytes) {
        true => Refused::Full,
        false => Refused::NoPlace,
    }
}

/// A block of zero pages, or of holes, on the table.
fn allocate(bytes: usize, access: usize) -> Result<usize, Refused> {
    take(bytes, |heap| {
        if access == CLOSED {
            return heap.reserve_block(bytes).map_err(|_| Refused::NoPlace);
        }
        if own_limits::refuses(heap, bytes) {
            return Err(Refused::Full);
        }
        let layout = Layout::from_size_align(bytes.max(BLOCK_BYTES_MIN), PAGE_SIZE)
            .map_err(|_| Refused::NoPlace)?;
        let block = heap.allocate_block(layout, true);
        block.map(NonNull::cast).map_err(|_| why_not(heap, bytes))
    })
}

/// A block of zero pages that the bound on memory need not hold in full.
fn promise(heap: &Heap, bytes: usize) -> Result<NonNull<u8>, Refused> {
    if own_limits::refuses(heap, bytes) {
        return Err(Refused::Full);
    }
    let block = heap.promise_block(bytes.max(BLOCK_BYTES_MIN));
    block.map_err(|_| why_not(heap, bytes))
}

/// Makes a block, and puts it on the table.
fn take(
    bytes: usize,
    make: impl Fn(&Heap) -> Result<NonNull<u8>, Refused>,
) -> Result<usize, Refused> {
    let heap = ghost::heap().ok_or(Refused::NoPlace)?;
    let thread = thread::current();
    let make = || {
        let _inside = Undisturbed::new(thread);
        let block = make(heap)?;
        ghost::note_large(heap, Some(block));
        Ok(block)
    };
    vacant::free_one_like(heap, bytes);
    let block = match make() {
        Err(Refused::NoPlace) if vacant::free_all(heap) => make(),
        made => made,
    }?;
    let start = block.as_ptr().expose_provenance();
    let range = Range {
        block: start,
        start,
        end: start + bytes,
    };
    if taken::with(|table| table.insert(range)) {
        return Ok(start);
    }
    let _inside = Undisturbed::new(thread);
    free_block(heap, start);
    Err(Refused::NoPlace)
}

/// Frees a block of which nothing is mapped. Inside the engine.
fn free_block(heap: &Heap, start: usize) {
    if let Some(block) = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(start)) {
        // SAFETY: a block of this module's that no mapping refers to.
        let _freed = unsafe { heap.deallocate_block(block) };
    }
}

pub(crate) fn range(address: usize, bytes: usize) -> *mut [u8] {
    slice_from_raw_parts_mut(address as *mut u8, bytes)
}

/// A mapping at an address that is ghost memory. Anonymous pages take the place of what
/// is there; for anything else the pages leave the heap.
fn map_over(args: [usize; 6]) -> Done {
    let [address, bytes, access, flags, ..] = args;
    let Some(end) = end_of(address, bytes) else {
        return Done::Asis;
    };
    let Some(heap) = ghost::region_owner(address, end - address) else {
        return Done::Asis;
    };
    if !address.is_multiple_of(PAGE_SIZE) || bytes == 0 {
        return error(libc::EINVAL);
    }
    let wants_none = has(flags, libc::MAP_FIXED_NOREPLACE);
    if wants_none && !is_unmapped(heap, address, end) {
        return error(libc::EEXIST);
    }
    let wishes = flags & !FIXED;
    let lies_within = heap
        .away_run(address, 1)
        .and(heap.away_run(end - 1, 1))
        .is_some();
    if !lies_within || !can_be_taken([0, bytes, access, wishes, 0, 0]) {
        return foreign::put_in_place(heap, args, (address, end));
    }
    if !wants_none {
        holds::forget(heap, address, end - address);
    }
    let done = taken::with(|table| {
        let was_unmapped = is_unmapped(heap, address, end);
        // Another thread may have been faster.
        if wants_none && !was_unmapped {
            return error(libc::EEXIST);
        }
        if replace(table, heap, (address, end), access).is_ok() {
            return Done::With(address as Answer);
        }
        if was_unmapped {
            unmap_again(table, heap, (address, end));
        }
        error(libc::ENOMEM)
    });
    if done == Done::With(address as Answer) {
        attached::forget(address, end);
    }
    done
}

/// Where a range of whole pages ends.
pub(crate) fn end_of(address: usize, bytes: usize) -> Option<usize> {
    let bytes = bytes.checked_next_multiple_of(PAGE_SIZE)?;
    address.checked_add(bytes)
}

/// Fresh pages, open or closed, in the place of what is there. The caller has the table.
fn replace(
    table: &mut Table,
    heap: &Heap,
    (address, end): (usize, usize),
    access: usize,
) -> Result<(), ()> {
    // What cannot be had changes nothing.
    foreign::for_each_block(heap, (address, end), |_, _| Ok(()))?;
    foreign::for_each_block(heap, (address, end), |block, pages| {
        // SAFETY: the program replaces what is there.
        unsafe { heap.retake(pages) }.map_err(drop)?;
        if access == CLOSED {
            // SAFETY: as above.
            unsafe { heap.make_holes(pages, Hole::Closed) }.map_err(drop)?;
        } else {
            heap.open_holes(pages).map_err(drop)?;
            // SAFETY: as above.
            unsafe { heap.discard(pages) }.map_err(drop)?;
        }
        foreign::map_part(table, block, pages)
    })
}

pub(crate) fn note_ordinary(bytes: usize) {
    ORDINARY.fetch_add(1, Ordering::Relaxed);
    ORDINARY_BYTES.fetch_add(bytes, Ordering::Relaxed);
}

/// munmap of what lies in a region.
pub(crate) fn unmap(heap: &Heap, address: usize, bytes: usize) -> Done {
    if !address.is_multiple_of(PAGE_SIZE) || bytes == 0 {
        return error(libc::EINVAL);
    }
    let end = address + bytes;
    // A program that looks for a place gives back what it got: it comes to no end, and maps
    // nothing there.
    let is_given_up = places::is_last(address, bytes)
        && heap.hole_run(address, bytes) == Some((Some(Hole::Closed), bytes))
        && places::note_given_back();
    holds::forget(heap, address, bytes);
    attached::forget(address, end);
    taken::with(|table| {
        let is_all = table.covers(address, end);
        cut(table, heap, (address, end), is_given_up);
        if !is_all {
            unmap_in_blocks(heap, (address, end));
        }
    });
    // What lies beside the regions is the kernel's.
    for (start, end) in ordinary_pieces(heap, address, end) {
        let answer = crate::raw::syscall(11, [start, end - start, 0, 0, 0, 0]);
        if failed(answer) {
            return Done::With(answer);
        }
    }
    Done::With(0)
}

/// Takes all of a range out of the table: holes remain. A block of which nothing else is
/// mapped is free at once, or kept for a while.
pub(crate) fn cut(table: &mut Table, heap: &Heap, (address, end): (usize, usize), free: bool) {
    // One block at a time, until none of the range is mapped.
    while let Some(piece) = table.cut(address, end) {
        match piece.is_last {
            true if free => free_block(heap, piece.block),
            true => vacant::keep(table, heap, piece.block),
            // Not `unmap_pages`: this piece is off the table, so it is unmapped to the program
            // also where the heap does not take back what lies in its place.
            false => {
                let pages = range(piece.start, piece.end - piece.start);
                // SAFETY: the program unmapped it.
                let _else_it_stays = unsafe { heap.retake(pages) };
                // SAFETY: as above.
                let _kept = unsafe { heap.make_holes(pages, Hole::Unmapped) };
                moving::are_gone(pages);
            }
        }
    }
}

/// A range that was unmapped, and that something was to come to which is refused: it is
/// unmapped once more, as far as it got.
pub(crate) fn unmap_again(table: &mut Table, heap: &Heap, (address, end): (usize, usize)) {
    cut(table, heap, (address, end), false);
    let _else_they_stay = foreign::for_each_block(heap, (address, end), |_, pages| {
        unmap_pages(heap, pages).then_some(()).ok_or(())
    });
}

/// Makes holes of pages of which the program has nothing any more; `false`: they stay what they
/// are, as no table says that they are unmapped.
fn unmap_pages(heap: &Heap, pages: *mut [u8]) -> bool {
    // SAFETY: nothing of the program's lies there.
    let are_back = unsafe { heap.retake(pages) }.is_ok();
    // SAFETY: as above.
    let are_holes = are_back && unsafe { heap.make_holes(pages, Hole::Unmapped) }.is_ok();
    moving::are_gone(pages);
    are_holes
}

/// Makes holes of what of a range lies in blocks of malloc's: these stay until they are freed.
fn unmap_in_blocks(heap: &Heap, (address, end): (usize, usize)) {
    for (first, bytes) in heap.spans() {
        let (mut at, end) = (address.max(first), end.min(first + bytes));
        while at < end {
            // Runs are looked at within a block: beside them there may be much that is free.
            let Some((block, bytes)) = heap.pages_around(at) else {
                at += PAGE_SIZE;
                continue;
            };
            let most = end.min(block + bytes) - at;
            let Some((away, alike)) = heap.away_run(at, most) else {
                break;
            };
            let Some((hole, alike)) = heap.hole_run(at, alike) else {
                break;
            };
            let is_hole = hole == Some(Hole::Unmapped) && !away;
            let _else_it_stays = is_hole || unmap_pages(heap, range(at, alike));
            at += alike;
        }
    }
}

/// The pieces of a range that lie in no region.
fn ordinary_pieces(
    heap: &Heap,
    address: usize,
    end: usize,
) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = address;
    core::iter::from_fn(move || {
        while at < end {
            let start = at;
            let around = heap
                .spans()
                .find(|&(first, bytes)| start >= first && start - first < bytes);
            if let Some((first, bytes)) = around {
                at = first + bytes;
                continue;
            }
            let next = heap
                .spans()
                .map(|(first, _)| first)
                .filter(|&first| first > start);
            at = next.min().unwrap_or(end).min(end);
            return Some((start, at));
        }
        None
    })
}

/// mprotect of mappings; `None` for what is no mapping, or is to be held for its access.
pub(crate) fn protect(heap: &Heap, address: usize, bytes: usize, access: usize) -> Option<Done> {
    let end = address + bytes;
    taken::with(|table| {
        table.find(address, end)?;
        if !table.covers(address, end) {
            return Some(error(libc::ENOMEM));
        }
        let pages = range(address, bytes);
        if access == CLOSED {
            let left = heap.close_empty(pages);
            return matches!(left, Ok(0)).then_some(Done::With(0));
        }
        match heap.open_holes(pages) {
            Ok(()) => None,
            Err(_) => Some(error(libc::ENOMEM)),
        }
    })
}

/// The pieces of a range that are open, one after the other: first address and end. What
/// is no mapping is one piece.
pub(crate) fn open_pieces(
    heap: &Heap,
    address: usize,
    end: usize,
) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = address;
    core::iter::from_fn(move || {
        while at < end {
            let (hole, bytes) = heap.hole_run(at, end - at).unwrap_or((None, end - at));
            let start = at;
            at += bytes.max(PAGE_SIZE);
            if hole.is_none() {
                return Some((start, at));
            }
        }
        None
    })
}

//! Other mappings in the place of ghost pages: those of files, shared memory, code.
//!
//! ```text
//!   made elsewhere ─► pages leave the heap ─► moved over them (mremap) ─► the kernel's
//!        │ refused         │ pinned                │ refused
//!        └─► an error      └─► given back ◄────────┘
//! ```
//! What the kernel refuses is refused before anything has changed, as a rule. Pages leave the
//! heap with no transition of theirs in flight, and no batch that names them.
//!
//! Memory that becomes code, or stays with the kernel, keeps what it holds, and threads use
//! it meanwhile: the heap hands it over piece by piece (`Heap::hand_over`). No store is lost,
//! and a way that is refused half-way leaves both parts whole.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use ghostmem::{Heap, Hole};
use ghostmem_os::PAGE_SIZE;

use crate::calls::{Done, error};
use crate::heirs::{self, Gets};
use crate::holds::{self, Noted};
use crate::mappings::{
    FIXED, OPEN, end_of, has, is_unmapped, note_ordinary, range, unmap, unmap_again, vacant,
};
use crate::raw::{Answer, failed, own};
use crate::taken::{self, Range, Table};
use crate::{attached, ghost};

/// Some of it is more than open memory: code, what the kernel or a device uses by itself, or
/// what children are not to get.
static IS_MORE: AtomicBool = AtomicBool::new(false);

/// Notes that some memory in the heap's place is more than open memory.
pub(crate) fn note_more() {
    IS_MORE.store(true, Ordering::Relaxed);
}

/// Whether all memory that had to become ordinary is nothing but open memory.
pub(crate) fn is_open_memory() -> bool {
    !IS_MORE.load(Ordering::Relaxed)
}

/// Calls `body` with each block that has pages in a range, and those pages.
pub(crate) fn for_each_block(
    heap: &Heap,
    (address, end): (usize, usize),
    mut body: impl FnMut((usize, usize), *mut [u8]) -> Result<(), ()>,
) -> Result<(), ()> {
    let mut at = address;
    while at < end {
        let (block, bytes) = heap.pages_around(at).ok_or(())?;
        let until = end.min(block + bytes);
        body((block, bytes), range(at, until - at))?;
        at = until;
    }
    Ok(())
}

/// Notes pages of a block as mapped. A block of malloc's stays one.
pub(crate) fn map_part(
    table: &mut Table,
    (block, bytes): (usize, usize),
    pages: *mut [u8],
) -> Result<(), ()> {
    let start = pages.cast::<u8>() as usize;
    let mapped = Range {
        block,
        start,
        end: start + pages.len(),
    };
    let is_mapping = table.has_block(block, block + bytes) || vacant::is_kept(table, block);
    if is_mapping && !table.insert(mapped) {
        return Err(());
    }
    vacant::is_mapped(table, block);
    Ok(())
}

/// Puts a mapping that is not the heap's in the place of ghost pages: those of a file,
/// shared ones, code. It is made elsewhere first, so that what the kernel refuses changes
/// nothing; then the pages leave the heap, and it is moved to where they were.
pub(crate) fn put_in_place(heap: &Heap, args: [usize; 6], (address, end): (usize, usize)) -> Done {
    let [_, bytes, access, flags, file, offset] = args;
    let elsewhere = flags & !FIXED;
    let made = own!(libc::SYS_mmap, 0, bytes, access, elsewhere, file, offset);
    if failed(made) {
        return Done::With(made);
    }
    let replaces = Replaces::for_one_that(has(flags, libc::MAP_FIXED_NOREPLACE));
    put_there(heap, made as usize, (address, end), replaces)
}

/// Fresh pages of nobody's in place of some that are closed and hold nothing, as in
/// [`put_in_place`]: `EAGAIN` where they are so no longer.
pub(crate) fn put_for_closed(heap: &Heap, access: usize, (address, end): (usize, usize)) -> Done {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let made = own!(libc::SYS_mmap, 0, end - address, access, flags, -1_isize, 0);
    if failed(made) {
        return Done::With(made);
    }
    put_there(heap, made as usize, (address, end), Replaces::Closed)
}

/// As [`move_in`]; what is not moved is unmapped.
fn put_there(heap: &Heap, made: usize, (address, end): (usize, usize), replaces: Replaces) -> Done {
    let moved = move_in(heap, made, (address, end), replaces);
    if failed(moved) {
        let _gone = own!(libc::SYS_munmap, made, end - address);
    }
    Done::With(moved)
}

/// What [`move_in`] puts its mapping over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replaces {
    /// Whatever is there.
    Anything,
    /// What the program has unmapped, all of it: else `EEXIST`.
    Unmapped,
    /// Pages that are closed and hold nothing: else `EAGAIN`, and nothing has changed.
    Closed,
}

impl Replaces {
    /// What a mapping does that `wants_none` to be there.
    pub(crate) const fn for_one_that(wants_none: bool) -> Self {
        if wants_none {
            Self::Unmapped
        } else {
            Self::Anything
        }
    }
}

/// Moves an ordinary mapping to where ghost pages are, which leave the heap. Where that is
/// refused half-way they are zero pages, or unmapped if they were before.
pub(crate) fn move_in(
    heap: &Heap,
    from: usize,
    (address, end): (usize, usize),
    replaces: Replaces,
) -> Answer {
    let wants_none = replaces == Replaces::Unmapped;
    let bytes = end - address;
    let refused = try_to_move();
    if failed(refused) {
        return refused;
    }
    let Some(mut noted) = Noted::of(address, bytes) else {
        return -(libc::ENOMEM as Answer);
    };
    // What is unmapped has no holds; those of whoever is faster are not ours.
    if !wants_none {
        holds::let_go(heap, address, bytes);
    }
    let moved = taken::with(|table| {
        let was_unmapped = is_unmapped(heap, address, end);
        if wants_none && !was_unmapped {
            return -(libc::EEXIST as Answer);
        }
        if replaces == Replaces::Closed
            && heap.hole_run(address, bytes) != Some((Some(Hole::Closed), bytes))
        {
            return -(libc::EAGAIN as Answer);
        }
        // Parts outside the regions are the kernel's to replace.
        let (mut at, mut given) = (address, Ok(()));
        while at < end && given.is_ok() {
            let until = match heap.pages_around(at) {
                Some((block, bytes)) => end.min(block + bytes),
                None => at + PAGE_SIZE,
            };
            if heap.pages_around(at).is_some() {
                given = for_each_block(heap, (at, until), |block, pages| {
                    // SAFETY: the program replaces what is there.
                    unsafe { heap.give_away(pages) }.map_err(drop)?;
                    map_part(table, block, pages)
                });
            } else if heap.away_run(at, 1).is_some() {
                // Nobody's: not even mapped, as far as the program knows.
                given = Err(());
            }
            at = until;
        }
        let to = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let moved = match given {
            Ok(()) => own!(libc::SYS_mremap, from, bytes, bytes, to, address),
            Err(()) => -(libc::ENOMEM as Answer),
        };
        if failed(moved) {
            // They are the heap's again.
            let _stay = for_each_block(heap, (address, end), |_, pages| {
                // SAFETY: nothing of the program's lies there.
                unsafe { heap.retake(pages) }.map_err(drop)?;
                heap.fill_holes(pages).map_err(drop)
            });
            if was_unmapped {
                unmap_again(table, heap, (address, end));
            }
        }
        moved
    });
    if failed(moved) && !wants_none {
        noted.hold_again(heap, address);
    } else if !failed(moved) {
        heirs::forget(address, bytes);
        attached::forget(address, end);
    }
    moved
}

/// Whether the process has mappings left for a move, which asks for more of them than
/// anything else: a page of nobody's is moved first. 0, or the kernel's refusal.
fn try_to_move() -> Answer {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let none = libc::PROT_NONE;
    let made = own!(libc::SYS_mmap, 0, 2 * PAGE_SIZE, none, flags, -1_isize, 0);
    if failed(made) {
        return made;
    }
    let (from, to) = (made as usize, made as usize + PAGE_SIZE);
    let how = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let moved = own!(libc::SYS_mremap, from, PAGE_SIZE, PAGE_SIZE, how, to);
    // What was moved away is free, and may be another thread's by now.
    let left = if failed(moved) { from } else { to };
    let _gone = own!(libc::SYS_munmap, left, to + PAGE_SIZE - left);
    moved.min(0)
}

/// What became of pages that were to be ordinary memory.
pub(crate) struct LetGo {
    /// 0, or a refusal.
    pub(crate) answer: Answer,
    /// Up to here they are ordinary memory, whatever the answer: open for loads and stores
    /// where it is a refusal.
    pub(crate) end: usize,
}

/// Makes ghost pages ordinary memory where they are, with what they hold: they are to have
/// an access that the heap does not give. What other threads store meanwhile is in it. Where
/// it is refused half-way the rest are ghost pages still, and all hold what they held.
pub(crate) fn let_go(heap: &Heap, address: usize, bytes: usize, access: usize) -> LetGo {
    if access & libc::PROT_EXEC as usize != 0 {
        note_more();
    }
    let end = address + bytes;
    let refused = |answer| LetGo {
        answer,
        end: address,
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let made = own!(libc::SYS_mmap, 0, bytes, OPEN, flags, -1_isize, 0);
    if failed(made) {
        return refused(made);
    }
    let made = made as usize;
    let set_access = |access: usize| own!(libc::SYS_mprotect, made, bytes, access);
    // What the kernel does not give at all is known before anything is touched.
    let mut answer = set_access(access);
    if !failed(answer) {
        answer = set_access(OPEN);
    }
    if !failed(answer) {
        answer = try_to_move();
    }
    let noted = Noted::of(address, bytes);
    if !failed(answer) && noted.is_none() {
        answer = -(libc::ENOMEM as Answer);
    }
    let Some(mut noted) = noted.filter(|_| !failed(answer)) else {
        let _gone = own!(libc::SYS_munmap, made, bytes);
        return refused(answer);
    };
    holds::let_go(heap, address, bytes);
    let mut gone = hand_over(heap, made, (address, end));
    if !failed(gone.answer) && access != OPEN {
        gone.answer = own!(libc::SYS_mprotect, address, bytes, access);
        if failed(gone.answer) {
            // As the pages were, where it came half-way.
            let _else_as_it_is = own!(libc::SYS_mprotect, address, bytes, OPEN);
        }
    }
    if gone.end > address {
        note_ordinary(gone.end - address);
    }
    if failed(gone.answer) {
        noted.hold_again(heap, gone.end);
    }
    gone
}

/// Has fresh memory take the place of ghost pages, with what they hold, piece by piece:
/// between two of them other threads may fork, map and touch what they like. What is left
/// of it is unmapped.
fn hand_over(heap: &Heap, made: usize, (address, end): (usize, usize)) -> LetGo {
    let (mut at, mut answer) = (address, 0);
    while at < end && !failed(answer) {
        let room = made + (at - address);
        // What threads touch, and the heap refuses, is tried again after it.
        let handed = taken::with(|_| {
            let (away, alike) = heap.away_run(at, end - at)?;
            if away {
                // Another thread was faster.
                let _gone = own!(libc::SYS_munmap, room, alike);
                return Some((alike, true));
            }
            let (alike, gets) = alike_for_a_child(at, alike);
            promise(room, alike, gets)?;
            let fresh = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(room))?;
            // SAFETY: memory made for this, from a page on that was not moved yet; the
            // program's pages, which nobody here has a reference into.
            let handed = unsafe { heap.hand_over(range(at, alike), fresh) };
            let bytes = handed.ok()?;
            heirs::forget(at, bytes);
            // The next piece may have other promises by then.
            let is_one = withdraw(room + bytes, alike - bytes, gets).is_some();
            Some((bytes, is_one))
        });
        let (bytes, goes_on) = handed.unwrap_or_default();
        at += bytes;
        if !goes_on {
            answer = -(libc::ENOMEM as Answer);
        }
    }
    if at < end {
        let _gone = own!(libc::SYS_munmap, made + (at - address), end - at);
    }
    LetGo { answer, end: at }
}

/// How many bytes from an address on a forked child gets alike, and what it gets of them;
/// `None`: a copy.
fn alike_for_a_child(at: usize, bytes: usize) -> (usize, Option<Gets>) {
    match heirs::next(at, at + bytes) {
        Some((from, to, gets)) if from == at => (to - at, Some(gets)),
        Some((from, ..)) => (from - at, None),
        None => (bytes, None),
    }
}

/// Promises of fresh memory what a forked child is promised of the pages that it takes the
/// place of: it moves with what it is. Of one piece alone, which is one mapping then: before
/// Linux 6.17 what is several is not moved, and what lay there is gone nevertheless.
fn promise(room: usize, bytes: usize, gets: Option<Gets>) -> Option<()> {
    let advice = match gets {
        Some(Gets::Nothing) => libc::MADV_DONTFORK,
        Some(Gets::Zeros) => libc::MADV_WIPEONFORK,
        None => return Some(()),
    };
    note_more();
    (!failed(own!(libc::SYS_madvise, room, bytes, advice))).then_some(())
}

/// Takes the promise back from what of a piece was not moved.
fn withdraw(room: usize, bytes: usize, gets: Option<Gets>) -> Option<()> {
    let advice = match gets.filter(|_| bytes > 0) {
        Some(Gets::Nothing) => libc::MADV_DOFORK,
        Some(Gets::Zeros) => libc::MADV_KEEPONFORK,
        None => return Some(()),
    };
    (!failed(own!(libc::SYS_madvise, room, bytes, advice))).then_some(())
}

/// mremap of an ordinary mapping that lies in a region, in ghost pages' place.
pub(crate) fn remap_away(heap: &Heap, args: [usize; 6]) -> Done {
    let [address, old, new, flags, place, _] = args;
    let (Some(old_end), Some(new_end)) = (end_of(address, old), end_of(address, new)) else {
        return error(libc::EINVAL);
    };
    let to_a_place = has(flags, libc::MREMAP_FIXED);
    let may_move = has(flags, libc::MREMAP_MAYMOVE);
    let keeps = has(flags, libc::MREMAP_DONTUNMAP);
    let is_sound = address.is_multiple_of(PAGE_SIZE) && new > 0 && is_known(flags);
    if is_sound && !to_a_place && !keeps && new_end < old_end {
        // What is too much goes back to the heap without being nobody's in between.
        let _done = unmap(heap, new_end, old_end - new_end);
        return Done::With(address as Answer);
    }
    if !is_sound || !may_move || !to_a_place && !keeps && new_end == old_end {
        // Nothing moves.
        return Done::With(crate::raw::syscall(25, args));
    }
    // The kernel would put it over ghost pages.
    let over = ghost::region_owner(place, new).filter(|_| to_a_place);
    match move_ordinary(over, args) {
        Ok(moved) => {
            if !keeps {
                let _done = unmap(heap, address, old_end - address);
            }
            Done::With(moved.to as Answer)
        }
        Err(refused) => Done::With(refused),
    }
}

/// mremap of an ordinary mapping to where ghost pages are.
pub(crate) fn remap_over(heap: &Heap, args: [usize; 6]) -> Done {
    let [address, old, _, flags, ..] = args;
    match move_ordinary(Some(heap), args) {
        Ok(moved) => {
            if !has(flags, libc::MREMAP_DONTUNMAP) {
                let bytes = old.next_multiple_of(PAGE_SIZE);
                attached::forget(address, address + bytes);
                let _gone = moved.is_left && !failed(own!(libc::SYS_munmap, address, bytes));
            }
            Done::With(moved.to as Answer)
        }
        Err(refused) => Done::With(refused),
    }
}

/// Whether mremap(2) knows all of these flags.
const fn is_known(flags: usize) -> bool {
    let known = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    flags & !(known as usize) == 0
}

/// An ordinary mapping that was moved.
struct Moved {
    to: usize,
    /// Where it was is still mapped, and empty.
    is_left: bool,
}

/// Moves an ordinary mapping, to a place where ghost pages are if that is somebody's. It is
/// moved elsewhere first, as what the kernel refuses is to change nothing. Where it was stays
/// mapped until the caller unmaps it: another thread's mapping could come there in between,
/// and would be gone with it.
fn move_ordinary(over: Option<&Heap>, args: [usize; 6]) -> Result<Moved, Answer> {
    let [address, old, new, flags, place, _] = args;
    let invalid = -(libc::EINVAL as Answer);
    let to_a_place = has(flags, libc::MREMAP_FIXED);
    // What is no argument of the call may be anything.
    let place = if to_a_place { place } else { 0 };
    let ends = (end_of(address, old), end_of(place, new), end_of(0, new));
    let (Some(old_end), Some(place_end), Some(bytes)) = ends else {
        return Err(invalid);
    };
    let overlaps = place < old_end && address < place_end;
    let is_bad = !place.is_multiple_of(PAGE_SIZE) || overlaps || bytes == 0;
    if to_a_place && is_bad || !is_known(flags) || !has(flags, libc::MREMAP_MAYMOVE) {
        return Err(invalid);
    }
    let was = old_end - address;
    let aside = step_aside(address, was, bytes, flags)?;
    let put = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let moved = match over {
        Some(over) => move_in(over, aside.to, (place, place_end), Replaces::Anything),
        None if to_a_place => own!(libc::SYS_mremap, aside.to, bytes, bytes, put, place),
        None => aside.to as Answer,
    };
    if failed(moved) {
        let back = was.min(bytes);
        let _as_it_was = match was {
            // A second mapping of a shared one.
            0 => own!(libc::SYS_munmap, aside.to, bytes),
            _ => own!(libc::SYS_mremap, aside.to, bytes, back, put, address),
        };
        return Err(moved);
    }
    let to = moved as usize;
    let moved = if was == 0 { bytes } else { was.min(bytes) };
    attached::follow(address, address + moved, to);
    Ok(Moved { to, ..aside })
}

/// Moves an ordinary mapping to wherever there is room for it, as long as it is to be. What
/// it leaves stays mapped where the kernel can do that (Linux 5.13).
fn step_aside(address: usize, was: usize, bytes: usize, flags: usize) -> Result<Moved, Answer> {
    let (moves, fixed) = (libc::MREMAP_MAYMOVE, libc::MREMAP_FIXED);
    let keeps = has(flags, libc::MREMAP_DONTUNMAP);
    if keeps && was != bytes {
        return Err(-(libc::EINVAL as Answer));
    }
    let (part, leaving) = (was.min(bytes), moves | libc::MREMAP_DONTUNMAP);
    let aside = match was {
        // There is a second mapping of a shared one then.
        0 => -(libc::EINVAL as Answer),
        _ => own!(libc::SYS_mremap, address, part, part, leaving, 0),
    };
    if failed(aside) && keeps {
        return Err(aside);
    }
    if failed(aside) {
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let none = libc::PROT_NONE;
        let room = own!(libc::SYS_mmap, 0, bytes, none, private, -1_isize, 0);
        if failed(room) {
            return Err(room);
        }
        let both = moves | fixed;
        let aside = own!(libc::SYS_mremap, address, was, bytes, both, room);
        if failed(aside) {
            let _gone = own!(libc::SYS_munmap, room, bytes);
            return Err(aside);
        }
        return Ok(Moved {
            to: room as usize,
            is_left: false,
        });
    }
    let mut to = aside as usize;
    if bytes > was {
        let grown = own!(libc::SYS_mremap, to, was, bytes, moves, 0);
        if failed(grown) {
            let back = moves | fixed;
            let _as_it_was = own!(libc::SYS_mremap, to, was, was, back, address);
            return Err(grown);
        }
        to = grown as usize;
    }
    Ok(Moved { to, is_left: true })
}

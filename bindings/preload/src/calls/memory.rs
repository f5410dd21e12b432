//! What a program says about its memory: advice, protection, locking.
//!
//! What the kernel would refuse whatever the memory is, it refuses here: the call is
//! made for no bytes, and its answer to the flags is the answer.
//!
//! The kernel must not act on ghost pages behind the engine's back, so these
//! are carried out by the engine, or refused in a way the manual allows.

use core::ptr::slice_from_raw_parts_mut;

use ghostmem::Heap;
use ghostmem_os::PAGE_SIZE;

use crate::foreign::Replaces;
use crate::heirs::{self, Gets};
use crate::holds::{self, Reason};
use crate::raw::{Answer, failed, own};
use crate::thread::{self, EngineScope};
use crate::{attached, foreign, ghost, mappings};

use super::kept::{self, Way};
use super::protect::{protect, protect_before_a_hole};
use super::table::{Length, Pointer};
use super::{Done, error, with_copies};

/// mprotect, munmap, mremap, msync, madvise, mlock, munlock, mbind, mlock2,
/// pkey_mprotect, set_mempolicy_home_node, mseal, whatever the kernel sees.
pub(super) fn advised(number: usize, args: [usize; 6]) -> Done {
    let [address, bytes, third, ..] = args;
    let keeps_from_children = [libc::MADV_WIPEONFORK, libc::MADV_DONTFORK];
    if number == 28 && keeps_from_children.contains(&(third as i32)) {
        foreign::note_more();
    }
    if let Some(done) = in_pieces(number, args) {
        return done;
    }
    let Some(heap) = ghost::owner(address) else {
        // The kernel would put an ordinary mapping over ghost memory.
        let to_a_place = number == 25 && args[3] & libc::MREMAP_FIXED as usize != 0;
        let over = ghost::region_owner(args[4], third).filter(|_| to_a_place);
        return over.map_or(Done::Asis, |heap| foreign::remap_over(heap, args));
    };
    // Only locks may begin within a page: they are of the whole pages around.
    if !address.is_multiple_of(PAGE_SIZE) && !matches!(number, 149 | 150 | 325) {
        return error(libc::EINVAL);
    }
    // Before the lengths are rounded, as the kernel has it.
    if address.checked_add(bytes).is_none() {
        return error(libc::EINVAL);
    }
    let Some(bytes) = bytes.checked_next_multiple_of(PAGE_SIZE) else {
        return error(libc::EINVAL);
    };
    if lacks_mappings(heap, address, bytes) {
        match number {
            11 => {}
            10 | 329 => return protect_before_a_hole(heap, number, args, bytes),
            25 => return error(libc::EFAULT),
            28 => {
                let done = advise(heap, address, bytes, third as i32);
                return if done == Done::With(0) {
                    error(libc::ENOMEM)
                } else {
                    done
                };
            }
            _ => return error(libc::ENOMEM),
        }
    }
    match number {
        28 => advise(heap, address, bytes, third as i32),
        10 | 329 => protect(heap, number, args, bytes),
        11 => mappings::unmap(heap, address, bytes),
        25 => mappings::remap(heap, args),
        // There is no file behind it; and where pages lie is the engine's business.
        26 => Done::With(of_no_bytes(number, [address, 0, third])),
        237 => Done::With(bound(args)),
        450 => Done::With(0),
        325 if third & !MLOCK_ONFAULT != 0 => error(libc::EINVAL),
        462 => seal(heap, args, bytes),
        149 | 325 => lock(heap, address, args[1]),
        _ => unlock(heap, address, args[1]),
    }
}

/// Whether the program has unmapped something of a range.
fn lacks_mappings(heap: &Heap, address: usize, bytes: usize) -> bool {
    heap.has_holes() && heap.has_unmapped(range(address, bytes).cast_const())
}

/// Whether mincore(2) is asked about memory that is not mapped as far as the program knows.
pub(super) fn is_unmapped([address, bytes, ..]: [usize; 6]) -> bool {
    let (Some(heap), Some(end)) = (
        ghost::region_owner(address, bytes),
        mappings::end_of(address, bytes),
    ) else {
        return false;
    };
    let mut at = address;
    // Beyond the region, and where other mappings lie in the heap's place, the kernel knows.
    while address.is_multiple_of(PAGE_SIZE)
        && at < end
        && let Some((away, alike)) = heap.away_run(at, end - at)
    {
        if !away && lacks_mappings(heap, at, alike) {
            return true;
        }
        at += alike.max(PAGE_SIZE);
    }
    false
}

/// Calls about ranges that are ghost memory in parts only: the other parts lie in its
/// place, or beside it. `None`: the range is of one kind.
fn in_pieces(number: usize, args: [usize; 6]) -> Option<Done> {
    let [mut address, bytes, ..] = args;
    let heap = ghost::region_owner(address, bytes)?;
    let end = address
        .checked_add(bytes)?
        .checked_next_multiple_of(PAGE_SIZE)?;
    // mlock, munlock, mlock2: of whole pages, wherever the range begins.
    let is_of_locks = matches!(number, 149 | 150 | 325);
    if is_of_locks {
        address &= !(PAGE_SIZE - 1);
    }
    let alike = heap.away_run(address, end - address);
    match number {
        11 if address.is_multiple_of(PAGE_SIZE) => {
            return Some(mappings::unmap(heap, address, end - address));
        }
        25 => match alike {
            Some((true, same)) if same >= end - address => {
                return Some(foreign::remap_away(heap, args));
            }
            Some((_, same)) if same < end - address => {
                return Some(mappings::remap(heap, args));
            }
            _ => return None,
        },
        // mprotect, msync, madvise: of bytes that are given exactly.
        10 | 26 | 28 | 329 => {}
        _ if is_of_locks => {}
        _ => return None,
    }
    if !address.is_multiple_of(PAGE_SIZE) || alike.is_some_and(|(_, same)| same >= end - address) {
        return None;
    }
    let mut at = address;
    while at < end {
        let same = match heap.away_run(at, end - at) {
            Some((_, same)) => same,
            // Beside a region, or beyond its end: page by page.
            None => PAGE_SIZE,
        };
        let mut part = args;
        (part[0], part[1]) = (at, same.max(PAGE_SIZE));
        let done = match ghost::owner(at) {
            Some(_) => advised(number, part),
            None => Done::With(crate::raw::syscall(number, part)),
        };
        if matches!(done, Done::With(answer) if failed(answer)) {
            return Some(done);
        }
        at += part[1];
    }
    Some(Done::With(0))
}

/// shmat: at an address of the heap's, a segment comes in the place of what the program has
/// unmapped there; with `SHM_REMAP`, of anything.
pub(super) fn attach([segment, address, flags, ..]: [usize; 6]) -> Done {
    let [rounds, remaps] = [libc::SHM_RND, libc::SHM_REMAP].map(|flag| flag as usize);
    let start = match flags & rounds {
        0 => address,
        // SHMLBA is a page.
        _ => address & !(PAGE_SIZE - 1),
    };
    if !start.is_multiple_of(PAGE_SIZE) || !ghost::may_be(start) {
        return Done::Asis;
    }
    let bytes = match attached::length_of(segment) {
        Ok(bytes) => bytes,
        Err(refused) => return Done::With(refused),
    };
    let Some(end) = mappings::end_of(start, bytes).filter(|_| bytes > 0) else {
        return error(libc::EINVAL);
    };
    let Some(heap) = ghost::region_owner(start, end - start) else {
        return Done::Asis;
    };
    let wants_none = flags & remaps == 0;
    if wants_none && !mappings::is_unmapped(heap, start, end) {
        return error(libc::EINVAL);
    }
    // It is attached elsewhere first, as what the kernel refuses is to change nothing.
    let elsewhere = flags & !(rounds | remaps);
    let made = crate::raw::syscall(libc::SYS_shmat as usize, [segment, 0, elsewhere, 0, 0, 0]);
    if failed(made) {
        return Done::With(made);
    }
    let replaces = Replaces::for_one_that(wants_none);
    let moved = foreign::move_in(heap, made as usize, (start, end), replaces);
    if failed(moved) {
        let _gone = own!(libc::SYS_shmdt, made);
        let is_taken = moved == -(libc::EEXIST as Answer);
        return error(if is_taken { libc::EINVAL } else { libc::ENOMEM });
    }
    if !attached::note(start, end) {
        let _gone = mappings::unmap(heap, start, end - start);
        return error(libc::ENOMEM);
    }
    Done::With(moved)
}

/// shmdt: what of a segment lies in the heap's place goes back to the heap.
pub(super) fn detach(address: usize) -> Done {
    if ghost::region_owner(address, 1).is_none() {
        return Done::Asis;
    }
    let mut done = error(libc::EINVAL);
    while let Some((start, end)) = attached::take(address) {
        done = match ghost::region_owner(start, end - start) {
            Some(heap) => mappings::unmap(heap, start, end - start),
            None => return Done::Asis,
        };
    }
    done
}

/// mlockall: what is locked could never be evicted. The answer of a kernel
/// that does not let the process lock as much.
pub(super) fn lock_all(flags: usize) -> Done {
    const KNOWN: usize = (libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) as usize;
    if flags & !KNOWN != 0 || flags == 0 || flags == libc::MCL_ONFAULT as usize {
        return error(libc::EINVAL);
    }
    if may_lock_nothing() {
        return error(libc::EPERM);
    }
    error(libc::ENOMEM)
}

/// Whether the limit on locked memory is none at all, and the process may not exceed it:
/// by a page that nobody uses.
fn may_lock_nothing() -> bool {
    let Some(page) = crate::bounce::map(PAGE_SIZE) else {
        return false;
    };
    let locked = own!(libc::SYS_mlock, page, PAGE_SIZE);
    crate::bounce::unmap(page, PAGE_SIZE);
    locked == -(libc::EPERM as Answer)
}

/// munlockall: what the program locked of ghost memory, and the rest by the kernel.
pub(super) fn unlock_all() -> Done {
    if let Some(heap) = ghost::heap() {
        holds::release(heap, Reason::Locked, 0, usize::MAX);
    }
    Done::Asis
}

/// mlock2(2)'s only flag.
const MLOCK_ONFAULT: usize = 1;
/// madvise(2), since 6.13.
const MADV_GUARD_INSTALL: i32 = 102;
const MADV_GUARD_REMOVE: i32 = 103;
/// madvise(2), since 5.18.
const MADV_DONTNEED_LOCKED: i32 = 24;

/// The kernel's answer to the same call about no bytes: whether it knows the flags,
/// and takes the address.
fn of_no_bytes(number: usize, args: [usize; 3]) -> Answer {
    let [address, bytes, flags] = args;
    crate::raw::syscall(number, [address, bytes, flags, 0, 0, 0])
}

/// The kernel's answer to mbind(2) of a page that nobody uses.
fn bound(args: [usize; 6]) -> Answer {
    let [address, bytes, mode, nodes, most_node, flags] = args;
    let Some(page) = crate::bounce::map(PAGE_SIZE) else {
        return -(libc::ENOMEM as Answer);
    };
    let place = page + address % PAGE_SIZE;
    let asked = [place, bytes.min(PAGE_SIZE), mode, nodes, most_node, flags];
    let nodes = [Pointer::In(3, Length::Set(4))];
    let answer = match with_copies(237, asked, &nodes) {
        Ok(Done::With(answer)) => answer,
        _ => crate::raw::syscall(237, asked),
    };
    crate::bounce::unmap(page, PAGE_SIZE);
    answer
}

fn range(address: usize, bytes: usize) -> *mut [u8] {
    slice_from_raw_parts_mut(address as *mut u8, bytes)
}

fn advise(heap: &Heap, address: usize, bytes: usize, advice: i32) -> Done {
    let known = of_no_bytes(28, [address, 0, advice as usize]);
    if failed(known) || bytes == 0 {
        return Done::With(known);
    }
    let spares_locked = matches!(advice, libc::MADV_DONTNEED | libc::MADV_FREE);
    if spares_locked && holds::any_for(Reason::Locked, address, bytes) {
        return error(libc::EINVAL);
    }
    let _inside = EngineScope::new(thread::current());
    let range = range(address, bytes);
    match advice {
        libc::MADV_DONTNEED | libc::MADV_FREE | MADV_DONTNEED_LOCKED => {
            // What is held stays, a lock too, and is zero.
            if holds::any(address, bytes) {
                holds::clear(address, bytes);
            }
            // SAFETY: the program gave the contents up, and says so to what
            // it takes for the kernel.
            match unsafe { heap.discard(range) } {
                Ok(()) => Done::With(0),
                Err(_) => error(libc::ENOMEM),
            }
        }
        MADV_GUARD_INSTALL => guard(heap, address, bytes),
        MADV_GUARD_REMOVE => {
            unguard(heap, address, bytes);
            Done::With(0)
        }
        libc::MADV_WIPEONFORK => promise(Gets::Zeros, address, bytes),
        libc::MADV_DONTFORK => promise(Gets::Nothing, address, bytes),
        libc::MADV_KEEPONFORK => withdraw(Gets::Zeros, address, bytes),
        libc::MADV_DOFORK => withdraw(Gets::Nothing, address, bytes),
        libc::MADV_POPULATE_READ if !all_have(heap, address, bytes, libc::PROT_READ) => {
            error(libc::EINVAL)
        }
        libc::MADV_POPULATE_WRITE if !all_have(heap, address, bytes, libc::PROT_WRITE) => {
            error(libc::EINVAL)
        }
        libc::MADV_WILLNEED | libc::MADV_POPULATE_READ | libc::MADV_POPULATE_WRITE => {
            let _as_far_as_it_goes = heap.prefetch(range.cast_const());
            Done::With(0)
        }
        libc::MADV_COLD => {
            let _advice = heap.make_cold(range.cast_const());
            Done::With(0)
        }
        libc::MADV_PAGEOUT => {
            let _advice = heap.evict(range.cast_const());
            Done::With(0)
        }
        // Everything else is about how pages are laid out, or what a core dump
        // gets: pages come in one by one.
        libc::MADV_NORMAL
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_HUGEPAGE
        | libc::MADV_NOHUGEPAGE
        | libc::MADV_MERGEABLE
        | libc::MADV_UNMERGEABLE
        | libc::MADV_DODUMP
        | libc::MADV_DONTDUMP => Done::With(0),
        _ => error(libc::EINVAL),
    }
}

/// Whether the program left all of a range an access.
fn all_have(heap: &Heap, address: usize, bytes: usize, access: i32) -> bool {
    let end = address + bytes;
    let open: usize = mappings::open_pieces(heap, address, end)
        .map(|(start, end)| end - start)
        .sum();
    let denied =
        |given: i32| holds::next_with(Reason::Protected, address, end, given as usize).is_some();
    let the_other = access ^ (libc::PROT_READ | libc::PROT_WRITE);
    open == bytes && !denied(libc::PROT_NONE) && !denied(the_other)
}

fn promise(gets: Gets, address: usize, bytes: usize) -> Done {
    done_if(heirs::promise(gets, address, bytes))
}

fn withdraw(gets: Gets, address: usize, bytes: usize) -> Done {
    done_if(heirs::withdraw(gets, address, bytes))
}

/// A list that is full is what the kernel calls too many mappings.
fn done_if(is_done: bool) -> Done {
    if is_done {
        Done::With(0)
    } else {
        error(libc::ENOMEM)
    }
}

/// Opens what has no access at all: guards are not told from what mprotect(2) closed.
fn unguard(heap: &Heap, address: usize, bytes: usize) {
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let (mut from, end) = (address, address + bytes);
    let none = libc::PROT_NONE as usize;
    while let Some((start, stop)) = holds::next_with(Reason::Protected, from, end, none) {
        let _open = protect(heap, 10, [start, stop - start, open, 0, 0, 0], stop - start);
        from = stop;
    }
    // Where nothing was stored, guards are holes.
    let _none = mappings::protect(heap, address, bytes, open);
}

/// Guards of pages: zero pages without access, until the guard is removed.
fn guard(heap: &Heap, address: usize, bytes: usize) -> Done {
    if holds::any_for(Reason::Locked, address, bytes) {
        return error(libc::EINVAL);
    }
    // What was there is gone; what is held of it stays, and is zero.
    if holds::any(address, bytes) {
        holds::clear(address, bytes);
    }
    // SAFETY: the program gave the contents up.
    if unsafe { heap.discard(range(address, bytes)) }.is_err() {
        return error(libc::ENOMEM);
    }
    let access = libc::PROT_NONE as usize;
    protect(heap, 10, [address, bytes, access, 0, 0, 0], bytes)
}

/// Whole pages around a range.
fn pages(address: usize, bytes: usize) -> Option<(usize, usize)> {
    let start = address & !(PAGE_SIZE - 1);
    let end = address
        .checked_add(bytes)?
        .checked_next_multiple_of(PAGE_SIZE)?;
    Some((start, end - start))
}

/// mlock: held resident while the limit has room.
fn lock(heap: &Heap, address: usize, bytes: usize) -> Done {
    let Some((start, bytes)) = pages(address, bytes) else {
        return error(libc::EINVAL);
    };
    if bytes == 0 || holds::hold(heap, Reason::Locked, start, bytes, 0) {
        Done::With(0)
    } else {
        error(libc::EPERM)
    }
}

/// mseal: what the heap may not change any more becomes ordinary memory before.
fn seal(heap: &Heap, args: [usize; 6], bytes: usize) -> Done {
    let [address, _, flags, ..] = args;
    let known = of_no_bytes(462, [address, 0, flags]);
    if failed(known) || bytes == 0 {
        return Done::With(known);
    }
    let end = address + bytes;
    for access in [libc::PROT_NONE, libc::PROT_READ, libc::PROT_WRITE] {
        let access = access as usize;
        while let Some((from, to)) = holds::next_with(Reason::Protected, address, end, access) {
            let gone = foreign::let_go(heap, from, to - from, access);
            if failed(gone.answer) {
                return Done::With(gone.answer);
            }
        }
    }
    let stays = kept::stays(address, bytes, Way::Moved);
    let alike = heap.away_run(address, bytes);
    if stays && alike.is_some_and(|(away, alike)| away && alike >= bytes) {
        Done::With(crate::raw::syscall(462, args))
    } else {
        error(libc::ENOMEM)
    }
}

/// munlock.
fn unlock(heap: &Heap, address: usize, bytes: usize) -> Done {
    let Some((start, bytes)) = pages(address, bytes) else {
        return error(libc::EINVAL);
    };
    holds::release(heap, Reason::Locked, start, bytes);
    Done::With(0)
}

//! Mappings that move or change their length (mremap(2)).

use ghostmem::{Heap, Hole};
use ghostmem_os::PAGE_SIZE;

use super::{CLOSED, OPEN, allocate, has, map_over, range, unmap};
use crate::calls::{Done, error};
use crate::raw::{self, Answer, failed, own};
use crate::{ghost, heirs, holds, own_limits, taken};

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
    let moves = has(flags, libc::MREMAP_MAYMOVE);
    let to_a_place = has(flags, libc::MREMAP_FIXED);
    let leaves = has(flags, libc::MREMAP_DONTUNMAP);
    if flags & !(KNOWN as usize) != 0 || (to_a_place && !moves) {
        return error(libc::EINVAL);
    }
    if leaves && (!moves || old != new) {
        return error(libc::EINVAL);
    }
    if to_a_place {
        let overlaps = fixed < address.saturating_add(old) && address < fixed.saturating_add(new);
        if !fixed.is_multiple_of(PAGE_SIZE) || overlaps {
            return error(libc::EINVAL);
        }
    }
    // The kernel moves parts of one mapping, which has one access.
    let Some(access) = access_of(heap, address, old) else {
        return error(libc::EFAULT);
    };
    if !to_a_place && !leaves && new <= old {
        if new < old {
            let _done = unmap(heap, address + new, old - new);
        }
        return Done::With(address as Answer);
    }
    if !moves {
        return error(libc::ENOMEM);
    }
    let place = if to_a_place {
        map_at(fixed, new, access)
    } else {
        let goes = if leaves || access == CLOSED { 0 } else { old };
        match own_limits::in_place_of(goes, || allocate(new, access)) {
            Ok(moved) => Done::With(moved as Answer),
            Err(_) => error(libc::ENOMEM),
        }
    };
    let Done::With(moved) = place else {
        return error(libc::ENOMEM);
    };
    if failed(moved) {
        return place;
    }
    heirs::follow(address, old, moved as usize);
    // Protected pages are read, too.
    holds::forget(heap, address, old);
    copy_contents(heap, moved as usize, address, old.min(new));
    close_alike(heap, moved as usize, address, old.min(new));
    if leaves {
        // SAFETY: the program moved what was there.
        let _kept = unsafe { heap.discard(range(address, old)) };
    } else {
        let _done = unmap(heap, address, old);
    }
    place
}

/// What access a range that is to be moved has: none, where all of it is closed. `None`
/// where parts of it are not mapped.
fn access_of(heap: &Heap, address: usize, bytes: usize) -> Option<usize> {
    let end = address.checked_add(bytes)?;
    // What lies in the heap's place is a mapping of its own.
    if heap.away_run(address, bytes) != Some((false, bytes)) {
        return None;
    }
    let is_mapped = taken::with(|table| {
        // What malloc gave is moved as it is.
        table.find(address, end).is_none() || table.covers(address, end)
    });
    let is_closed = heap.hole_run(address, bytes)? == (Some(Hole::Closed), bytes);
    is_mapped.then_some(if is_closed { CLOSED } else { OPEN })
}

/// Closes what of fresh pages is closed in the range that they take the place of.
fn close_alike(heap: &Heap, to: usize, from: usize, bytes: usize) {
    let (mut at, end) = (from, from + bytes);
    while at < end {
        let (hole, alike) = heap.hole_run(at, end - at).unwrap_or((None, end - at));
        if hole.is_some() {
            let _held = heap.close_empty(range(to + (at - from), alike));
        }
        at += alike.max(PAGE_SIZE);
    }
}

/// Copies what a range holds to fresh zero pages: what it does not hold stays none there.
fn copy_contents(heap: &Heap, to: usize, from: usize, bytes: usize) {
    let (mut at, end) = (from, from + bytes);
    while let Some((start, length)) = heap.next_contents(at, end - at) {
        raw::copy(to + (start - from), start, length);
        at = start + length;
    }
}

/// Fresh pages at a place of the program's choice: an ordinary mapping there, or the
/// ghost memory that is there, with other contents.
fn map_at(place: usize, bytes: usize, access: usize) -> Done {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let args = [place, bytes, access, flags as usize, usize::MAX, 0];
    match map_over(args) {
        Done::Asis if ghost::is_ghost(place.saturating_add(bytes - 1)) => error(libc::ENOMEM),
        Done::Asis => Done::With(own!(
            libc::SYS_mmap,
            place,
            bytes,
            access,
            flags,
            -1_isize,
            0
        )),
        done => done,
    }
}

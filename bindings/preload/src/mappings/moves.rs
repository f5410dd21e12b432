//! Mappings that move or change their length (mremap(2)).

use ghostmem::{Heap, Hole};
use ghostmem_os::PAGE_SIZE;

use super::{CLOSED, OPEN, allocate, has, is_unmapped, map_over, range, unmap};
use crate::calls::protect::protect;
use crate::calls::{Done, error};
use crate::guarded::{self, Touch};
use crate::holds::{self, Noted, Reason};
use crate::moving::Move;
use crate::raw::{Answer, failed, own};
use crate::{foreign, ghost, heirs, own_limits, taken};

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
    if !is_mapped(address, old) {
        return error(libc::EFAULT);
    }
    let stays = !to_a_place && !leaves;
    if stays && new < old {
        let _done = unmap(heap, address + new, old - new);
        return Done::With(address as Answer);
    }
    if stays && new == old {
        return Done::With(address as Answer);
    }
    if stays && grows_in_place(heap, address, old, new) {
        return Done::With(address as Answer);
    }
    if !moves {
        return error(libc::ENOMEM);
    }
    // The kernel moves parts of one mapping, which has one access.
    let Some(access) = access_of(heap, address, old.min(new)) else {
        return error(libc::EFAULT);
    };
    let was = Old {
        address,
        bytes: old,
        access,
    };
    move_to(heap, was, new, to_a_place.then_some(fixed), leaves)
}

/// Whether a range gets longer where it is: what lies behind it was of one mapping with it, and
/// the program has unmapped that.
fn grows_in_place(heap: &Heap, address: usize, old: usize, new: usize) -> bool {
    let (Some(from), Some(end)) = (address.checked_add(old), address.checked_add(new)) else {
        return false;
    };
    let was_one = heap
        .pages_around(address)
        .is_some_and(|(block, bytes)| end <= block + bytes);
    // What is locked, or promised to children, would be so from here on, too.
    let is_more = || holds::any_for(Reason::Locked, address, old) || heirs::any();
    if !was_one || !is_unmapped(heap, from, end) || is_more() {
        return false;
    }
    let access = match access_of(heap, address, old) {
        Some(OPEN) if !own_limits::refuses(heap, end - from) => OPEN,
        Some(CLOSED) => CLOSED,
        _ => return false,
    };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let args = [from, end - from, access, flags as usize, usize::MAX, 0];
    map_over(args) == Done::With(from as Answer)
}

/// What is to be moved.
#[derive(Clone, Copy)]
struct Old {
    address: usize,
    bytes: usize,
    access: usize,
}

/// Moves a range to `place`, or to wherever there is room for it.
fn move_to(heap: &Heap, was: Old, new: usize, place: Option<usize>, leaves: bool) -> Done {
    let Old {
        address,
        bytes: old,
        access,
    } = was;
    let all = (Some(Hole::Closed), old);
    let is_reserved = access == CLOSED && heap.hole_run(address, old) == Some(all);
    // What holds something is open until that has been copied.
    let at_first = if is_reserved { CLOSED } else { OPEN };
    let Some(mut noted) = Noted::of(address, old) else {
        return error(libc::ENOMEM);
    };
    let (kept, mut moving) = (old.min(new), None);
    if !is_reserved {
        moving = Move::begin(heap, address, kept, access);
        if moving.is_none() {
            return error(libc::ENOMEM);
        }
    }
    let stays = |moving: Option<Move>| moving.into_iter().for_each(Move::give_up);
    let place = if let Some(fixed) = place {
        map_at(fixed, new, at_first)
    } else {
        let goes = if leaves || is_reserved { 0 } else { old };
        match own_limits::in_place_of(goes, || allocate(new, at_first)) {
            Ok(moved) => Done::With(moved as Answer),
            Err(_) => error(libc::ENOMEM),
        }
    };
    let to = match place {
        Done::With(moved) if !failed(moved) => moved as usize,
        refused => {
            stays(moving);
            return match refused {
                Done::With(_) => refused,
                _ => error(libc::ENOMEM),
            };
        }
    };
    // What is reserved is there already.
    let refused = match is_reserved {
        true => None,
        false => fill(heap, &mut noted, was, (to, new)).err(),
    };
    if let Some(refused) = refused {
        stays(moving);
        let _gone = unmap(heap, to, new);
        return error(refused);
    }
    heirs::follow(address, kept, to);
    if let Some(moving) = &mut moving {
        moving.let_go();
    }
    if leaves {
        heirs::forget(address, old);
        holds::let_go(heap, address, old);
        leave_zeros(heap, address, old);
        if let Some(moving) = &moving {
            moving.open_zeros();
        }
        let _else_it_is_open = access == at_first || protect_anew(heap, address, old, access);
    } else {
        let _done = unmap(heap, address, old);
    }
    place
}

/// Has fresh pages be what a range is: locked, with what it holds, and with its access. An error
/// changes nothing of the range.
fn fill(heap: &Heap, noted: &mut Noted, was: Old, (to, new): (usize, usize)) -> Result<(), i32> {
    // First, as there may be no room for it.
    if !lock_ahead(heap, noted, was, (to, new)) {
        return Err(libc::EAGAIN);
    }
    copy_contents(heap, to, was.address, was.bytes.min(new)).map_err(|_| libc::ENOMEM)?;
    if was.access != OPEN && !protect_anew(heap, to, new, was.access) {
        return Err(libc::ENOMEM);
    }
    Ok(())
}

/// mlock(2) goes along: what is locked is locked where it goes to, and so is what it becomes
/// longer by. Whether there is room for that.
fn lock_ahead(heap: &Heap, noted: &mut Noted, was: Old, (to, new): (usize, usize)) -> bool {
    noted.each_locked(|start, bytes| {
        let from = to + (start - was.address);
        let is_at_the_end = start + bytes == was.address + was.bytes;
        let until = if is_at_the_end {
            to + new
        } else {
            from + bytes
        };
        let mut all = true;
        let bytes = until.min(to + new).saturating_sub(from);
        for_each_kind(heap, from, bytes, |away, start, bytes| {
            all &= match away {
                true => !failed(own!(libc::SYS_mlock, start, bytes)),
                false => holds::hold(heap, Reason::Locked, start, bytes, 0),
            };
        });
        all
    })
}

/// Whether all of a range is mapped. What malloc gave is moved as it is.
fn is_mapped(address: usize, bytes: usize) -> bool {
    let Some(end) = address.checked_add(bytes) else {
        return false;
    };
    taken::with(|table| table.find(address, end).is_none() || table.covers(address, end))
}

/// What access a range that is to be moved has. `None` where it has several.
fn access_of(heap: &Heap, address: usize, bytes: usize) -> Option<usize> {
    let (mut at, end) = (address, address.checked_add(bytes)?);
    let mut found = None;
    while at < end {
        let (away, alike) = heap.away_run(at, end - at)?;
        let (access, until) = if away {
            (ordinary_access(at, alike)?, at + alike)
        } else {
            let (hole, alike) = heap.hole_run(at, alike)?;
            let until = at + alike.max(PAGE_SIZE);
            match hole {
                Some(_) => (CLOSED, until),
                None => holds::access_at(at, until).unwrap_or((OPEN, until)),
            }
        };
        if *found.get_or_insert(access) != access {
            return None;
        }
        at = until;
    }
    found
}

/// What access memory has that is not the heap's any more: what was closed and found no room
/// to stay resident, say. `None` where it is not open, or is not private and anonymous: to
/// the program, that is another mapping than what lies beside it. And where some such memory
/// is more than that: a copy would not be.
fn ordinary_access(address: usize, bytes: usize) -> Option<usize> {
    if !foreign::is_open_memory() {
        return None;
    }
    let advise = |advice: i32| !failed(own!(libc::SYS_madvise, address, bytes, advice));
    // No process is made meanwhile.
    let is_anonymous = taken::with(|_| {
        let taken_for_it = advise(libc::MADV_WIPEONFORK);
        advise(libc::MADV_KEEPONFORK);
        taken_for_it
    });
    (is_anonymous && advise(libc::MADV_POPULATE_WRITE)).then_some(OPEN)
}

/// Gives what was moved the access that it had.
fn protect_anew(heap: &Heap, address: usize, bytes: usize, access: usize) -> bool {
    let done = match heap.away_run(address, 1) {
        Some((false, _)) => protect(heap, 10, [address, bytes, access, 0, 0, 0], bytes),
        // The place is the kernel's.
        _ => Done::With(own!(libc::SYS_mprotect, address, bytes, access)),
    };
    done == Done::With(0)
}

/// Calls `body` with each part of a range that is the heap's, and each that is not: where it
/// begins, and its length.
fn for_each_kind(heap: &Heap, from: usize, bytes: usize, mut body: impl FnMut(bool, usize, usize)) {
    let (mut at, end) = (from, from + bytes);
    while at < end {
        let (away, alike) = heap.away_run(at, end - at).unwrap_or((true, end - at));
        body(away, at, alike);
        at += alike.max(PAGE_SIZE);
    }
}

/// Copies what a range holds to fresh zero pages: what it does not hold stays none there. An
/// error: memory is refused.
fn copy_contents(heap: &Heap, to: usize, from: usize, bytes: usize) -> Touch<()> {
    let mut done = Ok(());
    for_each_kind(heap, from, bytes, |away, first, length| {
        if away {
            done = done.and_then(|()| guarded::copy(to + (first - from), first, length));
            return;
        }
        let (mut at, end) = (first, first + length);
        while done.is_ok()
            && let Some((start, length)) = heap.next_contents(at, end - at)
        {
            done = guarded::copy(to + (start - from), start, length);
            at = start + length;
        }
    });
    done
}

/// Makes zero pages of a range whose contents were moved.
fn leave_zeros(heap: &Heap, address: usize, bytes: usize) {
    for_each_kind(heap, address, bytes, |away, start, length| {
        if away {
            let _kept = own!(libc::SYS_madvise, start, length, libc::MADV_DONTNEED);
        } else {
            // SAFETY: the program moved what was there.
            let _kept = unsafe { heap.discard(range(start, length)) };
        }
    });
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

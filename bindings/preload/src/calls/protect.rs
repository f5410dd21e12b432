//! mprotect(2) of ghost memory.

use ghostmem::{Heap, Hole};
use ghostmem_os::PAGE_SIZE;

use crate::holds::{self, Reason};
use crate::mappings::{self, OPEN};
use crate::raw::{self, Answer, call, failed, own};
use crate::{bounce, foreign, heirs};

use super::{Done, error};

/// mprotect and pkey_mprotect. What holds nothing is closed by the heap. Pages that cannot be
/// read and written otherwise cannot be evicted either, so they are held resident until they
/// are opened again. Pages with a key become ordinary memory.
pub(crate) fn protect(heap: &Heap, number: usize, args: [usize; 6], bytes: usize) -> Done {
    let [address, _, access, given, ..] = args;
    if !address.is_multiple_of(PAGE_SIZE) {
        return error(libc::EINVAL);
    }
    let key = match asked_key(number, args, bytes) {
        Ok(key) => key,
        Err(refused) => return Done::With(refused),
    };
    if let Some(key) = key
        && (key != COMMON_KEY || access & libc::PROT_EXEC as usize != 0)
    {
        return give_key(heap, address, bytes, access, key);
    }
    if let Some(done) = mappings::protect(heap, address, bytes, access) {
        return done;
    }
    for (start, end) in mappings::open_pieces(heap, address, address + bytes) {
        let part = [start, end - start, access, given, 0, 0];
        let done = protect_open(heap, number, part);
        if !matches!(done, Done::With(0)) {
            return done;
        }
    }
    Done::With(0)
}

/// Says that pages keep the protection key that they have (pkey_mprotect(2)).
const NO_KEY: i32 = -1;
/// The key of all pages that were given none, those of the heap among them.
const COMMON_KEY: i32 = 0;

/// The protection key that a call asks for, or the kernel's refusal of it: of a page that
/// nobody uses. Few processors have keys, and a process may use those only that it has
/// (pkey_alloc(2)).
fn asked_key(number: usize, args: [usize; 6], bytes: usize) -> Result<Option<i32>, Answer> {
    let [_, _, access, key, ..] = args;
    if number == MPROTECT || key as i32 == NO_KEY || bytes == 0 {
        return Ok(None);
    }
    let page = bounce::map(PAGE_SIZE).ok_or(-(libc::ENOMEM as Answer))?;
    let answer = call!(libc::SYS_pkey_mprotect, page, PAGE_SIZE, access, key);
    bounce::unmap(page, PAGE_SIZE);
    if failed(answer) {
        Err(answer)
    } else {
        Ok(Some(key as i32))
    }
}

const MPROTECT: usize = libc::SYS_mprotect as usize;

/// Gives pages a key. The engine's threads, and its handlers on those of the program, have the
/// rights of the common key alone: what has another one is not theirs to compress.
fn give_key(heap: &Heap, address: usize, bytes: usize, access: usize, key: i32) -> Done {
    let end = address + bytes;
    // A move would lose the key.
    foreign::note_more();
    let mut at = address;
    while at < end {
        let (hole, alike) = heap.hole_run(at, end - at).unwrap_or((None, end - at));
        let alike = alike.max(PAGE_SIZE).min(end - at);
        let answer = match hole {
            None => foreign::let_go(heap, at, alike, access).answer,
            Some(Hole::Closed) => let_go_of_nothing(heap, (at, at + alike), access),
            Some(_) => -(libc::ENOMEM as Answer),
        };
        if answer == -(libc::EAGAIN as Answer) && hole.is_some() {
            // Another thread has opened it meanwhile.
            continue;
        }
        if failed(answer) {
            return Done::With(answer);
        }
        at += alike;
    }
    let answer = call!(libc::SYS_pkey_mprotect, address, bytes, access, key);
    Done::With(answer)
}

/// Makes ordinary memory of pages that are closed and hold nothing: no more of it is used than
/// the program touches. What a child gets of such pages is remembered with them only.
fn let_go_of_nothing(heap: &Heap, (start, end): (usize, usize), access: usize) -> Answer {
    let bytes = end - start;
    if heirs::next(start, end).is_some() {
        return match mappings::protect(heap, start, bytes, OPEN) {
            Some(Done::With(refused)) => refused,
            _ => foreign::let_go(heap, start, bytes, access).answer,
        };
    }
    match foreign::put_for_closed(heap, access, (start, end)) {
        Done::With(answer) => answer,
        Done::Asis => 0,
    }
}

/// mprotect of a range not all of which is mapped: of what lies before that.
pub(super) fn protect_before_a_hole(
    heap: &Heap,
    number: usize,
    args: [usize; 6],
    bytes: usize,
) -> Done {
    let (address, end) = (args[0], args[0] + bytes);
    if let Err(refused) = asked_key(number, args, bytes) {
        return Done::With(refused);
    }
    let mut at = address;
    while at < end
        && let Some((block, length)) = heap.pages_around(at)
        && let Some((hole, alike)) = heap.hole_run(at, end.min(block + length) - at)
        && hole != Some(Hole::Unmapped)
    {
        at += alike.max(PAGE_SIZE);
    }
    let done = match at - address {
        0 => Done::With(0),
        before => protect(heap, number, args, before),
    };
    match done {
        Done::With(0) => error(libc::ENOMEM),
        refused => refused,
    }
}

/// mprotect of pages none of which is a hole.
fn protect_open(heap: &Heap, number: usize, args: [usize; 6]) -> Done {
    let [address, bytes, access, given, ..] = args;
    let is_code = access & libc::PROT_EXEC as usize != 0;
    if access & OPEN == OPEN && !is_code {
        if !holds::any_for(Reason::Protected, address, bytes) {
            return Done::With(0);
        }
        let answer = holds::each_protected(address, bytes, |from, bytes| {
            raw::syscall(number, [from, bytes, access, given, 0, 0])
        });
        if !failed(answer) {
            holds::release(heap, Reason::Protected, address, bytes);
        }
        return Done::With(answer);
    }
    // Code cannot be brought in by who executes it; and what finds no room to stay
    // resident need not stay the heap's.
    let as_ordinary = || Done::With(foreign::let_go(heap, address, bytes, access).answer);
    if is_code || is_much_to_hold(heap, bytes) {
        return as_ordinary();
    }
    // Another protection than before is another hold.
    let before = holds::any_for(Reason::Protected, address, bytes);
    if !holds::hold(heap, Reason::Protected, address, bytes, access) {
        return as_ordinary();
    }
    if before {
        holds::change(heap, Reason::Protected, address, bytes, access);
    }
    let answer: Answer = raw::syscall(number, args);
    if failed(answer) && !before {
        // Holding it has protected it.
        let _as_before = own!(libc::SYS_mprotect, address, bytes, OPEN);
        holds::release(heap, Reason::Protected, address, bytes);
    }
    Done::With(answer)
}

/// Whether so much of the limit is not to be held for one range.
fn is_much_to_hold(heap: &Heap, bytes: usize) -> bool {
    const LITTLE_BYTES: usize = 256 << 10;
    /// Part of the limit.
    const PART: usize = 16;
    bytes > LITTLE_BYTES && bytes > heap.stats().resident_limit_bytes / PART
}

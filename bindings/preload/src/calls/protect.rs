//! mprotect(2) of ghost memory.

use ghostmem::{Heap, Hole};
use ghostmem_os::PAGE_SIZE;

use crate::holds::{self, Reason};
use crate::raw::{Answer, failed, own};
use crate::{foreign, mappings};

use super::{Done, error};

/// mprotect. What holds nothing is closed by the heap. Pages that cannot be read and
/// written otherwise cannot be evicted either, so they are held resident until they are
/// opened again.
pub(crate) fn protect(heap: &Heap, number: usize, args: [usize; 6], bytes: usize) -> Done {
    let [address, _, access, ..] = args;
    // pkey_mprotect without a key is mprotect.
    let key = if number == 10 { usize::MAX } else { args[3] };
    if !address.is_multiple_of(PAGE_SIZE) {
        return error(libc::EINVAL);
    }
    if key as i32 == -1
        && let Some(done) = mappings::protect(heap, address, bytes, access)
    {
        return done;
    }
    for (start, end) in mappings::open_pieces(heap, address, address + bytes) {
        let part = [start, end - start, access, key, 0, 0];
        let done = protect_open(heap, number, part);
        if !matches!(done, Done::With(0)) {
            return done;
        }
    }
    Done::With(0)
}

/// mprotect of a range not all of which is mapped: of what lies before that.
pub(super) fn protect_before_a_hole(
    heap: &Heap,
    number: usize,
    args: [usize; 6],
    bytes: usize,
) -> Done {
    let (address, end) = (args[0], args[0] + bytes);
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
    let [address, bytes, access, key, ..] = args;
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    if access & open == open && access & libc::PROT_EXEC as usize == 0 {
        if !holds::any_for(Reason::Protected, address, bytes) {
            return Done::With(0);
        }
        let answer = holds::each_protected(address, bytes, |from, bytes| {
            crate::raw::syscall(number, [from, bytes, access, key, 0, 0])
        });
        if !failed(answer) {
            holds::release(heap, Reason::Protected, address, bytes);
        }
        return Done::With(answer);
    }
    // Code cannot be brought in by who executes it; and what finds no room to stay
    // resident need not stay the heap's.
    let as_ordinary = || Done::With(foreign::let_go(heap, address, bytes, access).answer);
    let is_code = access & libc::PROT_EXEC as usize != 0;
    if key as i32 == -1 && (is_code || is_much_to_hold(heap, bytes)) {
        return as_ordinary();
    }
    // Another protection than before is another hold.
    let before = holds::any_for(Reason::Protected, address, bytes);
    if !holds::hold(heap, Reason::Protected, address, bytes, access) {
        return if key as i32 == -1 {
            as_ordinary()
        } else {
            error(libc::ENOMEM)
        };
    }
    if before {
        holds::change(heap, Reason::Protected, address, bytes, access);
    }
    let answer: Answer = crate::raw::syscall(number, args);
    if failed(answer) && !before {
        // Holding it has protected it.
        let _as_before = own!(libc::SYS_mprotect, address, bytes, open);
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

//! The engine's file descriptors, which the program must not close.
//!
//! Daemons close everything they did not open, and so does every careful
//! child between fork and exec. To the program ours look as if they were not
//! open: closing one fails with EBADF, closing a range goes around them.

use ghostmem::Heap;

use crate::calls::{Done, error};
use crate::raw::{self, Answer, failed};

/// Numbers looked after; ours are below 1024.
const NUMBERS: usize = 4096;

fn is_ours(fd: usize) -> bool {
    i32::try_from(fd).is_ok_and(Heap::owns_descriptor)
}

/// close.
pub(crate) fn close(args: [usize; 6]) -> Done {
    if is_ours(args[0]) {
        error(libc::EBADF)
    } else {
        Done::Asis
    }
}

/// dup2, dup3: onto one of ours.
pub(crate) fn replace(args: [usize; 6]) -> Done {
    if is_ours(args[1]) {
        error(libc::EBADF)
    } else {
        Done::Asis
    }
}

/// close_range: the pieces between ours.
pub(crate) fn close_range(args: [usize; 6]) -> Done {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    let [first, last, mut flags, ..] = args;
    let (first, last) = (first & 0xffff_ffff, last & 0xffff_ffff);
    if first > last || !(first..=last.min(NUMBERS - 1)).any(is_ours) {
        return Done::Asis;
    }
    let mut answer: Answer = 0;
    let mut start = first;
    while start <= last && !failed(answer) {
        if is_ours(start) {
            start += 1;
            continue;
        }
        let mut end = start;
        while end < last && end + 1 < NUMBERS && !is_ours(end + 1) {
            end += 1;
        }
        if end + 1 >= NUMBERS {
            end = last;
        }
        answer = raw::syscall(436, [start, end, flags, 0, 0, 0]);
        flags &= !CLOSE_RANGE_UNSHARE;
        start = end + 1;
    }
    Done::With(answer)
}

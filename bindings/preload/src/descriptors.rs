//! The engine's file descriptors, which the program must not close.
//!
//! Daemons close everything they did not open, and so does every careful
//! child between fork and exec. To the program ours look as if they were not
//! open: closing one fails with EBADF, closing a range goes around them.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::calls::{Done, error};
use crate::raw::{self, Answer, call, failed};

/// Numbers looked after; ours are below 1024.
const NUMBERS: usize = 4096;

static OURS: [AtomicU64; NUMBERS / 64] = [const { AtomicU64::new(0) }; NUMBERS / 64];

fn is_ours(fd: usize) -> bool {
    OURS.get(fd / 64)
        .is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (fd % 64)) != 0)
}

/// Looks which descriptors are the engine's: after it made or replaced some.
pub(crate) fn find() {
    let mut limit = [0_u64; 2];
    let _cannot_fail = call!(
        libc::SYS_prlimit64,
        0,
        libc::RLIMIT_NOFILE,
        0,
        &raw mut limit
    );
    // Low numbers only where the limit leaves no room above.
    let lowest = (limit[0] as usize).saturating_sub(64).min(960);
    for fd in lowest..NUMBERS.min(limit[0] as usize) {
        let bit = 1 << (fd % 64);
        if is_engine_file(fd) {
            OURS[fd / 64].fetch_or(bit, Ordering::Relaxed);
        } else {
            OURS[fd / 64].fetch_and(!bit, Ordering::Relaxed);
        }
        // The lowest free numbers were taken: they are together.
        if fd >= lowest + 64 && OURS[fd / 64].load(Ordering::Relaxed) == 0 && fd % 64 == 63 {
            return;
        }
    }
}

/// By what the kernel calls it.
fn is_engine_file(fd: usize) -> bool {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0";
    let mut digits = [0_u8; 8];
    let mut count = 0;
    let mut rest = fd;
    loop {
        digits[count] = b'0' + (rest % 10) as u8;
        count += 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    for (place, digit) in path[14..].iter_mut().zip(digits[..count].iter().rev()) {
        *place = *digit;
    }
    let mut name = [0_u8; 64];
    let got = call!(
        libc::SYS_readlink,
        path.as_ptr(),
        name.as_mut_ptr(),
        name.len()
    );
    let name = &name[..usize::try_from(got).unwrap_or(0)];
    name.starts_with(b"anon_inode:[userfaultfd]") || name.starts_with(b"/memfd:ghostmem")
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

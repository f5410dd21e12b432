//! Calls with signal masks, and calls whose pointers depend on a request.

use crate::raw::{self, call, load};
use crate::{ghost, signals, thread};

use super::table::{Length, Pointer};
use super::{Done, error, load_if, with_copies};

/// rt_sigsuspend: our signals stay deliverable while it waits.
pub(super) fn suspend(args: [usize; 6]) -> Done {
    if args[0] == 0 {
        return Done::Asis;
    }
    let mask = signals::without_ours(load(args[0]));
    Done::With(call!(
        libc::SYS_rt_sigsuspend,
        &raw const mask,
        size_of::<u64>()
    ))
}

/// A mask argument with our signals taken out, in a place of ours.
struct Mask {
    value: u64,
    address: usize,
}

impl Mask {
    fn of(address: usize) -> Self {
        let value = load_if::<u64>(address).map_or(0, signals::without_ours);
        Self { value, address }
    }

    fn place(&self) -> usize {
        if self.address == 0 {
            0
        } else {
            (&raw const self.value) as usize
        }
    }
}

/// pselect6: three sets, a time that the kernel changes, and a structure with
/// a mask.
pub(super) fn pselect(args: [usize; 6]) -> Done {
    let [count, read, write, except, time, packed] = args;
    let given: Option<[usize; 2]> = load_if(packed);
    let mask = Mask::of(given.map_or(0, |pair| pair[0]));
    let pair = [mask.place(), given.map_or(0, |pair| pair[1])];
    let packed = given.map_or(0, |_| (&raw const pair) as usize);
    let pointers = [
        Pointer::Both(1, Length::Set(0)),
        Pointer::Both(2, Length::Set(0)),
        Pointer::Both(3, Length::Set(0)),
        Pointer::Both(4, Length::Bytes(16)),
    ];
    let args = [count, read, write, except, time, packed];
    made(270, args, with_copies(270, args, &pointers))
}

/// ppoll.
pub(super) fn ppoll(args: [usize; 6]) -> Done {
    let mask = Mask::of(args[3]);
    let mut args = args;
    args[3] = mask.place();
    let pointers = [
        Pointer::Both(0, Length::Times(1, 8)),
        Pointer::Both(2, Length::Bytes(16)),
    ];
    made(271, args, with_copies(271, args, &pointers))
}

/// epoll_pwait, epoll_pwait2.
pub(super) fn masked_wait(number: usize, args: [usize; 6]) -> Done {
    let mask = Mask::of(args[4]);
    let mut args = args;
    args[4] = mask.place();
    let pointers = [
        Pointer::Filled(1, Length::Times(2, 12), 12),
        Pointer::In(3, Length::Bytes(16)),
    ];
    let pointers = if number == 441 {
        &pointers[..]
    } else {
        &pointers[..1]
    };
    made(number, args, with_copies(number, args, pointers))
}

/// Makes a call whose arguments were replaced, if it was not made yet.
fn made(number: usize, args: [usize; 6], done: Done) -> Done {
    match done {
        Done::Asis => Done::With(raw::syscall(number, args)),
        done => done,
    }
}

/// futex: the kernel looks at the word itself, so no stand-in will do. It
/// fails with EFAULT before anything has happened; touch and try again.
pub(super) fn futex(args: [usize; 6]) -> Done {
    let [word, operation, value, fourth, second, third_value] = args;
    let operation_only = operation & 0x7f;
    // WAIT, LOCK_PI, WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2 take a time.
    let has_time = matches!(operation_only, 0 | 6 | 9 | 11 | 13);
    let time: Option<[u64; 2]> = if has_time && ghost::is_ghost(fourth) {
        load_if(fourth)
    } else {
        None
    };
    let fourth = time
        .as_ref()
        .map_or(fourth, |time| core::ptr::from_ref(time) as usize);
    // WAKE needs no look at the word, WAKE_OP and the requeues use two.
    let two = matches!(operation_only, 3 | 4 | 5 | 11 | 12);
    for _ in 0..10_000 {
        let answer = raw::syscall(202, [word, operation, value, fourth, second, third_value]);
        if answer != -(libc::EFAULT as isize) {
            return Done::With(answer);
        }
        if ghost::is_ghost(word) {
            touch(word);
        }
        if two && ghost::is_ghost(second) {
            touch(second);
        }
    }
    error(libc::EFAULT)
}

/// Brings a page in, open for the kernel's stores too. Written by hand, as the
/// compiler makes a load of an atomic that changes nothing.
fn touch(address: usize) {
    // SAFETY: a ghost address that the program uses as a futex word; the value
    // stays what it is, whoever changes it meanwhile.
    unsafe {
        core::arch::asm!(
            "lock or dword ptr [{0}], 0",
            in(reg) address & !3,
            options(nostack),
        );
    }
}

/// ioctl: most requests say how long their structure is (ioctl(2),
/// asm-generic/ioctl.h); the old ones are in a list.
pub(super) fn ioctl(args: [usize; 6]) -> Done {
    let request = args[1] & 0xffff_ffff;
    let encoded = (request >> 16) & 0x3fff;
    let bytes = match request {
        0x5401..=0x5404 => 36, // TCGETS, TCSETS*
        0x5405..=0x5408 => 18, // TCGETA, TCSETA*
        0x5413 | 0x5414 => 8,  // TIOC[GS]WINSZ
        0x540f | 0x5410 | 0x5411 | 0x541b | 0x5421 | 0x5429 | 0x5420 | 0x5452 | 0x541a => 4,
        0x8901..=0x8905 => 4,           // FIOSETOWN, SIOCGPGRP, SIOCATMARK, ...
        0x8906 | 0x8907 => 16,          // SIOCGSTAMP*
        0x8910 | 0x8912 => 0,           // SIOCGIFNAME is an ifreq, SIOCGIFCONF nests
        0x8911 | 0x8913..=0x89ff => 40, // ifreq
        1 | 2 => 4,                     // FIBMAP, FIGETBSZ
        _ if request >> 30 != 0 => encoded,
        _ => 0,
    };
    if bytes == 0 {
        return unknown(16, args);
    }
    with_copies(16, args, &[Pointer::Both(2, Length::Bytes(bytes))])
}

/// fcntl: locks, owners, and hints.
pub(super) fn fcntl(args: [usize; 6]) -> Done {
    let bytes = match args[1] {
        5..=7 | 36..=38 => 32,
        15 | 16 | 1035..=1038 => 8,
        _ => return Done::Asis,
    };
    with_copies(72, args, &[Pointer::Both(2, Length::Bytes(bytes))])
}

/// prctl: names and numbers.
pub(super) fn prctl(args: [usize; 6]) -> Done {
    const PR_SET_VMA: usize = 0x5356_4d41;
    match args[0] {
        15 => with_copies(157, args, &[Pointer::Text(1)]),
        16 => with_copies(157, args, &[Pointer::Out(1, Length::Bytes(16))]),
        2 | 37 | 9 | 11 | 5 | 25 | 19 => {
            with_copies(157, args, &[Pointer::Out(1, Length::Bytes(4))])
        }
        // Naming our memory in /proc would split our mapping.
        PR_SET_VMA if ghost::is_ghost(args[2]) => Done::With(0),
        _ => unknown(157, args),
    }
}

/// A call that is in no list, with a ghost address somewhere: its pages are
/// held in place for the call, as far as one can guess what they are for.
pub(super) fn unknown(number: usize, args: [usize; 6]) -> Done {
    let Some(heap) = ghost::heap() else {
        return Done::Asis;
    };
    if !args.iter().any(|&argument| ghost::is_ghost(argument)) {
        return Done::Asis;
    }
    let thread = thread::current();
    let inside = thread::Inside::new(thread);
    let mut held: [Option<ghostmem::Pinned>; 6] = [const { None }; 6];
    for (slot, &argument) in held.iter_mut().zip(&args) {
        if !ghost::is_ghost(argument) {
            continue;
        }
        let page_end = (argument + 1).next_multiple_of(4096);
        let end = heap
            .pages_around(argument)
            .map_or(page_end, |(start, bytes)| {
                (start + bytes).min(page_end + 4096)
            });
        let range = core::ptr::slice_from_raw_parts(argument as *const u8, end - argument);
        *slot = heap.pin(range).ok();
    }
    drop(inside);
    let answer = raw::syscall(number, args);
    let inside = thread::Inside::new(thread);
    drop(held);
    drop(inside);
    Done::With(answer)
}

//! select(2) and pselect6(2): sets of descriptors.
//!
//! A program may name more numbers than its sets have room for: `getdtablesize(3)` is a
//! million in many containers, and an `fd_set` has 1024. The kernel looks at as many as the
//! table of descriptors has room for, and neither reads nor writes what lies behind. The
//! engine's descriptors have high numbers, for which the table grew (and that of the command
//! before it, which exec keeps): without a program's own above those of an `fd_set` it is
//! told of no more than these.

use core::mem::MaybeUninit;

use ghostmem_os::PAGE_SIZE;

use crate::guarded::{BadAddress, Touch, load};
use crate::raw::{self, call, failed, own};
use crate::{begin, descriptors, ghost};

use super::misc::{self, Mask};
use super::table;
use super::{Done, error, load_if};

/// Numbers that a set has room for as a rule (`FD_SETSIZE`).
const USUAL: usize = 1024;
/// Numbers of one word of a set.
const WORD: usize = 64;

/// select.
pub(super) fn select(mut args: [usize; 6]) -> Touch<Done> {
    let count = args[0];
    args[0] = looked_at(23, args, load);
    match without_ours(args, load) {
        Some(count) => args[0] = count,
        None => return Ok(error(libc::EBADF)),
    }
    if args[0] == count && !args[1..5].iter().any(|&place| ghost::is_ghost(place)) {
        return Ok(Done::Asis);
    }
    misc::made(23, args, table::plain(23).unwrap_or(&[]))
}

/// pselect6: three sets, a time that the kernel changes, and a structure with
/// a mask.
pub(super) fn pselect(mut args: [usize; 6]) -> Touch<Done> {
    args[0] = looked_at(270, args, load);
    match without_ours(args, load) {
        Some(count) => args[0] = count,
        None => return Ok(error(libc::EBADF)),
    }
    let [count, read, write, except, time, packed] = args;
    let given: Option<[usize; 2]> = load_if(packed)?;
    let mask = Mask::of(given.map_or(0, |pair| pair[0]))?;
    let pair = [mask.place(), given.map_or(0, |pair| pair[1])];
    let packed = given.map_or(0, |_| (&raw const pair) as usize);
    // But for the mask the same as select.
    let pointers = table::plain(23).unwrap_or(&[]);
    let args = [count, read, write, except, time, packed];
    misc::made(270, args, pointers)
}

/// Both, while there is no heap: what cannot be read is no fault yet.
pub(super) fn before_the_heap(number: usize, mut args: [usize; 6]) -> Done {
    let given = args[0];
    let word_at = |at| match begin::is_readable(at) {
        true => Ok(raw::load(at)),
        false => Err(BadAddress),
    };
    args[0] = looked_at(number, args, word_at);
    // Only the one that all processes share is there by now.
    if args[0] as i32 > table::OUR_FILES.start as i32 {
        match without_ours(args, word_at) {
            Some(count) => args[0] = count,
            None => return error(libc::EBADF),
        }
    }
    if args[0] == given {
        Done::Asis
    } else {
        Done::With(raw::syscall(number, args))
    }
}

/// How many numbers the kernel is to look at, of those that a call names.
fn looked_at(number: usize, args: [usize; 6], word_at: impl Fn(usize) -> Touch<usize>) -> usize {
    let count = args[0];
    let asked = count as i32;
    // Who counts its descriptors knows what its sets have room for.
    if asked <= USUAL as i32 || (asked as usize) < most_open() {
        return count;
    }
    let Some(room) = table_room(number, asked as usize) else {
        return count;
    };
    let mut most = USUAL;
    for &set in args[1..4].iter().filter(|&&set| set != 0) {
        for from in (USUAL..room).step_by(WORD) {
            let Ok(word) = word_at(set.wrapping_add(from / 8)) else {
                break;
            };
            if let Some(open) = last_open(from, word) {
                most = most.max(open + 1);
            }
        }
    }
    most
}

/// How many numbers the kernel is to look at where ours are named: as if these were not open.
/// `None`: it would refuse them. Where its table has no room for a number it looks at no such
/// number, and without ours it would be as large as the program's descriptors have it.
fn without_ours(args: [usize; 6], word_at: impl Fn(usize) -> Touch<usize>) -> Option<usize> {
    let count = args[0];
    let asked = usize::try_from(count as i32).unwrap_or(0);
    let mut table = None;
    for &set in args[1..4].iter().filter(|&&set| set != 0) {
        for from in (0..asked.min(descriptors::NUMBERS)).step_by(WORD) {
            let Ok(word) = word_at(set.wrapping_add(from / 8)) else {
                break;
            };
            let named = |bit: &usize| word >> bit & 1 != 0 && from + bit < asked;
            let mut ours = (0..WORD).filter(named).map(|bit| from + bit);
            if word != 0
                && let Some(ours) = ours.find(|&file| descriptors::is_ours(file))
                && ours < *table.get_or_insert_with(programs_table)
            {
                return None;
            }
        }
    }
    Some(table.map_or(count, |table| count.min(table)))
}

/// How many numbers the kernel's table would have room for if the program's descriptors were the
/// only ones: 64, and then powers of two.
fn programs_table() -> usize {
    /// Beyond this the table has room for all of ours.
    const ENOUGH: usize = 2 * descriptors::NUMBERS;
    let is_programs = |&file: &usize| is_open(file) && !descriptors::is_ours(file);
    let last = (0..ENOUGH.min(most_open())).rev().find(is_programs);
    last.map_or(WORD, |last| (last + 1).next_power_of_two().max(WORD))
}

/// How many descriptors the program may have.
fn most_open() -> usize {
    let mut limit = [0_usize; 2];
    let answer = own!(
        libc::SYS_prlimit64,
        0,
        libc::RLIMIT_NOFILE,
        0,
        limit.as_mut_ptr()
    );
    if failed(answer) { usize::MAX } else { limit[0] }
}

/// The last descriptor in a word of a set that is open, and the program's.
fn last_open(from: usize, word: usize) -> Option<usize> {
    (0..WORD)
        .rev()
        .filter(|bit| word >> bit & 1 != 0)
        .map(|bit| from + bit)
        .find(|&file| is_open(file) && !descriptors::is_ours(file))
}

fn is_open(file: usize) -> bool {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    !failed(own!(libc::SYS_fstat, file, stat.as_mut_ptr()))
}

/// The room of the table of descriptors, as far as it matters of `count`: the kernel tells it
/// by how much it reads of an empty set, which ends where nothing can be read.
fn table_room(number: usize, count: usize) -> Option<usize> {
    let bytes = count.div_ceil(8).next_multiple_of(PAGE_SIZE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let none = libc::PROT_NONE;
    let all = bytes + PAGE_SIZE;
    let place = own!(libc::SYS_mmap, 0, all, none, flags, -1_isize, 0);
    if failed(place) {
        return None;
    }
    let place = place as usize;
    let open = libc::PROT_READ | libc::PROT_WRITE;
    let opened = own!(libc::SYS_mprotect, place, bytes, open);
    let (mut room, mut told) = (USUAL, !failed(opened));
    while !failed(opened) && room < count {
        let at_once = [0_usize; 2];
        let set = place + bytes - room / 8;
        let answer = call!(number, count, set, 0, 0, at_once.as_ptr(), 0);
        match answer {
            answer if answer == -(libc::EFAULT as isize) => room *= 2,
            answer if answer == -(libc::EINTR as isize) => {}
            _ => {
                told = !failed(answer);
                break;
            }
        }
    }
    let _gone = own!(libc::SYS_munmap, place, all);
    told.then_some(room.min(count))
}

//! Reading and writing files, pipes and sockets: buffers of any length.
//!
//! One call stays one call, up to [`most_bytes`]: devices, records, messages
//! and appends depend on it. What is longer is handled by what it is:
//!
//! | | longer reads | longer writes |
//! |---|---|---|
//! | files, block devices | go on, piece by piece | the same; appends end early |
//! | pipes, stream sockets | end early | go on, as the reader cannot tell |
//! | sockets with messages | `ENOBUFS`, and the message stays, if it is longer | `ENOBUFS` |
//! | everything else | end early | end early |
//!
//! Ending early is a normal answer of read(2) and write(2): fewer bytes than
//! were asked for. Going on ends where the kernel takes or gives less than it
//! was asked for, which is what the kernel does itself.
//!
//! Where a part of a buffer cannot be used, what can be stands right before memory that is
//! not there, and the call asks for all of it: what becomes of such a call depends on what
//! it is made on, and is the kernel's to say.
//!
//! Stand-ins lie at the same offset in their page as the buffer, so that what
//! O_DIRECT asks for holds for both or for neither.

use ghostmem_os::PAGE_SIZE;

use crate::bounce::{Lease, most_bytes};
use crate::ghost;
use crate::guarded::{self, Touch};
use crate::raw::{self, Answer, call, failed, own};

use super::buffers::{Kinds, VECTORS_MAX, Vector, Vectors, is_outside, touches_ghost, writable};
use super::parts::{StandIn, Writes, may_have_written};
use super::socket::{is_stream, room_for_next};
use super::{Done, error, ourselves};

/// What the kernel takes at most in one call (read(2)).
pub(super) const LONGEST: usize = 0x7fff_f000;
/// What a transfer that goes on moves at once.
const PIECE: usize = 1 << 20;
/// Which way the bytes go, by call number.
fn reads(number: usize) -> bool {
    matches!(number, 0 | 17 | 19 | 295 | 327)
}

/// What becomes of a transfer that is longer than a stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Long {
    /// One piece after the other.
    GoesOn,
    /// One piece, and a short count.
    EndsEarly,
    /// One message, in one piece or not at all.
    OneMessage,
}

fn long(fd: usize, reading: bool) -> Long {
    // SAFETY: all zero is a valid stat structure.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    if failed(own!(libc::SYS_fstat, fd, &raw mut stat)) {
        return Long::EndsEarly;
    }
    let goes_on = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG if reading => true,
        libc::S_IFREG => {
            let flags = own!(libc::SYS_fcntl, fd, libc::F_GETFL);
            !failed(flags) && flags & libc::O_APPEND as Answer == 0
        }
        libc::S_IFBLK => true,
        libc::S_IFIFO => !reading,
        libc::S_IFSOCK if !is_stream(fd) => return Long::OneMessage,
        libc::S_IFSOCK => !reading,
        _ => false,
    };
    if goes_on {
        Long::GoesOn
    } else {
        Long::EndsEarly
    }
}

/// Reads where the kernel waits for absent pages. A device that writes to memory
/// by itself (`O_DIRECT`) would miss pages that leave meanwhile.
pub(super) fn sighted(number: usize, args: [usize; 6]) -> Touch<Done> {
    let [fd, base, bytes, ..] = args;
    let is_plain = matches!(number, 0 | 17);
    if is_plain && (bytes == 0 || !touches_ghost(base, bytes.min(LONGEST))) {
        return Ok(Done::Asis);
    }
    let flags = own!(libc::SYS_fcntl, fd, libc::F_GETFL);
    if failed(flags) || flags & libc::O_DIRECT as Answer == 0 {
        Ok(Done::Asis)
    } else if is_plain {
        plain(number, args)
    } else {
        vectored(number, args)
    }
}

/// read, write, pread64, pwrite64.
pub(super) fn plain(number: usize, args: [usize; 6]) -> Touch<Done> {
    let [fd, base, bytes, offset, ..] = args;
    // The kernel looks at a buffer's end before it takes less than was asked for.
    let is_judged = bytes > LONGEST && is_outside(base, bytes);
    let bytes = bytes.min(LONGEST);
    if bytes == 0 || is_judged || !touches_ghost(base, bytes) {
        return Ok(Done::Asis);
    }
    let reading = reads(number);
    let good = if reading {
        writable(base, bytes)
    } else {
        bytes
    };
    let positioned = number == 17 || number == 18;
    in_pieces(
        Transfer {
            fd,
            bytes,
            good,
            shift: base % PAGE_SIZE,
            reading,
            writes: Writes::Said,
        },
        |place, part, done| {
            let at = if positioned { offset + done } else { 0 };
            raw::syscall(number, [fd, place, part, at, 0, 0])
        },
        |skip, place, part, out| {
            if out {
                guarded::copy_some(place, base.wrapping_add(skip), part)
            } else {
                guarded::copy_some(base.wrapping_add(skip), place, part)
            }
        },
    )
}

/// readv, writev, preadv, pwritev, preadv2, pwritev2.
pub(super) fn vectored(number: usize, args: [usize; 6]) -> Touch<Done> {
    // The offset is one word here; what comes after it is not looked at.
    let [fd, list, count, offset, high, flags] = args;
    if count == 0 || count > VECTORS_MAX {
        return Ok(Done::Asis);
    }
    let vectors = Vectors::new(list, count);
    if !vectors.any_ghost()? {
        return Ok(Done::Asis);
    }
    if let Some(bad) = vectors.refused()? {
        let bad = (&raw const bad) as usize;
        let answer = raw::syscall(number, [fd, bad, 2, offset, high, flags]);
        return Ok(Done::With(answer));
    }
    let reading = reads(number);
    let kinds = vectors.kinds()?;
    if !kinds.has_ghost() {
        return on_a_copied_list(number, args);
    }
    let bytes = vectors.total()?;
    // An offset of -1 in the second version means the file's own position.
    let positioned = number >= 295 && !(number >= 327 && offset as isize == -1);
    let make = |list, count, done| {
        let at = if positioned { offset + done } else { offset };
        raw::syscall(number, [fd, list, count, at, high, flags])
    };
    if reading {
        return into_buffers(fd, vectors, &kinds, make);
    }
    in_pieces(
        Transfer {
            fd,
            bytes: bytes.min(LONGEST),
            good: bytes.min(LONGEST),
            shift: 0,
            reading,
            writes: Writes::Said,
        },
        |place, part, done| {
            let vector = Vector {
                base: place,
                bytes: part,
            };
            make((&raw const vector) as usize, 1, done)
        },
        |skip, place, part, out| vectors.copy(skip, place, part, out),
    )
}

/// A call of which nothing but the list of its buffers is ghost memory.
fn on_a_copied_list(number: usize, mut args: [usize; 6]) -> Touch<Done> {
    let bytes = args[2] * size_of::<Vector>();
    let Some(lease) = Lease::new(bytes) else {
        return Ok(error(libc::ENOMEM));
    };
    guarded::copy(lease.address(), args[1], bytes)?;
    args[1] = lease.address();
    Ok(Done::With(raw::syscall(number, args)))
}

/// Reads into a list of buffers: `make(list, count, done)` makes one call.
fn into_buffers(
    fd: usize,
    vectors: Vectors,
    kinds: &Kinds,
    make: impl Fn(usize, usize, usize) -> Answer,
) -> Touch<Done> {
    let (bytes, good) = (vectors.total()?, vectors.writable(kinds)?);
    let Some(list) = Lease::new(vectors.count() * size_of::<Vector>()) else {
        return Ok(error(libc::ENOMEM));
    };
    in_pieces(
        Transfer {
            fd,
            bytes: bytes.min(LONGEST),
            good: good.min(LONGEST),
            shift: 0,
            reading: true,
            writes: if kinds.is_mixed() {
                Writes::More
            } else {
                Writes::Said
            },
        },
        |place, part, done| {
            let made = vectors.stand_ins(kinds, (done, part), place, list.address());
            match made {
                Ok(count) => make(list.address(), count, done),
                Err(_) => -(libc::EFAULT as Answer),
            }
        },
        |skip, place, part, out| vectors.copy_of(kinds, skip, place, part, out),
    )
}

/// What is to be moved.
#[derive(Clone, Copy)]
struct Transfer {
    fd: usize,
    bytes: usize,
    /// Of a buffer that is read into: how much of it can be written.
    good: usize,
    /// Where in its page the buffer begins.
    shift: usize,
    reading: bool,
    writes: Writes,
}

/// Moves bytes through a stand-in: `make(place, part, done)` makes one call,
/// `copy(skip, place, part, out_of_the_program)` moves bytes, and says how many.
fn in_pieces(
    transfer: Transfer,
    make: impl Fn(usize, usize, usize) -> Answer,
    copy: impl Fn(usize, usize, usize, bool) -> usize,
) -> Touch<Done> {
    let Transfer { fd, reading, .. } = transfer;
    let mut most = most_bytes();
    let is_known = transfer.good == transfer.bytes && transfer.writes == Writes::Said;
    if !is_known && transfer.good <= most {
        return into_the_good_part(transfer, make, copy);
    }
    let bytes = transfer.good;
    let kind = if bytes > most {
        long(fd, reading)
    } else {
        Long::EndsEarly
    };
    if kind == Long::OneMessage {
        if !reading {
            return Ok(error(libc::ENOBUFS));
        }
        match room_for_next(fd, bytes, 0) {
            Ok(room) => most = room,
            Err(answer) => return Ok(Done::With(answer)),
        }
    }
    // What goes on in pieces needs no large one, which a bound on memory may not have.
    let most = if kind == Long::GoesOn { PIECE } else { most };
    let Some(lease) = Lease::new(bytes.min(most) + transfer.shift) else {
        return Ok(error(libc::ENOMEM));
    };
    let place = lease.address() + transfer.shift;
    let mut done = 0;
    loop {
        let part = (bytes - done).min(most);
        let mut cut = None;
        if !reading {
            let copied = copy(done, place, part, true);
            if copied < part {
                cut = Lease::before_nothing(copied);
                let Some(lease) = &cut else {
                    return Ok(short(done, -(libc::ENOMEM as Answer)));
                };
                raw::copy(lease.address(), place, copied);
            }
        }
        let answer = match &cut {
            // What could be had, and nothing behind it.
            Some(lease) => make(lease.address(), part, done),
            None => make(place, part, done),
        };
        if failed(answer) || cut.is_some() {
            return Ok(short(done, answer));
        }
        let moved = (answer as usize).min(part);
        if reading {
            let copied = copy(done, place, moved, false);
            if copied < moved {
                return Ok(short(done + copied, -(libc::EFAULT as Answer)));
            }
        }
        done += moved;
        if moved < part || done == bytes || kind != Long::GoesOn {
            return Ok(Done::With(done as Answer));
        }
    }
}

/// What a call answers of which `done` bytes are moved before a piece with this answer.
fn short(done: usize, answer: Answer) -> Done {
    Done::With(match failed(answer) {
        true if done > 0 => done as Answer,
        true => answer,
        false => done as Answer + answer,
    })
}

/// Reads into a buffer of which a part can be written, or into a list that has buffers of which
/// that is not known.
fn into_the_good_part(
    transfer: Transfer,
    make: impl Fn(usize, usize, usize) -> Answer,
    copy: impl Fn(usize, usize, usize, bool) -> usize,
) -> Touch<Done> {
    let Transfer {
        bytes,
        good,
        writes,
        ..
    } = transfer;
    let room = (good >= bytes).then(|| Lease::new(good));
    let place = match &room {
        None => 0,
        Some(Some(room)) => room.address(),
        Some(None) => return Ok(error(libc::ENOMEM)),
    };
    let stand_in = StandIn::to_receive(place, bytes, good, writes, |place| {
        copy(0, place, good, true);
    });
    let Ok(stand_in) = stand_in else {
        return Ok(error(libc::ENOMEM));
    };
    let answer = make(stand_in.place, bytes, 0);
    let give = |skip, place, part| copy(skip, place, part, false);
    if failed(answer) {
        if may_have_written(answer) {
            stand_in.give(0, give);
        }
        return Ok(Done::With(answer));
    }
    let given = stand_in.give(answer as usize, give);
    if given < answer as usize {
        return Ok(short(given, -(libc::EFAULT as Answer)));
    }
    Ok(Done::With(answer))
}

/// A call whose buffer cannot be used from its first byte on: the kernel finds that where it
/// comes to it.
pub(super) fn on_nothing(number: usize, mut args: [usize; 6]) -> Done {
    let Some(lease) = Lease::before_nothing(0) else {
        return error(libc::EFAULT);
    };
    args[1] = lease.address();
    Done::With(raw::syscall(number, args))
}

/// process_vm_readv, process_vm_writev: our side by way of a stand-in.
pub(super) fn other_memory(number: usize, args: [usize; 6]) -> Touch<Done> {
    let [process, list, count, their_list, their_count, flags] = args;
    if count > VECTORS_MAX || their_count > VECTORS_MAX {
        return Ok(Done::Asis);
    }
    if let Some(done) = ourselves::copied(number, args)? {
        return Ok(done);
    }
    let ours = Vectors::new(list, count);
    if !(ours.any_ghost()? || ghost::is_ghost(their_list)) {
        return Ok(Done::Asis);
    }
    if let Some(bad) = ours.refused()? {
        let bad = (&raw const bad) as usize;
        let answer = raw::syscall(number, [process, bad, 2, their_list, their_count, flags]);
        return Ok(Done::With(answer));
    }
    let mut bytes = ours.total()?.min(most_bytes());
    let list_bytes = their_count * size_of::<Vector>();
    let Some(mut lease) = Lease::new(bytes + list_bytes + 128) else {
        return Ok(error(libc::ENOMEM));
    };
    let (Some(place), Some(names)) = (lease.carve(bytes), lease.carve(list_bytes)) else {
        return Ok(error(libc::ENOMEM));
    };
    guarded::copy(names, their_list, list_bytes)?;
    let reading = number == 310;
    if !reading {
        bytes = ours.copied(0, place, bytes, true)?;
    }
    let one = Vector { base: place, bytes };
    let one = (&raw const one) as usize;
    let answer = raw::syscall(number, [process, one, 1, names, their_count, flags]);
    if reading && !failed(answer) {
        let copied = ours.copied(0, place, (answer as usize).min(bytes), false)?;
        return Ok(Done::With(copied as Answer));
    }
    Ok(Done::With(answer))
}

/// vmsplice: into a pipe, the kernel keeps the pages until they are read, so
/// they are pages that nobody uses again; out of one, it copies.
pub(super) fn spliced(args: [usize; 6]) -> Touch<Done> {
    let [fd, list, count, flags, ..] = args;
    if count == 0 || count > VECTORS_MAX {
        return Ok(Done::Asis);
    }
    let vectors = Vectors::new(list, count);
    if !vectors.any_ghost()? {
        return Ok(Done::Asis);
    }
    if let Some(bad) = vectors.refused()? {
        let answer = call!(libc::SYS_vmsplice, fd, &raw const bad, 2, flags);
        return Ok(Done::With(answer));
    }
    let access = own!(libc::SYS_fcntl, fd, libc::F_GETFL);
    if failed(access) {
        return Ok(Done::With(access));
    }
    let flags = flags & !(libc::SPLICE_F_GIFT as usize);
    if access & libc::O_ACCMODE as Answer == libc::O_RDONLY as Answer {
        let make = |list, count, _| call!(libc::SYS_vmsplice, fd, list, count, flags);
        return into_buffers(fd, vectors, &vectors.kinds()?, make);
    }
    let bytes = vectors.total()?.min(most_bytes());
    let Some(lease) = Lease::fresh(bytes) else {
        return Ok(error(libc::ENOMEM));
    };
    let vector = Vector {
        base: lease.address(),
        bytes: vectors.copied(0, lease.address(), bytes, true)?,
    };
    let answer = call!(libc::SYS_vmsplice, fd, &raw const vector, 1, flags);
    Ok(Done::With(answer))
}

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
//! Stand-ins lie at the same offset in their page as the buffer, so that what
//! O_DIRECT asks for holds for both or for neither.

use ghostmem_os::PAGE_SIZE;

use crate::bounce::{Lease, most_bytes};
use crate::guarded::{self, Touch, load};
use crate::holds::{self, Reason};
use crate::raw::{self, Answer, call, failed, own};
use crate::{ghost, mappings};

use super::{Done, error, ourselves};

/// What the kernel takes at most in one call (read(2)).
pub(super) const LONGEST: usize = 0x7fff_f000;
/// What a transfer that goes on moves at once.
const PIECE: usize = 1 << 20;
/// The most buffers in one call (`IOV_MAX`).
pub(crate) const VECTORS_MAX: usize = 1024;

/// `struct iovec`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vector {
    pub(crate) base: usize,
    pub(crate) bytes: usize,
}

/// A list of buffers of the program's, in memory it may keep as ghost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vectors {
    list: usize,
    count: usize,
}

impl Vectors {
    pub(crate) const fn new(list: usize, count: usize) -> Self {
        Self { list, count }
    }

    pub(crate) const fn count(self) -> usize {
        self.count
    }

    pub(crate) fn get(self, index: usize) -> Touch<Vector> {
        load(self.list.wrapping_add(index * size_of::<Vector>()))
    }

    pub(crate) fn total(self) -> Touch<usize> {
        let mut sum = 0_usize;
        for index in 0..self.count {
            sum = sum.saturating_add(self.get(index)?.bytes);
        }
        Ok(sum)
    }

    /// How many bytes from the first on can be written.
    fn writable(self) -> Touch<usize> {
        let mut sum = 0_usize;
        for index in 0..self.count {
            let vector = self.get(index)?;
            let part = writable(vector.base, vector.bytes);
            sum += part;
            if part < vector.bytes {
                break;
            }
        }
        Ok(sum)
    }

    /// Whether the list or one of its buffers is ghost memory.
    pub(crate) fn any_ghost(self) -> Touch<bool> {
        if ghost::is_ghost(self.list) {
            return Ok(true);
        }
        for index in 0..self.count {
            let vector = self.get(index)?;
            if vector.bytes > 0 && touches_ghost(vector.base, vector.bytes) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies `bytes` from `skip` on between the buffers and one place.
    pub(crate) fn copy(self, skip: usize, place: usize, bytes: usize, out: bool) -> Touch<()> {
        let (mut skip, mut done) = (skip, 0);
        for index in 0..self.count {
            if done == bytes {
                break;
            }
            let vector = self.get(index)?;
            if skip >= vector.bytes {
                skip -= vector.bytes;
                continue;
            }
            let part = (vector.bytes - skip).min(bytes - done);
            let at = vector.base.wrapping_add(skip);
            if out {
                guarded::copy(place + done, at, part)?;
            } else {
                guarded::copy(at, place + done, part)?;
            }
            done += part;
            skip = 0;
        }
        Ok(())
    }
}

/// Whether any of a buffer is ghost memory: other mappings may lie in the place of its ends.
fn touches_ghost(base: usize, bytes: usize) -> bool {
    if ghost::is_ghost(base) || ghost::is_ghost(base.wrapping_add(bytes - 1)) {
        return true;
    }
    ghost::region_owner(base, bytes)
        .and_then(|heap| heap.away_run(base, bytes))
        .is_some_and(|(_, alike)| alike < bytes)
}

/// How much of a buffer can be written, from its beginning: what a call read beyond that would
/// be lost, where the kernel leaves it where it is.
fn writable(base: usize, bytes: usize) -> usize {
    let Some(heap) = ghost::region_owner(base, bytes).filter(|_| bytes > 0) else {
        return bytes;
    };
    let (start, end) = (base & !(PAGE_SIZE - 1), base.saturating_add(bytes));
    let mut until = if heap.has_holes() { start } else { end };
    while until < end {
        // Other mappings in its place, and beside it, are the kernel's to judge.
        let Some((away, alike)) = heap.away_run(until, end - until) else {
            until = end;
            break;
        };
        let next = until + alike.max(PAGE_SIZE);
        let mut open = mappings::open_pieces(heap, until, next).filter(|_| !away);
        match open.next() {
            _ if away => until = next,
            Some((from, to)) if from == until => {
                until = to;
                if to < next {
                    break;
                }
            }
            _ => break,
        }
    }
    let mut until = until.clamp(base, end);
    if let Some((from, _)) = holds::next_for(Reason::Protected, start, until) {
        until = from.max(base);
    }
    until - base
}

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

/// Whether a socket has no messages.
pub(super) fn is_stream(fd: usize) -> bool {
    let (mut kind, mut bytes) = (0_i32, 4_u32);
    let answer = call!(
        libc::SYS_getsockopt,
        fd,
        libc::SOL_SOCKET,
        libc::SO_TYPE,
        &raw mut kind,
        &raw mut bytes
    );
    !failed(answer) && kind == libc::SOCK_STREAM
}

/// Whether the next message of a socket has a stand-in; waits for one, as the
/// call itself would. An error is the answer.
pub(super) fn next_message_fits(fd: usize, flags: usize) -> Result<(), Answer> {
    let kept = (libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE) as usize;
    let look = flags & kept | (libc::MSG_PEEK | libc::MSG_TRUNC) as usize;
    let mut byte = 0_u8;
    let answer = call!(libc::SYS_recvfrom, fd, &raw mut byte, 1, look, 0, 0);
    if failed(answer) {
        Err(answer)
    } else if answer as usize > most_bytes() {
        Err(-(libc::ENOBUFS as Answer))
    } else {
        Ok(())
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
    let bytes = bytes.min(LONGEST);
    if bytes == 0 || !touches_ghost(base, bytes) {
        return Ok(Done::Asis);
    }
    let reading = reads(number);
    let bytes = if reading {
        writable(base, bytes)
    } else {
        bytes
    };
    if bytes == 0 {
        // The kernel's to refuse, before anything is taken.
        return Ok(Done::Asis);
    }
    let positioned = number == 17 || number == 18;
    in_pieces(
        fd,
        bytes,
        base % PAGE_SIZE,
        reading,
        |place, part, done| {
            let at = if positioned { offset + done } else { 0 };
            raw::syscall(number, [fd, place, part, at, 0, 0])
        },
        |skip, place, part, out| {
            if out {
                guarded::copy(place, base.wrapping_add(skip), part)
            } else {
                guarded::copy(base.wrapping_add(skip), place, part)
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
    let bytes = vectors.total()?;
    if bytes > isize::MAX as usize {
        return Ok(error(libc::EINVAL));
    }
    let reading = reads(number);
    let bytes = if reading { vectors.writable()? } else { bytes };
    if bytes == 0 {
        return Ok(Done::Asis);
    }
    // An offset of -1 in the second version means the file's own position.
    let positioned = number >= 295 && !(number >= 327 && offset as isize == -1);
    in_pieces(
        fd,
        bytes.min(LONGEST),
        0,
        reading,
        |place, part, done| {
            let vector = Vector {
                base: place,
                bytes: part,
            };
            let at = if positioned { offset + done } else { offset };
            raw::syscall(
                number,
                [fd, (&raw const vector) as usize, 1, at, high, flags],
            )
        },
        |skip, place, part, out| vectors.copy(skip, place, part, out),
    )
}

/// Moves `bytes` through a stand-in: `make(place, part, done)` makes one call,
/// `copy(skip, place, part, out_of_the_program)` moves bytes.
fn in_pieces(
    fd: usize,
    bytes: usize,
    shift: usize,
    reading: bool,
    make: impl Fn(usize, usize, usize) -> Answer,
    copy: impl Fn(usize, usize, usize, bool) -> Touch<()>,
) -> Touch<Done> {
    let most = most_bytes();
    let kind = if bytes > most {
        long(fd, reading)
    } else {
        Long::EndsEarly
    };
    if kind == Long::OneMessage {
        if !reading {
            return Ok(error(libc::ENOBUFS));
        }
        if let Err(answer) = next_message_fits(fd, 0) {
            return Ok(Done::With(answer));
        }
    }
    // What goes on in pieces needs no large one, which a bound on memory may not have.
    let most = if kind == Long::GoesOn { PIECE } else { most };
    let Some(lease) = Lease::new(bytes.min(most) + shift) else {
        return Ok(error(libc::ENOMEM));
    };
    let place = lease.address() + shift;
    let mut done = 0;
    loop {
        let part = (bytes - done).min(most);
        if !reading {
            match copy(done, place, part, true) {
                Err(_) if done > 0 => return Ok(Done::With(done as Answer)),
                copied => copied?,
            }
        }
        let answer = make(place, part, done);
        if failed(answer) {
            return Ok(Done::With(if done > 0 { done as Answer } else { answer }));
        }
        let moved = (answer as usize).min(part);
        if reading {
            copy(done, place, moved, false)?;
        }
        done += moved;
        if moved < part || done == bytes || kind != Long::GoesOn {
            return Ok(Done::With(done as Answer));
        }
    }
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
    let bytes = ours.total()?.min(most_bytes());
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
        ours.copy(0, place, bytes, true)?;
    }
    let one = Vector { base: place, bytes };
    let one = (&raw const one) as usize;
    let answer = raw::syscall(number, [process, one, 1, names, their_count, flags]);
    if reading && !failed(answer) {
        ours.copy(0, place, (answer as usize).min(bytes), false)?;
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
    let access = own!(libc::SYS_fcntl, fd, libc::F_GETFL);
    if failed(access) {
        return Ok(Done::With(access));
    }
    let into_pipe = access & libc::O_ACCMODE as Answer != libc::O_RDONLY as Answer;
    let bytes = vectors.total()?.min(most_bytes());
    let lease = if into_pipe {
        Lease::fresh(bytes)
    } else {
        Lease::new(bytes)
    };
    let Some(lease) = lease else {
        return Ok(error(libc::ENOMEM));
    };
    let vector = Vector {
        base: lease.address(),
        bytes,
    };
    if into_pipe {
        vectors.copy(0, vector.base, bytes, true)?;
    }
    let place = &raw const vector;
    let flags = flags & !(libc::SPLICE_F_GIFT as usize);
    let answer = call!(libc::SYS_vmsplice, fd, place, 1, flags);
    if !into_pipe && !failed(answer) {
        vectors.copy(0, vector.base, (answer as usize).min(bytes), false)?;
    }
    Ok(Done::With(answer))
}

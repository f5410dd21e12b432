//! Reading and writing files, pipes and sockets: buffers of any length.
//!
//! Long transfers go through one stand-in of a mebibyte, piece by piece. A
//! write goes on until the kernel takes less than it was given, which is what
//! the kernel does itself. A read goes on only on regular files and block
//! devices: from anything else less than asked for is a normal answer, and
//! asking again could wait for ever.
//!
//! Stand-ins lie at the same offset in their page as the buffer, so that what
//! O_DIRECT asks for holds for both or for neither.

use crate::bounce::{LARGE_BYTES, Lease};
use crate::ghost;
use crate::raw::{self, Answer, call, failed, load};

use super::{Done, error};

const PAGE: usize = 4096;
/// The most that goes through at a time.
const PIECE: usize = LARGE_BYTES - PAGE;
/// What the kernel takes at most in one call (read(2)).
const LONGEST: usize = 0x7fff_f000;
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

    pub(crate) fn get(self, index: usize) -> Vector {
        load(self.list + index * size_of::<Vector>())
    }

    fn each(self) -> impl Iterator<Item = Vector> {
        (0..self.count).map(move |index| self.get(index))
    }

    pub(crate) fn total(self) -> usize {
        self.each()
            .fold(0, |sum, vector| vector.bytes.saturating_add(sum))
    }

    /// Whether the list or one of its buffers is ghost memory.
    pub(crate) fn any_ghost(self) -> bool {
        ghost::is_ghost(self.list)
            || self
                .each()
                .any(|vector| vector.bytes > 0 && touches_ghost(vector.base, vector.bytes))
    }

    /// Copies `bytes` from `skip` on between the buffers and one place.
    pub(crate) fn copy(self, skip: usize, place: usize, bytes: usize, out: bool) {
        let (mut skip, mut done) = (skip, 0);
        for vector in self.each() {
            if done == bytes {
                return;
            }
            if skip >= vector.bytes {
                skip -= vector.bytes;
                continue;
            }
            let part = (vector.bytes - skip).min(bytes - done);
            let at = vector.base + skip;
            if out {
                raw::copy(place + done, at, part);
            } else {
                raw::copy(at, place + done, part);
            }
            done += part;
            skip = 0;
        }
    }
}

fn touches_ghost(base: usize, bytes: usize) -> bool {
    ghost::is_ghost(base) || ghost::is_ghost(base + (bytes - 1))
}

/// Which way the bytes go, by call number.
fn reads(number: usize) -> bool {
    matches!(number, 0 | 17 | 19 | 295 | 327)
}

/// Whether a read may be asked for in pieces.
fn goes_on(fd: usize) -> bool {
    // SAFETY: all zero is a valid stat structure.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    let answer = call!(libc::SYS_fstat, fd, &raw mut stat);
    !failed(answer) && matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK)
}

/// read, write, pread64, pwrite64.
pub(super) fn plain(number: usize, args: [usize; 6]) -> Done {
    let [fd, base, bytes, offset, ..] = args;
    let bytes = bytes.min(LONGEST);
    if bytes == 0 || !touches_ghost(base, bytes) {
        return Done::Asis;
    }
    let positioned = number == 17 || number == 18;
    in_pieces(
        fd,
        bytes,
        base % PAGE,
        reads(number),
        |place, part, done| {
            let at = if positioned { offset + done } else { 0 };
            raw::syscall(number, [fd, place, part, at, 0, 0])
        },
        |skip, place, part, out| {
            if out {
                raw::copy(place, base + skip, part);
            } else {
                raw::copy(base + skip, place, part);
            }
        },
    )
}

/// readv, writev, preadv, pwritev, preadv2, pwritev2.
pub(super) fn vectored(number: usize, args: [usize; 6]) -> Done {
    let [fd, list, count, low, high, flags] = args;
    if count == 0 || count > VECTORS_MAX {
        return Done::Asis;
    }
    let vectors = Vectors::new(list, count);
    if !vectors.any_ghost() {
        return Done::Asis;
    }
    let bytes = vectors.total();
    if bytes > isize::MAX as usize {
        return error(libc::EINVAL);
    }
    let offset = (high << 32) | (low & 0xffff_ffff);
    // An offset of -1 in the second version means the file's own position.
    let positioned = number >= 295 && !(number >= 327 && low as isize == -1);
    let bytes = bytes.min(LONGEST);
    let offset = if number >= 295 && high == 0 {
        low
    } else {
        offset
    };
    in_pieces(
        fd,
        bytes,
        0,
        reads(number),
        |place, part, done| {
            let vector = Vector {
                base: place,
                bytes: part,
            };
            let at = if positioned { offset + done } else { low };
            raw::syscall(number, [fd, (&raw const vector) as usize, 1, at, 0, flags])
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
    copy: impl Fn(usize, usize, usize, bool),
) -> Done {
    let Some(lease) = Lease::new(bytes.min(PIECE) + shift) else {
        return error(libc::ENOMEM);
    };
    let place = lease.address() + shift;
    let whole = !reading || bytes <= PIECE || goes_on(fd);
    let mut done = 0;
    loop {
        let part = (bytes - done).min(PIECE);
        if !reading {
            copy(done, place, part, true);
        }
        let answer = make(place, part, done);
        if failed(answer) {
            return Done::With(if done > 0 { done as Answer } else { answer });
        }
        let moved = (answer as usize).min(part);
        if reading {
            copy(done, place, moved, false);
        }
        done += moved;
        if moved < part || done == bytes || !whole {
            return Done::With(done as Answer);
        }
    }
}

//! The program's buffers: lists of them, and how much of one can be used.

use ghostmem_os::PAGE_SIZE;

use crate::guarded::{self, BadAddress, Touch, load, store};
use crate::holds::{self, Reason};
use crate::raw::{Answer, own};
use crate::{ghost, mappings, taken};

/// The most buffers in one call (`IOV_MAX`).
pub(crate) const VECTORS_MAX: usize = 1024;
/// So much of what lies in a buffer's place is looked at: a call seldom fills more at once.
const LOOKED_AT: usize = 1 << 20;

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

    /// Two buffers with which the kernel gives the answer that it has for one of these and its
    /// length, before it touches any: where it has one. A single one it makes shorter first.
    pub(super) fn refused(self) -> Touch<Option<[Vector; 2]>> {
        let mut outside = None;
        for index in 0..self.count {
            let vector = self.get(index)?;
            if vector.bytes > isize::MAX as usize {
                return Ok(Some([vector; 2]));
            }
            if self.count > 1 && outside.is_none() && is_outside(vector.base, vector.bytes) {
                outside = Some([vector; 2]);
            }
        }
        Ok(outside)
    }

    /// Which of the buffers are ghost memory.
    pub(super) fn kinds(self) -> Touch<Kinds> {
        let mut kinds = Kinds::NONE;
        for index in 0..self.count {
            let vector = self.get(index)?;
            if vector.bytes == 0 {
                continue;
            }
            if touches_ghost(vector.base, vector.bytes) {
                kinds.ghost[index / 64] |= 1 << (index % 64);
            } else {
                kinds.has_others = true;
            }
        }
        Ok(kinds)
    }

    /// How many bytes from the first on can be written, as far as ghost memory is concerned.
    pub(super) fn writable(self, kinds: &Kinds) -> Touch<usize> {
        let mut sum = 0_usize;
        for index in 0..self.count {
            let vector = self.get(index)?;
            let part = if kinds.is_ghost(index) {
                writable(vector.base, vector.bytes)
            } else {
                vector.bytes
            };
            sum = sum.saturating_add(part);
            if part < vector.bytes {
                break;
            }
        }
        Ok(sum)
    }

    /// The kernel's list for a call that reads `bytes`, from `skip` on, at `list`, which has
    /// room for all buffers: ghost memory has its stand-in at `place`, as far behind it as it
    /// is behind the first byte. The others are the kernel's to write to, or to find that they
    /// cannot be written. How many there are.
    pub(super) fn stand_ins(
        self,
        kinds: &Kinds,
        (skip, bytes): (usize, usize),
        place: usize,
        list: usize,
    ) -> Touch<usize> {
        let mut count = 0;
        self.for_each_part((skip, bytes), |index, done, mut part| {
            if kinds.is_ghost(index) {
                part.base = place + done;
            }
            store(list + count * size_of::<Vector>(), part)?;
            count += 1;
            Ok(true)
        })?;
        Ok(count)
    }

    /// Calls `body` with each part of a buffer that has some of `bytes` bytes from `skip` on: the
    /// buffer's index, how many of these come before the part, and where it is. Until all were
    /// gone through, or it says `false`.
    fn for_each_part(
        self,
        (mut skip, bytes): (usize, usize),
        mut body: impl FnMut(usize, usize, Vector) -> Touch<bool>,
    ) -> Touch<()> {
        let mut done = 0;
        for index in 0..self.count {
            let vector = self.get(index)?;
            if done == bytes {
                break;
            }
            if skip >= vector.bytes {
                skip -= vector.bytes;
                continue;
            }
            let part = Vector {
                base: vector.base.wrapping_add(skip),
                bytes: (vector.bytes - skip).min(bytes - done),
            };
            if !body(index, done, part)? {
                break;
            }
            (skip, done) = (0, done + part.bytes);
        }
        Ok(())
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

    /// Copies `bytes` from `skip` on between the buffers and one place, as far as they can be
    /// used; how many.
    pub(crate) fn copy(self, skip: usize, place: usize, bytes: usize, out: bool) -> usize {
        self.copy_of(&Kinds::ALL, skip, place, bytes, out)
    }

    /// As [`Vectors::copy`], of ghost memory: the others count, and are left alone.
    pub(super) fn copy_of(
        self,
        kinds: &Kinds,
        skip: usize,
        place: usize,
        bytes: usize,
        out: bool,
    ) -> usize {
        let mut copied = 0;
        let _as_far_as_it_can_be_read = self.for_each_part((skip, bytes), |index, done, part| {
            let Vector { base, bytes } = part;
            copied += if !kinds.is_ghost(index) {
                bytes
            } else if out {
                guarded::copy_some(place + done, base, bytes)
            } else {
                guarded::copy_some(base, place + done, bytes)
            };
            Ok(copied == done + bytes)
        });
        copied
    }

    /// As [`Vectors::copy`], where nothing is an error.
    pub(super) fn copied(self, skip: usize, place: usize, bytes: usize, out: bool) -> Touch<usize> {
        match self.copy(skip, place, bytes, out) {
            0 if bytes > 0 => Err(BadAddress),
            copied => Ok(copied),
        }
    }
}

/// Which buffers of a list are ghost memory, one bit each: looked at once for a call, as
/// other threads may change what memory is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kinds {
    ghost: [u64; VECTORS_MAX / 64],
    /// Some are other memory.
    has_others: bool,
}

impl Kinds {
    const NONE: Self = Self {
        ghost: [0; VECTORS_MAX / 64],
        has_others: false,
    };
    /// A list that one stand-in is for, whatever its buffers are.
    const ALL: Self = Self {
        ghost: [u64::MAX; VECTORS_MAX / 64],
        has_others: false,
    };

    const fn is_ghost(&self, index: usize) -> bool {
        self.ghost[index / 64] >> (index % 64) & 1 != 0
    }

    pub(super) fn has_ghost(&self) -> bool {
        self.ghost.iter().any(|&word| word != 0)
    }

    /// Whether there are buffers of both kinds.
    pub(super) fn is_mixed(&self) -> bool {
        self.has_others && self.has_ghost()
    }
}

/// Whether a buffer is none for the kernel, wherever it is, as it would end beyond what a
/// process may have. mincore(2) looks at its range as read(2) and write(2) do, and then finds
/// that there is no place for its answer.
pub(super) fn is_outside(base: usize, bytes: usize) -> bool {
    /// Every kernel gives as much.
    const INSIDE: usize = (1 << 47) - PAGE_SIZE;
    if base.checked_add(bytes).is_some_and(|end| end <= INSIDE) {
        return false;
    }
    let start = base & !(PAGE_SIZE - 1);
    let whole = bytes.saturating_add(base - start);
    own!(libc::SYS_mincore, start, whole, usize::MAX) == -(libc::ENOMEM as Answer)
}

/// Whether any of a buffer is ghost memory: other mappings may lie in the place of its ends.
pub(super) fn touches_ghost(base: usize, bytes: usize) -> bool {
    if ghost::is_ghost(base) || ghost::is_ghost(base.wrapping_add(bytes - 1)) {
        return true;
    }
    ghost::region_owner(base, bytes)
        .and_then(|heap| heap.away_run(base, bytes))
        .is_some_and(|(_, alike)| alike < bytes)
}

/// How much of a buffer can be written, from its beginning: what a call read beyond that would
/// be lost, where the kernel leaves it where it is.
pub(super) fn writable(base: usize, bytes: usize) -> usize {
    let good = writable_now(base, bytes);
    if good == bytes {
        return good;
    }
    // A change by another thread may have been seen half done.
    taken::seen_between_changes(|| writable_now(base, bytes))
}

fn writable_now(base: usize, bytes: usize) -> usize {
    let Some(heap) = ghost::region_owner(base, bytes).filter(|_| bytes > 0) else {
        return bytes;
    };
    let (start, end) = (base & !(PAGE_SIZE - 1), base.saturating_add(bytes));
    let is_whole = !heap.has_holes() && [base, end - 1].into_iter().all(ghost::is_ghost);
    let mut until = if is_whole { end } else { start };
    while until < end {
        // What lies in its place, and beside it, is not the heap's to judge.
        let Some((away, alike)) = heap.away_run(until, end - until) else {
            until = opened(until, end);
            break;
        };
        let next = until + alike.max(PAGE_SIZE);
        if away {
            let opened = opened(until, next.min(end));
            if opened < next.min(end) {
                until = opened;
                break;
            }
            until = next;
            continue;
        }
        match mappings::open_pieces(heap, until, next).next() {
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

/// How far the pages from an address on can be written, of those that are looked at. What is
/// there stays as it is.
fn opened(start: usize, end: usize) -> usize {
    let mut at = start;
    while at < end.min(start.saturating_add(LOOKED_AT)) {
        if guarded::open(at).is_err() {
            return at;
        }
        at = (at & !(PAGE_SIZE - 1)) + PAGE_SIZE;
    }
    end
}

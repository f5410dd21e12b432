//! Segments without records: which one is filled next, and what is kept so that
//! cleaning can always go on.
//!
//! ```text
//!   spare    a whole segment's blocks, reserved on the disk: for cleaning only
//!   warm     its blocks are kept for the next fillings
//!   unbacked no blocks
//!   bad      a write or a read failed there: used when there is no other
//!   frozen   a forked child may still read what is there
//! ```
//! Cleaning a full disk's file needs room to move to before it makes any. The room
//! is had while there is some: before a segment is filled with new records, a spare
//! one is reserved, by fallocate(2) or by writing zeros where there is no such call.
//! Cleaning fills the spare, and the segment it emptied becomes the next one. Moved
//! records take no more than the blocks they came from, and moved segments only the
//! blocks they have: however full the disk, each emptied segment pays for the next.
//! While there is no whole spare, all emptied segments are cleaning's.

use ghostmem_os::file::BLOCK_BYTES;

use crate::table::{SEGMENT_BYTES, SegmentState, segment_offset};
use crate::tier::FileTier;
use crate::write::{Stream, Writer};

/// Segments without a record whose blocks are kept for the next ones, beside the
/// spare.
const WARM_MAX: usize = 2;
/// Blocks from which on a segment is filled as it is by what is moved: a few
/// records' worth.
pub(crate) const ROOM_BYTES_MIN: usize = 4 * BLOCK_BYTES;
/// Blocks that make a segment as good as whole: what lives in a segment that is worth
/// cleaning takes 3 in 100 less.
const WHOLE_BYTES: usize = SEGMENT_BYTES - 4 * BLOCK_BYTES;
/// The file's length grows in steps of this: a direct write beyond a file's end
/// keeps readers waiting in ext4, one into a hole does not.
const GROWTH_BYTES: u64 = 64 << 20;
/// Part of a segment's blocks that is left to it though it holds nothing: 3 in 100.
pub(crate) const TRIM_SHARE: usize = 3;

/// A list of segments, linked through their rows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct List {
    first: u32,
    pub(crate) len: usize,
}

impl FileTier {
    /// A segment without records.
    pub(crate) fn take_segment(&self, w: &mut Writer, stream: Stream) -> Option<u32> {
        let kept = match stream {
            Stream::Moved => w.spare.take().or_else(|| self.take_fullest(w)),
            Stream::Fresh if w.spare.is_some() => self.pop(&mut w.warm),
            Stream::Fresh => None,
        };
        if kept.is_some() {
            return kept;
        }
        let segment = self.take_unbacked(w).or_else(|| self.pop(&mut w.bad))?;
        self.counters.rows.add(1);
        Some(segment)
    }

    fn take_unbacked(&self, w: &mut Writer) -> Option<u32> {
        if let Some(segment) = self.pop(&mut w.unbacked) {
            return Some(segment);
        }
        let segment = w.unused;
        (segment < self.table.segments()).then(|| {
            w.unused += 1;
            segment
        })
    }

    /// Sees to it that there is a spare segment, if the disk and the limit have room
    /// for one. Nothing may be staged.
    pub(crate) fn keep_spare(&self, w: &mut Writer) {
        let Some(own) = w.own.filter(|_| w.spare.is_none()) else {
            return;
        };
        let segment = self.take_fullest(w).or_else(|| {
            let segment = self.take_unbacked(w)?;
            self.counters.rows.add(1);
            Some(segment)
        });
        let Some(segment) = segment else { return };
        if self.make_whole(w, own, segment) {
            w.spare = Some(segment);
            while w.warm.len > WARM_MAX
                && let Some(segment) = self.pop(&mut w.warm)
            {
                if !self.give_back(w, segment) {
                    break;
                }
            }
        } else if self.table.blocks(segment) > 0 {
            self.push(&mut w.warm, segment);
        } else {
            self.retire_segment(&mut w.unbacked, segment);
        }
    }

    /// Reserves what a segment lacks; whether it is as good as whole then.
    fn make_whole(&self, w: &mut Writer, own: usize, segment: u32) -> bool {
        let blocks = self.table.blocks(segment);
        let missing = SEGMENT_BYTES - blocks;
        let grown = self.counters.file_bytes.get() + missing as u64;
        if missing == 0 || grown > self.limit_bytes || !self.grow(w, own, segment) {
            return blocks >= WHOLE_BYTES;
        }
        let offset = segment_offset(segment) + blocks as u64;
        let reserved = match self.files.reserve(own, offset, missing as u64) {
            Err(error) if !is_no_space(error.errno) => {
                // No such call here: what is written has blocks too.
                let zeros = &mut w.staging[..missing];
                zeros.fill(0);
                let written = self.files.write(own, zeros, offset);
                self.counters.bytes_written.add(missing);
                written
            }
            other => other,
        };
        if reserved.is_ok() {
            self.counters.file_bytes.add(missing);
            self.table.set_blocks(segment, SEGMENT_BYTES);
            return true;
        }
        self.forget_blocks(w, segment, blocks, SEGMENT_BYTES, false);
        self.table.blocks(segment) >= WHOLE_BYTES
    }

    /// Makes the file as long as its segment ends; whether that may be.
    pub(crate) fn grow(&self, w: &mut Writer, own: usize, segment: u32) -> bool {
        let end = segment_offset(segment) + SEGMENT_BYTES as u64;
        if end <= w.grown_bytes {
            return true;
        }
        let file = self.files.get(own);
        let steps = [end.next_multiple_of(GROWTH_BYTES), end];
        let grown = steps.into_iter().find(|&len| file.set_len(len).is_ok());
        if let Some(len) = grown {
            w.grown_bytes = len;
        }
        grown.is_some()
    }

    /// After a write or a reservation from `kept` to `end` of a segment failed: what
    /// blocks it got before is not known, and those it seemed to have were none.
    pub(crate) fn forget_blocks(
        &self,
        w: &mut Writer,
        segment: u32,
        kept: usize,
        end: usize,
        is_bad: bool,
    ) {
        let blocks = self.table.blocks(segment);
        let end = end.max(blocks);
        if self.punch(w, segment, kept, end) {
            self.counters.file_bytes.sub(blocks.saturating_sub(kept));
            self.table.set_blocks(segment, blocks.min(kept));
        } else if is_bad {
            // It may have all of them, and is not filled again for long.
            self.counters.file_bytes.add(end - blocks);
            self.table.set_blocks(segment, end);
        }
    }

    /// Gives back what a filled segment has beyond its first `used` bytes, if that is
    /// worth a call.
    pub(crate) fn trim(&self, w: &mut Writer, segment: u32, used: usize) {
        let blocks = self.table.blocks(segment);
        if used + used * TRIM_SHARE / 100 < blocks && self.punch(w, segment, used, blocks) {
            self.counters.file_bytes.sub(blocks - used);
            self.table.set_blocks(segment, used);
        }
    }

    /// Gives blocks of a segment of the own file back to the file system.
    fn punch(&self, w: &mut Writer, segment: u32, start: usize, end: usize) -> bool {
        let Some(own) = w.own else { return false };
        let offset = segment_offset(segment) + start as u64;
        let punched = self.files.punch(own, offset, (end - start) as u64).is_ok();
        w.has_no_holes = !punched;
        punched
    }

    /// Gives all blocks of an empty segment back. `false` where the file system
    /// cannot: the blocks serve the next filling.
    fn give_back(&self, w: &mut Writer, segment: u32) -> bool {
        let blocks = self.table.blocks(segment);
        if blocks > 0 {
            if !self.punch(w, segment, 0, SEGMENT_BYTES) {
                self.push(&mut w.warm, segment);
                return false;
            }
            self.counters.file_bytes.sub(blocks);
            self.table.set_blocks(segment, 0);
        }
        self.retire_segment(&mut w.unbacked, segment);
        true
    }

    /// Puts a segment that nobody reads any more where it can be used again.
    pub(crate) fn free_segment(&self, w: &mut Writer, segment: u32, is_bad: bool) {
        self.table.set_state(segment, SegmentState::Free);
        let blocks = self.table.blocks(segment);
        if is_bad {
            if blocks > 0 && self.punch(w, segment, 0, SEGMENT_BYTES) {
                self.counters.file_bytes.sub(blocks);
                self.table.set_blocks(segment, 0);
            }
            return self.retire_segment(&mut w.bad, segment);
        }
        if blocks > 0 && (w.warm.len < WARM_MAX || w.spare.is_none()) {
            return self.push(&mut w.warm, segment);
        }
        self.give_back(w, segment);
    }

    /// Puts a segment whose entries are not needed for now into a list, without
    /// memory for them.
    pub(crate) fn retire_segment(&self, list: &mut List, segment: u32) {
        self.table.forget_entries(segment);
        self.counters.rows.sub(1);
        self.push(list, segment);
    }

    /// The warm segment with the most blocks.
    fn take_fullest(&self, w: &mut Writer) -> Option<u32> {
        let mut fullest = self.pop(&mut w.warm)?;
        let mut next = Self::take_list(&mut w.warm);
        while next != 0 {
            let mut other = next;
            next = self.table.next(other);
            if self.table.blocks(other) > self.table.blocks(fullest) {
                core::mem::swap(&mut fullest, &mut other);
            }
            self.push(&mut w.warm, other);
        }
        Some(fullest)
    }

    fn pop(&self, list: &mut List) -> Option<u32> {
        let segment = list.first;
        if segment == 0 {
            return None;
        }
        list.first = self.table.next(segment);
        list.len -= 1;
        Some(segment)
    }

    pub(crate) fn push(&self, list: &mut List, segment: u32) {
        self.table.set_next(segment, list.first);
        list.first = segment;
        list.len += 1;
    }

    /// Takes a list whole: its first segment, 0 for none.
    pub(crate) fn take_list(list: &mut List) -> u32 {
        core::mem::take(list).first
    }
}

/// Whether an error says that there are no blocks to be had.
const fn is_no_space(errno: i32) -> bool {
    matches!(errno, libc::ENOSPC | libc::EDQUOT | libc::EFBIG)
}

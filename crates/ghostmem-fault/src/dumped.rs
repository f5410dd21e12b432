//! Which parts of a region a core dump has.
//!
//! A region is address space by the gigabyte, most of it never used, and a core file
//! would be as long: a reader would have to skip the holes, and some tools copy them.
//! So a region is left out of dumps (`MADV_DONTDUMP`, madvise(2)) but for the parts
//! that pages were ever put in place in. Parts are large: each costs one call, and
//! the mapping is split where a used part meets an unused one.

use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_os::OsError;
use ghostmem_os::map::{Span, ZeroArray};
use ghostmem_os::ranges::set_dumped;

/// Bytes of a part.
const PART_BYTES: usize = 64 << 20;

/// The parts of one region.
pub(crate) struct Dumped {
    span: Span,
    /// One bit for each part that a dump has, set for good.
    parts: ZeroArray<AtomicU64>,
}

impl Dumped {
    /// Leaves all of a region out.
    ///
    /// # Errors
    /// No memory for the bits.
    pub(crate) fn nothing_of(span: Span) -> Result<Self, OsError> {
        let parts = span.len().div_ceil(PART_BYTES);
        let dumped = Self {
            span,
            parts: ZeroArray::new(parts.div_ceil(64))?,
        };
        set_dumped(span.base(), span.len(), false);
        Ok(dumped)
    }

    /// Pages are about to be put in place. Async-signal-safe; one load for each part
    /// where they are not the first.
    pub(crate) fn note(&self, offset: usize, len: usize) {
        for part in offset / PART_BYTES..(offset + len).div_ceil(PART_BYTES) {
            let (word, bit) = (&self.parts[part / 64], 1 << (part % 64));
            if word.load(Ordering::Relaxed) & bit == 0 {
                self.set(part);
                // Only now: whoever sees the bit finds the mapping as it stays.
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Puts all of the region into dumps: parts that were left out split mappings, and
    /// none is left. Whether that was not so already. Async-signal-safe.
    pub(crate) fn note_all(&self) -> bool {
        let note = |seen: u64, word: &AtomicU64| seen & word.fetch_or(u64::MAX, Ordering::Relaxed);
        let before = self.parts.iter().fold(u64::MAX, note);
        set_dumped(self.span.base(), self.span.len(), true);
        before != u64::MAX
    }

    /// After the range was mapped anew: as it was noted.
    pub(crate) fn set_again(&self) {
        set_dumped(self.span.base(), self.span.len(), false);
        for part in 0..self.span.len().div_ceil(PART_BYTES) {
            if self.parts[part / 64].load(Ordering::Relaxed) & 1 << (part % 64) != 0 {
                self.set(part);
            }
        }
    }

    /// After some of the range was mapped anew: as it was noted.
    pub(crate) fn set_again_in(&self, offset: usize, len: usize) {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let part = at / PART_BYTES;
            let until = end.min((part + 1) * PART_BYTES);
            let noted = self.parts[part / 64].load(Ordering::Relaxed) & 1 << (part % 64) != 0;
            set_dumped(self.span.base() + at, until - at, noted);
            at = until;
        }
    }

    fn set(&self, part: usize) {
        let start = part * PART_BYTES;
        let bytes = PART_BYTES.min(self.span.len() - start);
        set_dumped(self.span.base() + start, bytes, true);
    }
}

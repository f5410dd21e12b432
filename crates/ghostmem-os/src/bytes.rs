//! [`ByteArena`]: a large range of plain bytes that several threads copy in
//! and out of.
//!
//! No reference into the arena is ever made: callers get bounds-checked
//! copies. A copy that races with another is not undefined behaviour (every
//! access is a relaxed atomic word or a whole-word atomic merge), it merely
//! may be torn; whoever reads under a claim, or validates afterwards, gets
//! whole bytes.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::error::{ENOMEM, OsError};
use crate::map::{PAGE_SIZE, ZeroArray};

/// Engine-owned memory for compressed pages, addressed by byte offset.
///
/// Offsets and lengths of copies need no alignment, but a copy that starts
/// and ends on 8-byte boundaries is the fastest, and two copies that share an
/// 8-byte word must not both be writes.
#[derive(Debug)]
pub struct ByteArena {
    words: ZeroArray<AtomicU64>,
    len: usize,
}

impl ByteArena {
    /// Reserves `capacity` bytes, rounded up to pages; nothing is backed by
    /// memory until it is written.
    ///
    /// # Errors
    /// The kernel's refusal to map it.
    pub fn new(capacity: usize) -> Result<Self, OsError> {
        let len = capacity
            .max(1)
            .checked_next_multiple_of(PAGE_SIZE)
            .ok_or(OsError::new("an arena of this size", ENOMEM))?;
        Ok(Self {
            words: ZeroArray::new(len / 8)?,
            len,
        })
    }

    /// Capacity in bytes.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.len
    }

    /// Copies `out.len()` bytes starting at byte `offset` (a multiple of 8)
    /// into `out`. Lock-free, async-signal-safe.
    ///
    /// # Panics
    /// When the range leaves the arena or `offset` is not a multiple of 8.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset.is_multiple_of(8), "unaligned arena offset");
        let words = &self.words[offset / 8..(offset + out.len()).div_ceil(8)];
        let (chunks, tail) = out.as_chunks_mut::<8>();
        for (chunk, word) in chunks.iter_mut().zip(words) {
            *chunk = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        if !tail.is_empty() {
            let last = words[words.len() - 1].load(Ordering::Relaxed).to_ne_bytes();
            tail.copy_from_slice(&last[..tail.len()]);
        }
    }

    /// Starts to bring `len` bytes at byte `offset` into the cache; what lies
    /// outside the arena is left out. A hint: it changes nothing and waits for
    /// nothing.
    pub fn prefetch(&self, offset: usize, len: usize) {
        const LINE_BYTES: usize = 64;
        let end = offset.saturating_add(len).min(self.len);
        #[cfg(target_arch = "x86_64")]
        for at in (offset / LINE_BYTES * LINE_BYTES..end).step_by(LINE_BYTES) {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let line = self.words.as_ptr().wrapping_byte_add(at);
            // SAFETY: a prefetch never faults, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = end;
    }

    /// Copies `data` to byte `offset` (a multiple of 8). The rest of the last
    /// 8-byte word is zeroed when `data` does not fill it. Lock-free,
    /// async-signal-safe; the caller owns the range.
    ///
    /// # Panics
    /// When the range leaves the arena or `offset` is not a multiple of 8.
    pub fn write(&self, offset: usize, data: &[u8]) {
        assert!(offset.is_multiple_of(8), "unaligned arena offset");
        let words = &self.words[offset / 8..(offset + data.len()).div_ceil(8)];
        let (chunks, tail) = data.as_chunks::<8>();
        for (chunk, word) in chunks.iter().zip(words) {
            word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        }
        if !tail.is_empty() {
            let mut last = [0_u8; 8];
            last[..tail.len()].copy_from_slice(tail);
            words[words.len() - 1].store(u64::from_ne_bytes(last), Ordering::Relaxed);
        }
    }

    /// Reads the 8-byte word at byte `offset` (a multiple of 8).
    ///
    /// # Panics
    /// As [`ByteArena::read`].
    #[must_use]
    pub fn read_word(&self, offset: usize) -> u64 {
        assert!(offset.is_multiple_of(8), "unaligned arena offset");
        self.words[offset / 8].load(Ordering::Relaxed)
    }

    /// Writes the 8-byte word at byte `offset` (a multiple of 8).
    ///
    /// # Panics
    /// As [`ByteArena::read`].
    pub fn write_word(&self, offset: usize, value: u64) {
        assert!(offset.is_multiple_of(8), "unaligned arena offset");
        self.words[offset / 8].store(value, Ordering::Relaxed);
    }

    /// Gives the memory behind page-aligned `ranges` (offset, length in bytes)
    /// back to the kernel, in as few calls as it can; they read as zero
    /// afterwards. Uses no heap and is async-signal-safe.
    ///
    /// # Panics
    /// When a range is not page aligned or leaves the arena.
    ///
    /// # Errors
    /// The kernel's refusal; some of the ranges then still hold memory, never harm.
    pub fn decommit(&self, ranges: &[(usize, usize)]) -> Result<(), OsError> {
        for &(offset, len) in ranges {
            assert!(offset.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE));
            assert!(offset.checked_add(len).is_some_and(|end| end <= self.len));
        }
        self.words.give_back(ranges)
    }

    /// Bytes backed by memory now; linear in the capacity, for reports.
    #[must_use]
    pub fn backed_bytes(&self) -> usize {
        self.words.backed_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_every_length_come_back() {
        let arena = ByteArena::new(1 << 16).unwrap();
        let data: Vec<u8> = (0..4099_u32).map(|i| (i * 31 + 7) as u8).collect();
        for len in 0..data.len() {
            let offset = (len * 8) % (1 << 15);
            arena.write(offset, &data[..len]);
            let mut back = vec![0xAA; len];
            arena.read(offset, &mut back);
            assert_eq!(back, data[..len]);
        }
    }

    #[test]
    fn decommitted_ranges_read_zero_and_cost_nothing() {
        let arena = ByteArena::new(1 << 20).unwrap();
        arena.write(0, &[1; 65536]);
        arena.write(1 << 19, &[2; 4096]);
        assert_eq!(arena.backed_bytes(), 65536 + 4096);
        arena.decommit(&[(0, 65536)]).unwrap();
        assert_eq!(arena.backed_bytes(), 4096);
        let mut back = [9; 64];
        arena.read(0, &mut back);
        assert_eq!(back, [0; 64]);
    }

    #[test]
    fn many_ranges_go_at_once_and_what_is_between_them_stays() {
        const SLAB: usize = 4 * PAGE_SIZE;
        let arena = ByteArena::new(200 * SLAB).unwrap();
        for slab in 0..200 {
            arena.write(slab * SLAB, &[slab as u8 + 1; SLAB]);
        }
        let even: Vec<_> = (0..200)
            .step_by(2)
            .map(|slab| (slab * SLAB, SLAB))
            .collect();
        arena.decommit(&even).unwrap();
        assert_eq!(arena.backed_bytes(), 100 * SLAB);
        for slab in 0..200 {
            let mut back = [9; SLAB];
            arena.read(slab * SLAB, &mut back);
            let wanted = if slab % 2 == 0 { 0 } else { slab as u8 + 1 };
            assert_eq!(back, [wanted; SLAB]);
        }
        arena.decommit(&[]).unwrap();
    }
}

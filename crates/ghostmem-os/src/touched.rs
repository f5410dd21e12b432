//! How much of a demand-zero array is memory by now, counted as it is written
//! instead of asked of the kernel, which takes time linear in the array.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::OsError;
use crate::map::{PAGE_SIZE, ZeroArray, ZeroValid};

/// The pages of one [`ZeroArray`] that were ever written, as far as its owner
/// [notes](Touched::note) them: one bit each, set once and for all.
#[derive(Debug)]
pub struct Touched {
    seen: ZeroArray<AtomicU64>,
    pages: AtomicUsize,
    items_per_page: usize,
}

impl Touched {
    /// A tally for an array of `len` items of type `T`, nothing written yet.
    ///
    /// # Errors
    /// The kernel's refusal to map the bits.
    pub fn new<T: ZeroValid>(len: usize) -> Result<Self, OsError> {
        let items_per_page = PAGE_SIZE / size_of::<T>().clamp(1, PAGE_SIZE);
        Ok(Self {
            seen: ZeroArray::new(len.div_ceil(items_per_page).div_ceil(64))?,
            pages: AtomicUsize::new(0),
            items_per_page,
        })
    }

    /// Item `index` is written: `true` when nothing of its page was before.
    /// One load but for the first time. Async-signal-safe.
    ///
    /// # Panics
    /// When the array has no such item.
    pub fn note(&self, index: usize) -> bool {
        let page = index / self.items_per_page;
        let (word, bit) = (&self.seen[page / 64], 1_u64 << (page % 64));
        if word.load(Ordering::Relaxed) & bit != 0
            || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
        {
            return false;
        }
        self.pages.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The pages noted so far, in order: numbers within the array.
    pub fn pages(&self) -> impl Iterator<Item = usize> {
        self.seen.iter().enumerate().flat_map(|(word, bits)| {
            let mut left = bits.load(Ordering::Relaxed);
            core::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.checked_sub(1)?;
                Some(word * 64 + bit)
            })
        })
    }

    /// The first page noted so far at or after `from`.
    #[must_use]
    pub fn next(&self, from: usize) -> Option<usize> {
        self.next_before(from, usize::MAX)
    }

    /// The first page noted so far at or after `from` and before `end`.
    #[must_use]
    pub fn next_before(&self, from: usize, end: usize) -> Option<usize> {
        let words = self.seen.iter().enumerate().take(end.div_ceil(64));
        words
            .skip(from / 64)
            .map(|(word, bits)| {
                let low = if word == from / 64 { from % 64 } else { 0 };
                (word, bits.load(Ordering::Relaxed) >> low << low)
            })
            .find(|&(_, bits)| bits != 0)
            .map(|(word, bits)| word * 64 + bits.trailing_zeros() as usize)
            .filter(|&page| page < end)
    }

    /// Bytes of memory behind the array and this tally, at most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let pages = self.pages.load(Ordering::Relaxed);
        let own = (self.seen.len() * 8).next_multiple_of(PAGE_SIZE);
        pages * PAGE_SIZE + own.min(pages * PAGE_SIZE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_what_the_kernel_backs() {
        let array = ZeroArray::<AtomicU64>::new(1 << 20).unwrap();
        let touched = Touched::new::<AtomicU64>(1 << 20).unwrap();
        assert_eq!(touched.bytes(), 0);
        for index in [0, 1, 511, 512, 70_000, 70_001, (1 << 20) - 1] {
            array[index].store(1, Ordering::Relaxed);
            touched.note(index);
        }
        assert!(!touched.note(3) && touched.note(5000));
        array[5000].store(1, Ordering::Relaxed);
        let pages: Vec<usize> = touched.pages().collect();
        assert_eq!(pages, [0, 1, 9, 136, 2047]);
        let next = |from| touched.next(from);
        assert_eq!([next(0), next(2), next(9)], [Some(0), Some(9), Some(9)]);
        assert_eq!([next(137), next(2048)], [Some(2047), None]);
        let before = |from, end| touched.next_before(from, end);
        assert_eq!([before(2, 9), before(2, 10)], [None, Some(9)]);
        assert_eq!([before(137, 2047), before(137, 2048)], [None, Some(2047)]);
        // The bits themselves are the one page more.
        assert_eq!(touched.bytes(), array.backed_bytes() + PAGE_SIZE);
    }
}

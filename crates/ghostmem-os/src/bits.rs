//! One bit for each page of a region, none set at first.
//!
//! Only the memory of parts that ever had a bit set exists, and until then a look is
//! one load. Looks take no lock and are async-signal-safe.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::OsError;
use crate::map::ZeroArray;
use crate::touched::Touched;

/// The bits. Pages beyond the last are never asked for.
#[derive(Debug)]
pub struct PageBits {
    words: ZeroArray<AtomicU64>,
    touched: Touched,
    /// How many bits are set.
    count: AtomicUsize,
}

impl PageBits {
    /// Bits for so many pages.
    ///
    /// # Errors
    /// The system's refusal to map them.
    pub fn new(pages: usize) -> Result<Self, OsError> {
        let words = pages.div_ceil(64);
        Ok(Self {
            words: ZeroArray::new(words)?,
            touched: Touched::new::<AtomicU64>(words)?,
            count: AtomicUsize::new(0),
        })
    }

    /// Whether a page's bit is set.
    #[must_use]
    #[inline]
    pub fn has(&self, page: usize) -> bool {
        self.any() && self.words[page / 64].load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }

    /// Whether any bit is set. One load.
    #[must_use]
    #[inline]
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Sets the bits of the pages from `first` up to `end`.
    pub fn set(&self, first: usize, end: usize) {
        for (word, mask) in parts(first, end) {
            self.touched.note(word);
            // Counted first: who sees a bit sees that there are some.
            let bits = mask.count_ones() as usize;
            self.count.fetch_add(bits, Ordering::AcqRel);
            let before = self.words[word].fetch_or(mask, Ordering::AcqRel);
            let were_set = (before & mask).count_ones() as usize;
            self.count.fetch_sub(were_set, Ordering::AcqRel);
        }
    }

    /// Clears the bits of the pages from `first` up to `end`.
    pub fn clear(&self, first: usize, end: usize) {
        if !self.any() {
            return;
        }
        for (word, mask) in parts(first, end) {
            // Memory that was never written stays none.
            if self.words[word].load(Ordering::Acquire) & mask == 0 {
                continue;
            }
            let before = self.words[word].fetch_and(!mask, Ordering::AcqRel);
            let were_set = (before & mask).count_ones() as usize;
            self.count.fetch_sub(were_set, Ordering::AcqRel);
        }
    }

    /// The first page from `from` on, and before `end`, whose bit is as asked; `end`
    /// where there is none.
    #[must_use]
    pub fn next(&self, from: usize, end: usize, set: bool) -> usize {
        if !self.any() {
            return if set { end } else { from.min(end) };
        }
        parts(from, end)
            .find_map(|(word, mask)| {
                let bits = self.words[word].load(Ordering::Acquire);
                let found = if set { bits } else { !bits } & mask;
                (found != 0).then(|| word * 64 + found.trailing_zeros() as usize)
            })
            .unwrap_or(end)
    }

    /// The runs of pages without a bit, from `first` up to `end`: first page and end.
    pub fn gaps(&self, first: usize, end: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut at = first;
        core::iter::from_fn(move || {
            let start = self.next(at, end, false);
            if start >= end {
                return None;
            }
            at = self.next(start, end, true);
            Some((start, at))
        })
    }

    /// Memory behind the bits, bytes, at most: from a counter.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.touched.bytes()
    }
}

/// The words that pages have their bits in, and which bits.
fn parts(first: usize, end: usize) -> impl Iterator<Item = (usize, u64)> {
    let mut at = first;
    core::iter::from_fn(move || {
        (at < end).then(|| {
            let (word, low) = (at / 64, at % 64);
            let bits = (end - at).min(64 - low);
            at += bits;
            (word, (u64::MAX >> (64 - bits)) << low)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_as_the_naive_model_has_them() {
        const PAGES: usize = 300;
        let bits = PageBits::new(PAGES).unwrap();
        let mut model = [false; PAGES];
        let mut seed = 1_u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        };
        for _ in 0..400 {
            let (a, b, set) = (random(PAGES), random(PAGES + 1), random(2) == 1);
            let (first, end) = (a.min(b), a.max(b));
            match set {
                true => bits.set(first, end),
                false => bits.clear(first, end),
            }
            model[first..end].fill(set);
            assert_eq!(bits.any(), model.contains(&true));
            for page in 0..PAGES {
                assert_eq!(bits.has(page), model[page]);
                for wanted in [true, false] {
                    let next = (page..PAGES).find(|&page| model[page] == wanted);
                    assert_eq!(bits.next(page, PAGES, wanted), next.unwrap_or(PAGES));
                }
            }
            let clear: usize = bits.gaps(0, PAGES).map(|(start, end)| end - start).sum();
            assert_eq!(clear, model.iter().filter(|&&bit| !bit).count());
        }
    }

    #[test]
    fn bits_cost_what_is_used_of_them() {
        let bits = PageBits::new(1 << 24).unwrap();
        bits.clear(0, 1 << 24);
        assert_eq!(bits.next(5, 1 << 24, false), 5);
        assert_eq!(bits.bytes(), 0);
        bits.set(1 << 20, (1 << 20) + 3);
        assert_eq!(bits.next(0, 1 << 24, true), 1 << 20);
        assert!(bits.bytes() <= 2 * crate::PAGE_SIZE);
    }
}

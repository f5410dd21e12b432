//! Pages of blocks that a program does not have any more, though the block lives: it
//! unmapped them, or took all access away when it mapped something there.
//!
//! ```text
//!   two bits a page, 32 pages a word        00  a page like any other
//!                                           01  unmapped
//!                                           11  closed
//! ```
//! Changed by who owns the block; read without a lock by faults. A heap without holes
//! pays one load for each fresh page.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use ghostmem_os::OsError;
use ghostmem_os::map::ZeroArray;
use ghostmem_os::touched::Touched;

/// Why a touch of a page is the program's own mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// There is no mapping, as far as the program knows.
    Unmapped,
    /// There is one, and neither loads nor stores are allowed.
    Closed,
}

/// Pages in a word.
const EACH: usize = 32;
/// The lower bit of each page: there is a hole.
const LOWER: u64 = u64::MAX / 3;

pub(crate) struct Holes {
    words: ZeroArray<AtomicU64>,
    touched: Touched,
    /// There was a hole once.
    any: AtomicBool,
    /// How many are closed.
    closed: AtomicI64,
}

impl Holes {
    pub(crate) fn new(pages: usize) -> Result<Self, OsError> {
        let words = pages.div_ceil(EACH);
        Ok(Self {
            words: ZeroArray::new(words)?,
            touched: Touched::new::<AtomicU64>(words)?,
            any: AtomicBool::new(false),
            closed: AtomicI64::new(0),
        })
    }

    /// Whether there ever was one.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    fn count_closed(&self, more: i64) {
        if more != 0 {
            self.closed.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// How many pages are closed.
    pub(crate) fn closed(&self) -> usize {
        // Those who open and close at the same time count one after another.
        usize::try_from(self.closed.load(Ordering::Relaxed)).unwrap_or(0)
    }

    pub(crate) fn of(&self, page: usize) -> Option<Hole> {
        if !self.any() {
            return None;
        }
        let word = self.words[page / EACH].load(Ordering::Acquire);
        match word >> (2 * (page % EACH)) & 3 {
            0 => None,
            1 => Some(Hole::Unmapped),
            _ => Some(Hole::Closed),
        }
    }

    /// Whether some of the pages from `first` up to `end` are unmapped.
    pub(crate) fn is_unmapped_in(&self, first: usize, end: usize) -> bool {
        self.any()
            && words_of(first, end).any(|(word, pages)| {
                let word = self.words[word].load(Ordering::Acquire);
                word & !(word >> 1) & pages & LOWER != 0
            })
    }

    /// Where those end that are as `page` is, `end` at most.
    pub(crate) fn run_end(&self, page: usize, end: usize) -> usize {
        if !self.any() {
            return end;
        }
        let first = self.words[page / EACH].load(Ordering::Acquire);
        // All pages of a word like this one.
        let alike = (first >> (2 * (page % EACH)) & 3) * LOWER;
        words_of(page, end)
            .find_map(|(word, pages)| {
                let differ = (self.words[word].load(Ordering::Acquire) ^ alike) & pages;
                (differ != 0).then(|| word * EACH + differ.trailing_zeros() as usize / 2)
            })
            .unwrap_or(end)
    }

    /// Makes holes of the pages from `first` up to `end`; how many were none before.
    pub(crate) fn make(&self, first: usize, end: usize, hole: Hole) -> usize {
        self.any.store(true, Ordering::Release);
        let (mut made, mut closed, mut opened) = (0, 0, 0);
        for (word, pages) in words_of(first, end) {
            self.touched.note(word);
            let upper = pages & !LOWER;
            let before = match hole {
                Hole::Unmapped => {
                    let before = self.words[word].fetch_or(pages & LOWER, Ordering::AcqRel);
                    let was = self.words[word].fetch_and(!upper, Ordering::AcqRel);
                    opened += i64::from((was & upper).count_ones());
                    before
                }
                Hole::Closed => {
                    let before = self.words[word].fetch_or(pages, Ordering::AcqRel);
                    closed += i64::from((!before & upper).count_ones());
                    before
                }
            };
            made += (!before & pages & LOWER).count_ones() as usize;
        }
        self.count_closed(closed - opened);
        made
    }

    /// Makes the pages from `first` up to `end` pages like any other; how many were none
    /// before.
    pub(crate) fn fill(&self, first: usize, end: usize) -> usize {
        let (mut filled, mut opened) = (0, 0);
        if !self.any() {
            return filled;
        }
        let group = ghostmem_os::PAGE_SIZE / size_of::<u64>();
        let (mut group_at, last) = (first / EACH / group, end.div_ceil(EACH).div_ceil(group));
        // What was never written is passed over.
        while let Some(touched) = self.touched.next_before(group_at, last) {
            let from = first.max(touched * group * EACH);
            let to = end.min((touched + 1) * group * EACH);
            for (word, pages) in words_of(from, to) {
                let before = self.words[word].fetch_and(!pages, Ordering::AcqRel);
                filled += (before & pages & LOWER).count_ones() as usize;
                opened += i64::from((before & pages & !LOWER).count_ones());
            }
            group_at = touched + 1;
        }
        self.count_closed(-opened);
        filled
    }

    pub(crate) fn metadata_bytes(&self) -> usize {
        self.touched.bytes()
    }
}

/// The words that have the pages from `first` up to `end`, each with their bits.
fn words_of(first: usize, end: usize) -> impl Iterator<Item = (usize, u64)> {
    let words = if first < end {
        first / EACH..end.div_ceil(EACH)
    } else {
        0..0
    };
    words.map(move |word| {
        let from = first.saturating_sub(word * EACH);
        let to = (end - word * EACH).min(EACH);
        let bits = u64::MAX >> (64 - 2 * (to - from)) << (2 * from);
        (word, bits)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_what_it_was_made_and_ends_where_it_was_said_to() {
        let holes = Holes::new(1 << 20).unwrap();
        assert_eq!(holes.of(5), None);
        for (first, end) in [(0, 1), (31, 33), (70, 1 << 15), ((1 << 20) - 1, 1 << 20)] {
            for hole in [Hole::Unmapped, Hole::Closed, Hole::Closed, Hole::Unmapped] {
                holes.make(first, end, hole);
                let closed = if hole == Hole::Closed { end - first } else { 0 };
                assert_eq!(holes.closed(), closed);
                let around = [first.wrapping_sub(1), first, end - 1, end];
                let inside = around.map(|page| (first..end).contains(&page));
                for (page, inside) in around.into_iter().zip(inside) {
                    if page < 1 << 20 {
                        assert_eq!(holes.of(page), inside.then_some(hole), "page {page}");
                    }
                }
            }
            assert!(holes.is_unmapped_in(end - 1, end) && holes.is_unmapped_in(first, end));
            assert!(!holes.is_unmapped_in(first - first.min(1), first));
            assert_eq!(holes.run_end(first, 1 << 20), end);
            assert_eq!(holes.make(first, end, Hole::Unmapped), 0);
            assert_eq!(holes.fill(first + 1, end), end - first - 1);
            assert_eq!(holes.of(first), Some(Hole::Unmapped));
            assert_eq!(holes.run_end(first, 1 << 20), first + 1);
            assert_eq!(holes.fill(first, first + 1), 1);
            assert_eq!(holes.of(first), None);
            assert_eq!(holes.of(end - 1), None);
            holes.make(first, end, Hole::Closed);
            assert_eq!(holes.fill(first, first + 1), 1);
            assert_eq!(holes.closed(), end - first - 1);
            assert_eq!(holes.fill(first, end), end - first - 1);
            assert_eq!(holes.closed(), 0);
        }
    }
}

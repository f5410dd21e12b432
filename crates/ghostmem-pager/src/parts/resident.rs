//! Which pages are resident, in address order.
//!
//! ```text
//!   level 0   one bit for each page
//!   level 1   one bit for each word of level 0 that may be non-zero
//!   level 2   one bit for each word of level 1 that may be non-zero
//! ```
//! The clock hand walks it, so a few resident pages in a huge region are
//! found without looking at the rest. Upper bits may be set for nothing (they
//! are cleared lazily), and clear for something only for the moment in which
//! somebody who cleared them looks again. A sweep may miss a page for that long;
//! a fork must not, and goes by level 0 alone.

use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_os::map::ZeroArray;
use ghostmem_os::touched::Touched;
use ghostmem_os::{OsError, PAGE_SIZE};

#[derive(Debug)]
pub(crate) struct ResidentSet {
    levels: [ZeroArray<AtomicU64>; 3],
    pages: usize,
    /// Memory behind the page words: a word is first written by who claims its
    /// page to make it resident.
    words: Touched,
    /// Memory behind level 0.
    bits: Touched,
}

impl ResidentSet {
    pub(crate) fn new(pages: usize) -> Result<Self, OsError> {
        let words = pages.div_ceil(64);
        let upper = words.div_ceil(64);
        Ok(Self {
            levels: [
                ZeroArray::new(words)?,
                ZeroArray::new(upper)?,
                ZeroArray::new(upper.div_ceil(64))?,
            ],
            pages,
            words: Touched::new::<AtomicU64>(pages)?,
            bits: Touched::new::<AtomicU64>(words)?,
        })
    }

    /// A page's word was written.
    pub(crate) fn note(&self, page: usize) {
        if self.words.note(page) {
            self.bits.note(page / 64);
        }
    }

    pub(crate) fn insert(&self, page: usize) {
        self.note(page);
        let mut index = page;
        for level in &self.levels {
            let bit = 1_u64 << (index % 64);
            index /= 64;
            // An upper bit that is set already covers everything above it.
            let upper = !core::ptr::eq(level, &self.levels[0]);
            // Upper words are shared by many threads' pages and almost always
            // set already: looking first leaves their cache line shared.
            if upper && level[index].load(Ordering::SeqCst) & bit != 0 {
                return;
            }
            level[index].fetch_or(bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn remove(&self, page: usize) {
        self.levels[0][page / 64].fetch_and(!(1 << (page % 64)), Ordering::AcqRel);
    }

    /// Every resident page, in address order, while nobody changes the set: takes
    /// time linear in the pages that were ever resident.
    pub(crate) fn all(&self) -> impl Iterator<Item = usize> {
        self.touched_words_of_bits().flat_map(|(word, bits)| {
            let mut left = bits;
            core::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.checked_sub(1)?;
                Some(word * 64 + bit)
            })
        })
    }

    /// In a forked child: some other thread may have been about to put back an
    /// upper bit, and does not exist here.
    pub(crate) fn repair_after_fork(&self) {
        for (word, bits) in self.touched_words_of_bits() {
            if bits != 0 && !self.has_upper(word) {
                self.set_upper(1, word);
            }
        }
    }

    /// Whether a word's bit is there in all levels above: what is only read is not copied
    /// for the child.
    fn has_upper(&self, word: usize) -> bool {
        let mut index = word;
        self.levels[1..].iter().all(|upper| {
            let there = upper[index / 64].load(Ordering::Acquire) >> (index % 64) & 1 == 1;
            index /= 64;
            there
        })
    }

    /// The words of level 0 that may be non-zero, going by the pages that were
    /// ever resident.
    fn touched_words_of_bits(&self) -> impl Iterator<Item = (usize, u64)> {
        const WORDS: usize = PAGE_SIZE / size_of::<u64>() / 64;
        let level = &self.levels[0];
        self.words.pages().flat_map(move |group| {
            let first = group * WORDS;
            let end = (first + WORDS).min(level.len());
            (first..end).map(|word| (word, level[word].load(Ordering::Acquire)))
        })
    }

    fn set_upper(&self, level: usize, index: usize) {
        let mut index = index;
        for upper in &self.levels[level..] {
            upper[index / 64].fetch_or(1 << (index % 64), Ordering::AcqRel);
            index /= 64;
        }
    }

    /// The first resident page at or after `from`.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let mut page = from;
        while page < self.pages {
            let word = page / 64;
            let bits = self.levels[0][word].load(Ordering::Acquire) & (u64::MAX << (page % 64));
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros() as usize);
            }
            page = self.next_word(word + 1)? * 64;
        }
        None
    }

    /// The first level-0 word at or after `from` that may be non-zero.
    fn next_word(&self, from: usize) -> Option<usize> {
        let mut word = from;
        while word < self.levels[0].len() {
            let group = word / 64;
            let bits = self.levels[1][group].load(Ordering::Acquire) & (u64::MAX << (word % 64));
            if bits != 0 {
                let found = group * 64 + bits.trailing_zeros() as usize;
                if self.levels[0][found].load(Ordering::Acquire) != 0 {
                    return Some(found);
                }
                self.clear_upper(1, found);
                word = found + 1;
                continue;
            }
            word = self.next_group(group + 1)? * 64;
        }
        None
    }

    /// The first level-1 word at or after `from` that may be non-zero.
    fn next_group(&self, from: usize) -> Option<usize> {
        let mut group = from;
        while group < self.levels[1].len() {
            let top = group / 64;
            let bits = self.levels[2][top].load(Ordering::Acquire) & (u64::MAX << (group % 64));
            if bits == 0 {
                group = (top + 1) * 64;
                continue;
            }
            let found = top * 64 + bits.trailing_zeros() as usize;
            if self.levels[1][found].load(Ordering::Acquire) != 0 {
                return Some(found);
            }
            self.clear_upper(2, found);
            group = found + 1;
        }
        None
    }

    /// Clears a stale bit of an upper level, and puts it back if something
    /// below appeared meanwhile.
    fn clear_upper(&self, level: usize, index: usize) {
        let bit = 1_u64 << (index % 64);
        let word = &self.levels[level][index / 64];
        word.fetch_and(!bit, Ordering::SeqCst);
        if self.levels[level - 1][index].load(Ordering::SeqCst) != 0 {
            self.set_upper(level, index);
        }
    }

    /// The first pages from `from` on and before `end` whose words may have been
    /// written, and where they end: not beyond the page of the array of words.
    pub(crate) fn next_written(&self, from: usize, end: usize) -> Option<(usize, usize)> {
        const WORDS: usize = PAGE_SIZE / size_of::<u64>();
        let groups = (from / WORDS, end.div_ceil(WORDS));
        let first = self.words.next_before(groups.0, groups.1)? * WORDS;
        let start = first.max(from);
        (start < end).then_some((start, (first + WORDS).min(end)))
    }

    /// Which groups of pages were ever resident, as pages of the array of page
    /// words.
    pub(crate) const fn touched_words(&self) -> &Touched {
        &self.words
    }

    /// Memory behind the page words and this set, bytes, at most: from
    /// counters, in constant time.
    pub(crate) fn metadata_bytes(&self) -> usize {
        let bits = self.bits.bytes();
        let upper = self.levels[1].len() + self.levels[2].len();
        let upper = (upper * size_of::<u64>()).next_multiple_of(PAGE_SIZE) + PAGE_SIZE;
        self.words.bytes() + bits + upper.min(2 * bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn next_agrees_with_an_ordered_set(
            steps in proptest::collection::vec((any::<bool>(), 0_usize..300_000), 1..200),
            probes in proptest::collection::vec(0_usize..300_000, 1..50),
        ) {
            let set = ResidentSet::new(300_000).unwrap();
            let mut model = BTreeSet::new();
            for (put, page) in steps {
                if put { set.insert(page); model.insert(page); } else { set.remove(page); model.remove(&page); }
                prop_assert_eq!(set.next(0), model.first().copied());
            }
            prop_assert!(set.all().eq(model.iter().copied()));
            for from in probes {
                prop_assert_eq!(set.next(from), model.range(from..).next().copied());
            }
        }
    }

    #[test]
    fn what_was_written_is_found_in_groups_and_within_bounds() {
        let set = ResidentSet::new(1 << 20).unwrap();
        for page in [5, 1023, 700_000] {
            set.note(page);
        }
        let next = |from, end| set.next_written(from, end);
        assert_eq!(next(0, 7), Some((0, 7)));
        assert_eq!(next(7, 600), Some((7, 512)));
        assert_eq!(next(512, 600), Some((512, 600)));
        assert_eq!([next(600, 600), next(1024, 9999)], [None, None]);
        assert_eq!(next(1024, 1 << 20), Some((699_904, 700_416)));
        assert_eq!(set.next(0), None, "noted, not resident");
    }

    #[test]
    fn a_fork_in_the_middle_of_a_sweep_misses_no_page() {
        let set = ResidentSet::new(1 << 20).unwrap();
        for page in [5, 4095, 700_000] {
            set.insert(page);
        }
        // As `clear_upper` leaves them between its two steps.
        for level in &set.levels[1..] {
            level
                .iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
        }
        assert_eq!(set.next(64), None);
        assert!(set.all().eq([5, 4095, 700_000]));
        set.repair_after_fork();
        assert_eq!(set.next(64), Some(4095));
        assert_eq!(set.next(4096), Some(700_000));
    }

    #[test]
    fn a_page_inserted_while_others_sweep_is_never_lost() {
        let set = ResidentSet::new(1 << 20).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..2_usize {
                let set = &set;
                scope.spawn(move || {
                    for round in 0..20_000_usize {
                        let page = (round * 7919 * 64 + thread) % (1 << 20);
                        set.insert(page);
                        assert_eq!(set.next(page), Some(page));
                        set.remove(page);
                    }
                });
            }
            let set = &set;
            scope.spawn(move || {
                for _ in 0..20_000 {
                    let _swept = set.next(0);
                }
            });
        });
        assert_eq!(set.next(0), None);
    }
}

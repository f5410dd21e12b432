//! A real job: how often each word occurs in the data set's text.
//!
//! ```text
//!  buffer:  data set, first three quarters │ hash tables, one per thread
//!  entry:   hash of the word: u64, 0 = free   count: u64
//! ```
//!
//! A word is a run of 3 to 16 ASCII letters; it is known by 64 bits of hash
//! (collisions would merge two words, and change no sum). Text is read page by
//! page in order, the table at random: a hot set of frequent words, a long tail
//! of rare ones. What must come out is counted beforehand from the data set
//! itself, without a table: the number of words, and the sum over all words of
//! a mixed hash. Both are found again by adding up the tables.

use std::ops::Range;

use ghostmem_lab::rng::mix;

use super::{Timing, share};
use crate::buffer::{Buffer, PAGE_SIZE};
use crate::data::DataSet;
use crate::error::{Error, Result};

const ENTRY: usize = 16;
const ENTRIES_PER_PAGE: u32 = (PAGE_SIZE / ENTRY) as u32;
/// Entries looked at before a word is counted outside the table.
const PROBES: u32 = 64;

/// Words seen: how many, and the sum of their mixed hashes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    words: u64,
    hashes: u64,
}

impl Sum {
    const fn add(&mut self, hash: u64, count: u64) {
        self.words += count;
        self.hashes = self.hashes.wrapping_add(mix(hash).wrapping_mul(count));
    }

    fn merge(self, other: Self) -> Self {
        Self {
            words: self.words + other.words,
            hashes: self.hashes.wrapping_add(other.hashes),
        }
    }
}

/// Calls `found` with the hash, never 0, of each word in `page`.
fn words(page: &[u8], mut found: impl FnMut(u64)) {
    for word in page.split(|byte| !byte.is_ascii_alphabetic()) {
        if (3..=16).contains(&word.len()) {
            let hash = word.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            found(mix(hash).max(1));
        }
    }
}

/// Pages of text in a buffer of so many pages.
fn text_pages(pages: u32) -> u32 {
    pages / 4 * 3
}

/// What must come out, from the data set alone.
pub(crate) fn expected(data: &DataSet) -> Result<Sum> {
    let mut sum = Sum::default();
    let mut page = [0; PAGE_SIZE];
    for number in 0..text_pages(data.pages()) {
        data.read(number, &mut page)?;
        words(&page, |hash| sum.add(hash, 1));
    }
    Ok(sum)
}

/// A hash table of linear probing on pages of the buffer, for one thread.
struct Table<'a> {
    buffer: Buffer<'a>,
    pages: Range<u32>,
    /// Words that found no entry near.
    outside: Sum,
}

impl Table<'_> {
    fn place(&self, entry: u64) -> (u32, usize) {
        let page = self.pages.start + (entry / u64::from(ENTRIES_PER_PAGE)) as u32;
        let offset = (entry % u64::from(ENTRIES_PER_PAGE)) as usize * ENTRY;
        (page, offset)
    }

    fn entries(&self) -> u64 {
        self.pages.len() as u64 * u64::from(ENTRIES_PER_PAGE)
    }

    fn count(&mut self, hash: u64) {
        let entries = self.entries();
        for probe in 0..u64::from(PROBES) {
            // The low bits choose the entry; all bits are compared.
            let (page, offset) = self.place((hash.wrapping_add(probe)) % entries);
            match self.buffer.load(page, offset) {
                0 => self.buffer.store(page, offset, hash),
                there if there == hash => {}
                _ => continue,
            }
            let count = self.buffer.load(page, offset + 8);
            self.buffer.store(page, offset + 8, count + 1);
            return;
        }
        self.outside.add(hash, 1);
    }

    fn sum(&self) -> Sum {
        (0..self.entries()).fold(self.outside, |mut sum, entry| {
            let (page, offset) = self.place(entry);
            sum.add(
                self.buffer.load(page, offset),
                self.buffer.load(page, offset + 8),
            );
            sum
        })
    }
}

/// Counts the words of a buffer that holds the data set, and compares. The
/// table's quarter is cleared first, untimed. A touch is a page of text.
///
/// # Errors
/// The sums are not the expected ones.
pub(crate) fn count(
    buffer: Buffer<'_>,
    threads: u32,
    expected: Sum,
    faults: impl Fn() -> u64,
) -> Result<Timing> {
    let text = text_pages(buffer.pages());
    let sums = std::sync::Mutex::new(Vec::new());
    let timing = Timing::of(
        threads,
        faults,
        |thread| {
            let part = share(buffer.pages() - text, threads, thread);
            let pages = text + part.start..text + part.end;
            for page in pages.clone() {
                buffer.write(page, &[0; PAGE_SIZE]);
            }
            Ok(Table {
                buffer,
                pages,
                outside: Sum::default(),
            })
        },
        |thread, mut table| {
            let mut page = [0; PAGE_SIZE];
            let part = share(text, threads, thread);
            let touches = part.len() as u64;
            for number in part {
                buffer.read(number, &mut page);
                words(&page, |hash| table.count(hash));
            }
            if let Ok(mut sums) = sums.lock() {
                sums.push((table.pages, table.outside));
            }
            Ok(touches)
        },
    )?;
    let tables = sums.into_inner().unwrap_or_default();
    let actual = tables
        .into_iter()
        .map(|(pages, outside)| {
            Table {
                buffer,
                pages,
                outside,
            }
            .sum()
        })
        .fold(Sum::default(), Sum::merge);
    if actual != expected {
        return Err(Error::Failed(format!(
            "wrong word count: {actual:?} instead of {expected:?}"
        )));
    }
    Ok(timing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Spec;
    use crate::sys::Mapping;
    use crate::work::fill;

    /// Proves what a word is.
    #[test]
    fn what_a_word_is() {
        let count = |text: &[u8]| {
            let mut count = 0;
            words(text, |_| count += 1);
            count
        };
        assert_eq!(count(b"of the page, and 3 frames\0"), 4);
        assert_eq!(count(b"abcdefghijklmnopq ab"), 0);
    }

    /// Proves that counting agrees with the data set for one and two threads
    /// over the same buffer, and that a changed page is noticed.
    #[test]
    fn counts_agree() {
        let spec = Spec {
            pages: 2048,
            ratio: 3.0,
            slots: 1,
            seed: 1,
            from: vec![env!("CARGO_MANIFEST_DIR").into()],
        };
        let (data, _) = DataSet::build(&spec).unwrap();
        let mapping = Mapping::anonymous(2048 * PAGE_SIZE).unwrap();
        let buffer = mapping.buffer();
        fill(buffer, &data).unwrap();
        let expected = expected(&data).unwrap();
        assert!(expected.words > 10_000, "{expected:?}");
        for threads in [1, 2] {
            assert!(count(buffer, threads, expected, || 0).is_ok());
        }
        buffer.write(0, b" oneword twoword ");
        assert!(count(buffer, 1, expected, || 0).is_err());
    }
}

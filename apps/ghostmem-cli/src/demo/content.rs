//! What the demo expects of the data, computed from the files alone.
//!
//! Everything here is a pure function of bytes and seed and runs over a file piece by piece in
//! bounded memory, before any heap exists. The work on the heap ([`super::work`]) derives the same
//! numbers from the collections; the two must agree. Sums are wrapping and commutative, so they
//! do not depend on the order in which threads do the work.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::random::{below, mix};

/// Bytes described by one record of the table.
pub(crate) const BLOCK: usize = 512;
/// Bytes at the start of a text whose words go into the index.
pub(crate) const HEAD: usize = 4096;
/// Bytes that are read from a file at a time; a multiple of every stride used here, at least a head.
pub(crate) const CHUNK: usize = 64 << 10;
/// Bytes that a rewrite leaves alone or changes as a whole.
const WINDOW: usize = 1024;
/// Line that a review appends to a document.
pub(crate) const REVIEW: &[u8] = b"\n-- reviewed by ghostmem demo --\n";

/// Words the index takes: long enough to mean something, short enough not to be encoded data.
const WORD_LENGTHS: std::ops::RangeInclusive<usize> = 2..=40;

/// Whether a byte can be part of a word.
pub(crate) fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The indexed words of a document's head.
pub(crate) fn words(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|&byte| !is_word_byte(byte))
        .filter(|word| WORD_LENGTHS.contains(&word.len()))
}

/// The indexed word that covers or follows `position`, cut as [`words`] cuts it.
pub(crate) fn word_at(head: &[u8], position: usize) -> Option<&[u8]> {
    let inside = head.get(position).copied().is_some_and(is_word_byte);
    let start = if inside {
        let before = head[..position].iter().rposition(|&b| !is_word_byte(b));
        before.map_or(0, |separator| separator + 1)
    } else {
        position
            + head
                .get(position..)?
                .iter()
                .position(|&b| is_word_byte(b))?
    };
    let length = head[start..]
        .iter()
        .take_while(|&&b| is_word_byte(b))
        .count();
    WORD_LENGTHS
        .contains(&length)
        .then(|| &head[start..start + length])
}

/// The number that one occurrence of a word in a document adds to the index's sum.
pub(crate) fn posting(word: &[u8], document: u32) -> u64 {
    mix(xxh3_64(word), u64::from(document))
}

/// The fixed part of a record: what a block of a document looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockFacts {
    /// First eight bytes, big-endian: sorting by it sorts by text.
    pub(crate) key: u64,
    /// Checksum of the block.
    pub(crate) digest: u64,
    /// The 24 bytes in the block's middle.
    pub(crate) excerpt: [u8; 24],
    /// Length in bytes, [`BLOCK`] except at a document's end.
    pub(crate) len: u16,
    /// Line feeds in the block.
    pub(crate) lines: u16,
}

impl BlockFacts {
    /// Describes `block`, which is not longer than [`BLOCK`].
    pub(crate) fn of(block: &[u8]) -> Self {
        let mut key = [0; 8];
        let lead = block.len().min(8);
        key[..lead].copy_from_slice(&block[..lead]);
        let mut excerpt = [0; 24];
        let middle = &block[block.len() / 2..];
        let shown = middle.len().min(24);
        excerpt[..shown].copy_from_slice(&middle[..shown]);
        Self {
            key: u64::from_be_bytes(key),
            digest: xxh3_64(block),
            excerpt,
            len: block.len() as u16,
            lines: count_lines(block) as u16,
        }
    }

    /// The number that this record adds to the table's sum.
    pub(crate) fn fingerprint(&self, document: u32, number: u32) -> u64 {
        let place = u64::from(document) << 32 | u64::from(number);
        let sizes = u64::from(self.len) << 16 | u64::from(self.lines);
        mix(
            mix(mix(self.key, self.digest), xxh3_64(&self.excerpt) ^ sizes),
            place,
        )
    }
}

/// Line feeds in `bytes`.
pub(crate) fn count_lines(bytes: &[u8]) -> u64 {
    // Counting in bytes per short run lets the compiler use vector instructions.
    let run = |part: &[u8]| u64::from(part.iter().map(|&b| u8::from(b == b'\n')).sum::<u8>());
    bytes.chunks(255).map(run).sum()
}

/// Words of any length in `bytes`; `inside` says whether the byte before was part of a word and is
/// updated, so that a document may be counted in pieces.
pub(crate) fn count_words(bytes: &[u8], inside: &mut bool) -> u64 {
    let mut count = 0;
    for &byte in bytes {
        let now = is_word_byte(byte);
        count += u64::from(now && !*inside);
        *inside = now;
    }
    count
}

/// Whether the first bytes of a file look like text: no zero byte and hardly any control bytes.
pub(crate) fn looks_like_text(head: &[u8]) -> bool {
    let head = &head[..head.len().min(HEAD)];
    let odd = head
        .iter()
        .filter(|&&b| b < 0x20 && !matches!(b, b'\n' | b'\r' | b'\t' | 0x0c | 0x1b))
        .count();
    !head.contains(&0) && odd * 50 <= head.len()
}

/// What the update phase does to a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edit {
    /// Nothing.
    Keep,
    /// Letters change case in about half of its windows, in place.
    Rewrite,
    /// A line is appended; the vector grows.
    Append,
    /// The bytes move to a new allocation, the old one is freed.
    Replace,
}

/// The edit that falls to a document.
pub(crate) fn edit_of(seed: u64, document: u32) -> Edit {
    match below(mix(seed ^ 0xed17, u64::from(document)), 16) {
        0..4 => Edit::Rewrite,
        4..6 => Edit::Append,
        6 => Edit::Replace,
        _ => Edit::Keep,
    }
}

/// Applies [`Edit::Rewrite`] to the part of a document that starts at `offset`, a multiple of the
/// window; it can be applied in pieces.
pub(crate) fn rewrite(seed: u64, document: u32, offset: usize, bytes: &mut [u8]) {
    debug_assert!(offset.is_multiple_of(WINDOW));
    let lane = mix(seed ^ 0x3e17e, u64::from(document));
    for (index, window) in bytes.chunks_mut(WINDOW).enumerate() {
        if mix(lane, (offset / WINDOW + index) as u64) & 1 == 0 {
            continue;
        }
        for byte in window {
            *byte ^= u8::from(byte.is_ascii_alphabetic()) << 5;
        }
    }
}

/// What is known of one document before it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Whether its head looks like text and is indexed.
    pub(crate) text: bool,
    /// Checksum of the bytes as read.
    pub(crate) before: u64,
    /// Checksum after the document's edit.
    pub(crate) after: u64,
}

/// What is known of all documents together; sums wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Bytes in all documents.
    pub(crate) bytes: u64,
    /// Line feeds in all documents.
    pub(crate) lines: u64,
    /// Words (of any length) in all documents.
    pub(crate) words: u64,
    /// Indexed words, repetitions included.
    pub(crate) indexed: u64,
    /// Sum of [`posting`] over them.
    pub(crate) postings: u64,
    /// Records: blocks of all documents.
    pub(crate) records: u64,
    /// Sum of their fingerprints.
    pub(crate) record_sum: u64,
    /// Documents whose head looks like text.
    pub(crate) texts: u64,
}

impl Totals {
    /// Adds what another thread found.
    pub(crate) fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.lines += other.lines;
        self.words += other.words;
        self.indexed += other.indexed;
        self.postings = self.postings.wrapping_add(other.postings);
        self.records += other.records;
        self.record_sum = self.record_sum.wrapping_add(other.record_sum);
        self.texts += other.texts;
    }
}

/// Computes [`Facts`] and its share of [`Totals`] while a document streams by in chunks of
/// [`CHUNK`] bytes (the last may be shorter).
pub(crate) struct Survey {
    seed: u64,
    document: u32,
    offset: usize,
    inside: bool,
    before: Xxh3,
    after: Xxh3,
    text: bool,
    totals: Totals,
}

impl Survey {
    /// Starts a document.
    pub(crate) fn new(seed: u64, document: u32) -> Self {
        Self {
            seed,
            document,
            offset: 0,
            inside: false,
            before: Xxh3::new(),
            after: Xxh3::new(),
            text: false,
            totals: Totals::default(),
        }
    }

    /// Takes the next chunk; its bytes are scratch afterwards.
    pub(crate) fn take(&mut self, chunk: &mut [u8]) {
        if self.offset == 0 {
            self.text = looks_like_text(chunk);
            if self.text {
                for word in words(&chunk[..chunk.len().min(HEAD)]) {
                    self.totals.indexed += 1;
                    let sum = self
                        .totals
                        .postings
                        .wrapping_add(posting(word, self.document));
                    self.totals.postings = sum;
                }
            }
        }
        for (index, block) in chunk.chunks(BLOCK).enumerate() {
            let number = (self.offset / BLOCK + index) as u32;
            let fingerprint = BlockFacts::of(block).fingerprint(self.document, number);
            self.totals.records += 1;
            self.totals.record_sum = self.totals.record_sum.wrapping_add(fingerprint);
        }
        self.totals.bytes += chunk.len() as u64;
        self.totals.lines += count_lines(chunk);
        self.totals.words += count_words(chunk, &mut self.inside);
        self.before.update(chunk);
        if edit_of(self.seed, self.document) == Edit::Rewrite {
            rewrite(self.seed, self.document, self.offset, chunk);
            self.after.update(chunk);
        }
        self.offset += chunk.len();
    }

    /// Ends the document.
    pub(crate) fn finish(mut self) -> (Facts, Totals) {
        let before = self.before.digest();
        let after = match edit_of(self.seed, self.document) {
            Edit::Keep | Edit::Replace => before,
            Edit::Rewrite => self.after.digest(),
            Edit::Append => {
                self.before.update(REVIEW);
                self.before.digest()
            }
        };
        self.totals.texts = u64::from(self.text);
        (
            Facts {
                text: self.text,
                before,
                after,
            },
            self.totals,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_the_same_way_from_both_directions() {
        let head = b"fn main() { let the_answer = x; }  a bb ";
        let all: Vec<&[u8]> = words(head).collect();
        assert_eq!(all, [&b"fn"[..], b"main", b"let", b"the_answer", b"bb"]);
        assert_eq!(word_at(head, 0), Some(&b"fn"[..]));
        assert_eq!(word_at(head, 5), Some(&b"main"[..]));
        assert_eq!(
            word_at(head, 7),
            Some(&b"let"[..]),
            "the next word is taken"
        );
        for position in 0..head.len() {
            if let Some(word) = word_at(head, position) {
                assert!(all.contains(&word), "{position}");
            }
        }
        assert_eq!(word_at(head, head.len()), None);
    }

    #[test]
    fn counting_in_pieces_equals_counting_at_once() {
        let text = b"one two\nthree  four_5\n\nsix".repeat(40);
        let whole = count_words(&text, &mut false);
        assert_eq!(
            whole,
            5 * 40 - 39,
            "the last word of each copy runs into the next"
        );
        let mut inside = false;
        let pieces: u64 = text
            .chunks(7)
            .map(|part| count_words(part, &mut inside))
            .sum();
        assert_eq!(pieces, whole);
        assert_eq!(count_lines(&text), 3 * 40);
    }

    #[test]
    fn text_is_told_from_binary() {
        assert!(looks_like_text(b"#include <stdio.h>\n\tint x;\n"));
        assert!(looks_like_text("gr\u{fc}n\n".as_bytes()));
        assert!(!looks_like_text(b"\x7fELF\x02\x01\x01\0\0\0"));
    }

    #[test]
    fn a_survey_in_chunks_equals_doing_the_edit_on_the_whole() {
        let bytes: Vec<u8> = (0..200_000u32)
            .map(|i| b' ' + (mix(5, u64::from(i)) % 90) as u8)
            .collect();
        let mut seen = Vec::new();
        for document in 0..64 {
            let mut survey = Survey::new(9, document);
            for chunk in bytes.clone().chunks_mut(CHUNK) {
                survey.take(chunk);
            }
            let (facts, totals) = survey.finish();
            let mut edited = bytes.clone();
            let edit = edit_of(9, document);
            match edit {
                Edit::Rewrite => rewrite(9, document, 0, &mut edited),
                Edit::Append => edited.extend_from_slice(REVIEW),
                Edit::Keep | Edit::Replace => {}
            }
            assert_eq!(facts.before, xxh3_64(&bytes));
            assert_eq!(facts.after, xxh3_64(&edited), "{edit:?}");
            assert_eq!(
                edited != bytes,
                matches!(edit, Edit::Rewrite | Edit::Append)
            );
            assert_eq!(totals.records, bytes.len().div_ceil(BLOCK) as u64);
            if !seen.contains(&edit) {
                seen.push(edit);
            }
        }
        assert_eq!(seen.len(), 4, "every edit was met");
    }

    #[test]
    fn a_fingerprint_depends_on_every_part() {
        let facts = BlockFacts::of(b"hello, this is a block of text\nwith two lines\n");
        let base = facts.fingerprint(1, 2);
        assert_ne!(base, facts.fingerprint(2, 1));
        assert_ne!(base, BlockFacts { lines: 3, ..facts }.fingerprint(1, 2));
        assert_ne!(
            base,
            BlockFacts {
                excerpt: [7; 24],
                ..facts
            }
            .fingerprint(1, 2)
        );
        assert_ne!(base, BlockFacts { key: 0, ..facts }.fingerprint(1, 2));
    }
}

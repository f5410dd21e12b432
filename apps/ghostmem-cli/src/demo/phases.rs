//! The phases of the demo's work, each on several threads over collections in one heap.
//!
//! A phase takes the collections, does what an ordinary program would do, and returns numbers that
//! can be checked against [`super::content`]. None of them knows where the memory is.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::collections::{Document, Index, IndexSums, NoRoom, Record, append, copy_of, with_room};
use super::content::{
    BLOCK, BlockFacts, CHUNK, Edit, HEAD, REVIEW, count_lines, count_words, edit_of, rewrite,
    word_at, words,
};
use super::data::Plan;
use super::random::{Zipf, below, mix};
use super::threads::{Hand, on_threads};
use super::work::Stopped;

/// What every phase needs to know.
pub(crate) struct Context<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) seed: u64,
    pub(crate) threads: usize,
    /// Called with units of progress.
    pub(crate) advance: &'a (dyn Fn(u64) + Sync),
}

/// Operations handed out to a thread at a time.
const BATCH: u64 = 1024;

impl Context<'_> {
    /// Runs `operation` for each of `0..count` on all threads and adds up what they return.
    fn operations(&self, count: u64, operation: impl Fn(u64) -> (u64, u64) + Sync) -> (u64, u64) {
        let next = AtomicU64::new(0);
        let sums = self.all_threads(|| {
            let mut sum = (0u64, 0u64);
            loop {
                let start = next.fetch_add(BATCH, Ordering::Relaxed);
                if start >= count {
                    return sum;
                }
                let end = count.min(start + BATCH);
                for number in start..end {
                    let (value, errors) = operation(number);
                    sum = (sum.0.wrapping_add(value), sum.1 + errors);
                }
                (self.advance)(end - start);
            }
        });
        sums.iter()
            .fold((0, 0), |sum, s| (sum.0.wrapping_add(s.0), sum.1 + s.1))
    }

    /// Runs work that takes memory on all threads.
    fn all_threads_or_none(
        &self,
        work: impl Fn() -> Result<(), NoRoom> + Sync,
    ) -> Result<(), NoRoom> {
        on_threads(self.threads, |_| work()).map(drop)
    }

    /// Runs work that cannot fail on all threads.
    fn all_threads<T: Send>(&self, work: impl Fn() -> T + Sync) -> std::vec::Vec<T> {
        let Ok(results) = on_threads(self.threads, |_| Ok::<_, Infallible>(work()));
        results
    }
}

/// Reads the files and copies them into one vector each; returns how many differ from the survey.
///
/// # Errors
/// A file could not be read, or memory holds no more.
pub(crate) fn load<A>(
    context: &Context,
    allocator: &A,
) -> Result<(Vec<Document<A>, A>, u64), Stopped>
where
    A: Allocator + Clone + Send + Sync,
{
    let plan = context.plan;
    let mut documents = with_room(plan.pieces.len(), allocator.clone())?;
    documents.resize_with(plan.pieces.len(), || Document::empty(allocator.clone()));
    let hand = Hand::new(documents.iter_mut().zip(&plan.pieces));
    let changed = on_threads(context.threads, |_| {
        let mut buffer = vec![0; CHUNK];
        let mut changed = 0;
        while let Some((document, piece)) = hand.next() {
            let mut bytes = with_room(piece.len as usize, allocator.clone())?;
            let mut read = Xxh3::new();
            let mut room = Ok(());
            piece.read(&plan.files, &mut buffer, |chunk| {
                read.update(chunk);
                room = room.and_then(|()| append(&mut bytes, chunk));
            })?;
            room?;
            changed += u64::from(read.digest() != piece.facts.before);
            *document = Document {
                bytes,
                text: piece.facts.text,
            };
            (context.advance)(u64::from(piece.len));
        }
        Ok::<_, Stopped>(changed)
    })?;
    Ok((documents, changed.iter().sum()))
}

/// Puts the words of all text heads into the index.
///
/// # Errors
/// Memory holds no more.
pub(crate) fn index_words<A>(
    context: &Context,
    documents: &[Document<A>],
    index: &Index<A>,
) -> Result<(), NoRoom>
where
    A: Allocator + Clone + Send + Sync,
{
    let next = AtomicUsize::new(0);
    context.all_threads_or_none(|| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(document) = documents.get(number) else {
                return Ok(());
            };
            if document.text {
                words(head(document)).try_for_each(|word| index.add(word, number as u32))?;
            }
            (context.advance)(1);
        }
    })
}

fn head<A: Allocator>(document: &Document<A>) -> &[u8] {
    &document.bytes[..document.bytes.len().min(HEAD)]
}

/// Makes one record for every block of every document.
///
/// # Errors
/// Memory holds no more.
pub(crate) fn build_table<A>(
    context: &Context,
    documents: &[Document<A>],
    allocator: &A,
) -> Result<Vec<Record, A>, NoRoom>
where
    A: Allocator + Clone + Send + Sync,
{
    let blocks = |document: &Document<A>| document.bytes.len().div_ceil(BLOCK);
    let count = documents.iter().map(blocks).sum();
    let mut table = with_room(count, allocator.clone())?;
    table.resize_with(count, || Record::new(BlockFacts::default(), 0, 0));
    let mut rest = &mut table[..];
    // Each document gets its own rows, cut from the front of what is left.
    let hand = Hand::new(documents.iter().enumerate().map(|(number, document)| {
        let (rows, others) = std::mem::take(&mut rest).split_at_mut(blocks(document));
        rest = others;
        (number as u32, document, rows)
    }));
    context.all_threads(|| {
        while let Some((document, content, rows)) = hand.next() {
            for (number, (row, block)) in
                rows.iter_mut().zip(content.bytes.chunks(BLOCK)).enumerate()
            {
                *row = Record::new(BlockFacts::of(block), document, number as u32);
            }
            (context.advance)(1);
        }
    });
    Ok(table)
}

/// What a scan over all documents found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    pub(crate) bytes: u64,
    pub(crate) lines: u64,
    pub(crate) words: u64,
    /// Documents whose checksum is not the one noted before.
    pub(crate) wrong: u64,
    /// Memory that the documents' vectors asked for.
    pub(crate) held_bytes: u64,
}

/// Counts bytes, lines and words of all documents and compares each with its checksum, as it was
/// read or, with `edited`, as it must be after its edit.
pub(crate) fn scan<A>(context: &Context, documents: &[Document<A>], edited: bool) -> Scan
where
    A: Allocator + Send + Sync,
{
    let hand = Hand::new(documents.iter().zip(&context.plan.pieces));
    let scans = context.all_threads(|| {
        let mut scan = Scan::default();
        while let Some((document, piece)) = hand.next() {
            let facts = piece.facts;
            let expected = if edited { facts.after } else { facts.before };
            scan.bytes += document.bytes.len() as u64;
            let mut inside = false;
            let mut digest = Xxh3::new();
            // A page at a time, so that counting and checksum share one visit.
            for page in document.bytes.chunks(4096) {
                scan.lines += count_lines(page);
                scan.words += count_words(page, &mut inside);
                digest.update(page);
            }
            scan.wrong += u64::from(digest.digest() != expected || document.text != facts.text);
            scan.held_bytes += document.bytes.capacity() as u64;
            (context.advance)(u64::from(piece.len));
        }
        scan
    });
    scans.iter().fold(Scan::default(), |sum, s| Scan {
        bytes: sum.bytes + s.bytes,
        lines: sum.lines + s.lines,
        words: sum.words + s.words,
        wrong: sum.wrong + s.wrong,
        held_bytes: sum.held_bytes + s.held_bytes,
    })
}

/// Sorts the table by text: every thread a part, then a merge into a new table.
///
/// # Errors
/// Memory holds no more.
pub(crate) fn sort<A>(
    context: &Context,
    mut table: Vec<Record, A>,
    allocator: &A,
) -> Result<Vec<Record, A>, NoRoom>
where
    A: Allocator + Clone + Send + Sync,
{
    let count = table.len();
    let part = count.div_ceil(context.threads).max(1);
    let hand = Hand::new(table.chunks_mut(part));
    context.all_threads(|| {
        while let Some(rows) = hand.next() {
            rows.sort_unstable_by_key(Record::order);
            (context.advance)(rows.len() as u64);
        }
    });
    let mut heads: std::vec::Vec<_> = table
        .chunks(part)
        .map(|rows| rows.iter().peekable())
        .collect();
    let mut merged = with_room(count, allocator.clone())?;
    loop {
        let least = heads
            .iter_mut()
            .filter_map(|rows| Some((rows.peek()?.order(), rows)))
            .min_by_key(|(order, _)| *order);
        let Some(row) = least.and_then(|(_, rows)| rows.next()) else {
            break;
        };
        merged.push(Record::new(row.facts, row.document, row.number));
        if (merged.len() as u64).is_multiple_of(BATCH) {
            (context.advance)(BATCH);
        }
    }
    Ok(merged)
}

/// How look-ups choose their record.
pub(crate) enum Choice {
    Uniform,
    Zipf(Zipf),
}

/// Looks up records and, through them, blocks of documents and words of the index. Returns a sum
/// over what was found and the number of wrong answers.
pub(crate) fn look_up<A>(
    context: &Context,
    documents: &[Document<A>],
    table: &[Record],
    index: &Index<A>,
    choice: &Choice,
    count: u64,
) -> (u64, u64)
where
    A: Allocator + Clone + Send + Sync,
{
    let rows = table.len() as u64;
    context.operations(count, |number| {
        let row = match choice {
            Choice::Uniform => below(mix(context.seed ^ 0x100c, number), rows),
            // Popular rows are spread over the table.
            Choice::Zipf(zipf) => {
                let rank = zipf.rank(mix(context.seed ^ 0x21bf, number));
                below(mix(context.seed ^ 0x5ca7, rank), rows)
            }
        };
        let record = &table[row as usize];
        let document = &documents[record.document as usize];
        let start = record.number as usize * BLOCK;
        let block = &document.bytes[start..start + usize::from(record.facts.len)];
        let mut wrong = u64::from(xxh3_64(block) != record.facts.digest);
        let mut found = mix(record.facts.digest, number);
        if document.text {
            let head = head(document);
            let position = below(mix(record.facts.digest, row), head.len() as u64) as usize;
            if let Some(word) = word_at(head, position) {
                match index.look_up(word, record.document) {
                    Some(occurrences) => found = mix(found, occurrences),
                    None => wrong += 1,
                }
            }
        }
        (found, wrong)
    })
}

/// The row and the value of one update.
fn update_of(seed: u64, number: u64, rows: u64) -> (u64, u64) {
    let random = mix(seed ^ 0x0dda, number);
    (below(random, rows), random & 0xffff)
}

/// Adds to random rows of the shared table from all threads at once.
pub(crate) fn update_records(context: &Context, table: &[Record], count: u64) {
    context.operations(count, |number| {
        let (row, value) = update_of(context.seed, number, table.len() as u64);
        table[row as usize]
            .touched
            .fetch_add(value, Ordering::Relaxed);
        (0, 0)
    });
}

/// The sum that [`audit_table`] must find after `count` updates, computed without a table.
pub(crate) fn expected_updates(seed: u64, count: u64, rows: u64) -> u64 {
    (0..count).fold(0u64, |sum, number| {
        let (row, value) = update_of(seed, number, rows);
        sum.wrapping_add(value.wrapping_mul(mix(seed, row)))
    })
}

/// Rewrites, extends and replaces documents.
///
/// # Errors
/// Memory holds no more.
pub(crate) fn edit<A>(
    context: &Context,
    documents: &mut [Document<A>],
    allocator: &A,
) -> Result<(), NoRoom>
where
    A: Allocator + Clone + Send + Sync,
{
    let hand = Hand::new(documents.iter_mut().enumerate());
    context.all_threads_or_none(|| {
        while let Some((number, document)) = hand.next() {
            let number = number as u32;
            match edit_of(context.seed, number) {
                Edit::Keep => {}
                Edit::Rewrite => rewrite(context.seed, number, 0, &mut document.bytes),
                Edit::Append => append(&mut document.bytes, REVIEW)?,
                Edit::Replace => document.bytes = copy_of(&document.bytes, allocator.clone())?,
            }
            (context.advance)(1);
        }
        Ok(())
    })
}

/// Sums over the sorted table.
#[derive(Clone, Copy, Default)]
pub(crate) struct TableSums {
    pub(crate) record_sum: u64,
    pub(crate) touched_sum: u64,
    /// Rows that are not in order.
    pub(crate) unordered: u64,
}

/// Walks the table.
pub(crate) fn audit_table(context: &Context, table: &[Record]) -> TableSums {
    let part = table.len().div_ceil(context.threads * 4).max(1);
    let hand = Hand::new(table.chunks(part).enumerate());
    let sums = context.all_threads(|| {
        let mut sums = TableSums::default();
        while let Some((chunk, rows)) = hand.next() {
            let start = chunk * part;
            let mut last = start.checked_sub(1).map(|before| table[before].order());
            for (offset, row) in rows.iter().enumerate() {
                let print = row.facts.fingerprint(row.document, row.number);
                sums.record_sum = sums.record_sum.wrapping_add(print);
                let weight = mix(context.seed, (start + offset) as u64);
                let touched = row.touched.load(Ordering::Relaxed).wrapping_mul(weight);
                sums.touched_sum = sums.touched_sum.wrapping_add(touched);
                sums.unordered += u64::from(last.is_some_and(|last| last >= row.order()));
                last = Some(row.order());
            }
            (context.advance)(rows.len() as u64);
        }
        sums
    });
    sums.iter().fold(TableSums::default(), |sum, s| TableSums {
        record_sum: sum.record_sum.wrapping_add(s.record_sum),
        touched_sum: sum.touched_sum.wrapping_add(s.touched_sum),
        unordered: sum.unordered + s.unordered,
    })
}

/// Walks the index.
pub(crate) fn audit_index<A>(context: &Context, index: &Index<A>) -> IndexSums
where
    A: Allocator + Clone + Send + Sync,
{
    let hand = Hand::new(0..index.shards());
    let sums = context.all_threads(|| {
        let mut sums = std::vec::Vec::new();
        while let Some(shard) = hand.next() {
            sums.push(index.audit(shard));
        }
        sums
    });
    sums.concat()
        .iter()
        .fold(IndexSums::default(), |sum, s| IndexSums {
            distinct: sum.distinct + s.distinct,
            indexed: sum.indexed + s.indexed,
            postings: sum.postings.wrapping_add(s.postings),
            bytes: sum.bytes + s.bytes,
        })
}

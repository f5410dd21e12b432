//! The ordinary collections that hold the demo's data, generic over where their memory is.
//!
//! Locks of the index live in ordinary memory: a lock that sleeps is a system call on its own
//! address, which an absent ghost page would refuse.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use allocator_api2::alloc::Allocator;
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use hashbrown::{DefaultHashBuilder, HashMap};
use xxhash_rust::xxh3::xxh3_64;

use super::content::{BlockFacts, posting};

/// The allocator refuses memory for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

/// An empty vector for exactly `count`.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn with_room<T, A: Allocator>(count: usize, allocator: A) -> Result<Vec<T, A>, NoRoom> {
    let mut vector = Vec::new_in(allocator);
    vector.try_reserve_exact(count).map_err(|_| NoRoom)?;
    Ok(vector)
}

/// A file, or a part of one, in memory.
pub(crate) struct Document<A: Allocator> {
    /// Its content.
    pub(crate) bytes: Vec<u8, A>,
    /// Whether its head is in the index.
    pub(crate) text: bool,
}

impl<A: Allocator> Document<A> {
    /// A document without content.
    pub(crate) fn empty(allocator: A) -> Self {
        Self {
            bytes: Vec::new_in(allocator),
            text: false,
        }
    }
}

/// One row of the table: 64 bytes on one block of one document.
pub(crate) struct Record {
    /// What the block looked like when it was loaded.
    pub(crate) facts: BlockFacts,
    /// The block's document.
    pub(crate) document: u32,
    /// The block's place in it.
    pub(crate) number: u32,
    /// Sum of what the update phase added here.
    pub(crate) touched: AtomicU64,
}

impl Record {
    /// A row nobody touched yet.
    pub(crate) fn new(facts: BlockFacts, document: u32, number: u32) -> Self {
        Self {
            facts,
            document,
            number,
            touched: AtomicU64::new(0),
        }
    }

    /// The order of the sorted table. It is total: no two rows are equal.
    pub(crate) fn order(&self) -> (u64, u32, u32) {
        (self.facts.key, self.document, self.number)
    }
}

/// What the index knows of a word.
#[derive(Default)]
pub(crate) struct Entry {
    /// Occurrences.
    pub(crate) count: u64,
    /// Sum of [`posting`] over them.
    pub(crate) postings: u64,
    /// First and last document with the word.
    pub(crate) documents: (u32, u32),
}

/// One shard of the index.
pub(crate) type Shard<A> = HashMap<Box<[u8], A>, Entry, DefaultHashBuilder, A>;

/// Word index in shards, so that threads seldom wait for each other.
pub(crate) struct Index<A: Allocator> {
    shards: std::vec::Vec<Mutex<Shard<A>>>,
    allocator: A,
}

const SHARDS: usize = 64;

impl<A: Allocator + Clone> Index<A> {
    /// An index without words.
    pub(crate) fn new(allocator: A) -> Self {
        let shard = |_| {
            Mutex::new(HashMap::with_hasher_in(
                Default::default(),
                allocator.clone(),
            ))
        };
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            allocator,
        }
    }

    fn shard(&self, word: &[u8]) -> MutexGuard<'_, Shard<A>> {
        self.lock(xxh3_64(word) as usize % SHARDS)
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard<A>> {
        self.shards[shard]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an occurrence of a word.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn add(&self, word: &[u8], document: u32) -> Result<(), NoRoom> {
        let posting = posting(word, document);
        let mut shard = self.shard(word);
        if let Some(entry) = shard.get_mut(word) {
            entry.count += 1;
            entry.postings = entry.postings.wrapping_add(posting);
            entry.documents.0 = entry.documents.0.min(document);
            entry.documents.1 = entry.documents.1.max(document);
        } else {
            let key = copy_of(word, self.allocator.clone())?.into_boxed_slice();
            let entry = Entry {
                count: 1,
                postings: posting,
                documents: (document, document),
            };
            shard.try_reserve(1).map_err(|_| NoRoom)?;
            shard.insert(key, entry);
        }
        Ok(())
    }

    /// Occurrences of a word, if the index says that `document` may contain it.
    pub(crate) fn look_up(&self, word: &[u8], document: u32) -> Option<u64> {
        let shard = self.shard(word);
        let entry = shard.get(word)?;
        let (first, last) = entry.documents;
        (first..=last).contains(&document).then_some(entry.count)
    }

    /// Number of shards, for sharing out.
    pub(crate) fn shards(&self) -> usize {
        SHARDS
    }

    /// Walks one shard.
    pub(crate) fn audit(&self, shard: usize) -> IndexSums {
        let shard = self.lock(shard);
        let mut sums = IndexSums {
            bytes: shard.allocation_size() as u64,
            ..Default::default()
        };
        for (word, entry) in shard.iter() {
            sums.distinct += 1;
            sums.indexed += entry.count;
            sums.postings = sums.postings.wrapping_add(entry.postings);
            sums.bytes += word.len() as u64;
        }
        sums
    }
}

/// Sums over a part of the index.
#[derive(Clone, Copy, Default)]
pub(crate) struct IndexSums {
    /// Different words.
    pub(crate) distinct: u64,
    /// Occurrences.
    pub(crate) indexed: u64,
    /// Sum of [`posting`] over the occurrences.
    pub(crate) postings: u64,
    /// Memory asked for.
    pub(crate) bytes: u64,
}

/// Appends `bytes` to a vector. (`extend_from_slice` of the stable allocator vectors goes byte by
/// byte, which would make loading slow with and without GhostMem.)
///
/// # Errors
/// There is no memory for them.
pub(crate) fn append<A: Allocator>(vector: &mut Vec<u8, A>, bytes: &[u8]) -> Result<(), NoRoom> {
    vector.try_reserve(bytes.len()).map_err(|_| NoRoom)?;
    // A page at a time: each is still at hand when it is filled.
    for part in bytes.chunks(4096) {
        let start = vector.len();
        vector.resize(start + part.len(), 0);
        vector[start..].copy_from_slice(part);
    }
    Ok(())
}

/// A vector of exactly these bytes.
///
/// # Errors
/// There is no memory for them.
pub(crate) fn copy_of<A: Allocator>(bytes: &[u8], allocator: A) -> Result<Vec<u8, A>, NoRoom> {
    let mut vector = with_room(bytes.len(), allocator)?;
    append(&mut vector, bytes)?;
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;
    use allocator_api2::alloc::Global;

    #[test]
    fn a_record_is_64_bytes() {
        assert_eq!(size_of::<Record>(), 64);
    }

    #[test]
    fn the_index_counts_and_remembers_documents() {
        let index = Index::new(Global);
        for (word, document) in [(&b"heap"[..], 3), (b"page", 1), (b"heap", 7), (b"heap", 5)] {
            index.add(word, document).unwrap();
        }
        assert_eq!(index.look_up(b"heap", 3), Some(3));
        assert_eq!(index.look_up(b"heap", 7), Some(3));
        assert_eq!(index.look_up(b"heap", 8), None);
        assert_eq!(index.look_up(b"frame", 3), None);
        let sums: std::vec::Vec<_> = (0..index.shards())
            .map(|shard| index.audit(shard))
            .collect();
        assert_eq!(sums.iter().map(|s| s.distinct).sum::<u64>(), 2);
        assert_eq!(sums.iter().map(|s| s.indexed).sum::<u64>(), 4);
        let expected = [(&b"heap"[..], 3), (b"page", 1), (b"heap", 7), (b"heap", 5)]
            .iter()
            .fold(0u64, |sum, (word, document)| {
                sum.wrapping_add(posting(word, *document))
            });
        assert_eq!(
            sums.iter()
                .fold(0u64, |sum, s| sum.wrapping_add(s.postings)),
            expected
        );
    }

    #[test]
    fn appending_grows_by_any_length() {
        let mut vector = Vec::new_in(Global);
        let bytes: std::vec::Vec<u8> = (0..10_000).map(|i| i as u8).collect();
        for part in [&bytes[..1], &bytes[1..9_000], &[], &bytes[9_000..]] {
            append(&mut vector, part).unwrap();
        }
        assert_eq!(&vector[..], &bytes[..]);
        assert_eq!(copy_of(&bytes, Global).unwrap().capacity(), bytes.len());
    }
}

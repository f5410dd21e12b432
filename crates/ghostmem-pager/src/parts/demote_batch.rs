//! Where a stored page is, and a batch of pages on their way to another tier.

use ghostmem_os::PAGE_SIZE;
use ghostmem_os::buffer::Buffer;
use ghostmem_store::Slot;
use ghostmem_table::{PageState, Word};

/// Packed bytes written in one batch: large enough for a disk to be at its best,
/// small enough that nobody waits long for room.
pub(crate) const DEMOTE_BATCH_BYTES: usize = if IS_SMALL { 64 << 10 } else { 1 << 20 };

/// Most pages in one batch.
pub(crate) const DEMOTE_BATCH_PAGES: usize = if IS_SMALL { 64 } else { 1024 };

/// Whether batches are small: in a simulation, whose program has a few hundred pages.
/// There, too, some batches shall be full, and faults wait for the demoter.
const IS_SMALL: bool = cfg!(feature = "sim");

/// A page of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) region: u32,
    pub(crate) page: u32,
    /// Its packed bytes in the buffer.
    pub(crate) start: u32,
    pub(crate) len: u16,
    pub(crate) codec: u8,
}

impl Entry {
    pub(crate) const NONE: Self = Self {
        region: 0,
        page: 0,
        start: 0,
        len: 0,
        codec: 0,
    };

    pub(crate) fn bytes(self, buffer: &[u8]) -> &[u8] {
        let start = self.start as usize;
        &buffer[start..start + usize::from(self.len)]
    }
}

/// The pages of one batch and their bytes.
pub(crate) struct DemoteBatch<'a> {
    pub(crate) entries: [Entry; DEMOTE_BATCH_PAGES],
    pub(crate) count: usize,
    pub(crate) bytes: &'a mut Buffer,
    pub(crate) used: usize,
}

impl DemoteBatch<'_> {
    pub(crate) fn is_full(&self) -> bool {
        self.count == DEMOTE_BATCH_PAGES || self.used + PAGE_SIZE > DEMOTE_BATCH_BYTES
    }

    /// Whether a page comes after all that is here on the way round from the first
    /// of them. One that does not may be here already.
    pub(crate) fn admits(&self, region: u32, page: u32) -> bool {
        let place = |entry: &Entry| (entry.region, entry.page);
        let entries = &self.entries[..self.count];
        let (Some(first), Some(last)) = (entries.first().map(place), entries.last().map(place))
        else {
            return true;
        };
        let (is_behind_last, is_before_first) = ((region, page) > last, (region, page) < first);
        if last < first {
            is_behind_last && is_before_first
        } else {
            is_behind_last || is_before_first
        }
    }
}

/// The slot of a stored page whose bytes are in memory.
pub(crate) fn slot_of_stored(word: Word) -> Option<Slot> {
    if word.state() != PageState::Stored {
        return None;
    }
    Slot::from_bits(word.payload())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the hand does, a batch takes no page twice; and it takes all
        /// of a hand that goes round once.
        #[test]
        fn a_batch_has_no_page_twice(
            jumps in proptest::collection::vec((0_u32..3, 0_u32..12), 1..60),
            start in 0_u32..36,
        ) {
            let mut buffer = Buffer::new(DEMOTE_BATCH_BYTES).unwrap();
            let mut batch = empty(&mut buffer);
            for (region, page) in jumps {
                put(&mut batch, region, page);
            }
            let entries = &batch.entries[..batch.count];
            let places: HashSet<(u32, u32)> = entries.iter().map(|e| (e.region, e.page)).collect();
            prop_assert_eq!(places.len(), batch.count);

            let mut batch = empty(&mut buffer);
            for at in 0..36 {
                let place = (start + at) % 36;
                prop_assert!(put(&mut batch, place / 12, place % 12));
            }
            prop_assert!(!put(&mut batch, start / 12, start % 12), "round again");
        }
    }

    fn empty(bytes: &mut Buffer) -> DemoteBatch<'_> {
        DemoteBatch {
            entries: [Entry::NONE; DEMOTE_BATCH_PAGES],
            count: 0,
            bytes,
            used: 0,
        }
    }

    fn put(batch: &mut DemoteBatch<'_>, region: u32, page: u32) -> bool {
        let admitted = batch.admits(region, page);
        if admitted {
            batch.entries[batch.count] = Entry {
                region,
                page,
                ..Entry::NONE
            };
            batch.count += 1;
        }
        admitted
    }
}

//! Choosing what goes to the file, and copying it out.
//!
//! A *ranking* counts how dispensable all stored pages are, by the time since they
//! left and the bytes they take, and sets a bound; the hand then walks the tables in
//! address order and takes what is beyond it, until it has been everywhere (`lap.rs`).
//! In address order, so that what readahead asks for lies
//! together in the file.
//!
//! A page is in a batch once. The mark in a page's word says that the page is as the
//! *last* look found it: an earlier copy in the same batch would pass for right.
//!
//! Only the spiller's thread runs this. It holds a claim for as long as one page's
//! packed bytes take to copy, and is inside the gate for one group of pages.

use core::ops::Range;

use ghostmem_os::PAGE_SIZE;
use ghostmem_os::buffer::Buffer;
use ghostmem_policy::Past;
use ghostmem_store::Slot;
use ghostmem_table::{State, Word};

use crate::engine::Engine;
use crate::region::Region;
use crate::spill::{Spill, Spiller};

/// Packed bytes written in one batch: large enough for a disk to be at its best,
/// small enough that nobody waits long for room.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// Most pages in one batch.
pub(crate) const BATCH_PAGES: usize = 1024;
/// Page words looked at in one go, inside the gate: those of one page of the
/// table.
const GROUP_PAGES: usize = PAGE_SIZE / size_of::<u64>();
/// Part of the stored bytes that one ranking finds, at least.
const RANK_SHARE: u64 = 8;

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
pub(crate) struct Gathered<'a> {
    pub(crate) entries: [Entry; BATCH_PAGES],
    pub(crate) count: usize,
    pub(crate) bytes: &'a mut Buffer,
    pub(crate) used: usize,
}

impl Gathered<'_> {
    fn is_full(&self) -> bool {
        self.count == BATCH_PAGES || self.used + PAGE_SIZE > BATCH_BYTES
    }

    /// Whether a page comes after all that is here on the way round from the first
    /// of them. One that does not may be here already.
    fn admits(&self, region: u32, page: u32) -> bool {
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

impl Engine {
    /// Finds out how dispensable the pages are that are to go: at least
    /// `wanted_bytes`, and at least an eighth of what is stored, so that ranking
    /// stays cheap beside writing.
    pub(crate) fn rank(&self, spill: &Spill, wanted_bytes: u64) {
        const RANKS: usize = Past::DISPENSABLE_MAX as usize + 1;
        let mut census = [0_u64; RANKS];
        let mut stored = 0_u64;
        let (clock, now) = (self.clock(), self.clock().epoch(self.evictions()));
        for region in self.regions() {
            for group in region.resident.touched_words().pages() {
                let first = group * GROUP_PAGES;
                for page in first..(first + GROUP_PAGES).min(region.pages()) {
                    let word = region.table.load(page);
                    if let Some(slot) = slot_of_stored(word) {
                        let bytes = slot.room_bytes();
                        let past = Past::from_bits(word.heat());
                        census[usize::from(past.dispensable(bytes, clock, now))] += bytes as u64;
                        stored += bytes as u64;
                    }
                }
            }
        }
        let wanted = wanted_bytes.max(stored / RANK_SHARE).max(1);
        let mut found = 0;
        let reached = census.iter().rposition(|bytes| {
            found += bytes;
            found >= wanted
        });
        spill.set_rank(reached.unwrap_or(0) as u8);
    }

    /// Copies packed bytes of dispensable pages into `batch` until it is full, has
    /// `wanted_bytes` or the hand has been everywhere.
    pub(crate) fn gather(
        &self,
        spill: &Spill,
        spiller: &mut Spiller,
        batch: &mut Gathered<'_>,
        wanted_bytes: u64,
    ) {
        // The tables' parts that were never written hold no page.
        let group = |index: usize, from: usize| {
            let region = self.region(index)?;
            let group = region.resident.touched_words().next(from / GROUP_PAGES)?;
            let first = group * GROUP_PAGES;
            Some(first..(first + GROUP_PAGES).min(region.pages()))
        };
        while let Some((index, pages)) = spiller.lap.next(self.region_count(), group) {
            let Some(region) = self.region(index) else {
                return;
            };
            let next = self.gather_from(region, pages, spill.rank(), batch);
            spiller.lap.advance(next);
            if batch.is_full() || batch.used as u64 >= wanted_bytes {
                return;
            }
        }
    }

    /// The same for the pages of one group; where to go on.
    fn gather_from(
        &self,
        region: &Region,
        pages: Range<usize>,
        rank: u8,
        batch: &mut Gathered<'_>,
    ) -> usize {
        let (clock, now) = (self.clock(), self.clock().epoch(self.evictions()));
        let inside = ghostmem_fault::gate().enter();
        let mut next = pages.start;
        while next < pages.end && !batch.is_full() {
            let page = next;
            next += 1;
            let word = region.table.load(page);
            let Some(slot) = slot_of_stored(word) else {
                continue;
            };
            let past = Past::from_bits(word.heat());
            if past.dispensable(slot.room_bytes(), clock, now) < rank
                || !batch.admits(region.index, page as u32)
            {
                continue;
            }
            let Ok(claim) = region.table.claim(page, word) else {
                continue;
            };
            let Ok(out) = (&mut batch.bytes[batch.used..batch.used + PAGE_SIZE]).try_into() else {
                // As long as a page: never.
                self.release(region, claim, word);
                break;
            };
            let info = self.store.read(slot, out);
            self.release(region, claim, word.with_marked(true));
            batch.entries[batch.count] = Entry {
                region: region.index,
                page: page as u32,
                start: batch.used as u32,
                len: info.len as u16,
                codec: info.codec,
            };
            batch.count += 1;
            batch.used += info.len;
        }
        drop(inside);
        next
    }
}

/// The slot of a stored page whose bytes are in memory.
pub(crate) fn slot_of_stored(word: Word) -> Option<Slot> {
    if word.state() != State::Stored {
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
            let mut buffer = Buffer::new(BATCH_BYTES).unwrap();
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

    fn empty(bytes: &mut Buffer) -> Gathered<'_> {
        Gathered {
            entries: [Entry::NONE; BATCH_PAGES],
            count: 0,
            bytes,
            used: 0,
        }
    }

    fn put(batch: &mut Gathered<'_>, region: u32, page: u32) -> bool {
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

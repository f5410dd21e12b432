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
//! Only the demoter's thread runs this. It holds a claim for as long as one page's
//! packed bytes take to copy, and is inside the gate for one group of pages.

use core::ops::Range;
use core::time::Duration;

use ghostmem_os::PAGE_SIZE;
use ghostmem_policy::Past;

use crate::parts::cold::ColdTiers;
use crate::parts::demote_batch::{DemoteBatch, Entry, slot_of_stored};
use crate::parts::engine::Engine;
use crate::parts::region::Region;
use crate::tiers::lap::Lap;

/// Page words looked at in one go, inside the gate: those of one page of the
/// table.
const GROUP_PAGES: usize = PAGE_SIZE / size_of::<u64>();

/// Part of the stored bytes that one ranking finds, at least.
const RANK_SHARE: u64 = 8;

/// The demoter's own state.
pub(crate) struct Demoter {
    /// Where it is on its way through all pages; a ranking begins a new lap.
    pub(crate) lap: Lap,
    pub(crate) back_off: Duration,
    /// When the file may be tried again, nanoseconds.
    pub(crate) retry_ns: u64,
}

impl Engine {
    /// Finds out how dispensable the pages are that are to go: at least
    /// `wanted_bytes`, and at least an eighth of what is stored, so that ranking
    /// stays cheap beside writing.
    pub(crate) fn rank(&self, cold: &ColdTiers, wanted_bytes: u64) {
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
        cold.set_rank(reached.unwrap_or(0) as u8);
    }

    /// Copies packed bytes of dispensable pages into `batch` until it is full, has
    /// `wanted_bytes` or the hand has been everywhere.
    pub(crate) fn choose(
        &self,
        cold: &ColdTiers,
        demoter: &mut Demoter,
        batch: &mut DemoteBatch<'_>,
        wanted_bytes: u64,
    ) {
        // The tables' parts that were never written hold no page.
        let group = |index: usize, from: usize| {
            let region = self.region(index)?;
            let group = region.resident.touched_words().next(from / GROUP_PAGES)?;
            let first = group * GROUP_PAGES;
            Some(first..(first + GROUP_PAGES).min(region.pages()))
        };
        while let Some((index, pages)) = demoter.lap.next(self.region_count(), group) {
            let Some(region) = self.region(index) else {
                return;
            };
            let next = self.choose_from(region, pages, cold.rank(), batch);
            demoter.lap.advance(next);
            if batch.is_full() || batch.used as u64 >= wanted_bytes {
                return;
            }
        }
    }

    /// The same for the pages of one group; where to go on.
    fn choose_from(
        &self,
        region: &Region,
        pages: Range<usize>,
        rank: u8,
        batch: &mut DemoteBatch<'_>,
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

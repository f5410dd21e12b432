//! What the heap takes when it gives back all it can: by this an allocation is admitted,
//! and other processes learn what they can hope for.

use ghostmem_os::PAGE_SIZE;
use ghostmem_policy::forecast::{Holdings, PageCosts};
use ghostmem_store::tier::{ColdTier, TierStats};

use crate::parts::engine::Engine;

/// Evictions after which the store's ratio is taken for the data's.
const RATIO_EVICTIONS: u64 = 256;

/// The compression that a bound on the process hopes for before any was seen: there
/// nothing is evicted until the bound is in sight, and memory that a program asks for in
/// large pieces is rarely written at once.
const HOPED_RATIO: usize = 4;

/// The same for memory that a program reserved first and opened later. It opens more than it
/// writes, and ends where it is refused that: it is refused where it writes more than fits.
const OPENED_RATIO: usize = 16;

/// What a page takes beside its bytes: in tables its word, its bits and its share of
/// the block tree; in the file's table ten bytes a place, of which four hold a page if
/// pages are packed to a quarter.
const COSTS: PageCosts = PageCosts {
    page_bytes: PAGE_SIZE,
    table_bytes: 10,
    file_entry_bytes: 4 * 10,
};

impl Engine {
    /// Bytes that resident pages, store and tables will take once what is
    /// handed out has been written.
    ///
    /// What is not written yet counts with the compression seen so far (one to
    /// one before any was seen), as the limit is on memory, not on address
    /// space.
    pub(crate) fn needed_bytes(&self) -> usize {
        let store = self.store.stats();
        let file = self.cold.as_ref().map(|cold| cold.tier.stats());
        let file = file.unwrap_or_default();
        let bytes = |pages: i64| pages.max(0) as usize * PAGE_SIZE;
        let (used, least) = (self.budget.used(), self.least_resident_pages());
        // Under a bound on the process all but a few resident pages can leave;
        // but a limit on the heap's memory is kept without hope.
        let bounded = self.bound.is_some() && self.config.memory_limit_bytes.is_none();
        let squeezable = if bounded { used - least } else { 0 };
        let handed_out_bytes = self.allocated_bytes().saturating_add(self.foreign.sum());
        let opened_bytes = match bounded && self.unwritten.any() {
            true => self.unwritten.left(self.written_pages()) as usize * PAGE_SIZE,
            false => 0,
        };
        Holdings {
            handed_out_bytes,
            opened_bytes,
            opened_ratio: OPENED_RATIO,
            resident_bytes: bytes(used),
            squeezable_bytes: bytes(squeezable),
            frames_free_bytes: bytes(least - used),
            stored_bytes: (store.live_slots + file.slots) as usize * PAGE_SIZE,
            copied_bytes: self.copies.sum() * PAGE_SIZE,
            packed_bytes: (store.data_bytes + file.live_bytes) as usize,
            store_held_bytes: store.held_bytes as usize,
            table_bytes: self.table_bytes() + (store.metadata_bytes + file.metadata_bytes) as usize,
            file_room_bytes: self.room_in_file(&file),
            ratio_is_known: self.evictions() >= RATIO_EVICTIONS,
            ratio_hoped_for: if bounded { HOPED_RATIO } else { 1 },
        }
        .needed_bytes(COSTS)
    }

    /// Whether a bound on the process may come to hold `bytes` that are asked for without a
    /// reservation: no more of them than fit by the compression that it hopes for. `false`
    /// where there is no bound.
    #[must_use]
    pub fn may_promise(&self, bytes: usize) -> bool {
        let limit = self.bound.as_ref().and_then(|_| self.memory_limit());
        limit.is_some_and(|limit| bytes / HOPED_RATIO <= limit)
    }

    /// Pages that hold bytes, wherever they are: resident, or stored.
    pub(crate) fn written_pages(&self) -> u64 {
        let store = self.store.stats();
        let file = self.cold.as_ref().map_or(0, |cold| cold.tier.stats().slots);
        let resident = self.budget.used().max(0).unsigned_abs();
        let twice = resident.saturating_add(store.live_slots + file);
        twice.saturating_sub(self.copies.sum() as u64)
    }

    /// So many pages of blocks were closed or freed: what of them was opened and not written
    /// is not to come any more.
    pub(crate) fn note_closed(&self, pages: usize) {
        if self.unwritten.any() {
            self.unwritten.note_closed(pages, self.written_pages());
        }
    }

    /// What the memory limit lacks to hold what is handed out, with `spare_bytes` left; 0
    /// where it holds that, or there is none.
    pub(crate) fn missing_bytes(&self, spare_bytes: usize) -> usize {
        self.memory_limit().map_or(0, |limit| {
            let needed = self.needed_bytes().saturating_add(spare_bytes);
            needed.saturating_sub(limit)
        })
    }

    /// Packed bytes that the file takes beside what it has.
    fn room_in_file(&self, file: &TierStats) -> usize {
        match &self.cold {
            Some(cold) if !cold.is_failing() => {
                // Its limit is on the file, which is never quite full.
                let room = (file.limit_bytes / 8 * 7).saturating_sub(file.live_bytes);
                usize::try_from(room).unwrap_or(usize::MAX)
            }
            _ => 0,
        }
    }
}

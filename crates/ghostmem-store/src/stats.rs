//! What the store knows about itself.

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use ghostmem_os::PAGE_SIZE;
use ghostmem_os::shards::shards;

use crate::SlabStore;
use crate::arrays::{LISTS, LastSlabs, tally};
use crate::class::SLAB_PAGES;
use crate::memory::Memory;
use crate::state::Global;

/// Figures of a [`SlabStore`], read without stopping anybody: each is right by
/// itself, but operations under way may be counted in one and not yet in
/// another.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct StoreStats {
    /// Slots in use.
    pub live_slots: u64,
    /// Payload bytes in them.
    pub data_bytes: u64,
    /// Bytes of the slots in use: payload, header and rounding to the class.
    pub slot_bytes: u64,
    /// Bytes of slab memory backed by the kernel, live, free and spare.
    pub held_bytes: u64,
    /// Of these, bytes in spare slabs, which serve no class.
    pub spare_bytes: u64,
    /// Bytes of descriptors, list heads, counters and raw headers, at most.
    pub metadata_bytes: u64,
    /// Slots in use that hold a page as it was (or nearly so): those of the
    /// class of whole pages.
    pub raw_slots: u64,
    /// Slots filled since the start, copies by compaction included.
    pub inserts: u64,
    /// Slots given back since the start, likewise.
    pub removes: u64,
    /// Slots that compaction moved.
    pub relocations: u64,
}

impl SlabStore {
    /// The store's figures now. Lock-free, async-signal-safe; reads some
    /// seventy cache lines.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let mem = &self.slabs.mem;
        let sum = |word: usize| {
            let words = mem.tallies().iter().map(|tally| tally[word].load(Acquire));
            words.fold(0, u64::wrapping_add)
        };
        // Removes first: a slot given back was filled before, so the
        // difference cannot come out negative.
        let removes = sum(tally::REMOVES);
        let inserts = sum(tally::INSERTS);
        let mut stats = StoreStats {
            live_slots: inserts.saturating_sub(removes),
            data_bytes: sum(tally::DATA_BYTES),
            slot_bytes: sum(tally::SLOT_BYTES),
            raw_slots: sum(tally::RAW_SLOTS),
            inserts,
            removes,
            ..StoreStats::default()
        };
        let global = |name| mem.global(name).load(Relaxed);
        stats.held_bytes = global(Global::Held);
        stats.spare_bytes = global(Global::SpareBytes);
        stats.relocations = global(Global::Relocations);
        stats.metadata_bytes = Self::metadata_bytes(global(Global::Bump), global(Global::RawRows));
        stats
    }

    /// Bytes of slab memory backed by the kernel: [`StoreStats::held_bytes`]
    /// alone, one load.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.slabs.mem.global(Global::Held).load(Relaxed)
    }

    /// What the arrays beside the arena hold: each is backed page by page from
    /// its front.
    fn metadata_bytes(slabs: u64, raw_rows: u64) -> u64 {
        let pages = |bytes: u64| bytes.next_multiple_of(PAGE_SIZE as u64);
        let lists = pages(LISTS as u64 * 64) + PAGE_SIZE as u64;
        let last = pages((shards() * size_of::<LastSlabs>()) as u64);
        lists + last + pages(slabs * 64) + pages(raw_rows * SLAB_PAGES as u64 * 8)
    }
}

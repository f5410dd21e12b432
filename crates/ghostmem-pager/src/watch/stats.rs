//! What a heap holds and did, read without stopping anybody.

use ghostmem_file::FileStats;
use ghostmem_os::PAGE_SIZE;

use crate::parts::engine::Engine;
use crate::parts::metrics::{Counts, LatencyHistogram};

/// A heap's figures at one moment. Fields are read one after the other, so
/// they may be a few operations apart.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct EngineStats {
    /// Bytes handed out as blocks of pages.
    pub block_bytes: usize,
    /// Bytes that owners of adopted regions handed out.
    pub lent_bytes: usize,
    /// Bytes of ghost pages mapped now.
    pub resident_bytes: usize,
    /// Most bytes that may be mapped.
    pub resident_limit_bytes: usize,
    /// Bytes of compressed pages in the store.
    pub store_data_bytes: usize,
    /// Compressed pages in the store (copies of resident pages included).
    pub store_slots: usize,
    /// Resident pages that keep a copy, in the store or in the file tier.
    pub kept_copies: usize,
    /// Memory the store holds from the kernel.
    pub store_held_bytes: usize,
    /// Pages stored uncompressed.
    pub store_raw_slots: usize,
    /// Page words, resident sets, slab descriptors, the file tier's entries.
    pub metadata_bytes: usize,
    /// The file tier's figures; all zero without one.
    pub file: FileStats,
    /// Event counts since the heap was made.
    pub counts: Counts,
    /// Time faults took.
    pub fault_latency: LatencyHistogram,
}

impl Engine {
    /// The figures now. Lock-free, and cheap enough to be called every
    /// millisecond: everything is counted as it happens.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let store = self.store.stats();
        let file = self.spill.as_ref().map(|spill| spill.tier.stats());
        let file = file.unwrap_or_default();
        EngineStats {
            block_bytes: self.allocated_bytes(),
            lent_bytes: self.lent.sum(),
            resident_bytes: self.budget.used().max(0) as usize * PAGE_SIZE,
            resident_limit_bytes: self.budget.limit().max(0) as usize * PAGE_SIZE,
            store_data_bytes: store.data_bytes as usize,
            store_slots: store.live_slots as usize,
            kept_copies: self.copies.sum(),
            store_held_bytes: store.held_bytes as usize,
            store_raw_slots: store.raw_slots as usize,
            metadata_bytes: self.table_bytes()
                + (store.metadata_bytes + file.metadata_bytes) as usize,
            file,
            counts: self.metrics.counts(),
            fault_latency: self.metrics.latency(),
        }
    }
}

//! What a heap holds and did, read without stopping anybody.

use ghostmem_os::PAGE_SIZE;

use crate::engine::Engine;
use crate::metrics::{Counts, LatencyHistogram};

/// A heap's figures at one moment. Fields are read one after the other, so
/// they may be a few operations apart.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct EngineStats {
    /// Bytes handed out as blocks of pages.
    pub block_bytes: usize,
    /// Bytes of ghost pages mapped now.
    pub resident_bytes: usize,
    /// Most bytes that may be mapped.
    pub resident_limit_bytes: usize,
    /// Bytes of compressed pages in the store.
    pub store_data_bytes: usize,
    /// Compressed pages in the store (copies of resident pages included).
    pub store_slots: usize,
    /// Memory the store holds from the kernel.
    pub store_held_bytes: usize,
    /// Pages stored uncompressed.
    pub store_raw_slots: usize,
    /// Page words, resident sets, slab descriptors.
    pub metadata_bytes: usize,
    /// Event counts since the heap was made.
    pub counts: Counts,
    /// Time faults took.
    pub fault_latency: LatencyHistogram,
}

impl Engine {
    /// The figures now. Lock-free; linear in the metadata's size because the
    /// kernel is asked how much of it exists.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        let store = self.store.stats();
        let tables: usize = self
            .regions()
            .map(crate::region::Region::metadata_bytes)
            .sum();
        EngineStats {
            metadata_bytes: tables + store.metadata_bytes as usize,
            ..self.quick_stats()
        }
    }

    /// As [`Engine::stats`], without the metadata's size (0): cheap enough to
    /// be called every millisecond.
    #[must_use]
    pub fn quick_stats(&self) -> EngineStats {
        let store = self.store.stats();
        EngineStats {
            block_bytes: self.allocated_bytes(),
            resident_bytes: self.budget.used().max(0) as usize * PAGE_SIZE,
            resident_limit_bytes: self.budget.limit().max(0) as usize * PAGE_SIZE,
            store_data_bytes: store.data_bytes as usize,
            store_slots: store.live_slots as usize,
            store_held_bytes: store.held_bytes as usize,
            store_raw_slots: store.raw_slots as usize,
            metadata_bytes: 0,
            counts: self.metrics.counts(),
            fault_latency: self.metrics.latency(),
        }
    }
}

//! What a heap holds and did, read without stopping anybody.

use ghostmem_os::PAGE_SIZE;
use ghostmem_policy::costs::Evictor;
use ghostmem_store::tier::ColdTier;

use crate::parts::bound::ProcessBound;
use crate::parts::engine::Engine;
use crate::parts::figures::{Gauges, Stats};
use crate::parts::metrics::Counter;

impl Engine {
    /// Bytes of blocks and of small objects that are in use: two sums, where
    /// [`Engine::stats`] reads every counter.
    #[must_use]
    pub fn bytes_in_use(&self) -> usize {
        self.allocated_bytes() + self.foreign.sum()
    }

    /// The figures now. Lock-free, and cheap enough to be called every
    /// millisecond: everything is counted as it happens.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let store = self.store.stats();
        let file = self.cold.as_ref().map(|cold| cold.tier.stats());
        let file = file.unwrap_or_default();
        let peak = self.metrics.peak.parts();
        let gauges = Gauges {
            allocated_bytes: self.allocated_bytes() + self.foreign.sum(),
            resident_bytes: self.budget.used().max(0) as usize * PAGE_SIZE,
            resident_limit_bytes: self.budget.limit().max(0) as usize * PAGE_SIZE,
            stored_pages: store.live_slots as usize,
            kept_copies: self.copies.sum(),
            store_data_bytes: store.data_bytes as usize,
            store_held_bytes: store.held_bytes as usize,
            metadata_bytes: self.table_bytes()
                + (store.metadata_bytes + file.metadata_bytes) as usize,
            file_pages: file.slots as usize,
            file_data_bytes: file.live_bytes,
            file_bytes: file.file_bytes,
            raw_pages: store.raw_slots as usize,
            process_bound_bytes: self.bound.as_ref().map_or(0, ProcessBound::bytes),
            process_peak_bytes: self.bound.as_ref().map_or(0, ProcessBound::peak_bytes),
            peak_resident_bytes: peak.resident,
            peak_stored_bytes: peak.stored,
            peak_copies_bytes: peak.copies,
            peak_tables_bytes: peak.tables,
            peak_ordinary_bytes: peak.other,
            plain_peak_bytes: peak.plain,
            slowdown_asked_ppm: u64::from(self.config.slowdown_ppm),
            slowdown_reached_ppm: self.slowdown.as_ref().map_or(0, |slowed| {
                slowed.reached_ppm(self.metrics.sum(Counter::fault_ns))
            }),
            faulting_call_ns: self.costs.call_ns(Evictor::Faulting),
            background_call_ns: self.costs.call_ns(Evictor::Background),
            opening_ns: self.costs.open_ns(),
        };
        let sum = |counter| self.metrics.sum(counter);
        Stats::of(&gauges, sum, self.metrics.latency())
    }
}

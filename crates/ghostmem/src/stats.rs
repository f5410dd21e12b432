//! A heap's figures.

use ghostmem_pager::EngineStats;
pub use ghostmem_pager::LatencyHistogram;

/// What a heap holds and did. Fields are read one after the other without
/// stopping anybody, so they may be a few operations apart.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes the program has allocated and not freed.
    pub allocated_bytes: usize,
    /// Bytes of ghost pages mapped now; never above the limit, but for pages
    /// counted in `overdrafts`.
    pub resident_bytes: usize,
    /// Most bytes that may be mapped.
    pub resident_limit_bytes: usize,
    /// Compressed pages in the store, copies of resident pages included.
    pub stored_pages: usize,
    /// Resident pages that keep a compressed copy, in the store or in the file:
    /// evicting one of them again costs no compression.
    pub kept_copies: usize,
    /// Compressed size of the pages in the store, bytes.
    pub store_data_bytes: usize,
    /// Memory the store holds from the kernel, bytes.
    pub store_held_bytes: usize,
    /// Page words, resident sets, slab descriptors and the tables of the file,
    /// bytes.
    pub metadata_bytes: usize,
    /// Pages in the file, copies of resident pages included.
    pub file_pages: usize,
    /// Their compressed size, bytes.
    pub file_data_bytes: u64,
    /// What the file takes on its disk, bytes.
    pub file_bytes: u64,
    /// Pages moved from memory to the file.
    pub pages_spilled: u64,
    /// Pages that were touched while they were being moved there, and stayed.
    pub spills_in_vain: u64,
    /// Pages read from the file.
    pub spilled_reads: u64,
    /// Reads of a page from the file that failed.
    pub spilled_read_errors: u64,
    /// Batches of pages that the file did not take: it was full, or failed.
    pub spill_write_errors: u64,
    /// Waits, of up to 2 ms each, of a fault that had to evict while the file
    /// was behind.
    pub spill_waits: u64,
    /// Pages stored as they are because they do not compress.
    pub raw_pages: usize,
    /// Pages evicted that were one repeated value and took no slot.
    pub same_filled_pages: u64,
    /// Faults that put a page in place.
    pub faults: u64,
    /// Of those, faults on pages that had been evicted.
    pub refaults: u64,
    /// First stores to pages that were clean.
    pub write_faults: u64,
    /// Pages evicted without compressing them: their copy was still good.
    pub evictions_clean: u64,
    /// Pages evicted by compressing them.
    pub evictions_dirty: u64,
    /// Evictions a touch cancelled.
    pub evictions_cancelled: u64,
    /// Pages restored ahead of a touch.
    pub readahead_pages: u64,
    /// Of those, pages whose run went on past them.
    pub readahead_hits: u64,
    /// Times a faulting thread had to evict for itself.
    pub direct_reclaims: u64,
    /// Frames taken beyond the limit because a thread could not go on
    /// otherwise.
    pub overdrafts: u64,
    /// Nanoseconds spent compressing, and how many pages that was.
    pub compress_ns: u64,
    /// Pages compressed in that time.
    pub compressed_pages: u64,
    /// Nanoseconds spent decompressing, of sampled pages.
    pub decompress_ns: u64,
    /// Pages decompressed in that time.
    pub decompress_samples: u64,
    /// Time faults took inside the engine.
    pub fault_latency: LatencyHistogram,
}

impl Stats {
    pub(crate) fn from_engine(engine: EngineStats) -> Self {
        let counts = engine.counts;
        Self {
            allocated_bytes: engine.block_bytes + engine.lent_bytes,
            resident_bytes: engine.resident_bytes,
            resident_limit_bytes: engine.resident_limit_bytes,
            stored_pages: engine.store_slots,
            kept_copies: engine.kept_copies,
            store_data_bytes: engine.store_data_bytes,
            store_held_bytes: engine.store_held_bytes,
            metadata_bytes: engine.metadata_bytes,
            file_pages: engine.file.slots as usize,
            file_data_bytes: engine.file.live_bytes,
            file_bytes: engine.file.file_bytes,
            pages_spilled: counts.pages_spilled,
            spills_in_vain: counts.spills_in_vain,
            spilled_reads: counts.spilled_reads,
            spilled_read_errors: counts.spilled_read_errors,
            spill_write_errors: counts.spill_write_errors,
            spill_waits: counts.spill_waits,
            raw_pages: engine.store_raw_slots,
            same_filled_pages: counts.filled_pages_evicted,
            faults: counts.faults,
            refaults: counts.refaults,
            write_faults: counts.write_faults,
            evictions_clean: counts.evictions_clean,
            evictions_dirty: counts.evictions_dirty,
            evictions_cancelled: counts.evictions_cancelled,
            readahead_pages: counts.readahead_pages,
            readahead_hits: counts.readahead_hits,
            direct_reclaims: counts.direct_reclaims,
            overdrafts: counts.overdrafts,
            compress_ns: counts.compress_ns,
            compressed_pages: counts.compressed_pages,
            decompress_ns: counts.decompress_ns,
            decompress_samples: counts.decompress_samples,
            fault_latency: engine.fault_latency,
        }
    }
}

//! A heap's figures as a plain structure.

use ghostmem::Stats;

use crate::heap::{GhostmemHeap, heap_of, no_heap};
use crate::status::{GhostmemStatus, invalid};

/// What a heap holds and did. Fields are read one after the other without
/// stopping anybody, so they may be a few operations apart.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct GhostmemStats {
    /// Bytes the program has allocated and not freed, as blocks have them.
    pub allocated_bytes: u64,
    /// Bytes of ghost pages mapped now; never above the limit, but for pages
    /// counted in `overdrafts`.
    pub resident_bytes: u64,
    /// Most bytes that may be mapped.
    pub resident_limit_bytes: u64,
    /// Compressed pages in the store, copies of resident pages included.
    pub stored_pages: u64,
    /// Their compressed size, bytes.
    pub store_data_bytes: u64,
    /// Memory the store holds from the kernel, bytes.
    pub store_held_bytes: u64,
    /// Page words, resident sets and slab descriptors, bytes.
    pub metadata_bytes: u64,
    /// Pages stored as they are because they do not compress.
    pub raw_pages: u64,
    /// Pages evicted that were one repeated value and took no room.
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
    /// Nanoseconds spent compressing.
    pub compress_ns: u64,
    /// Pages compressed in that time.
    pub compressed_pages: u64,
    /// Nanoseconds spent decompressing, of sampled pages.
    pub decompress_ns: u64,
    /// Pages decompressed in that time.
    pub decompress_samples: u64,
    /// Time faults took inside the engine, median, nanoseconds.
    pub fault_p50_ns: u64,
    /// The same, 99th percentile.
    pub fault_p99_ns: u64,
    /// Pages in the file, copies of resident pages included.
    pub file_pages: u64,
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
}

impl From<Stats> for GhostmemStats {
    fn from(stats: Stats) -> Self {
        Self {
            allocated_bytes: stats.allocated_bytes as u64,
            resident_bytes: stats.resident_bytes as u64,
            resident_limit_bytes: stats.resident_limit_bytes as u64,
            stored_pages: stats.stored_pages as u64,
            store_data_bytes: stats.store_data_bytes as u64,
            store_held_bytes: stats.store_held_bytes as u64,
            metadata_bytes: stats.metadata_bytes as u64,
            raw_pages: stats.raw_pages as u64,
            same_filled_pages: stats.same_filled_pages,
            faults: stats.faults,
            refaults: stats.refaults,
            write_faults: stats.write_faults,
            evictions_clean: stats.evictions_clean,
            evictions_dirty: stats.evictions_dirty,
            evictions_cancelled: stats.evictions_cancelled,
            readahead_pages: stats.readahead_pages,
            readahead_hits: stats.readahead_hits,
            direct_reclaims: stats.direct_reclaims,
            overdrafts: stats.overdrafts,
            compress_ns: stats.compress_ns,
            compressed_pages: stats.compressed_pages,
            decompress_ns: stats.decompress_ns,
            decompress_samples: stats.decompress_samples,
            fault_p50_ns: stats.fault_latency.percentile(50.0),
            fault_p99_ns: stats.fault_latency.percentile(99.0),
            file_pages: stats.file_pages as u64,
            file_data_bytes: stats.file_data_bytes,
            file_bytes: stats.file_bytes,
            pages_spilled: stats.pages_spilled,
            spills_in_vain: stats.spills_in_vain,
            spilled_reads: stats.spilled_reads,
            spilled_read_errors: stats.spilled_read_errors,
            spill_write_errors: stats.spill_write_errors,
            spill_waits: stats.spill_waits,
        }
    }
}

/// Writes the heap's figures to `*out`, of which `out_bytes` are written:
/// `sizeof(ghostmem_stats)` as the caller knows it. Bytes the library does not
/// know are zeroed. Lock-free, and cheap enough to be called every millisecond.
///
/// # Safety
/// `heap` is null (refused) or lives; `out` is null (refused) or has room for
/// `out_bytes`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_heap_stats(
    heap: *const GhostmemHeap,
    out: *mut GhostmemStats,
    out_bytes: usize,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    let Some(heap) = (unsafe { heap_of(heap) }) else {
        return no_heap();
    };
    if out.is_null() {
        return invalid("there is no place for the figures: out is null");
    }
    let stats = GhostmemStats::from(heap.stats());
    // SAFETY: the caller's promise: room for `out_bytes`.
    unsafe { out.cast::<u8>().write_bytes(0, out_bytes) };
    let known = out_bytes.min(size_of::<GhostmemStats>());
    // SAFETY: `known` bytes are readable here and writable there; the source is
    // a local.
    unsafe {
        out.cast::<u8>()
            .copy_from_nonoverlapping((&raw const stats).cast::<u8>(), known);
    };
    GhostmemStatus::Ok
}

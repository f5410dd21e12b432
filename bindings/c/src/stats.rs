//! A heap's figures, as a plain structure and by name.
//!
//! Which word of the structure holds which figure is said by the figure itself
//! (`ghostmem::Figure::c_word`); a test compares that with the fields below. A figure
//! without a word is there by name.

use core::ffi::{CStr, c_char};

use ghostmem::Stats;

use crate::heap::{GhostmemHeap, heap_of, no_heap};
use crate::status::{GhostmemStatus, invalid, refuse};

/// What a heap holds and did. Fields are read one after the other without
/// stopping anybody, so they may be a few operations apart.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct GhostmemStats {
    /// Bytes the program has allocated and not freed.
    pub allocated_bytes: u64,
    /// Bytes of ghost pages mapped now; never above the limit, but for pages
    /// counted in `overdrafts`.
    pub resident_bytes: u64,
    /// Most bytes that may be mapped.
    pub resident_limit_bytes: u64,
    /// Compressed pages in the store, copies of resident pages included.
    pub stored_pages: u64,
    /// Compressed size of the pages in the store, bytes.
    pub store_data_bytes: u64,
    /// Memory the store holds from the kernel, bytes.
    pub store_held_bytes: u64,
    /// Page words, resident sets, slab descriptors and the tables of the file,
    /// bytes.
    pub metadata_bytes: u64,
    /// Pages stored as they are because they do not compress.
    pub raw_pages: u64,
    /// Pages evicted that were one repeated value and took no slot.
    pub same_filled_pages: u64,
    /// Faults that put a page in place.
    pub faults: u64,
    /// Faults on pages that had been evicted, among `faults`.
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
    /// Pages restored ahead of a touch whose run went on past them.
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
    /// Time faults took inside the engine, 99th percentile, nanoseconds.
    pub fault_p99_ns: u64,
    /// Pages in the file, copies of resident pages included.
    pub file_pages: u64,
    /// Compressed size of the pages in the file, bytes.
    pub file_data_bytes: u64,
    /// What the file takes on its disk, bytes.
    pub file_bytes: u64,
    /// Pages moved from memory to the file.
    pub pages_spilled: u64,
    /// Pages that were touched while they were being moved to the file, and stayed.
    pub spills_in_vain: u64,
    /// Pages read from the file, for a fault or ahead of one.
    pub spilled_reads: u64,
    /// Reads of a page from the file that failed.
    pub spilled_read_errors: u64,
    /// Batches of pages that the file did not take: it was full, or failed.
    pub spill_write_errors: u64,
    /// Waits, of up to 2 ms each, of a fault that had to evict while the file
    /// was behind.
    pub spill_waits: u64,
}

/// Words of the structure.
const WORDS: usize = size_of::<GhostmemStats>() / size_of::<u64>();

/// The figures as the structure has them: each figure knows its word.
fn words(stats: &Stats) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    for figure in stats.figures() {
        if let Some(word) = figure.c_word.and_then(|word| words.get_mut(word)) {
            *word = figure.value;
        }
    }
    words
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
    let stats = words(&heap.stats());
    // SAFETY: the caller's promise: room for `out_bytes`.
    unsafe { out.cast::<u8>().write_bytes(0, out_bytes) };
    let known = out_bytes.min(size_of::<GhostmemStats>());
    // SAFETY: `known` bytes are readable here and writable there; the source is
    // a local of the structure's size.
    unsafe {
        out.cast::<u8>()
            .copy_from_nonoverlapping(stats.as_ptr().cast::<u8>(), known);
    };
    GhostmemStatus::Ok
}

/// Writes one of the heap's figures to `*out`: that of a field of
/// `ghostmem_stats`, or another one of `ghostmem_stat_name`, which lists them
/// all. A name that this version does not know is refused with
/// `GHOSTMEM_STATUS_INVALID_ARGUMENT`. Lock-free; for many figures at once
/// `ghostmem_heap_stats` is cheaper.
///
/// # Safety
/// `heap` is null (refused) or lives; `name` is null (refused) or a C string;
/// `out` is null (refused) or a place for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_stat(
    heap: *const GhostmemHeap,
    name: *const c_char,
    out: *mut u64,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    let Some(heap) = (unsafe { heap_of(heap) }) else {
        return no_heap();
    };
    if name.is_null() {
        return invalid("no figure is asked for: name is null");
    }
    if out.is_null() {
        return invalid("there is no place for the figure: out is null");
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    let Some(figure) = heap.stats().figures().find(|known| known.c_name == name) else {
        return refuse(
            GhostmemStatus::InvalidArgument,
            format_args!(
                "this version has no figure {}: ghostmem_stat_name lists those it has",
                name.to_string_lossy()
            ),
        );
    };
    // SAFETY: the caller's promise: a place for a number.
    unsafe { out.write(figure.value) };
    GhostmemStatus::Ok
}

/// The name of a figure for `ghostmem_stat`; null from the number of figures
/// on, so that a loop from 0 sees all of them. Their order is that of this
/// version.
#[unsafe(no_mangle)]
pub extern "C" fn ghostmem_stat_name(index: usize) -> *const c_char {
    let figure = Stats::default().figures().nth(index);
    figure.map_or(core::ptr::null(), |figure| figure.c_name.as_ptr())
}

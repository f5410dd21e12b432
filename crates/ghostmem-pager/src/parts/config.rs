//! How an engine is set up.

use ghostmem_codec::AnyCodec;
use ghostmem_fault::Opened;
use ghostmem_os::tree::Tree;

use crate::parts::lost::LostHandler;

/// Smallest resident limit, pages: what the seed's API has by default.
pub const LIMIT_PAGES_MIN: usize = 5;

/// How an engine is set up.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Most pages mapped at once; at least [`LIMIT_PAGES_MIN`].
    pub limit_pages: usize,
    /// Bound on resident, compressed and metadata bytes together.
    pub memory_limit_bytes: Option<usize>,
    /// Bound on everything the process takes of the machine, as the kernel charges it;
    /// how many pages may be resident, up to `limit_pages`, then follows what is left.
    pub process_limit_bytes: Option<usize>,
    /// What memory groups and the machine leave is a bound on the process as well.
    pub follow_supplies: bool,
    /// The page of the processes that have a bound together.
    pub tree: Option<&'static Tree>,
    /// The share of its own time and of that in faults that the program may spend in
    /// faults, in millionths: as little as that takes stays resident. 0: none. Only with a
    /// background thread.
    pub slowdown_ppm: u32,
    /// Where faults come from.
    pub backend: Opened,
    /// The page compressor.
    pub codec: AnyCodec,
    /// Whether pages are compressed at all.
    pub compress: bool,
    /// Asked when a page cannot be brought back.
    pub on_lost: Option<LostHandler>,
    /// Restore ahead of runs of faults.
    pub readahead: bool,
    /// Keep frames free ahead of demand, on a thread of the engine's own.
    pub background: bool,
    /// The same in forked children, where libc may read the program's heap as
    /// it starts a thread.
    pub background_in_children: bool,
    /// Keep the compressed copy of pages restored for reading.
    pub keep_copies: bool,
    /// Say once on the standard error stream that the program does little but fault.
    pub report_thrashing: bool,
    /// Say once there that the bound on the process refuses an allocation.
    pub report_denied: bool,
    /// Address space for the store, bytes.
    pub store_capacity_bytes: usize,
}

#[cfg(test)]
impl Config {
    /// The first backend that works here, no thread, no readahead: what a test does is
    /// all that happens.
    pub(crate) fn for_tests(limit_pages: usize) -> Self {
        let backend = ghostmem_fault::BackendKind::PREFERRED
            .iter()
            .find_map(|&kind| Opened::open(kind).ok());
        Self::for_tests_on(backend.unwrap(), limit_pages)
    }

    /// The same on a backend of the test's choice.
    pub(crate) fn for_tests_on(backend: Opened, limit_pages: usize) -> Self {
        Self {
            limit_pages,
            memory_limit_bytes: None,
            process_limit_bytes: None,
            follow_supplies: false,
            tree: None,
            slowdown_ppm: 0,
            backend,
            codec: AnyCodec::Lz4,
            compress: true,
            on_lost: None,
            readahead: false,
            background: false,
            background_in_children: false,
            keep_copies: true,
            report_thrashing: false,
            report_denied: true,
            store_capacity_bytes: 1 << 20,
        }
    }
}

//! The engine of one heap: its regions, its store, its budget, and what is looked up in
//! them without a lock.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;

use ghostmem_fault::{Enrolment, Opened, Registration};
use ghostmem_os::PAGE_SIZE;
use ghostmem_os::lock::Lock;
use ghostmem_os::map::MapArc;
use ghostmem_os::shards::LineStart;
use ghostmem_policy::EpochClock;
use ghostmem_store::SlabStore;
use ghostmem_table::PageState;

use crate::parts::aside::Aside;
use crate::parts::blocks::BlockSpace;
use crate::parts::bound::ProcessBound;
use crate::parts::budget::Budget;
use crate::parts::cold::ColdTiers;
use crate::parts::config::Config;
use crate::parts::costs::CostMeter;
use crate::parts::metrics::Metrics;
use crate::parts::region::Region;
use crate::parts::ring::Recorder;
use crate::parts::slowdown::Slowed;
use crate::parts::tally::Tally;
use crate::parts::threads::ThreadTable;
use crate::parts::unwritten::Unwritten;
use crate::parts::wake::WorkerState;
use crate::parts::worth::Worth;

/// Most regions of one heap.
pub(crate) const REGIONS_MAX: usize = 64;

/// Regions start and end at multiples of this many bytes of address space.
pub const REGION_ALIGN: usize = 1 << 26;

/// One heap's engine.
///
/// What faults and frees read lies apart from what others write meanwhile: between two
/// [`LineStart`]s stands what is written by the same ones.
#[repr(C)]
pub struct Engine {
    // Read by every fault, written when a heap is made or something rare happens.
    pub(crate) config: Config,
    pub(crate) backend: Opened,
    /// Keeps the words that it writes on lines of their own.
    pub(crate) store: SlabStore,
    pub(crate) threads: ThreadTable,
    pub(crate) metrics: Metrics,
    pub(crate) regions_len: AtomicUsize,
    pub(crate) recorder: OnceLock<Recorder>,
    /// Bytes of adopted regions that their owners handed out.
    pub(crate) foreign: Tally,
    /// What of blocks was reserved first, opened later, and is not written yet.
    pub(crate) unwritten: Unwritten,
    /// Resident pages that keep a copy, in the store or in a file.
    pub(crate) copies: Tally,
    /// The memory limit has room for more copies.
    pub(crate) copies_fit: AtomicBool,
    pub(crate) closed: AtomicBool,
    /// Its own threads are to end, or stand aside for a call.
    pub(crate) aside: Aside,
    /// The thread that may exceed the limit because it gets nowhere, or 0.
    pub(crate) token: AtomicU64,
    /// When it last faulted, nanoseconds.
    pub(crate) token_since: AtomicU64,
    pub(crate) regions: [OnceLock<Region>; REGIONS_MAX],

    pub(crate) _frames: LineStart,
    pub(crate) budget: Budget,
    /// The bound on the whole process, if there is one; the budget's limit follows it.
    pub(crate) bound: Option<ProcessBound>,
    /// The share of time that faults may take, if one was asked for; the budget's limit
    /// stays below what that leaves.
    pub(crate) slowdown: Option<Slowed>,

    // Written with each batch of evictions, and read by every restore.
    pub(crate) _evicted: LineStart,
    pub(crate) evictions: AtomicU64,

    // Written with each store that opens a page and with each batch of evictions, and read
    // by those who evict.
    pub(crate) _costs: LineStart,
    /// What reclaim was measured to cost.
    pub(crate) costs: CostMeter,
    /// What copies were seen to be worth.
    pub(crate) worth: Worth,

    // Written with each batch of evictions, and read by those who evict.
    pub(crate) _swept: LineStart,
    /// Clock hand: region << 40 | page.
    pub(crate) hand: AtomicU64,
    /// How often the hand has been everywhere.
    pub(crate) sweeps: AtomicU64,
    /// Dirty pages it met in this sweep, less the clean ones.
    pub(crate) dirty_lead: AtomicI64,
    /// Most pages it met in the last sweep were dirty.
    pub(crate) dirty_rules: AtomicBool,
    /// Number of the next eviction batch.
    pub(crate) nonce: AtomicU64,
    /// Where closing pages goes on, as the hand.
    pub(crate) closing: AtomicU64,

    // Written by each pin, and read by every free.
    pub(crate) _pinned: LineStart,
    /// Pages with at least one pin, of all regions.
    pub(crate) pinned_pages: AtomicUsize,

    // Written where blocks of pages are made and freed.
    pub(crate) _blocks: LineStart,
    /// Bytes handed out as blocks of pages.
    pub(crate) allocated: AtomicUsize,

    // Written by background threads and by those who wake them.
    pub(crate) _background: LineStart,
    pub(crate) worker: WorkerState,
    pub(crate) cold: Option<ColdTiers>,
    pub(crate) registrations: Lock<Registrations>,
    pub(crate) enrolment: Lock<Option<Enrolment<Engine>>>,
}

type Registrations = [Option<Registration<Engine>>; REGIONS_MAX];

impl Engine {
    pub(crate) fn region(&self, index: usize) -> Option<&Region> {
        self.regions.get(index)?.get()
    }

    pub(crate) fn region_count(&self) -> usize {
        self.regions_len.load(Ordering::Acquire)
    }

    pub(crate) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions[..self.region_count()]
            .iter()
            .filter_map(OnceLock::get)
    }

    /// The region and page of an address, if it is this engine's.
    #[inline]
    pub(crate) fn locate(&self, address: usize) -> Option<(&Region, usize)> {
        self.regions().find_map(|region| {
            let offset = address.checked_sub(region.base())?;
            (offset / PAGE_SIZE < region.pages()).then_some((region, offset / PAGE_SIZE))
        })
    }

    /// Whether an address lies in one of this engine's regions, and was not given away.
    /// Lock-free.
    #[must_use]
    #[inline]
    pub fn contains(&self, address: usize) -> bool {
        self.locate(address)
            .is_some_and(|(region, page)| !region.mapped.is_away(page))
    }

    /// First address and length in bytes of every region. Lock-free.
    pub fn spans(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.regions()
            .map(|region| (region.base(), region.pages() * PAGE_SIZE))
    }

    /// The block around an address: first address and length in bytes.
    /// Lock-free.
    #[must_use]
    pub fn block_of(&self, address: usize) -> Option<(usize, usize)> {
        let (region, page) = self.locate(address)?;
        let run = region.blocks.as_ref()?.block_of(page)?;
        Some((region.base() + run.first * PAGE_SIZE, run.pages * PAGE_SIZE))
    }

    /// The state of the page at an address. Lock-free.
    #[must_use]
    pub fn page_state(&self, address: usize) -> Option<PageState> {
        let (region, page) = self.locate(address)?;
        Some(region.table.load(page).state())
    }

    pub(crate) fn clock(&self) -> EpochClock {
        let pages = match (&self.slowdown, &self.bound) {
            (Some(slowed), Some(bound)) => slowed.clock_pages().min(bound.clock_pages()),
            (Some(slowed), None) => slowed.clock_pages().min(slowed.most_pages()),
            (None, Some(bound)) => bound.clock_pages(),
            (None, None) => self.budget.limit(),
        };
        EpochClock::new(pages.max(1) as u64)
    }

    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::Relaxed)
    }

    /// Counts pages as evicted; how many it was before.
    pub(crate) fn count_evictions(&self, pages: u64) -> u64 {
        self.evictions.fetch_add(pages, Ordering::Relaxed)
    }

    pub(crate) fn allocated_bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    pub(crate) fn note_allocated(&self, bytes: usize) {
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn note_freed(&self, bytes: usize) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What the backend is.
    #[must_use]
    pub fn backend(&self) -> Opened {
        self.backend
    }

    /// The first region's blocks, for tests of the space itself.
    pub(crate) fn block_spaces(&self) -> impl Iterator<Item = &BlockSpace> {
        self.regions().filter_map(|region| region.blocks.as_ref())
    }

    /// Whether the engine's threads are to end: it is shut down, or they stand aside.
    pub(crate) fn ends_threads(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.aside.ends()
    }

    /// A handle of this engine itself, until it is shut down.
    pub(crate) fn handle(&self) -> Option<MapArc<Self>> {
        self.enrolment
            .lock()
            .as_ref()
            .map(|enrolment| enrolment.sink().clone())
    }

    /// Memory of the page words, resident sets and block tables, bytes.
    pub(crate) fn table_bytes(&self) -> usize {
        self.regions().map(Region::metadata_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;
    use ghostmem_os::shards::LINE_BYTES;

    use super::*;

    #[test]
    fn words_that_others_write_are_on_no_line_that_is_read_elsewhere() {
        let written = [
            offset_of!(Engine, budget),
            offset_of!(Engine, bound),
            offset_of!(Engine, evictions),
            offset_of!(Engine, costs),
            offset_of!(Engine, hand),
            offset_of!(Engine, pinned_pages),
            offset_of!(Engine, allocated),
            offset_of!(Engine, worker),
        ];
        // Each begins a line, and what is read by all ends before the first.
        assert!(written.is_sorted());
        assert!(written.iter().all(|offset| offset % LINE_BYTES == 0));
        let read = [
            offset_of!(Engine, token_since) + size_of::<AtomicU64>(),
            offset_of!(Engine, regions) + size_of::<[OnceLock<Region>; REGIONS_MAX]>(),
            offset_of!(Engine, copies_fit) + size_of::<AtomicBool>(),
        ];
        assert!(read.iter().all(|end| *end <= written[0]));
        // What one batch of evictions moves is on one line.
        let swept = offset_of!(Engine, closing) + size_of::<AtomicU64>();
        assert!(swept - offset_of!(Engine, hand) <= LINE_BYTES);
    }
}

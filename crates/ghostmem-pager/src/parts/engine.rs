//! The engine of one heap: its regions, its store, its budget, and what is looked up in
//! them without a lock.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;

use ghostmem_fault::{Enrolment, Opened, Registration};
use ghostmem_os::PAGE_SIZE;
use ghostmem_os::lock::Lock;
use ghostmem_os::map::MapArc;
use ghostmem_policy::EpochClock;
use ghostmem_store::SlabStore;
use ghostmem_table::PageState;

use crate::parts::blocks::BlockSpace;
use crate::parts::bound::ProcessBound;
use crate::parts::budget::Budget;
use crate::parts::cold::ColdTiers;
use crate::parts::config::Config;
use crate::parts::metrics::Metrics;
use crate::parts::region::Region;
use crate::parts::ring::Recorder;
use crate::parts::tally::Tally;
use crate::parts::threads::ThreadTable;
use crate::parts::wake::WorkerState;

/// Most regions of one heap.
pub(crate) const REGIONS_MAX: usize = 64;

/// Regions start and end at multiples of this many bytes of address space.
pub const REGION_ALIGN: usize = 1 << 26;

/// One heap's engine.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) backend: Opened,
    pub(crate) store: SlabStore,
    pub(crate) cold: Option<ColdTiers>,
    pub(crate) budget: Budget,
    /// The bound on the whole process, if there is one; the budget's limit follows it.
    pub(crate) bound: Option<ProcessBound>,
    pub(crate) metrics: Metrics,
    pub(crate) threads: ThreadTable,
    pub(crate) regions: [OnceLock<Region>; REGIONS_MAX],
    pub(crate) regions_len: AtomicUsize,
    pub(crate) registrations: Lock<Registrations>,
    pub(crate) enrolment: Lock<Option<Enrolment<Engine>>>,
    /// Clock hand: region << 40 | page.
    pub(crate) hand: AtomicU64,
    /// Where closing pages goes on, as the hand.
    pub(crate) closing: AtomicU64,
    /// How often the hand has been everywhere.
    pub(crate) sweeps: AtomicU64,
    /// Dirty pages it met in this sweep, less the clean ones.
    pub(crate) dirty_lead: AtomicI64,
    /// Most pages it met in the last sweep were dirty.
    pub(crate) dirty_rules: AtomicBool,
    /// Number of the next eviction batch.
    pub(crate) nonce: AtomicU64,
    pub(crate) evictions: AtomicU64,
    /// The thread that may exceed the limit because it gets nowhere, or 0.
    pub(crate) token: AtomicU64,
    /// When it last faulted, nanoseconds.
    pub(crate) token_since: AtomicU64,
    pub(crate) worker: WorkerState,
    pub(crate) recorder: OnceLock<Recorder>,
    /// Bytes handed out as blocks of pages.
    pub(crate) allocated: AtomicUsize,
    /// Pages with at least one pin, of all regions.
    pub(crate) pinned_pages: AtomicUsize,
    /// Bytes of adopted regions that their owners handed out.
    pub(crate) foreign: Tally,
    /// Resident pages that keep a copy, in the store or in a file.
    pub(crate) copies: Tally,
    /// The memory limit has room for more copies.
    pub(crate) copies_fit: AtomicBool,
    pub(crate) closed: AtomicBool,
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

    /// Whether an address lies in one of this engine's regions. Lock-free.
    #[must_use]
    #[inline]
    pub fn contains(&self, address: usize) -> bool {
        self.locate(address).is_some()
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
        let pages = match &self.bound {
            Some(bound) => bound.clock_pages(),
            None => self.budget.limit(),
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

//! The engine of one heap: its regions, its store, its budget.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;

use ghostmem_codec::lz4::Lz4;
use ghostmem_fault::{
    Backend, Enrolment, Fault, FaultSink, Home, Registration, Scratch, Verdict, die, enrol,
    register,
};
use ghostmem_os::lock::Lock;
use ghostmem_os::map::{Access, MapArc, Reservation};
use ghostmem_os::thread::EngineThread;
use ghostmem_os::{OsError, PAGE_SIZE, machine};
use ghostmem_policy::EpochClock;
use ghostmem_store::SlabStore;
use ghostmem_table::State;

use crate::admission::Tally;
use crate::budget::Budget;
use crate::metrics::Metrics;
use crate::record::Recorder;
use crate::region::Region;
use crate::space::BlockSpace;
use crate::spill::{Spill, SpillSettings};
use crate::spilled::LostHandler;
use crate::threads::ThreadTable;

/// Most regions of one heap.
pub(crate) const REGIONS_MAX: usize = 64;
/// Regions start and end at multiples of this many bytes of address space.
pub const REGION_ALIGN: usize = 1 << 26;
/// Address space asked for when a heap needs its first region of blocks;
/// halved until the kernel agrees.
const REGION_BYTES: usize = 1 << 36;

/// [`REGION_BYTES`], or a quarter of the address space the process may have:
/// the program needs some itself.
fn region_bytes() -> usize {
    let quarter = machine::address_space_limit().map_or(usize::MAX, |limit| {
        usize::try_from(limit / 4).unwrap_or(usize::MAX)
    });
    if quarter >= REGION_BYTES {
        return REGION_BYTES;
    }
    1 << quarter.max(REGION_ALIGN).ilog2()
}

/// Smallest resident limit, pages: what the seed's API has by default.
pub const LIMIT_PAGES_MIN: usize = 5;

/// How an engine is set up.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Most pages mapped at once; at least [`LIMIT_PAGES_MIN`].
    pub limit_pages: usize,
    /// Bound on resident, compressed and metadata bytes together.
    pub memory_limit_bytes: Option<usize>,
    /// Where faults come from.
    pub backend: Backend,
    /// The page compressor.
    pub codec: Lz4,
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
    /// Address space for the store, bytes.
    pub store_capacity_bytes: usize,
}

/// One heap's engine.
pub struct Engine {
    pub(crate) config: Config,
    pub(crate) backend: Backend,
    pub(crate) store: SlabStore,
    pub(crate) spill: Option<Spill>,
    pub(crate) budget: Budget,
    pub(crate) metrics: Metrics,
    pub(crate) threads: ThreadTable,
    regions: [OnceLock<Region>; REGIONS_MAX],
    regions_len: AtomicUsize,
    registrations: Lock<Registrations>,
    enrolment: Lock<Option<Enrolment<Engine>>>,
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
    evictions: AtomicU64,
    /// The thread that may exceed the limit because it gets nowhere, or 0.
    pub(crate) stuck: AtomicU64,
    /// When it last faulted, nanoseconds.
    pub(crate) stuck_since: AtomicU64,
    pub(crate) worker: WorkerState,
    pub(crate) recorder: OnceLock<Recorder>,
    /// Bytes handed out as blocks of pages.
    allocated: AtomicUsize,
    /// Pages with at least one pin, of all regions.
    pub(crate) pinned_pages: AtomicUsize,
    /// Bytes of adopted regions that their owners handed out.
    pub(crate) lent: Tally,
    /// Resident pages that keep a copy, in the store or in a file.
    pub(crate) copies: Tally,
    /// The memory limit has room for more copies.
    pub(crate) copies_fit: AtomicBool,
    pub(crate) closed: AtomicBool,
}

type Registrations = [Option<Registration<Engine>>; REGIONS_MAX];

pub(crate) struct WorkerState {
    /// 1 while the worker sleeps and wants to be woken.
    pub(crate) asleep: AtomicU64,
    /// Faulting threads keep every processor busy: they evict for themselves.
    pub(crate) crowded: AtomicBool,
    pub(crate) thread: Lock<Option<EngineThread>>,
}

impl Engine {
    /// An engine with no region yet, whose cold pages go to `spill`'s file when
    /// the store has its share.
    ///
    /// # Errors
    /// The kernel's refusal of memory or of the background threads.
    pub fn new(config: Config, spill: Option<SpillSettings>) -> Result<MapArc<Self>, OsError> {
        ghostmem_fault::scratch()?;
        let limit = config.limit_pages.max(LIMIT_PAGES_MIN);
        let engine = MapArc::new(Self {
            backend: config.backend,
            store: SlabStore::new(config.store_capacity_bytes)?,
            spill: spill.map(Spill::new),
            budget: Budget::new(i64::try_from(limit).unwrap_or(i64::MAX)),
            metrics: Metrics::new(),
            threads: ThreadTable::new(machine::cpus())?,
            regions: [const { OnceLock::new() }; REGIONS_MAX],
            regions_len: AtomicUsize::new(0),
            registrations: Lock::new([const { None }; REGIONS_MAX]),
            enrolment: Lock::new(None),
            hand: AtomicU64::new(0),
            closing: AtomicU64::new(0),
            sweeps: AtomicU64::new(0),
            dirty_lead: AtomicI64::new(0),
            dirty_rules: AtomicBool::new(true),
            nonce: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            stuck: AtomicU64::new(0),
            stuck_since: AtomicU64::new(0),
            worker: WorkerState {
                asleep: AtomicU64::new(0),
                crowded: AtomicBool::new(false),
                thread: Lock::new(None),
            },
            recorder: OnceLock::new(),
            allocated: AtomicUsize::new(0),
            pinned_pages: AtomicUsize::new(0),
            lent: Tally::new(),
            copies: Tally::new(),
            copies_fit: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            config,
        })?;
        // Before the worker, so that no fork can lose it unnoticed.
        *engine.enrolment.lock() = Some(enrol(engine.clone())?);
        let started = match engine.config.background {
            true => Self::start_worker(&engine),
            false => Ok(()),
        };
        let started = started.and_then(|()| Self::start_spiller(&engine));
        if let Err(error) = started {
            engine.shut_down();
            return Err(error);
        }
        Ok(engine)
    }

    /// Ends the engine: no fault is resolved from now on. Called once, when
    /// nobody uses the heap's memory any more.
    pub fn shut_down(&self) {
        self.closed.store(true, Ordering::Release);
        self.stop_worker();
        self.stop_spiller();
        let mut registrations = self.registrations.lock();
        let gone = core::mem::replace(&mut *registrations, [const { None }; REGIONS_MAX]);
        drop(registrations);
        drop(gone);
        let enrolment = self.enrolment.lock().take();
        drop(enrolment);
    }

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

    /// Adds a region and makes its faults ours.
    fn add_region(this: &MapArc<Self>, home: Home, blocks: bool) -> Result<usize, OsError> {
        let mut registrations = this.registrations.lock();
        let index = this.region_count();
        let no_room = OsError::new("region", 12);
        let cell = this.regions.get(index).ok_or(no_room)?;
        let number = u32::try_from(index).map_err(|_| no_room)?;
        let region = Region::new(this.backend, home, number, blocks)?;
        // Registered first: a region that cannot be goes, with its address
        // space, and the next one gets its number. Nobody touches it before it
        // is published.
        let registered = register(
            region.mapped.span(),
            number,
            region.mapped.signs(),
            this.clone(),
        )?;
        cell.get_or_init(|| region);
        registrations[index] = Some(registered);
        this.regions_len.store(index + 1, Ordering::Release);
        Ok(index)
    }

    /// Puts somebody else's address space under this engine: its pages are
    /// handed out there, not here.
    ///
    /// # Errors
    /// The kernel's refusal; `ENOMEM` beyond 64 regions.
    pub fn adopt(
        this: &MapArc<Self>,
        reservation: &'static Reservation,
        offset: usize,
        len: usize,
    ) -> Result<(), OsError> {
        Self::add_region(
            this,
            Home::Lent {
                reservation,
                offset,
                len,
            },
            false,
        )
        .map(drop)
    }

    /// Allocates a block of whole pages, all zero; its first address.
    ///
    /// # Errors
    /// `ENOMEM` when there is no address space, or the memory limit would not
    /// hold it.
    pub fn allocate(
        this: &MapArc<Self>,
        pages: usize,
        align_pages: usize,
    ) -> Result<usize, OsError> {
        let full = OsError::new("allocate", 12);
        let bytes = pages.checked_mul(PAGE_SIZE).ok_or(full)?;
        this.allocated.fetch_add(bytes, Ordering::Relaxed);
        this.admit(0)
            .and_then(|()| Self::place(this, pages, align_pages))
            .inspect_err(|_| this.note_freed(bytes))
    }

    /// Finds room for a block that was admitted, in a new region if need be.
    fn place(this: &MapArc<Self>, pages: usize, align_pages: usize) -> Result<usize, OsError> {
        let full = OsError::new("allocate", 12);
        loop {
            for region in this.regions() {
                // Runs are aligned within their region: its start must be too.
                let aligned = region.base().is_multiple_of(align_pages * PAGE_SIZE);
                if !aligned {
                    continue;
                }
                let run = region
                    .blocks
                    .as_ref()
                    .and_then(|b| b.allocate(pages, align_pages));
                if let Some(run) = run {
                    return Ok(region.base() + run.first * PAGE_SIZE);
                }
            }
            let room = pages
                .checked_add(align_pages)
                .and_then(usize::checked_next_power_of_two);
            let least = room
                .and_then(|pages| pages.checked_mul(PAGE_SIZE))
                .ok_or(full)?;
            let least = least.max(REGION_ALIGN);
            let mut bytes = region_bytes().max(least);
            // The block itself may need more alignment than a region has.
            let align = (align_pages * PAGE_SIZE).max(REGION_ALIGN);
            loop {
                let made = Reservation::new(bytes, align, Access::ReadWrite)
                    .and_then(|reservation| Self::add_region(this, Home::Own(reservation), true));
                match made {
                    Ok(_) => break,
                    Err(_) if bytes / 2 >= least => bytes /= 2,
                    Err(error) => return Err(error),
                }
            }
        }
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
    pub fn page_state(&self, address: usize) -> Option<State> {
        let (region, page) = self.locate(address)?;
        Some(region.table.load(page).state())
    }

    pub(crate) fn clock(&self) -> EpochClock {
        EpochClock::new(self.budget.limit().max(1) as u64)
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

    /// Changes the resident limit; excess pages leave as the heap is used, or
    /// in the background.
    pub fn set_limit_pages(&self, pages: usize) {
        let pages = pages.max(LIMIT_PAGES_MIN);
        self.budget
            .set_limit(i64::try_from(pages).unwrap_or(i64::MAX));
        self.share_store();
        self.wake_worker();
    }

    /// What the backend is.
    #[must_use]
    pub fn backend(&self) -> Backend {
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
}

impl FaultSink for Engine {
    fn on_fault(&self, fault: &Fault, scratch: &mut Scratch) -> Verdict {
        self.serve(fault, scratch)
    }

    fn try_before_fork(&self) -> bool {
        if !self.registrations.try_take_for_fork() {
            return false;
        }
        if !self.worker.thread.try_take_for_fork() {
            self.registrations.release_after_fork();
            return false;
        }
        if !self.enrolment.try_take_for_fork() {
            self.worker.thread.release_after_fork();
            self.registrations.release_after_fork();
            return false;
        }
        if self.spill.as_ref().is_some_and(|s| !s.try_take_for_fork()) {
            self.enrolment.release_after_fork();
            self.worker.thread.release_after_fork();
            self.registrations.release_after_fork();
            return false;
        }
        for space in self.block_spaces() {
            space.lock_for_fork();
        }
        true
    }

    fn cancel_fork(&self) {
        if let Some(spill) = &self.spill {
            spill.cancel_fork();
        }
        self.release_fork_locks();
    }

    fn copy_for_fork(&self) -> Result<(), OsError> {
        self.regions().try_for_each(|region| {
            let pinned = |page| region.table.load(page).is_pinned();
            region.mapped.before_fork(|| region.resident.all(), pinned)
        })
    }

    fn after_fork_in_parent(&self) {
        if let Some(spill) = &self.spill {
            spill.after_fork_in_parent();
        }
        for region in self.regions() {
            region.mapped.after_fork_in_parent();
        }
        self.release_fork_locks();
    }

    fn after_fork_in_child(&self) {
        if let Some(recorder) = self.recorder.get() {
            recorder.stop();
        }
        // First: putting the tables in order gives places in the file back.
        if let Some(spill) = &self.spill {
            spill.after_fork_in_child();
        }
        for region in self.regions() {
            Self::refuse_strangers(region);
            self.take_over_region(region);
        }
        self.stuck.store(0, Ordering::Release);
        self.release_fork_locks();
    }

    fn give_to_monitor_in_child(&self) {
        for region in self.regions().filter(|region| region.mapped.is_monitored()) {
            self.take_over_region(region);
        }
    }

    fn restart_threads_in_child(&self) {
        self.restart_worker_after_fork();
        self.restart_spiller_after_fork();
    }
}

impl Engine {
    fn release_fork_locks(&self) {
        for space in self.block_spaces() {
            space.unlock_after_fork();
        }
        self.enrolment.release_after_fork();
        self.worker.thread.release_after_fork();
        self.registrations.release_after_fork();
    }

    /// In a forked child, before its memory is registered: absent pages are
    /// holes of ordinary memory, which somebody who ran before our fork hook
    /// (a hook registered even earlier) may have touched. It saw zeros in place
    /// of data: the child must not go on with that.
    fn refuse_strangers(region: &Region) {
        const GROUP: usize = PAGE_SIZE / size_of::<u64>();
        let mut mapped = [0_u8; GROUP];
        for group in region.resident.touched_words().pages() {
            let first = group * GROUP;
            let mapped = &mut mapped[..GROUP.min(region.pages() - first)];
            match region.mapped.mapped(first, mapped) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => die("a forked child cannot look at its memory", error.errno),
            }
            for (page, _) in (first..).zip(mapped).filter(|(_, seen)| **seen & 1 == 1) {
                if region.table.load(page).state() != State::Resident {
                    die(
                        "a fork handler touched ghost memory before it was restored in the child",
                        14,
                    );
                }
            }
        }
    }

    /// In a forked child: the region's pages under a mechanism of the child's
    /// own.
    fn take_over_region(&self, region: &Region) {
        self.repair_region(region);
        let is_resident = |page: &usize| region.table.load(*page).state() == State::Resident;
        let resident = region.resident.all().filter(is_resident);
        if let Err(error) = region.mapped.after_fork_in_child(resident) {
            die("a forked child cannot take over a heap", error.errno);
        }
        // Where mappings have run out, not all pages were opened.
        if self.backend.splits_mappings() && region.has_pins() {
            let is_pinned = |page: &usize| region.table.load(*page).is_pinned();
            for page in region.resident.all().filter(is_pinned) {
                if let Err(error) = self.unprotect(region, page, 1) {
                    die("a pinned page cannot be opened in a child", error.errno);
                }
            }
        }
    }

    /// In a forked child write protection is gone, so no copy can be trusted
    /// to match its page: clean pages become dirty ones.
    fn repair_region(&self, region: &Region) {
        region.resident.repair_after_fork();
        for page in region.resident.all() {
            let word = region.table.load(page);
            if word.is_clean() {
                self.free_slot(word);
                let word = word.with_clean(false).with_payload(0).with_waiters(false);
                region.table.repair_after_fork(page, word);
            }
        }
    }
}

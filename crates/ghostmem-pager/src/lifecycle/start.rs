//! Making an engine, giving it regions, ending it.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;

use ghostmem_codec::AnyCodec;
use ghostmem_fault::{Home, enrol, register};
use ghostmem_os::error::ENOMEM;
use ghostmem_os::lock::Lock;
use ghostmem_os::map::{MapArc, Reservation};
use ghostmem_os::shards::{LineStart, shards};
use ghostmem_os::{OsError, machine};
use ghostmem_store::SlabStore;

use crate::parts::aside::Aside;
use crate::parts::bound::ProcessBound;
use crate::parts::budget::Budget;
use crate::parts::cold::{ColdSettings, ColdTiers};
use crate::parts::config::{Config, LIMIT_PAGES_MIN};
use crate::parts::costs::CostMeter;
use crate::parts::engine::{Engine, REGIONS_MAX};
use crate::parts::metrics::Metrics;
use crate::parts::region::Region;
use crate::parts::slowdown::Slowed;
use crate::parts::tally::Tally;
use crate::parts::threads::ThreadTable;
use crate::parts::unwritten::Unwritten;
use crate::parts::wake::WorkerState;
use crate::parts::worth::Worth;

impl Engine {
    /// An engine with no region yet, whose cold pages go to `cold`'s tier when
    /// the store has its share.
    ///
    /// # Errors
    /// The kernel's refusal of memory or of the background threads.
    pub fn new(config: Config, cold: Option<ColdSettings>) -> Result<MapArc<Self>, OsError> {
        // The buffers are the process's: they have room for whatever codec another heap
        // of it may choose.
        ghostmem_fault::scratch_with(AnyCodec::state_words_most())?;
        let limit = config.limit_pages.max(LIMIT_PAGES_MIN);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let bound = ProcessBound::new(
            config.process_limit_bytes,
            config.follow_supplies,
            config.tree,
            limit,
        );
        let engine = MapArc::new(Self {
            backend: config.backend,
            store: SlabStore::new(config.store_capacity_bytes)?,
            cold: cold.map(ColdTiers::new),
            budget: Budget::new(limit, shards())?,
            bound,
            slowdown: (config.slowdown_ppm > 0).then(|| Slowed::new(config.slowdown_ppm, limit)),
            metrics: Metrics::new(shards())?,
            costs: CostMeter::new(),
            worth: Worth::new(),
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
            token: AtomicU64::new(0),
            token_since: AtomicU64::new(0),
            worker: WorkerState {
                asleep: AtomicU64::new(0),
                stands_back: AtomicBool::new(false),
                thread: Lock::new(None),
            },
            recorder: OnceLock::new(),
            allocated: AtomicUsize::new(0),
            pinned_pages: AtomicUsize::new(0),
            foreign: Tally::new(shards())?,
            unwritten: Unwritten::new(),
            copies: Tally::new(shards())?,
            copies_fit: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            aside: Aside::default(),
            _frames: LineStart,
            _evicted: LineStart,
            _costs: LineStart,
            _swept: LineStart,
            _pinned: LineStart,
            _blocks: LineStart,
            _background: LineStart,
            config,
        })?;
        engine.first_look()?;
        // Before the worker, so that no fork can lose it unnoticed.
        *engine.enrolment.lock() = Some(enrol(engine.clone())?);
        engine.share_store();
        let started = match engine.backend.has_threads() {
            true => Self::start_threads(&engine),
            false => Ok(()),
        };
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
        self.stop_demoter();
        let mut registrations = self.registrations.lock();
        let gone = core::mem::replace(&mut *registrations, [const { None }; REGIONS_MAX]);
        drop(registrations);
        drop(gone);
        let enrolment = self.enrolment.lock().take();
        drop(enrolment);
    }

    /// Adds a region and makes its faults ours.
    pub(crate) fn add_region(
        this: &MapArc<Self>,
        home: Home,
        blocks: bool,
    ) -> Result<usize, OsError> {
        let mut registrations = this.registrations.lock();
        let index = this.region_count();
        let no_room = OsError::new("region", ENOMEM);
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
            Home::Adopted {
                reservation,
                offset,
                len,
            },
            false,
        )
        .map(drop)
    }
}

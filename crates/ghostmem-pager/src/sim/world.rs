//! A program of which every byte is known.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use ghostmem_fault::sim::{Answer, Call, Manner, Odds, Outcome, Simulation, Thread};
use ghostmem_fault::{FaultSink, Opened};
use ghostmem_file::{Faults, Injected, Options};
use ghostmem_os::PAGE_SIZE;
use ghostmem_os::map::MapArc;
use ghostmem_table::PageState;

use crate::evict::reclaimer::Reclaimer;
use crate::parts::cold::{Cold, ColdSettings};
use crate::parts::config::Config;
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::tiers::demote::Turns;

mod audit;

/// Tries of an access that is not interrupted, before it counts as hung.
const TRIES: u32 = 4000;

type Page = Box<[u8; PAGE_SIZE]>;

/// What a thread does to a page.
#[derive(Debug, Clone, Copy)]
pub(super) enum Touch {
    Load,
    /// Stores bytes that begin anywhere in the page.
    Store(Data),
}

/// Bytes that pack in one way or the other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Data {
    /// Some bytes in the middle.
    Few,
    /// A whole page of one value.
    Filled,
    /// A whole page that compresses.
    Text,
    /// A whole page that does not.
    Noise,
    /// What is there already.
    Same,
}

pub(super) const DATA: [Data; 4] = [Data::Few, Data::Filled, Data::Text, Data::Noise];

pub(super) struct World {
    pub(super) sim: Rc<Simulation>,
    pub(super) engine: MapArc<Engine>,
    /// What each page holds that is not all zero, by its address.
    model: RefCell<BTreeMap<usize, Page>>,
    /// Blocks handed out: address and pages.
    pub(super) blocks: RefCell<Vec<(usize, usize)>>,
    threads: RefCell<Vec<Thread>>,
    reclaimer: RefCell<Reclaimer>,
    demoter: RefCell<Turns>,
    /// Addresses that a call at the bottom of the stack changes: nobody may touch them
    /// meanwhile, as neither order would be wrong.
    pub(super) busy: RefCell<Range<usize>>,
    /// Pages that the program has locked.
    pub(super) locked: RefCell<BTreeSet<usize>>,
    /// Threads in the middle of an access: one bit each.
    active: Cell<u32>,
    /// The resident limit, or what was resident when it was lowered.
    ceiling: Cell<i64>,
}

/// Settings of a simulated engine: nothing ahead of demand but what the test asks for.
pub(super) fn config(manner: Manner, limit_pages: usize) -> Config {
    Config {
        readahead: true,
        background: true,
        report_thrashing: false,
        report_denied: true,
        slowdown_ppm: 0,
        store_capacity_bytes: 64 << 20,
        ..Config::for_tests_on(Opened::sim(manner), limit_pages)
    }
}

/// A disk of the simulation of whatever thread uses it: others act in the middle of its
/// calls, which may fail.
#[derive(Debug)]
struct Disk;

impl Disk {
    fn call(call: Call, offset: u64) -> Injected {
        let answer = Simulation::current().map(|sim| sim.call(call, offset as usize / PAGE_SIZE));
        match answer {
            Some(Answer::Refused(errno)) => Injected::Errno(errno),
            _ => Injected::Nothing,
        }
    }
}

impl Faults for Disk {
    fn read(&self, offset: u64, _len: usize) -> Injected {
        Self::call(Call::DiskRead, offset)
    }
    fn write(&self, offset: u64, _len: usize) -> Injected {
        Self::call(Call::DiskWrite, offset)
    }
    fn punch(&self, _offset: u64, _len: u64) -> Injected {
        Injected::Nothing
    }
}

/// A file tier below a store that may hold `store_bytes`. The file is a real one without a
/// name; what it is asked goes through the simulation.
pub(super) fn file(store_bytes: usize) -> ColdSettings {
    let options = Options::unnamed(std::env::temp_dir()).direct(false);
    let file = Cold::file(&options.faults(&Disk)).unwrap();
    ColdSettings::new(file, Some(store_bytes)).unwrap()
}

impl World {
    pub(super) fn new(
        sim: &Rc<Simulation>,
        config: Config,
        cold: Option<ColdSettings>,
    ) -> Rc<Self> {
        let engine = Engine::new(config, cold).unwrap();
        Rc::new(Self {
            sim: sim.clone(),
            model: RefCell::default(),
            blocks: RefCell::default(),
            threads: RefCell::new((1..=8).map(Thread::new).collect()),
            reclaimer: RefCell::new(Reclaimer::new(8)),
            demoter: RefCell::new(Turns::new()),
            busy: RefCell::new(0..0),
            locked: RefCell::default(),
            active: Cell::new(0),
            ceiling: Cell::new(engine.budget.limit()),
            engine,
        })
    }

    /// Runs `test` in a world of its own: userfaultfd's manner, and from one seed.
    pub(super) fn run(seed: u64, limit_pages: usize, test: impl FnOnce(&Rc<Self>)) {
        Simulation::run(seed, |sim| {
            let world = Self::new(sim, config(Manner::Userfaultfd, limit_pages), None);
            test(&world);
            world.end();
        });
    }

    pub(super) fn count(&self, counter: Counter) -> u64 {
        self.engine.metrics.sum(counter)
    }

    pub(super) fn state(&self, address: usize) -> PageState {
        self.engine.page_state(address).unwrap()
    }

    // Blocks.

    pub(super) fn allocate(&self, pages: usize) -> usize {
        let address = Engine::allocate(&self.engine, pages, 1).unwrap();
        self.blocks.borrow_mut().push((address, pages));
        address
    }

    pub(super) fn free(&self, address: usize) {
        let at = self
            .blocks
            .borrow()
            .iter()
            .position(|block| block.0 == address);
        let (_, pages) = self.blocks.borrow_mut().swap_remove(at.unwrap());
        let range = address..address + pages * PAGE_SIZE;
        self.model
            .borrow_mut()
            .retain(|page, _| !range.contains(page));
        // A block whose frames the kernel keeps is never handed out again, as it must be.
        let odds = self.sim.odds();
        self.sim.set_odds(Odds {
            kept: 0,
            protect: 0,
            ..odds
        });
        self.busy.replace(range);
        assert_eq!(self.engine.free(address), Ok(pages * PAGE_SIZE));
        self.busy.replace(0..0);
        self.sim.set_odds(odds);
    }

    pub(super) fn discard(&self, address: usize, pages: usize) {
        let range = address..address + pages * PAGE_SIZE;
        self.busy.replace(range.clone());
        self.engine.discard(address, pages * PAGE_SIZE).unwrap();
        self.busy.replace(0..0);
        for page in range.step_by(PAGE_SIZE) {
            if self.state(page) == PageState::Empty {
                self.model.borrow_mut().remove(&page);
                continue;
            }
            let may_stay = self.engine.is_pinned(page, 1)
                || self.sim.odds().kept > 0
                || self.locked.borrow().contains(&page);
            assert!(may_stay, "a discarded page is {:?}", self.state(page));
        }
    }

    /// Locks a page, as mlock(2) does, or unlocks it.
    pub(super) fn set_locked(&self, page: usize, locked: bool) {
        self.sim.set_locked(page, locked);
        match locked {
            true => self.locked.borrow_mut().insert(page),
            false => self.locked.borrow_mut().remove(&page),
        };
    }

    /// Makes a block longer or shorter; whether that worked.
    pub(super) fn resize(&self, address: usize, pages: usize) -> bool {
        let at = self
            .blocks
            .borrow()
            .iter()
            .position(|block| block.0 == address);
        let before = self.blocks.borrow()[at.unwrap()].1;
        self.busy.replace(address..address + before * PAGE_SIZE);
        let resized = self.engine.resize(address, pages);
        self.busy.replace(0..0);
        if resized {
            self.blocks.borrow_mut()[at.unwrap()].1 = pages;
        }
        // Pages that a block was to lose may be forgotten even where it keeps them.
        for page in (address + pages * PAGE_SIZE..address + before * PAGE_SIZE).step_by(PAGE_SIZE) {
            if self.state(page) == PageState::Empty {
                self.model.borrow_mut().remove(&page);
            }
            // Emptied while it was open: guard by mprotect(2) could not close it.
            let is_gone =
                self.state(page) == PageState::Empty || self.engine.backend.splits_mappings();
            assert!(!resized || is_gone);
        }
        resized
    }

    pub(super) fn set_limit(&self, pages: usize) {
        self.engine.set_limit_pages(pages);
        let budget = &self.engine.budget;
        self.ceiling.set(budget.limit().max(budget.used()));
    }

    // Touches.

    fn bytes_of(&self, page: usize, data: Data) -> (usize, Vec<u8>) {
        let word = self.sim.random();
        match data {
            Data::Few => {
                let len = 1 + self.sim.below(64);
                let at = self.sim.below(PAGE_SIZE - len);
                (at, word.to_le_bytes().repeat(8)[..len].to_vec())
            }
            Data::Filled => (0, vec![word as u8; PAGE_SIZE]),
            Data::Text => {
                let words = [word, word.rotate_left(9), 7, word ^ 5];
                let text = words.iter().flat_map(|word| word.to_le_bytes());
                let text: Vec<u8> = text.collect();
                let mut page: Vec<u8> = text.repeat(PAGE_SIZE / text.len());
                page[self.sim.below(PAGE_SIZE)] ^= 0x55;
                (0, page)
            }
            Data::Noise => {
                let words = (0..PAGE_SIZE / 8).flat_map(|_| self.sim.random().to_le_bytes());
                (0, words.collect())
            }
            Data::Same => (0, self.expected(page).to_vec()),
        }
    }

    fn expected(&self, page: usize) -> [u8; PAGE_SIZE] {
        let model = self.model.borrow();
        model.get(&page).map_or([0; PAGE_SIZE], |bytes| **bytes)
    }

    /// One try of an access to the page at `page` by the thread of this number.
    pub(super) fn try_touch(&self, thread: usize, page: usize, touch: Touch) -> Outcome {
        let (active, bit) = (self.active.get(), 1 << thread);
        if active & bit != 0 || self.busy.borrow().contains(&page) {
            return Outcome::WouldWait;
        }
        self.active.set(active | bit);
        let mut me = self.threads.borrow()[thread].clone();
        let outcome = match touch {
            Touch::Load => {
                let mut bytes = [0; PAGE_SIZE];
                let outcome = self.sim.load(&mut me, page, &mut bytes);
                if outcome == Outcome::Done && bytes != self.expected(page) {
                    self.wrong(page, &bytes);
                }
                outcome
            }
            Touch::Store(data) => {
                let (at, bytes) = self.bytes_of(page, data);
                let outcome = self.sim.store(&mut me, page + at, &bytes);
                if outcome == Outcome::Done {
                    let mut model = self.model.borrow_mut();
                    let held = model
                        .entry(page)
                        .or_insert_with(|| Box::new([0; PAGE_SIZE]));
                    held[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                outcome
            }
        };
        self.threads.borrow_mut()[thread] = me;
        self.active.set(self.active.get() & !bit);
        self.check();
        outcome
    }

    fn wrong(&self, page: usize, bytes: &[u8; PAGE_SIZE]) -> ! {
        let expected = self.expected(page);
        let at = (0..PAGE_SIZE).find(|&at| bytes[at] != expected[at]);
        let (region, index) = self.engine.locate(page).unwrap();
        panic!(
            "byte {at:?} of page {index} is wrong: {:?}",
            region.table.load(index)
        );
    }

    /// An access to its end.
    pub(super) fn touch(&self, thread: usize, page: usize, touch: Touch) {
        for _ in 0..TRIES {
            match self.try_touch(thread, page, touch) {
                Outcome::Done => return,
                Outcome::WouldWait => {}
                Outcome::Refused => panic!("{touch:?} of a page of a block was refused"),
            }
        }
        panic!("{touch:?} gets nowhere");
    }

    pub(super) fn load(&self, page: usize) {
        self.touch(0, page, Touch::Load);
    }

    pub(super) fn store(&self, page: usize, data: Data) {
        self.touch(0, page, Touch::Store(data));
    }

    pub(super) fn evict(&self, address: usize, pages: usize) -> usize {
        self.engine.evict(address, pages * PAGE_SIZE).unwrap()
    }

    /// A turn of the background thread.
    pub(super) fn reclaimer_turn(&self) {
        // Nobody runs it twice at once.
        if let Ok(mut reclaimer) = self.reclaimer.try_borrow_mut() {
            let nap = self.engine.reclaimer_step(&mut reclaimer);
            self.sim.note(nap.map_or(1, |nap| nap.as_nanos() as u64));
        }
    }

    /// A turn of the thread that moves pages to the file, where there is one. For the
    /// bottom of the stack: it waits for those who read the file.
    pub(super) fn demoter_turn(&self) {
        if let Some(cold) = &self.engine.cold {
            let nap = self
                .engine
                .demoter_step(cold, &mut self.demoter.borrow_mut());
            self.sim.note(nap.map_or(1, |nap| nap.as_nanos() as u64));
        }
    }

    // Forks.

    /// A fork after which the simulation goes on as the parent.
    pub(super) fn fork_as_parent(&self) {
        self.before_fork();
        self.engine.after_fork_in_parent();
        self.busy.replace(0..0);
    }

    /// A fork after which it goes on as the child.
    pub(super) fn fork_as_child(&self) {
        self.before_fork();
        self.engine.after_fork_in_child();
        self.engine.give_to_monitor_in_child();
        self.engine.restart_threads_in_child();
        self.busy.replace(0..0);
        // Locks are not inherited.
        self.locked.borrow_mut().clear();
    }

    fn before_fork(&self) {
        // The gate is frozen: nobody else.
        self.busy.replace(0..usize::MAX);
        assert!(self.engine.try_before_fork());
        self.engine.cancel_fork();
        assert!(self.engine.try_before_fork());
        self.engine.copy_for_fork().unwrap();
    }
}

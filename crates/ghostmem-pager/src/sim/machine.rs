//! The program of a run: its operations, each on an actor's own stack, and what must hold
//! while they run.

use core::sync::atomic::Ordering;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use ghostmem_codec::AnyCodec;
use ghostmem_fault::sim::{Manner, Simulation, Thread};
use ghostmem_fault::{FaultSink, Opened};
use ghostmem_os::map::MapArc;
use ghostmem_os::{PAGE_SIZE, futex};
use ghostmem_table::PageState;

use crate::evict::reclaimer::Reclaimer;
use crate::parts::config::Config;
use crate::parts::engine::Engine;
use crate::parts::lost::{LostDecision, LostPage};
use crate::sim::disk::file;
use crate::sim::oracle::{Block, Bytes, Known, Use, ZEROS, kind_of, write};
use crate::sim::plan::{Op, Setting, Verb, mix};
use crate::sim::schedule::{PROGRAM, Schedule};
use crate::tiers::demote::Turns;

mod audit;
mod blocks;

/// Pages that are pinned at once, and locked: what cannot leave must fit what a fault may
/// exceed the limit by.
const PINNED_MAX: usize = 10;
const LOCKED_MAX: usize = 3;

/// Pins of one page: more than 16 bits count.
const OFTEN: usize = (1 << 16) + 2;

/// A page is read once more now and then: what a disk says may be true the next time.
fn on_lost(lost: &LostPage) -> LostDecision {
    match lost.tries {
        1 => LostDecision::Retry,
        _ => LostDecision::Stop,
    }
}

pub(crate) struct Machine {
    sim: Rc<Simulation>,
    schedule: &'static Schedule,
    engine: MapArc<Engine>,
    setting: Setting,
    blocks: RefCell<Vec<Rc<Block>>>,
    /// Blocks that were freed and are nobody's yet: pinned, or kept by the kernel.
    leaving: RefCell<Vec<(usize, usize)>>,
    threads: RefCell<Vec<Thread>>,
    pins: RefCell<Vec<(usize, usize)>>,
    /// Pages pinned, or about to be.
    pinned: Cell<usize>,
    locked: RefCell<Vec<usize>>,
    reclaimer: RefCell<Reclaimer>,
    demoter: RefCell<Turns>,
    /// There are a reclaimer and a demoter.
    has_threads: Cell<bool>,
    /// The resident limit, or what was resident when it was lowered.
    ceiling: Cell<i64>,
    /// Frames beyond the limit taken before it was kept to the last time.
    overdrafts: Cell<u64>,
    is_limiting: Cell<bool>,
    is_forking: Cell<bool>,
}

impl Machine {
    pub(crate) fn new(
        sim: &Rc<Simulation>,
        setting: &Setting,
        schedule: &'static Schedule,
    ) -> Rc<Self> {
        let manner = match setting.manner {
            0 => Manner::Userfaultfd,
            1 => Manner::Guard,
            _ => Manner::GuardByMprotect,
        };
        let config = Config {
            limit_pages: setting.limit as usize,
            memory_limit_bytes: None,
            process_limit_bytes: None,
            follow_supplies: false,
            tree: None,
            backend: Opened::sim(manner),
            codec: AnyCodec::Lz4,
            compress: setting.compress == 1,
            on_lost: Some(on_lost),
            readahead: setting.readahead == 1,
            background: true,
            background_in_children: setting.heirs == 1,
            keep_copies: setting.copies == 1,
            report_thrashing: false,
            report_denied: true,
            slowdown_ppm: 0,
            store_capacity_bytes: 16 << 20,
        };
        let cold = (setting.file == 1).then(|| file(setting));
        sim.set_keeps_locked(setting.keeps_locked == 1);
        let engine = Engine::new(config, cold).expect("an engine");
        Rc::new(Self {
            sim: sim.clone(),
            schedule,
            setting: *setting,
            blocks: RefCell::default(),
            leaving: RefCell::default(),
            threads: RefCell::new((1..=PROGRAM as u64).map(Thread::new).collect()),
            pins: RefCell::default(),
            pinned: Cell::new(0),
            locked: RefCell::default(),
            reclaimer: RefCell::new(Reclaimer::new(8)),
            demoter: RefCell::new(Turns::new()),
            has_threads: Cell::new(true),
            ceiling: Cell::new(engine.budget.limit()),
            overdrafts: Cell::new(0),
            is_limiting: Cell::new(false),
            is_forking: Cell::new(false),
            engine,
        })
    }

    /// One operation, by one actor.
    pub(crate) fn perform(&self, actor: usize, op: Op) {
        let (at, how) = (op.at, op.how);
        match op.verb {
            Verb::Load => self.on_page(at, |block, page| self.touch(actor, block, page, None)),
            Verb::Store => self.on_page(at, |block, page| {
                self.touch(actor, block, page, Some(mix(how, 1, 1)));
            }),
            Verb::Sweep => self.on_range(at, 24, |block, first, pages| {
                for page in first..first + pages {
                    let store = (how & 1 == 1).then(|| mix(how, page as u32, 1));
                    self.touch(actor, block, page, store);
                }
            }),
            Verb::Gather => self.gather(actor, at, how),
            Verb::Evict => self.on_range(at, 40, |block, first, pages| {
                let evicted = self.engine.evict(block.page(first), pages * PAGE_SIZE);
                evicted.expect("eviction of a block");
            }),
            Verb::EvictColdest => {
                self.engine.evict_coldest().expect("buffers");
            }
            Verb::Prefetch => self.on_range(at, 40, |block, first, pages| {
                let fetched = self.engine.prefetch(block.page(first), pages * PAGE_SIZE);
                assert!(fetched.is_ok() || self.setting.lies == 1, "{fetched:?}");
            }),
            Verb::MakeCold => self.on_range(at, 40, |block, first, pages| {
                let cold = self.engine.make_cold(block.page(first), pages * PAGE_SIZE);
                cold.expect("pages of a block");
            }),
            Verb::Discard => self.on_range(at, 24, |block, first, pages| {
                self.discard(block, first, pages);
            }),
            Verb::Allocate => self.allocate(how),
            Verb::Free => self.free(at),
            Verb::Resize => self.resize(at, how),
            Verb::Pin => self.on_range(at, 5, |block, first, pages| self.pin(block, first, pages)),
            Verb::PinOften => self.on_page(at, |block, page| self.pin_often(block, page)),
            Verb::Unpin => self.unpin(at),
            Verb::Limit => self.set_limit(12 + how as usize % 150),
            Verb::ForkParent => self.fork_as_parent(),
            Verb::ForkChild => self.fork_as_child(),
            Verb::Lock => self.on_page(at, |block, page| {
                let mut locked = self.locked.borrow_mut();
                if locked.len() < LOCKED_MAX {
                    locked.push(block.page(page));
                    self.sim.set_locked(block.page(page), true);
                }
            }),
            Verb::Unlock => {
                if let Some(page) = self.locked.borrow_mut().pop() {
                    self.sim.set_locked(page, false);
                }
            }
            Verb::Shed => {
                let inside = ghostmem_fault::gate().enter();
                self.engine.shed_copies(1 + how as usize % 40);
                drop(inside);
            }
            Verb::Compact => {
                self.engine.compact_store(how as usize % 64, 0);
            }
            Verb::Time => self.sim.advance(how % 300_000_000),
            Verb::Reclaimer | Verb::Demoter if !self.has_threads.get() => {}
            Verb::Reclaimer => {
                let nap = self.engine.reclaimer_step(&mut self.reclaimer.borrow_mut());
                self.sim.note(nap.map_or(1, |nap| nap.as_nanos() as u64));
            }
            Verb::Demoter => {
                if let Some(cold) = &self.engine.cold {
                    let nap = self
                        .engine
                        .demoter_step(cold, &mut self.demoter.borrow_mut());
                    self.sim.note(nap.map_or(1, |nap| nap.as_nanos() as u64));
                }
            }
            Verb::Audit => self.audit(),
        }
        self.check();
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.schedule.tells.get() {
            println!("    {}", what());
        }
    }

    // Where.

    /// The block with the next number from that on: where one is left out of a script,
    /// only those who meant it mean another one.
    fn index_of(&self, at: u64) -> Option<usize> {
        let blocks = self.blocks.borrow();
        let distance = |block: &Block| block.number.wrapping_sub(at as u8);
        (0..blocks.len()).min_by_key(|&index| distance(&blocks[index]))
    }

    fn some_block(&self, at: u64) -> Option<Use> {
        let index = self.index_of(at)?;
        Some(self.blocks.borrow()[index].enter())
    }

    /// A page of a block, more often one near the start: some are hot.
    fn on_page(&self, at: u64, act: impl FnOnce(&Use, usize)) {
        if let Some(block) = self.some_block(at) {
            let page = place(at, block.pages.get());
            self.tell(|| format!("page {page} of {:#x}", block.address));
            act(&block, page);
        }
    }

    fn on_range(&self, at: u64, most: usize, act: impl FnOnce(&Use, usize, usize)) {
        if let Some(block) = self.some_block(at) {
            let first = place(at, block.pages.get());
            let left = block.pages.get() - first;
            let pages = 1 + (at >> 52) as usize % left.min(most);
            self.tell(|| format!("{pages} pages from {first} of {:#x}", block.address));
            act(&block, first, pages);
        }
    }

    fn state(&self, address: usize) -> PageState {
        let state = self.schedule.at_once(|| self.engine.page_state(address));
        state.expect("a page of this engine")
    }

    // Touches.

    fn is_held(&self, address: usize) -> bool {
        let pins = self.pins.borrow();
        pins.iter()
            .any(|&(from, pages)| (from..from + pages * PAGE_SIZE).contains(&address))
    }

    /// A load, or the store of that number.
    fn touch(&self, actor: usize, block: &Use, page: usize, store: Option<u64>) {
        if let Some(how) = store {
            self.tell(|| format!("{} to page {page}", kind_of(how)));
        }
        self.touch_all(actor, block, &[page], store);
    }

    fn touch_all(&self, actor: usize, block: &Use, pages: &[usize], store: Option<u64>) {
        let addresses: Vec<usize> = pages.iter().map(|&page| block.page(page)).collect();
        for &address in &addresses {
            let open = !self.is_held(address) || self.sim.is_open(address, store.is_some());
            assert!(open, "a pinned page is not open");
        }
        let mut thread = self.threads.borrow()[actor].clone();
        let touched = self
            .sim
            .touch(&mut thread, &addresses, store.is_some(), |at, bytes| {
                let (page, mut known) = (pages[at], block.known.borrow_mut());
                self.verify(block, page, &known[page], bytes);
                known[page].learn(bytes, block.is_discarding(page));
                if let Some(how) = store {
                    write(how.wrapping_add(at as u64 * 8), &mut |at, new| {
                        bytes[at..at + new.len()].copy_from_slice(new);
                        known[page].store(at, new);
                    });
                }
            });
        self.threads.borrow_mut()[actor] = thread;
        if let Err(address) = touched {
            let page = (address - block.address) / PAGE_SIZE;
            let state = self.state(address);
            // It may have been discarded since.
            let known = &mut block.known.borrow_mut()[page];
            let told = self.setting.lies == 1 && (state == PageState::Lost || known.or_zero);
            assert!(told, "an access to a page that is {state:?} was refused");
            known.lost = true;
        }
    }

    fn verify(&self, block: &Block, page: usize, known: &Known, bytes: &Bytes) {
        if !known.allows(bytes) {
            self.wrong(block, page, known, bytes);
        }
    }

    fn wrong(&self, block: &Block, page: usize, known: &Known, bytes: &Bytes) -> ! {
        let expected = known.bytes();
        let at = (0..PAGE_SIZE).find(|&at| bytes[at] != expected[at]);
        let count = (0..PAGE_SIZE).filter(|&at| bytes[at] != expected[at]);
        let zeros = if *bytes == ZEROS { ", all zero" } else { "" };
        panic!(
            "{} bytes from {at:?} on of page {page} of the block of {} pages are wrong{zeros}: \
             {:?}",
            count.count(),
            block.pages.get(),
            self.state(block.page(page)),
        );
    }

    fn gather(&self, actor: usize, at: u64, how: u64) {
        let Some(block) = self.some_block(at) else {
            return;
        };
        let pages = block.pages.get();
        let count = (2 + how as usize % 7).min(pages);
        let stride = (pages / count).min(1 + (how >> 8) as usize % 5).max(1);
        let all: Vec<usize> = (0..count).map(|step| step * stride).collect();
        let store = (how >> 16 & 1 == 1).then(|| mix(how, 2, 2));
        self.touch_all(actor, &block, &all, store);
    }

    // Pins.

    fn pin(&self, block: &Use, first: usize, pages: usize) {
        let most = PINNED_MAX.min(self.engine.budget.limit() as usize / 3);
        if self.pinned.get() + pages > most {
            return;
        }
        self.pinned.set(self.pinned.get() + pages);
        let address = block.page(first);
        if self.engine.pin(address, pages * PAGE_SIZE).is_ok() {
            self.pins.borrow_mut().push((address, pages));
        } else {
            self.pinned.set(self.pinned.get() - pages);
        }
    }

    fn unpin(&self, at: u64) {
        let mut pins = self.pins.borrow_mut();
        if pins.is_empty() {
            return;
        }
        let index = (at % pins.len() as u64) as usize;
        let (address, pages) = pins.swap_remove(index);
        drop(pins);
        let unpinned = self.engine.unpin(address, pages * PAGE_SIZE);
        unpinned.expect("pages of this engine");
        self.pinned.set(self.pinned.get() - pages);
    }

    fn pin_often(&self, block: &Use, page: usize) {
        let address = block.page(page);
        if self.engine.pin(address, PAGE_SIZE).is_err() {
            return;
        }
        self.pinned.set(self.pinned.get() + 1);
        self.pins.borrow_mut().push((address, 1));
        let more = |_: &usize| {
            self.schedule.gets_on();
            self.engine.pin(address, PAGE_SIZE).is_ok()
        };
        let pinned = (0..OFTEN).take_while(more).count();
        for _ in 0..pinned {
            self.schedule.gets_on();
            let unpinned = self.engine.unpin(address, PAGE_SIZE);
            unpinned.expect("a page of this engine");
            if self.is_held(address) {
                let open = self.sim.is_open(address, true);
                assert!(open, "a page with a pin left is not open");
            }
        }
    }

    // Limits.

    fn set_limit(&self, pages: usize) {
        if self.is_limiting.replace(true) {
            return;
        }
        let budget = &self.engine.budget;
        self.ceiling.set(self.ceiling.get().max(pages as i64));
        self.engine.set_limit_pages(pages);
        self.ceiling.set(budget.limit().max(budget.used()));
        self.is_limiting.set(false);
    }

    // Forks.

    fn before_fork(&self) {
        while !self.engine.try_before_fork() {
            futex::pause(0);
        }
        ghostmem_fault::gate().freeze();
        self.engine.copy_for_fork().expect("a copy for the child");
    }

    /// A fork after which the simulation goes on as the parent.
    fn fork_as_parent(&self) {
        if self.is_forking.replace(true) {
            return;
        }
        self.before_fork();
        ghostmem_fault::gate().thaw();
        self.engine.after_fork_in_parent();
        self.is_forking.set(false);
    }

    /// A fork after which it goes on as the child, of a process that had one thread.
    fn fork_as_child(&self) {
        self.before_fork();
        self.engine.after_fork_in_child();
        ghostmem_fault::gate().thaw();
        self.engine.give_to_monitor_in_child();
        self.engine.restart_threads_in_child();
        self.replace_threads();
        // Locks are not inherited.
        self.locked.borrow_mut().clear();
    }

    /// The threads of a child remember nothing of those of its parent, or are not there at
    /// all. The engine had no thread to begin with, and could start none.
    fn replace_threads(&self) {
        let are_there = self.has_threads.get() && self.setting.heirs == 1;
        self.has_threads.set(are_there);
        self.reclaimer.replace(Reclaimer::new(8));
        self.demoter.replace(Turns::new());
        if let Some(cold) = self.engine.cold.as_ref().filter(|_| are_there) {
            cold.failing.store(false, Ordering::Relaxed);
        }
    }
}

/// A page of so many, more often one near the start.
fn place(at: u64, pages: usize) -> usize {
    let most = 1 + (at >> 16) as usize % pages;
    (at >> 34) as usize % most
}

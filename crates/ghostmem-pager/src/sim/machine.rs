//! The program of a run: its operations, each on an actor's own stack, and what must hold
//! while they run.

use core::sync::atomic::Ordering;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::rc::Rc;

use ghostmem_codec::AnyCodec;
use ghostmem_fault::sim::{Manner, Simulation, Thread};
use ghostmem_fault::{FaultSink, Opened};
use ghostmem_os::map::MapArc;
use ghostmem_os::{PAGE_SIZE, futex};
use ghostmem_store::Place;
use ghostmem_table::{PageState, Word};

use crate::evict::reclaimer::Reclaimer;
use crate::parts::config::Config;
use crate::parts::engine::Engine;
use crate::parts::lost::{LostDecision, LostPage};
use crate::parts::metrics::Counter;
use crate::sim::disk::file;
use crate::sim::oracle::{Block, Bytes, Known, Use, ZEROS, kind_of, write};
use crate::sim::plan::{Op, Setting, Verb, mix};
use crate::sim::schedule::{PROGRAM, Schedule};
use crate::tiers::demote::Turns;

/// Pages of a block when it is allocated, at most.
const BLOCK_PAGES_MAX: u64 = 90;

/// Pages of one that grows, at most.
const GROWN_PAGES_MAX: usize = 4 * BLOCK_PAGES_MAX as usize;

/// Frames beyond the limit that `fault::frame` may take when nothing can leave.
const OVERDRAFT_MAX: i64 = 68;

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
            follow_places: false,
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

    // Blocks.

    fn allocate(&self, how: u64) {
        let held: usize = self.blocks.borrow().iter().map(|b| b.pages.get()).sum();
        if held as u64 >= self.setting.pages {
            return;
        }
        let most = BLOCK_PAGES_MAX.min(self.setting.pages / 2);
        let pages = 1 + (how % most) as usize;
        let address = Engine::allocate(&self.engine, pages, 1).expect("there is no limit");
        self.take(address, pages, (how >> 48) as u8);
    }

    /// The program has a new block.
    fn take(&self, address: usize, pages: usize, number: u8) {
        let block = Block::new(address, pages, number);
        self.forget_those_that_left();
        let overlaps = |from: usize, end: usize| from < block.end() && address < end;
        for &(from, pages) in self.leaving.borrow().iter() {
            let end = from + pages * PAGE_SIZE;
            assert!(!overlaps(from, end), "a block that is not free yet");
        }
        for other in self.blocks.borrow().iter() {
            assert!(!overlaps(other.address, other.end()), "a block of others");
        }
        self.tell(|| format!("{pages} pages at {address:#x}"));
        self.blocks.borrow_mut().push(block);
    }

    /// A block without users, which nobody finds until it is put back.
    fn take_away(&self, at: u64) -> Option<Rc<Block>> {
        let index = self.index_of(at)?;
        let mut blocks = self.blocks.borrow_mut();
        blocks.get(index).filter(|block| !block.is_used())?;
        Some(blocks.swap_remove(index))
    }

    fn is_leaving(&self, address: usize) -> bool {
        self.schedule.at_once(|| {
            let found = self.engine.locate(address);
            let (region, page) = found.expect("a page of this engine");
            let blocks = region.blocks.as_ref().expect("blocks");
            blocks.freeing(page).is_some()
        })
    }

    fn forget_those_that_left(&self) {
        let mut leaving = self.leaving.borrow_mut();
        leaving.retain(|&(address, _)| self.is_leaving(address));
    }

    fn free(&self, at: u64) {
        let Some(block) = self.take_away(at) else {
            return;
        };
        let (address, pages) = (block.address, block.pages.get());
        self.tell(|| format!("{pages} pages at {address:#x}"));
        assert_eq!(self.engine.free(address), Ok(pages * PAGE_SIZE));
        if self.is_leaving(address) {
            self.leaving.borrow_mut().push((address, pages));
        }
    }

    fn resize(&self, at: u64, how: u64) {
        let Some(block) = self.take_away(at) else {
            return;
        };
        let before = block.pages.get();
        let pages = 1 + how as usize % (2 * before).min(GROWN_PAGES_MAX);
        self.tell(|| format!("{:#x}, {before} pages, to {pages}", block.address));
        let resized = self.engine.resize(block.address, pages);
        let mut known = block.known.borrow_mut();
        for page in pages..before {
            let state = self.state(block.page(page));
            // Emptied while it was open, see `look_at_emptied`.
            let is_gone = state == PageState::Empty || self.setting.manner == 2;
            assert!(!resized || is_gone, "a page of no block is {state:?}");
            // Pages that it was to lose may be forgotten even where it keeps them.
            known[page].or_zero = true;
        }
        if resized {
            block.pages.set(pages);
            known.resize_with(pages, Known::default);
        }
        drop(known);
        // It may have grown over one that was leaving.
        self.forget_those_that_left();
        self.blocks.borrow_mut().push(block);
    }

    fn discard(&self, block: &Use, first: usize, pages: usize) {
        let (range, uses) = ((first, first + pages), block.uses.get());
        let alone = block.is_used_once();
        // It may be let go of, and leave, before it is looked at.
        let mut addresses = (first..first + pages).map(|page| block.page(page));
        let is_held = addresses.any(|page| self.is_held(page) || self.sim.is_locked(page));
        block.discarding.borrow_mut().push(range);
        for known in &mut block.known.borrow_mut()[first..first + pages] {
            known.or_zero = true;
        }
        let discarded = self.engine.discard(block.page(first), pages * PAGE_SIZE);
        discarded.expect("pages of a block");
        let mut discarding = block.discarding.borrow_mut();
        let at = discarding.iter().position(|&other| other == range);
        discarding.swap_remove(at.expect("it was there"));
        drop(discarding);
        if !alone || block.uses.get() != uses {
            // The next access says what became of each page.
            return;
        }
        for page in first..first + pages {
            let address = block.page(page);
            let mut is_zero = self.state(address) == PageState::Empty;
            let mut has_frame = false;
            self.sim.look(address, |bytes| {
                has_frame = true;
                is_zero |= *bytes == ZEROS;
            });
            let known = &mut block.known.borrow_mut()[page];
            if is_zero {
                known.clear();
                continue;
            }
            // Pinned, locked, kept; or brought in ahead of somebody else's fault.
            let state = self.state(address);
            let may_stay = has_frame || is_held || self.setting.wrong == 1;
            let stays = may_stay || state != PageState::Stored;
            assert!(stays, "a discarded page is {state:?}");
        }
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

    // What must hold.

    /// At every moment, in the middle of calls too.
    pub(crate) fn check(&self) {
        let budget = &self.engine.budget;
        let (used, frames) = (budget.used(), self.sim.frames() as i64);
        assert!(
            frames <= used,
            "{frames} pages are mapped, of {used} that were taken"
        );
        let overdrafts = self.engine.metrics.sum(Counter::overdrafts);
        if used <= budget.limit() {
            self.overdrafts.set(overdrafts);
        }
        let over = match overdrafts - self.overdrafts.get() {
            0 => 0,
            _ => OVERDRAFT_MAX.max(budget.limit() / 8),
        };
        let most = self.ceiling.get() + over;
        assert!(
            used <= most,
            "{used} pages are resident, the limit is {most}"
        );
        // Once they are fewer, they may not be more again.
        if !self.is_limiting.get() {
            let now = budget.limit().max(used);
            self.ceiling.set(self.ceiling.get().min(now));
        }
        if let Some(what) = self.sim.broken() {
            panic!("{what}");
        }
    }

    /// When nobody is in the middle of anything: words, frames, slots and copies agree.
    fn audit(&self) {
        self.schedule.at_once(|| {
            self.check();
            self.audit_words();
            for block in self.blocks.borrow().iter() {
                for (page, known) in block.known.borrow().iter().enumerate() {
                    self.sim.look(block.page(page), |bytes| {
                        self.verify(block, page, known, bytes);
                    });
                }
            }
        });
    }

    fn audit_words(&self) {
        let (mut resident, mut copies, mut pinned) = (0, 0, 0);
        let (mut slots, mut places) = (HashSet::new(), HashSet::new());
        for region in self.engine.regions() {
            let groups = region.resident.touched_words().pages();
            for page in groups.flat_map(|group| {
                let first = group * PAGE_SIZE / 8;
                first..(first + PAGE_SIZE / 8).min(region.pages())
            }) {
                let word = region.table.load(page);
                let state = word.state();
                let copied = state == PageState::Resident && word.has_copy();
                resident += i64::from(state == PageState::Resident);
                copies += usize::from(copied);
                pinned += usize::from(word.is_pinned());
                let lost = state == PageState::Lost && self.setting.lies == 1;
                let rests = matches!(
                    state,
                    PageState::Empty | PageState::Filled | PageState::Resident | PageState::Stored
                );
                assert!(rests || lost, "page {page} was left {state:?}");
                if copied || state == PageState::Stored {
                    let place = Place::from_bits(word.payload());
                    let new = match place.expect("a place") {
                        Place::Store(slot) => slots.insert(slot.bits()),
                        Place::Cold(..) => places.insert(word.payload()),
                    };
                    assert!(new, "page {page} shares the place of another one");
                }
            }
        }
        let engine = &self.engine;
        let used = engine.budget.used();
        assert_eq!(used, resident, "frames taken, pages resident");
        let frames = self.sim.frames() as i64;
        // A page of zeros that nobody has touched yet is a hole in guard's file.
        let agree = frames == resident || (self.setting.manner > 0 && frames < resident);
        assert!(agree, "{frames} frames mapped, {resident} pages resident");
        assert_eq!(
            engine.copies.sum(),
            copies,
            "copies counted, pages with one"
        );
        let stats = engine.stats();
        assert_eq!(stats.stored_pages, slots.len(), "slots, of pages");
        assert_eq!(
            stats.file_pages,
            places.len(),
            "places in the file, of pages"
        );
        let of_pins: HashSet<usize> = self
            .pins
            .borrow()
            .iter()
            .flat_map(|&(from, pages)| (0..pages).map(move |page| from + page * PAGE_SIZE))
            .collect();
        assert_eq!(pinned, of_pins.len(), "pinned words, pages with pins");
        let allocated: usize = self.blocks.borrow().iter().map(|b| b.pages.get()).sum();
        self.forget_those_that_left();
        let leaving: usize = self.leaving.borrow().iter().map(|left| left.1).sum();
        assert_eq!(
            stats.allocated_bytes,
            (allocated + leaving) * PAGE_SIZE,
            "bytes allocated, pages of blocks ({allocated}) and of those not free yet ({leaving})"
        );
    }

    /// Every page is read; then all is given back, and nothing is left of it.
    pub(crate) fn end(&self) {
        self.audit();
        while !self.pins.borrow().is_empty() {
            self.unpin(0);
        }
        for page in self.locked.take() {
            self.sim.set_locked(page, false);
        }
        self.sim.set_keeps_locked(false);
        let blocks = self.blocks.take();
        for block in &blocks {
            let block = block.enter();
            (0..block.pages.get()).for_each(|page| self.touch(0, &block, page, None));
        }
        for block in blocks {
            let bytes = block.pages.get() * PAGE_SIZE;
            assert_eq!(self.engine.free(block.address), Ok(bytes));
        }
        self.audit();
        let leaving = self.leaving.borrow();
        let mut emptied = 0;
        for region in self.engine.regions() {
            let left = region.resident.touched_words().pages().flat_map(|group| {
                let first = group * PAGE_SIZE / 8;
                first..(first + PAGE_SIZE / 8).min(region.pages())
            });
            for page in left {
                let (word, address) = (region.table.load(page), region.base() + page * PAGE_SIZE);
                let kept = leaving
                    .iter()
                    .any(|&(from, pages)| (from..from + pages * PAGE_SIZE).contains(&address));
                if !kept && word.state() != PageState::Empty {
                    self.look_at_emptied(address, word);
                    emptied += 1;
                }
            }
        }
        if leaving.is_empty() && emptied == 0 {
            let stats = self.engine.stats();
            assert_eq!(self.engine.budget.used(), 0, "frames are left");
            assert_eq!(self.sim.frames(), 0, "frames are left");
            let left = (stats.stored_pages, stats.file_pages, stats.kept_copies);
            assert_eq!(left, (0, 0, 0), "slots, places, copies are left");
        }
        self.engine.shut_down();
    }

    /// A page of no block that is not empty: guard by mprotect(2) empties a page that the
    /// kernel does not let it close, and leaves it where it is, for the next owner.
    fn look_at_emptied(&self, address: usize, word: Word) {
        let state = word.state();
        let may_be = self.setting.manner == 2 && self.setting.wrong == 1;
        let is_zero = match state {
            PageState::Resident => true,
            PageState::Filled => word.payload() == 0,
            _ => false,
        };
        assert!(may_be && is_zero, "a page of no block is left {state:?}");
        self.sim.look(address, |bytes| {
            assert_eq!(*bytes, ZEROS, "a page of no block has bytes");
        });
    }
}

/// A page of so many, more often one near the start.
fn place(at: u64, pages: usize) -> usize {
    let most = 1 + (at >> 16) as usize % pages;
    (at >> 34) as usize % most
}

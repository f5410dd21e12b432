//! A random walk over all verbs at once.
//!
//! `GHOSTMEM_SIM_STEPS` makes each walk as long as wanted, `GHOSTMEM_SIM_SEED` begins all
//! of them at a seed (a number, `0x` or not): what a failing walk prints, walks again.

use std::cell::Cell;
use std::rc::Rc;

use ghostmem_fault::sim::{Call, Manner, Odds, Simulation};
use ghostmem_os::PAGE_SIZE;

use crate::parts::engine::Engine;
use crate::sim::world::{DATA, Data, Touch, World, config, file};

/// Pages of all blocks together, at most about.
const PAGES_MAX: usize = 600;

/// Pages that are pinned at once, and locked: what cannot leave must fit what a fault may
/// exceed the limit by.
const PINNED_MAX: usize = 16;
const LOCKED_MAX: usize = 4;

/// Steps of one walk in the tests that always run.
const STEPS: u64 = 12_000;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

struct Walk {
    world: Rc<World>,
    pins: Vec<(usize, usize)>,
}

fn some_block(world: &World) -> Option<(usize, usize)> {
    let blocks = world.blocks.borrow();
    blocks.get(world.sim.below(blocks.len().max(1))).copied()
}

/// A page of a block, more often one near the start: some are hot.
fn some_page(world: &World) -> Option<usize> {
    let (block, pages) = some_block(world)?;
    let most = pages.min(1 + world.sim.below(pages));
    Some(block + world.sim.below(most) * PAGE_SIZE)
}

/// A range of one block: address and pages.
fn some_range(world: &World, most: usize) -> Option<(usize, usize)> {
    let page = some_page(world)?;
    let blocks = world.blocks.borrow();
    let holds = |block: &&(usize, usize)| (block.0..block.0 + block.1 * PAGE_SIZE).contains(&page);
    let block = blocks.iter().find(holds)?;
    let left = block.1 - (page - block.0) / PAGE_SIZE;
    Some((page, 1 + world.sim.below(left.min(most))))
}

fn some_touch(world: &World) -> Touch {
    match world.sim.below(8) {
        0..4 => Touch::Load,
        4 => Touch::Store(Data::Same),
        _ => Touch::Store(DATA[world.sim.below(4)]),
    }
}

/// What others do in the middle of a call: nothing that may wait for who is interrupted.
fn interrupt(world: &Rc<World>, call: Call, depth: &Cell<u32>) {
    world.check();
    let frozen = world.busy.borrow().end == usize::MAX;
    // A disk takes its time: much happens meanwhile.
    let many = call == Call::DiskWrite && depth.get() == 0;
    if frozen || depth.get() == 2 || !(many || world.sim.happens(60)) {
        return;
    }
    depth.set(depth.get() + 1);
    for _ in 0..if many { 16 } else { 0 } {
        if let Some(page) = some_page(world) {
            world.try_touch(world.sim.below(8), page, some_touch(world));
            world.evict(page, 1);
        }
    }
    match world.sim.below(16) {
        0 => world.reclaimer_turn(),
        1 => {
            let inside = ghostmem_fault::gate().enter();
            world.engine.shed_copies(1 + world.sim.below(8));
            world.engine.compact_few();
            drop(inside);
        }
        2 => {
            if let Some((range, pages)) = some_range(world, 16) {
                world.evict(range, pages);
            }
        }
        _ => {
            if let Some(page) = some_page(world) {
                world.try_touch(world.sim.below(8), page, some_touch(world));
            }
        }
    }
    depth.set(depth.get() - 1);
}

impl Walk {
    fn begin(sim: &Rc<Simulation>, manner: Manner, with_file: bool) -> Self {
        let mut config = config(manner, 96);
        config.readahead = sim.below(4) > 0;
        let world = World::new(sim, config, with_file.then(|| file(16 << 10)));
        sim.set_odds(Odds {
            disk_full: 60,
            part: 100,
            protect: 30,
            unread: 20,
            kept: 10,
            slow: 4,
        });
        let (actor, depth) = (world.clone(), Cell::new(0));
        sim.set_hook(move |call| interrupt(&actor, call, &depth));
        let pins = Vec::new();
        Self { world, pins }
    }

    fn is_pinned(&self, address: usize, pages: usize) -> bool {
        self.world.engine.is_pinned(address, pages * PAGE_SIZE)
    }

    fn step(&mut self) {
        let world = &self.world.clone();
        let sim = &world.sim;
        match sim.below(1000) {
            0..600 => {
                if let Some(page) = some_page(world) {
                    world.touch(sim.below(8), page, some_touch(world));
                }
            }
            600..640 => {
                if let Some((range, pages)) = some_range(world, 24) {
                    let (thread, touch) = (sim.below(8), some_touch(world));
                    for page in 0..pages {
                        world.touch(thread, range + page * PAGE_SIZE, touch);
                    }
                }
            }
            640..700 => {
                if let Some((range, pages)) = some_range(world, 40) {
                    world.evict(range, pages);
                }
            }
            700..720 => {
                world.engine.evict_coldest().unwrap();
            }
            720..740 => world.reclaimer_turn(),
            740..760 => world.demoter_turn(),
            760..775 => {
                if let Some((range, pages)) = some_range(world, 40) {
                    world.engine.prefetch(range, pages * PAGE_SIZE).unwrap();
                }
            }
            775..785 => {
                if let Some((range, pages)) = some_range(world, 40) {
                    world.engine.make_cold(range, pages * PAGE_SIZE).unwrap();
                }
            }
            785..825 => {
                if let Some((range, pages)) = some_range(world, 24) {
                    world.discard(range, pages);
                }
            }
            825..865 => self.allocate_or_free(),
            865..880 => {
                if let Some((block, pages)) = some_block(world)
                    && !self.is_pinned(block, pages)
                {
                    world.resize(block, 1 + sim.below(2 * pages));
                }
            }
            880..920 => self.pin_or_unpin(),
            920..930 => world.set_limit(12 + sim.below(150)),
            930..936 => match sim.below(2) {
                0 => world.fork_as_parent(),
                _ => world.fork_as_child(),
            },
            936..950 => {
                if let Some(page) = some_page(world) {
                    let lock = world.locked.borrow().len() < LOCKED_MAX && sim.below(2) == 0;
                    world.set_locked(page, lock);
                }
            }
            950..970 => {
                let inside = ghostmem_fault::gate().enter();
                world.engine.shed_copies(1 + sim.below(40));
                world.engine.compact_from_inside(sim.below(64), 0);
                drop(inside);
            }
            _ => sim.advance(sim.random() % 300_000_000),
        }
    }

    fn allocate_or_free(&self) {
        let world = &self.world;
        let held: usize = world.blocks.borrow().iter().map(|block| block.1).sum();
        if held < PAGES_MAX && (held == 0 || world.sim.below(2) == 0) {
            world.allocate(1 + world.sim.below(120));
            return;
        }
        if let Some((block, pages)) = some_block(world)
            && !self.is_pinned(block, pages)
        {
            world.free(block);
        }
    }

    fn pin_or_unpin(&mut self) {
        let world = &self.world;
        let pinned: usize = self.pins.iter().map(|pin| pin.1).sum();
        let range = some_range(world, 6).filter(|range| pinned + range.1 <= PINNED_MAX);
        match range.filter(|_| world.sim.below(2) == 0) {
            // Refused where the limit leaves too little.
            Some((address, pages)) => {
                let pinned = world.engine.pin(address, pages * PAGE_SIZE).is_ok();
                self.pins.extend(pinned.then_some((address, pages)));
            }
            None if !self.pins.is_empty() => {
                let at = world.sim.below(self.pins.len());
                let (address, pages) = self.pins.swap_remove(at);
                world.engine.unpin(address, pages * PAGE_SIZE).unwrap();
            }
            None => {}
        }
    }

    fn end(mut self) {
        let world = self.world.clone();
        world.sim.clear_hook();
        world.sim.set_odds(Odds::default());
        for (address, pages) in self.pins.drain(..) {
            world.engine.unpin(address, pages * PAGE_SIZE).unwrap();
        }
        let locked = world.locked.take();
        locked
            .into_iter()
            .for_each(|page| world.sim.set_locked(page, false));
        world.end();
    }
}

/// Walks, and says what the kernel was asked and answered, and what was counted.
fn walk(seed: u64, (manner, with_file): (Manner, bool), steps: u64) -> (u64, crate::Stats) {
    Simulation::run(seed, |sim| {
        let mut walk = Walk::begin(sim, manner, with_file);
        for step in 0..steps {
            sim.set_step(step);
            walk.step();
            walk.world.check();
            if step % 64 == 0 {
                walk.world.audit();
            }
        }
        let counts = walk.world.engine.stats();
        walk.end();
        (sim.digest(), counts)
    })
}

fn walks(manner: Manner, with_file: bool, first_seed: u64, count: u64) {
    let first = from_environment("GHOSTMEM_SIM_SEED").unwrap_or(first_seed);
    let steps = from_environment("GHOSTMEM_SIM_STEPS").unwrap_or(STEPS);
    let started = std::time::Instant::now();
    for seed in first..first + count {
        let (_, counts) = walk(seed, (manner, with_file), steps);
        // A walk that meets nothing shows nothing.
        let met = [
            counts.refaults,
            counts.evictions_dirty,
            counts.evictions_cancelled,
            counts.same_filled_pages,
            counts.raw_pages_evicted,
            counts.direct_reclaims,
            counts.verified_unchanged,
            counts.verified_changed,
        ];
        assert!(
            met.iter().all(|&count| count > 0) || steps < STEPS,
            "{counts:?}"
        );
        if manner == Manner::Userfaultfd && steps >= STEPS {
            let copies = [
                counts.evictions_clean,
                counts.copies_shed,
                counts.write_faults,
                counts.opened_between,
            ];
            assert!(copies.iter().all(|&count| count > 0), "{counts:?}");
        }
        if with_file && steps >= STEPS {
            let moved = [
                counts.pages_spilled,
                counts.spilled_reads,
                counts.spills_in_vain,
                counts.spill_write_errors,
            ];
            assert!(moved.iter().all(|&count| count > 0), "{counts:?}");
        }
    }
    let rate = (steps * count) as f64 / started.elapsed().as_secs_f64();
    println!("{count} walks of {steps} steps: {rate:.0} steps a second");
}

#[test]
fn a_walk_with_userfaultfd() {
    walks(Manner::Userfaultfd, false, 100, 3);
}

#[test]
fn a_walk_with_guard() {
    walks(Manner::Guard, false, 200, 2);
}

#[test]
fn a_walk_with_guard_by_mprotect() {
    walks(Manner::GuardByMprotect, false, 300, 2);
}

#[test]
fn a_walk_with_a_file() {
    walks(Manner::Userfaultfd, true, 400, 3);
}

#[test]
fn one_seed_is_one_walk() {
    let all = [
        (Manner::Userfaultfd, false),
        (Manner::Guard, false),
        (Manner::Userfaultfd, true),
    ];
    for manner in all {
        let (first, counts) = walk(7, manner, 3000);
        let (second, again) = walk(7, manner, 3000);
        assert_eq!(first, second);
        // Times are the simulation's, too.
        assert!(counts.figures().eq(again.figures()), "{counts:?} {again:?}");
        assert_ne!(walk(8, manner, 3000).0, first);
    }
}

/// Blocks are where they are asked for again: nothing here depends on the place.
#[test]
fn a_place_in_memory_changes_nothing() {
    let digests = [0, 1].map(|before| {
        Simulation::run(9, |sim| {
            let others: Vec<_> = (0..before)
                .map(|_| World::new(sim, config(Manner::Userfaultfd, 96), None))
                .collect();
            for other in &others {
                Engine::allocate(&other.engine, 4, 1).unwrap();
            }
            let mut walk = Walk::begin(sim, Manner::Userfaultfd, false);
            (0..500).for_each(|_| walk.step());
            walk.end();
            others.iter().for_each(|other| other.engine.shut_down());
            sim.digest()
        })
    });
    assert_eq!(digests[0], digests[1]);
}

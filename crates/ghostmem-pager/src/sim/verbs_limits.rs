//! `limits/` and the budget.

use ghostmem_fault::sim::{Manner, Simulation};
use ghostmem_os::PAGE_SIZE;

use crate::LIMIT_PAGES_MIN as LIMIT;
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::sim::world::{DATA, Data, Touch, World, config};

#[test]
fn the_limit_holds_at_every_call_and_is_followed_down() {
    for seed in 30..34 {
        World::run(seed, 96, |world| {
            let block = world.allocate(400);
            let actor = world.clone();
            // In the middle of every call too, not only between accesses.
            world.sim.set_hook(move |_| actor.check());
            for step in 0..3000 {
                world.sim.set_step(step);
                let page = block + world.sim.below(400) * PAGE_SIZE;
                let store = Touch::Store(DATA[world.sim.below(4)]);
                let touch = [Touch::Load, store][world.sim.below(2)];
                world.touch(world.sim.below(8), page, touch);
                match step {
                    1000 => world.set_limit(20),
                    1010 => {
                        // Faults alone bring it down, a few pages each.
                        assert!(world.engine.budget.free() >= 0);
                    }
                    2000 => world.set_limit(200),
                    _ => {}
                }
            }
            assert_eq!(world.count(Counter::overdrafts), 0);
            assert!(world.engine.budget.used() > 100, "the limit is used");
            world.sim.clear_hook();
        });
    }
}

#[test]
fn the_reclaimer_keeps_frames_free_and_follows_a_limit_down() {
    World::run(35, 2048, |world| {
        let block = world.allocate(3000);
        for page in 0..2048 {
            world.store(block + page * PAGE_SIZE, Data::Text);
        }
        let low = world.engine.low_watermark();
        assert!(low > 0 && world.engine.budget.free() < low);
        world.reclaimer_turn();
        assert!(world.engine.budget.free() >= low);
        let direct = world.count(Counter::direct_reclaims);
        for page in 2048..2080 {
            world.store(block + page * PAGE_SIZE, Data::Text);
        }
        assert_eq!(world.count(Counter::direct_reclaims), direct);
        world.set_limit(512);
        for _ in 0..20 {
            world.reclaimer_turn();
        }
        assert!(world.engine.budget.used() <= 512);
        world.audit();
    });
}

#[test]
fn the_memory_limit_refuses_what_it_cannot_hold() {
    Simulation::run(36, |sim| {
        let mut config = config(Manner::Userfaultfd, 64);
        config.memory_limit_bytes = Some(1 << 20);
        let world = World::new(sim, config, None);
        let block = world.allocate(100);
        for page in 0..100 {
            world.store(block + page * PAGE_SIZE, Data::Noise);
        }
        assert!(Engine::allocate(&world.engine, 1000, 1).is_err());
        world.audit();
        let small = world.allocate(4);
        world.store(small, Data::Noise);
        world.end();
    });
}

#[test]
fn locked_pages_are_what_a_fault_may_exceed_the_limit_for() {
    World::run(37, LIMIT, |world| {
        let limit = LIMIT;
        let block = world.allocate(limit + 2);
        for page in (0..limit).map(|page| block + page * PAGE_SIZE) {
            world.store(page, Data::Text);
            world.set_locked(page, true);
        }
        world.store(block + limit * PAGE_SIZE, Data::Text);
        assert_eq!(world.count(Counter::overdrafts), 1);
        for page in (0..limit).map(|page| block + page * PAGE_SIZE) {
            world.set_locked(page, false);
        }
        world.store(block + (limit + 1) * PAGE_SIZE, Data::Text);
        assert!(world.engine.budget.free() >= 0);
    });
}

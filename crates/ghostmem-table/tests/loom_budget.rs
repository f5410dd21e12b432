//! Model checks of the pager's budget: the very source file, on loom's atomics, with a
//! cache of frames for each of two processors.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ghostmem-table --test loom_budget --release`
//!
//! It stands here because the pager itself does not run under loom. A test that needs a
//! race to be worth anything fails where one of the outcomes never happened.
#![cfg(loom)]
#![allow(dead_code, reason = "the models do not use all of the source")]
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "model/explore.rs"]
mod explore;

#[path = "../../ghostmem-pager/src/parts/budget.rs"]
mod budget;

mod sync {
    use crate::explore::Steps;

    pub(crate) use core::convert::Infallible as Refused;
    pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering, fence};

    #[derive(Debug)]
    pub(crate) struct Line;

    loom::lazy_static! {
        static ref STEPS: Steps = Steps::new();
    }

    /// A word whose every access is a step of the model's.
    #[derive(Debug)]
    pub(crate) struct AtomicI64(loom::sync::atomic::AtomicI64);

    impl AtomicI64 {
        pub(crate) fn new(value: i64) -> Self {
            Self(loom::sync::atomic::AtomicI64::new(value))
        }

        fn step(&self) -> &loom::sync::atomic::AtomicI64 {
            STEPS.tick();
            &self.0
        }

        pub(crate) fn load(&self, order: Ordering) -> i64 {
            self.step().load(order)
        }

        pub(crate) fn store(&self, value: i64, order: Ordering) {
            self.step().store(value, order);
        }

        pub(crate) fn swap(&self, value: i64, order: Ordering) -> i64 {
            self.step().swap(value, order)
        }

        pub(crate) fn compare_exchange_weak(
            &self,
            current: i64,
            new: i64,
            done: Ordering,
            failed: Ordering,
        ) -> Result<i64, i64> {
            self.step().compare_exchange(current, new, done, failed)
        }

        pub(crate) fn fetch_add(&self, amount: i64, order: Ordering) -> i64 {
            self.step().fetch_add(amount, order)
        }

        pub(crate) fn fetch_sub(&self, amount: i64, order: Ordering) -> i64 {
            self.step().fetch_sub(amount, order)
        }
    }

    #[derive(Debug)]
    pub(crate) struct Caches(Vec<[AtomicI64; 1]>);

    impl Caches {
        pub(crate) fn new(shards: usize) -> Result<Self, Refused> {
            Ok(Self((0..shards).map(|_| [AtomicI64::new(0)]).collect()))
        }
    }

    impl core::ops::Deref for Caches {
        type Target = [[AtomicI64; 1]];

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    /// The models name the processor themselves.
    pub(crate) fn shard(_: usize) -> usize {
        unreachable!("no model asks for it")
    }
}

use loom::sync::Arc;
use loom::thread::{self, JoinHandle};

use budget::Budget;
use explore::explore;

/// The smallest limit with caches.
const LIMIT: i64 = 1024;
const PREEMPTIONS: usize = 2;

/// A budget of which all but `free` frames are in use, and `cached` more in the cache of
/// processor 0 (16 or none). Processor 1 took last.
fn budget(free: i64, cached: bool) -> Arc<Budget> {
    let budget = Budget::new(LIMIT, 2).unwrap();
    let in_use = LIMIT - free;
    assert_eq!(budget.take_at(1, in_use - 1), in_use - 1);
    // From another processor: with as many ahead as there is room for.
    budget.set_limit(LIMIT + i64::from(cached) * 100);
    assert_eq!(budget.take_at(usize::from(!cached), 1), 1);
    if cached {
        assert_eq!(budget.taken(), in_use + 16);
        assert_eq!(budget.take_at(1, 100 - 16), 100 - 16);
    }
    Arc::new(budget)
}

fn start<T: 'static>(
    budget: &Arc<Budget>,
    act: impl FnOnce(&Budget) -> T + 'static,
) -> JoinHandle<T> {
    let budget = Arc::clone(budget);
    thread::spawn(move || act(&budget))
}

/// Frames in caches are given to one thread each, and to the last one.
#[test]
fn two_that_take_the_last_frames_get_all_of_them_and_no_more() {
    let seen = explore(PREEMPTIONS, || {
        let budget = budget(0, true);
        let in_use = budget.used();
        let other = start(&budget, |budget| budget.take_at(1, 10));
        let own = budget.take_at(0, 10);
        let other = other.join().unwrap();
        // Both looked at every cache before they were content with less.
        assert_eq!(own + other, 16);
        assert_eq!((budget.used(), budget.taken()), (in_use + 16, in_use + 16));
        (own, other)
    });
    assert!(
        seen.contains(&(10, 6)) && seen.contains(&(6, 10)),
        "{seen:?}"
    );
}

/// Whoever fills a cache beside one who lowers the limit leaves nothing in it.
#[test]
fn a_limit_that_is_lowered_while_a_cache_is_filled_finds_all_caches_empty() {
    lowers_while_a_cache_is_filled(|budget| budget.set_limit(LIMIT - 50));
}

/// The same where the limit is lowered by what was stored.
#[test]
fn a_limit_lowered_by_a_batch_while_a_cache_is_filled_finds_all_caches_empty() {
    lowers_while_a_cache_is_filled(|budget| budget.lower_limit(50, 0));
}

fn lowers_while_a_cache_is_filled(lower: fn(&Budget)) {
    let seen = explore(PREEMPTIONS, move || {
        let budget = budget(40, false);
        let taker = start(&budget, |budget| budget.take_at(0, 1));
        lower(&budget);
        let got = taker.join().unwrap();
        assert_eq!(budget.used(), LIMIT - 40 + got);
        assert_eq!(
            budget.taken(),
            budget.used(),
            "over the limit, and frames are cached"
        );
        assert_eq!(budget.take_at(0, 1) + budget.take_at(1, 1), 0);
        got
    });
    assert_eq!(seen.len(), 2, "{seen:?}");
}

/// Red where one of the two writes what it computed from a limit that is not there any more.
#[test]
fn two_batches_that_lower_the_limit_at_once_are_both_counted() {
    explore(PREEMPTIONS, || {
        let budget = budget(40, false);
        let other = start(&budget, |budget| budget.lower_limit(10, 0));
        budget.lower_limit(10, 0);
        other.join().unwrap();
        assert_eq!(budget.limit(), LIMIT - 20);
    });
}

/// A cache is filled beside one who passes the limit, while a third takes what is left of it.
/// Red where whoever passes the limit looks at the caches only before, and where whoever
/// fills one does not look again.
#[test]
fn a_limit_that_is_passed_while_a_cache_is_filled_finds_all_caches_empty() {
    let seen = explore(PREEMPTIONS, || {
        let budget = budget(4, false);
        let filler = start(&budget, |budget| budget.take_at(0, 1));
        let taker = start(&budget, |budget| budget.take_at(1, 2));
        assert!(budget.overdraw(2));
        let got = (filler.join().unwrap(), taker.join().unwrap());
        assert_eq!(budget.used(), LIMIT - 4 + got.0 + got.1 + 1);
        if budget.taken() > LIMIT {
            assert_eq!(
                budget.taken(),
                budget.used(),
                "beyond, and frames are cached"
            );
        }
        (got, budget.taken() - budget.used())
    });
    let cached = |frames| seen.iter().any(|&(_, cached)| cached == frames);
    assert!(cached(0) && cached(1), "{seen:?}");
}

/// A frame given back on one processor is there for another that found none.
#[test]
fn what_is_given_back_is_to_be_had_by_whoever_asks_next() {
    let seen = explore(PREEMPTIONS, || {
        let budget = budget(0, false);
        let other = start(&budget, |budget| budget.give_back(1));
        let got = budget.take_at(0, 1);
        other.join().unwrap();
        assert_eq!(got + budget.take_at(0, 1), 1);
        assert_eq!(budget.used(), LIMIT);
        got
    });
    assert_eq!(seen.len(), 2, "{seen:?}");
}

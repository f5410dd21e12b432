//! Every order of the steps of a few threads: what the models of page words and
//! of the store both need of loom.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use loom::sync::atomic::{AtomicU64, Ordering};

/// Points where loom may run any other thread.
///
/// The atomics of what is checked are such points already, but loom 0.7 misses
/// orders there: it remembers one last access of an atomic, so when a thread
/// loads a word and then swaps it, the swap is not tried before another
/// thread's load. Every two ticks conflict, so none is missed. They are
/// relaxed, and order nothing.
#[derive(Debug)]
pub(crate) struct Steps(AtomicU64);

impl Steps {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Before each step.
    pub(crate) fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs `body` in every interleaving with at most `preemptions` preemptions;
/// returns the outcomes it reported.
pub(crate) fn explore<T: Ord + Send + 'static>(
    preemptions: usize,
    body: impl Fn() -> T + Send + Sync + 'static,
) -> BTreeSet<T> {
    let outcomes = Arc::new(Mutex::new(BTreeSet::new()));
    let noted = Arc::clone(&outcomes);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(move || {
        let outcome = body();
        noted.lock().unwrap().insert(outcome);
    });
    let mut outcomes = outcomes.lock().unwrap();
    std::mem::take(&mut outcomes)
}

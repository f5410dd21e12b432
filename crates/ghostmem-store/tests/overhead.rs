//! The promise of the store's thrift: what it holds beyond the payload.
//!
//! `cargo test -p ghostmem-store --test overhead -- --nocapture` prints the
//! figures. Sizes follow those of real pages under LZ4 (see `common`).

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use common::{Random, page_bytes};
use ghostmem_store::{MAX_SLOT_BYTES, Owner, SlabStore, Slot};

/// Payload of the population: the smallest the promise is made for.
const POPULATION_BYTES: u64 = 112 << 20;

/// Most the store may take beyond the payload, per cent.
const OVERHEAD_MAX: f64 = 5.0;

struct Population {
    store: SlabStore,
    /// By owner.
    pages: Vec<Option<Slot>>,
    random: Random,
}

impl Population {
    fn grown_to(data_bytes: u64) -> Self {
        let mut population = Self {
            store: SlabStore::new(1 << 30).unwrap(),
            pages: Vec::new(),
            random: Random(42),
        };
        while population.store.stats().data_bytes < data_bytes {
            for _ in 0..1000 {
                let owner = population.pages.len();
                population.pages.push(None);
                population.fill(owner, 0);
            }
        }
        population
    }

    fn fill(&mut self, owner: usize, drift: usize) {
        static BYTES: [u8; MAX_SLOT_BYTES] = [7; MAX_SLOT_BYTES];
        let len = page_bytes(&mut self.random, drift);
        let slot = self
            .store
            .insert(Owner::new(owner as u64), 1, &BYTES[..len]);
        self.pages[owner] = Some(slot.expect("no limit is set"));
    }

    fn empty(&mut self, owner: usize) {
        if let Some(slot) = self.pages[owner].take() {
            self.store.remove(slot);
        }
    }

    /// Gives `count` random pages new content of another size.
    fn rewrite(&mut self, count: usize, drift: usize) {
        for _ in 0..count {
            let owner = self.random.below(self.pages.len());
            self.empty(owner);
            self.fill(owner, drift);
        }
    }

    fn maintain(&mut self) {
        let Self { store, pages, .. } = self;
        store.compact(usize::MAX, &mut |owner, slot| {
            let Some(page) = pages.get_mut(owner.get() as usize) else {
                return false;
            };
            if *page != Some(slot) {
                return false;
            }
            let Some(copy) = store.copy(slot) else {
                return false;
            };
            store.remove(slot);
            *page = Some(copy);
            true
        });
        store.trim(0);
    }

    /// Prints where the memory is and returns the overhead, per cent.
    fn report(&self, what: &str) -> f64 {
        let stats = self.store.stats();
        let share = |bytes: u64| 100.0 * bytes as f64 / stats.data_bytes as f64;
        let overhead = share(stats.held_bytes + stats.metadata_bytes - stats.data_bytes);
        println!(
            "{what:28} {:6.1} MiB, {:6} slots of mean {:4} B: overhead {overhead:.2} % = headers \
             and rounding {:.2} + free {:.2} + metadata {:.2}; inserts {}, moved {}",
            stats.data_bytes as f64 / f64::from(1 << 20),
            stats.live_slots,
            stats.data_bytes / stats.live_slots,
            share(stats.slot_bytes - stats.data_bytes),
            share(stats.held_bytes - stats.slot_bytes),
            share(stats.metadata_bytes),
            stats.inserts,
            stats.relocations,
        );
        overhead
    }
}

#[test]
fn overhead_stays_small_when_filled_and_after_long_drifting_churn() {
    let mut population = Population::grown_to(POPULATION_BYTES);
    let fresh = population.report("filled");
    assert!(fresh <= 3.0, "{fresh:.2} % after inserts alone");

    let mut worst: f64 = 0.0;
    let pages = population.pages.len();
    for round in 0..=20 {
        // The sizes drift to large pages and back again.
        let drift = if round <= 10 { round } else { 20 - round } * 10;
        population.rewrite(pages / 8, drift);
        population.maintain();
        let overhead = population.report(&format!("rewritten, drift {drift} %"));
        worst = worst.max(overhead);
    }
    assert!(worst <= OVERHEAD_MAX, "{worst:.2} % after churn");

    // Two thirds leave at random: what is left must be packed again.
    for owner in 0..pages {
        if population.random.below(3) > 0 {
            population.empty(owner);
        }
    }
    population.report("two thirds removed");
    population.maintain();
    let shrunk = population.report("... and compacted");
    assert!(shrunk <= OVERHEAD_MAX, "{shrunk:.2} % after shrinking");
}

//! The store's share, and who waits while the store is over it.

use core::sync::atomic::Ordering;

use ghostmem_os::{PAGE_SIZE, futex};
use ghostmem_policy::balance::StoreShare;
use ghostmem_store::tier::ColdTier;

use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::token::WAIT;

/// Waits of [`WAIT`] each of a fault that must evict while the store is over its
/// share, before it goes on all the same.
const WAITS_MAX: u32 = 50;

impl Engine {
    /// The store may have grown: once for each batch of evictions.
    pub(crate) fn wake_demoter(&self) {
        if let Some(cold) = &self.cold
            && self.store.held_bytes() > cold.share().begin_bytes()
        {
            cold.wake();
        }
    }

    /// Sets the store's share by the limits and tables of now.
    pub(crate) fn share_store(&self) {
        let Some(cold) = &self.cold else { return };
        let memory = self.memory_limit();
        // What a slowdown leaves comes and goes; the file is for what memory does not hold.
        let limit = match &self.slowdown {
            Some(slowed) => slowed.most_pages(),
            None => self.budget.limit(),
        };
        let resident = limit.max(0) as usize * PAGE_SIZE;
        let resident = match (&self.bound, memory) {
            // The limit is what the store left: pages have half before the store.
            (Some(bound), Some(memory)) => {
                let most = bound.most_pages().max(0) as usize;
                (memory / 2).min(most.saturating_mul(PAGE_SIZE))
            }
            _ => resident,
        };
        let share = StoreShare::new(
            cold.store_limit_bytes,
            memory.map(|bytes| bytes as u64),
            resident as u64,
            self.table_bytes() as u64
                + self.store.stats().metadata_bytes
                + cold.tier.stats().metadata_bytes,
        );
        // What groups and the machine leave is no reason to hold more than was said.
        let share = match (&self.bound, self.config.memory_limit_bytes) {
            (Some(bound), None) if !bound.is_asked() => {
                let most = bound.most_pages().max(0) as u64 * PAGE_SIZE as u64;
                let without = StoreShare::new(cold.store_limit_bytes, None, most, 0);
                share.bytes().min(without.bytes())
            }
            _ => share.bytes(),
        };
        cold.share_bytes.store(share, Ordering::Relaxed);
    }

    /// Whether eviction ahead of demand is to wait for the file.
    pub(crate) fn is_demoter_behind(&self) -> bool {
        self.cold
            .as_ref()
            .is_some_and(|cold| cold.is_behind(self.store.held_bytes()))
    }

    /// A fault that is going to write needs a frame, for which a page may have
    /// to be compressed: waits, for a tenth of a second at most, while the store
    /// is too far over its share. The caller owns no page.
    pub(crate) fn wait_for_demoter(&self) {
        let Some(cold) = &self.cold else { return };
        for _ in 0..WAITS_MAX {
            let progress = cold.progress.load(Ordering::Acquire);
            if !cold.is_behind(self.store.held_bytes()) || self.ends_threads() {
                return;
            }
            self.metrics.add(Counter::spill_waits, 1);
            cold.wake();
            futex::wait(&cold.progress, progress as u32, WAIT);
        }
    }
}

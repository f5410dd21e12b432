//! One bound for all that a process takes: how many pages may be resident follows from
//! what is left of it.
//!
//! The resident limit is granted in quanta ([`ghostmem_policy::bound`]). A fault that
//! finds no frame looks first at what is held, and evicts only where that leaves no
//! further quantum; so a program that grows fast cannot outrun the look. What evictions
//! store, and what the program takes beside the heap, lowers the limit again.
//!
//! Memory that is not the heap's is measured, as the kernel charges it, at most once in
//! [`MEASURE_NS`]: `held = the heap's own counters + (measured - the heap's own then)`.
//! So an error of the counters that stays the same is measured with it. Everything here
//! is async-signal-safe and takes no lock; the one who looks is whoever comes first.

use ghostmem_os::error::{ENOMEM, ENOSYS};
use ghostmem_os::{OsError, PAGE_SIZE, clock, machine};
use ghostmem_policy::bound::{Look, Strain};
use ghostmem_store::tier::ColdTier;

use crate::parts::bound::{LEAST_PAGES, ProcessBound};
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;

/// Time between two measurements, at least, nanoseconds: one takes some 20 us.
const MEASURE_NS: u64 = 1_000_000;

impl Engine {
    /// Bytes that the heap's own counters say it takes.
    fn own_bytes(&self) -> usize {
        let store = self.store.stats();
        let file = self.cold.as_ref().map(|cold| cold.tier.stats());
        let file_tables = file.map_or(0, |file| file.metadata_bytes);
        self.budget.used().max(0) as usize * PAGE_SIZE
            + self.table_bytes()
            + (store.held_bytes + store.metadata_bytes + file_tables) as usize
    }

    /// Looks at what is held and sets the resident limit by it; whether that is higher
    /// now. Without a bound, or while somebody else looks, nothing happens.
    pub(crate) fn look(&self) -> bool {
        self.look_again(MEASURE_NS)
    }

    /// As [`Engine::look`], with a measurement that is not older than `ns`: somebody is to
    /// be refused by it.
    pub(crate) fn look_again(&self, ns: u64) -> bool {
        let Some(bound) = &self.bound else {
            return false;
        };
        let Some(looking) = bound.try_look() else {
            return false;
        };
        let own = self.own_bytes();
        let now = clock::now_ns();
        if looking.is_due(now, ns) {
            let total = machine::process_bytes();
            let total = total.map(|total| usize::try_from(total).unwrap_or(usize::MAX));
            if let Some(total) = total {
                looking.measured(now, total, own);
                self.note_peak(own.saturating_add(bound.other_bytes()));
            }
            // Who cannot see does not keep the bound either.
            let over = total.is_none_or(|total| total > bound.bytes);
            self.metrics.add(Counter::bound_overruns, u64::from(over));
        }
        let look = Look {
            bound_bytes: bound.bytes as u64,
            headroom_bytes: bound.headroom_bytes() as u64,
            held_bytes: own.saturating_add(bound.other_bytes()) as u64,
            page_bytes: PAGE_SIZE as u64,
            used_pages: self.budget.used(),
            least_pages: LEAST_PAGES,
            most_pages: bound.most_pages(),
        };
        let (before, limit) = (self.budget.limit(), look.limit_pages());
        self.budget.set_limit(limit);
        looking.found(limit, look.reach_pages(), look.strain());
        // What is not the heap's came off the store's share as well.
        self.share_store();
        self.wake_demoter();
        limit > before
    }

    /// Whether the bound has no place for a page: for a new one first (`new`), as evicting
    /// another for it takes as much in the store, then for any.
    pub(crate) fn is_full(&self, new: bool) -> bool {
        let is_full = |bound: &ProcessBound| match bound.strain() {
            Strain::None => false,
            Strain::NothingNew => new,
            Strain::Nothing => true,
        };
        let Some(bound) = &self.bound else {
            return false;
        };
        // What was said at the last look may have changed; and with the fewest pages
        // resident each new page takes more than one leaves.
        if is_full(bound) || (new && self.budget.limit() <= self.least_resident_pages()) {
            self.look();
        }
        is_full(bound)
    }

    /// The first look, before anybody has pages.
    ///
    /// # Errors
    /// `ENOMEM` when the bound leaves less than the fewest pages, `ENOSYS` when the
    /// kernel does not say what a process takes.
    pub(crate) fn first_look(&self) -> Result<(), OsError> {
        let Some(bound) = &self.bound else {
            return Ok(());
        };
        let measured = machine::process_bytes();
        if measured.is_none() {
            return Err(OsError::new("/proc/self/status", ENOSYS));
        }
        self.look();
        if bound.strain() != Strain::None {
            return Err(OsError::new("memory bound", ENOMEM));
        }
        Ok(())
    }
}

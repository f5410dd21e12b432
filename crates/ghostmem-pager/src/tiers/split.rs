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
//! So an error of the counters that stays the same is measured with it. What memory groups
//! and the machine have left is read at the same moments ([`ghostmem_os::meter`]), through
//! descriptors that were opened before. Everything here is async-signal-safe and takes no
//! lock; the one who looks is whoever comes first.

use core::sync::atomic::AtomicU64;
use core::time::Duration;

use ghostmem_os::error::{ENOMEM, ENOSYS};
use ghostmem_os::{OsError, PAGE_SIZE, clock, futex};
use ghostmem_policy::bound::{Look, Strain};
use ghostmem_store::tier::ColdTier;

use crate::parts::bound::{LEAST_PAGES, ProcessBound};
use crate::parts::engine::Engine;
use crate::parts::kin::Placed;
use crate::parts::metrics::Counter;

/// Time between two measurements, at least, nanoseconds: one takes some 20 us.
pub(crate) const MEASURE_NS: u64 = 1_000_000;

/// How often, and how long each time, a process that begins waits for others of its tree
/// to give back what it needs.
const GIVEN_WAITS: u32 = 150;
const GIVEN_WAIT: Duration = Duration::from_millis(20);

/// What the first look calls what leaves too little for pages.
pub const FIRST_LOOK: &str = "memory bound";

impl Engine {
    /// Bytes that the heap's own counters say it takes.
    pub(crate) fn own_bytes(&self) -> usize {
        let store = self.store.stats();
        let file = self.cold.as_ref().map(|cold| cold.tier.stats());
        let file_tables = file.map_or(0, |file| file.metadata_bytes);
        self.budget.used().max(0) as usize * PAGE_SIZE
            + self.table_bytes()
            + (store.held_bytes + store.metadata_bytes + file_tables) as usize
    }

    /// Pages that were put in place so far, and are resident, by the engine's own count.
    pub(crate) fn placed_pages(&self) -> Placed {
        let sum = |counter| self.metrics.sum(counter);
        Placed {
            pages: sum(Counter::faults).saturating_add(sum(Counter::readahead_pages)),
            resident: self.budget.used().max(0).unsigned_abs(),
        }
    }

    /// Looks at what is held and sets the resident limit by it; whether that is higher
    /// now. Without a bound, or while somebody else looks, nothing happens.
    pub(crate) fn look(&self) -> bool {
        self.bound
            .as_ref()
            .is_some_and(|bound| self.look_again(bound.interval_ns(MEASURE_NS)))
    }

    /// As [`Engine::look`], with a measurement that is not older than `ns`: somebody is to
    /// be refused by it.
    pub(crate) fn look_again(&self, ns: u64) -> bool {
        self.look_for(ns, false)
    }

    /// As [`Engine::look_again`], for what a fork may come to: nobody else is looked after,
    /// nor asked to give anything back.
    pub(crate) fn look_at_a_fork(&self, ns: u64) -> bool {
        self.look_for(ns, true)
    }

    fn look_for(&self, ns: u64, fork: bool) -> bool {
        let Some(bound) = &self.bound else {
            return false;
        };
        let Some(looking) = bound.try_look() else {
            return false;
        };
        let (before, now) = (self.budget.limit(), clock::now_ns());
        let due = looking.is_due(now, ns);
        let slowed_pages = self.slowed_pages();
        if !due && bound.is_far() && before == bound.most_pages().min(slowed_pages) {
            // There is no more to be granted, and nothing to be given back.
            return false;
        }
        let own = self.own_bytes();
        if due {
            // Who cannot see does not keep the bound either.
            let kept = looking.measure(now, own, || self.placed_pages());
            self.metrics.add(Counter::bound_overruns, u64::from(!kept));
            self.note_peak(own.saturating_add(bound.other_bytes()));
        }
        let held_bytes = bound.held_bytes(own);
        let look = Look {
            allowance: looking.allowance(now),
            held_bytes,
            page_bytes: PAGE_SIZE as u64,
            used_pages: self.budget.used(),
            least_pages: LEAST_PAGES,
            most_pages: bound.most_pages(),
            announced: bound.may_be_given(),
        };
        // Only others want to know.
        let beside = held_bytes.saturating_sub(own as u64);
        let needed_bytes = match bound.may_be_given() {
            true => beside.saturating_add(self.needed_bytes() as u64),
            false => held_bytes,
        };
        let resident_bytes = look.used_pages.max(0).unsigned_abs() * PAGE_SIZE as u64;
        looking.note_stored(resident_bytes, self.store.held_bytes());
        let limit = looking.found(now, &look, needed_bytes, fork);
        let limit = limit.min(slowed_pages);
        self.budget.set_limit(limit);
        drop(looking);
        if due && !fork {
            bound.look_after_others(now);
        }
        // What is not the heap's came off the store's share as well.
        self.share_store();
        self.wake_demoter();
        limit > before
    }

    /// A thread looks for more than is free: others that have a bound with this process may
    /// be asked for it.
    pub(crate) fn want_more(&self) {
        if let Some(bound) = &self.bound {
            bound.want();
        }
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
        let least = self.budget.limit() <= self.least_resident_pages();
        if is_full(bound) || (new && least && !bound.is_far()) {
            bound.want();
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
        bound.open();
        if bound.meter.process_bytes().is_none() {
            return if bound.is_asked() {
                Err(OsError::new("/proc/self/status", ENOSYS))
            } else {
                // Nobody can say what there is.
                Ok(())
            };
        }
        bound.want();
        self.look();
        let nobody = AtomicU64::new(0);
        for _ in 0..GIVEN_WAITS {
            if bound.can_begin() || !bound.may_be_given() {
                break;
            }
            futex::wait(&nobody, 0, GIVEN_WAIT);
            bound.want();
            self.look_again(0);
        }
        if !bound.can_begin() {
            return Err(OsError::new(FIRST_LOOK, ENOMEM));
        }
        Ok(())
    }
}

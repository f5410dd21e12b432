//! Keeping the store dense: how much the background thread compacts, and when.
//!
//! How much a turn moves and when the next one comes is [`ghostmem_policy::pace`]'s to
//! say. It is asked between two batches of reclaim too: a program that writes without
//! pause never lets the background thread come to rest.

use core::time::Duration;

use ghostmem_os::clock;
use ghostmem_policy::pace::{Pace, StoreFigures, TURN_SLOTS_MIN};
use ghostmem_store::{Owner, Slot, StoreStats};
use ghostmem_table::PageState;

use crate::parts::engine::Engine;
use crate::parts::region::PageId;

/// Stores smaller than this are left to the background thread: their classes'
/// part-filled slabs alone are more than that share, whoever compacts.
const HELP_BYTES_MIN: u64 = 16 << 20;

/// What the pace goes by.
fn figures(store: &StoreStats) -> StoreFigures {
    StoreFigures {
        held_bytes: store.held_bytes,
        spare_bytes: store.spare_bytes,
        slot_bytes: store.slot_bytes,
        live_slots: store.live_slots,
        changes: store.inserts.saturating_add(store.removes),
        relocations: store.relocations,
    }
}

impl Engine {
    /// Compacts the store if it is time and there is need; cheap to ask.
    pub(crate) fn compact_if_needed(&self, pace: &mut Pace) {
        let now = clock::now_ns();
        if !pace.may_look(now) {
            return;
        }
        let before = figures(&self.store.stats());
        if !pace.is_due(now, &before) {
            return;
        }
        let start = clock::thread_ns();
        let moved = self.compact_store(
            before.slots_to_move() as usize,
            before.spare_target_bytes() as usize,
        );
        let took = Duration::from_nanos(clock::thread_ns().saturating_sub(start));
        let after = figures(&self.store.stats());
        pace.turned(clock::now_ns(), took, moved as u64, (&before, &after));
    }

    /// Moves up to about `slots` slots out of sparse slabs and returns empty
    /// ones, but for `spare_bytes` of them; how many it moved.
    pub(crate) fn compact_store(&self, slots: usize, spare_bytes: usize) -> usize {
        let inside = ghostmem_fault::gate().enter();
        let moved = self.compact_from_inside(slots, spare_bytes);
        drop(inside);
        moved
    }

    /// A faulting thread that had to evict for itself moves a few slots as well
    /// when that is urgent: the background thread, which should have, gets no
    /// processor. The caller is inside the gate.
    pub(crate) fn help_compacting(&self) {
        // One load; where each fault evicts, the figures would cost as much.
        if self.store.held_bytes() < HELP_BYTES_MIN {
            return;
        }
        let figures = figures(&self.store.stats());
        if figures.is_pressing() {
            // Where faults evict for themselves nothing else ends its nap.
            self.worker.rouse();
        }
        if figures.is_urgent() {
            self.compact_few();
        }
    }

    /// Moves a few slots, by a bounded look however large the store is: for a
    /// thread in a fault. The caller is inside the gate.
    pub(crate) fn compact_few(&self) {
        self.store
            .compact_some(TURN_SLOTS_MIN as usize, &mut |owner, slot| {
                self.relocate(owner, slot)
            });
    }

    /// As [`Engine::compact_store`], inside the gate.
    pub(crate) fn compact_from_inside(&self, slots: usize, spare_bytes: usize) -> usize {
        let moved = self
            .store
            .compact(slots, &mut |owner, slot| self.relocate(owner, slot));
        self.store.trim(spare_bytes);
        moved
    }

    /// Moves one slot elsewhere, if its page still owns it and nobody is busy
    /// with the page.
    fn relocate(&self, owner: Owner, slot: Slot) -> bool {
        let id = PageId::of(owner);
        let (index, page) = (id.region(), id.page());
        let Some(region) = self.region(index) else {
            return false;
        };
        if page >= region.pages() {
            return false;
        }
        let word = region.table.load(page);
        let owns = word.state() == PageState::Stored
            || (word.state() == PageState::Resident && word.has_copy());
        if !owns || word.payload() != slot.bits() {
            return false;
        }
        let Ok(claim) = region.table.claim(page, word) else {
            return false;
        };
        let Some(moved) = self.store.copy(slot) else {
            self.release(region, claim, word);
            return false;
        };
        self.store.remove(slot);
        self.release(region, claim, word.with_payload(moved.bits()));
        true
    }
}

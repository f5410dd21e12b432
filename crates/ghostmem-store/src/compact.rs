//! The background calls of the store: memory back to the kernel, and slots out
//! of sparse slabs.

use core::sync::atomic::Ordering::Relaxed;

use crate::arrays::Arrays;
use crate::class::CLASSES;
use crate::maintain::Turn;
use crate::memory::Memory;
use crate::slabs::SlotRef;
use crate::state::{Global, Phase};
use crate::{Owner, SlabStore, Slot, SlotInfo};

/// Free space in part-filled slabs that sets compaction off, as a share of
/// what the slots in use take (one part in ...), and the share it aims for.
/// At a memory overhead of 6 % allowed, with 2 % taken by headers and rounding
/// and 1 % by page words, this leaves room for what cannot be won back (each
/// class has a slab that is not full) and for what rewriting makes meanwhile.
const TRIGGER_SHARE: u64 = 100;
const TARGET_SHARE: u64 = 200;

/// Free space not worth a compaction, bytes: one slab.
const TRIGGER_BYTES_MIN: u64 = crate::class::SLAB_BYTES as u64;

/// Slabs that a bounded compaction looks at: 16 MiB of addresses, whose rows are
/// as much memory as the buffers of a fault.
const WINDOW: u32 = 256;

impl SlabStore {
    /// Whether a thread is trimming or compacting just now, so that another
    /// that asked for it would be sent away.
    #[must_use]
    pub fn is_maintained(&self) -> bool {
        let turn = self.slabs.mem.global(Global::Turn);
        !turn.load(Relaxed).is_multiple_of(2)
    }

    /// Gives empty slabs back to the kernel, keeping up to `keep_bytes` of
    /// them for coming inserts, and sorts every class's partly filled slabs
    /// so that the fullest are filled first.
    ///
    /// For a background thread: it makes system calls. Takes time linear in
    /// the number of slabs. Returns at once while another thread trims or
    /// compacts.
    pub fn trim(&self, keep_bytes: usize) {
        if let Some(turn) = self.slabs.maintenance_turn() {
            turn.rebuild_lists();
            turn.release_spares(keep_bytes as u64);
        }
    }

    /// Empties sparse slabs when more than 1 % of the store is free space in
    /// partly filled ones, until about half of that is left.
    ///
    /// The sparsest slabs stop taking slots in, and for each slot in them,
    /// `max_slots` at most (rounded up to whole slabs when choosing), it calls
    /// `relocate(owner, slot)`. The callback claims the page, *checks that the
    /// page still owns that very slot*, calls [`copy`](Self::copy), points the
    /// page to the copy, calls [`remove`](Self::remove) and returns `true`; or
    /// it changes nothing and returns `false`. The owner it gets may be stale
    /// (the slot was given back, or is just being filled) and, rarely, any 40
    /// bits at all: it must be bounds-checked before use.
    ///
    /// Slabs that did not become empty take slots in again afterwards. Those
    /// that did become spare: call [`trim`](Self::trim) next. Returns the
    /// number of slots moved; 0 at once while another thread trims or
    /// compacts.
    pub fn compact(
        &self,
        max_slots: usize,
        relocate: &mut dyn FnMut(Owner, Slot) -> bool,
    ) -> usize {
        let Some(turn) = self.slabs.maintenance_turn() else {
            return 0;
        };
        let live = self.stats().slot_bytes;
        let trigger = (live / TRIGGER_SHARE).max(TRIGGER_BYTES_MIN);
        let target = live / TARGET_SHARE;
        let mut free_slots = [0_u32; CLASSES];
        if turn.mark_sparse(
            0..self.slabs.bump(),
            |_| (trigger, target),
            max_slots,
            &mut free_slots,
        ) == 0
        {
            return 0;
        }
        // Off the lists with them; and copies go to the fullest slabs first.
        turn.rebuild_lists();
        let mut moved = 0;
        for slab in 0..self.slabs.bump() {
            moved += self.drain(&turn, slab, max_slots - moved, relocate);
            turn.finish_drain(slab);
        }
        let relocations = self.slabs.mem.global(Global::Relocations);
        relocations.fetch_add(moved as u64, Relaxed);
        moved
    }
    /// Empties sparse slabs among the next 256 ones, as
    /// [`compact`](Self::compact) does among all, and gives their memory back to
    /// the kernel at once. Each call looks at the slabs that follow those of the
    /// one before; how many the store has does not matter.
    ///
    /// For a thread that has other work to do: in a fault handler, say.
    pub fn compact_some(
        &self,
        max_slots: usize,
        relocate: &mut dyn FnMut(Owner, Slot) -> bool,
    ) -> usize {
        let Some(turn) = self.slabs.maintenance_turn() else {
            return 0;
        };
        let bump = self.slabs.bump();
        let windows = u64::from(bump.div_ceil(WINDOW)).max(1);
        let cursor = self.slabs.mem.global(Global::Cursor);
        let first = (cursor.fetch_add(1, Relaxed) % windows) as u32 * WINDOW;
        let window = first..bump.min(first + WINDOW);
        let aim = |live: u64| (live / TRIGGER_SHARE, live / TARGET_SHARE);
        let mut free_slots = [0_u32; CLASSES];
        if turn.mark_sparse(window.clone(), aim, max_slots, &mut free_slots) == 0 {
            return 0;
        }
        let mut moved = 0;
        for slab in window.clone() {
            moved += self.drain(&turn, slab, max_slots - moved, relocate);
        }
        turn.give_back_drained(window);
        let relocations = self.slabs.mem.global(Global::Relocations);
        relocations.fetch_add(moved as u64, Relaxed);
        moved
    }

    /// Moves up to `most` slots out of a slab, if it is draining; how many it was.
    fn drain(
        &self,
        turn: &Turn<'_, Arrays>,
        slab: u32,
        most: usize,
        relocate: &mut dyn FnMut(Owner, Slot) -> bool,
    ) -> usize {
        let state = self.slabs.state(slab);
        if !state.is(Phase::Draining) {
            return 0;
        }
        let mut moved = 0;
        turn.for_each_taken(slab, |index| {
            let at = SlotRef {
                slab,
                index,
                class: state.class(),
            };
            if moved < most
                && let Some(info) = SlotInfo::from_doubtful(self.slabs.mem.header(at))
                && relocate(info.owner, Slot::new(at))
            {
                moved += 1;
            }
            moved < most
        });
        moved
    }
}

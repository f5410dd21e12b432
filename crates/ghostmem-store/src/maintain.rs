//! Background work: sorted lists, memory back to the kernel, emptying sparse
//! slabs. One thread at a time; inserters, readers and removers never wait
//! for it.

use core::ops::Range;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use crate::memory::{Memory, Word};
use crate::slabs::Slabs;
use crate::state::{Global, Phase, SlabState, row};

/// Runs of slabs given to the kernel in one go.
const RUNS_MAX: usize = 32;

/// Steps of fullness by which lists are sorted and victims searched.
const LEVELS: usize = 16;

/// A slab is drained only if at least one part in this many of its memory is
/// won: below, the copying costs more than it gives.
const GAIN_SHARE_MIN: u64 = 8;

/// The right to do background work; ends when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a, M: Memory>(&'a Slabs<M>);

impl<M: Memory> Drop for Turn<'_, M> {
    fn drop(&mut self) {
        self.0.mem.global(Global::Turn).fetch_add(1, Release);
    }
}

impl<M: Memory> Slabs<M> {
    /// The turn to do background work; `None` while another thread has it.
    pub(crate) fn maintenance_turn(&self) -> Option<Turn<'_, M>> {
        let word = self.mem.global(Global::Turn);
        let now = word.load(Acquire);
        let free = now.is_multiple_of(2);
        (free && word.swap_if(now, now + 1, AcqRel).is_ok()).then(|| Turn(self))
    }

    fn level(&self, state: SlabState) -> usize {
        let slots = self.mem.geometry(state.class()).slots as usize;
        (state.used() as usize * LEVELS / slots).min(LEVELS - 1)
    }
}

impl<M: Memory> Turn<'_, M> {
    /// Takes every class's list apart: full and draining slabs leave, empty
    /// ones become spare, the others come back fullest first, each on the
    /// list of the class it serves now.
    pub(crate) fn rebuild_lists(&self) {
        let slabs = self.0;
        // Inserters that do not find a slab on its list meanwhile look at all
        // slabs, because the turn word has changed.
        slabs.mem.global(Global::Misplaced).store(0, Release);
        for list in 0..slabs.mem.class_count() {
            let mut levels = [None; LEVELS];
            let mut at = slabs.detach(list);
            while let Some(slab) = at {
                at = slabs.next(slab);
                if let Some(level) = self.sort_out(slab) {
                    slabs.set_next(slab, levels[level]);
                    levels[level] = Some(slab);
                }
            }
            for mut at in levels {
                while let Some(slab) = at {
                    at = slabs.next(slab);
                    slabs.list(slabs.state(slab).class(), slab);
                }
            }
        }
    }

    /// The fullness of a detached slab that stays listed; `None` once it has
    /// been dealt with otherwise.
    fn sort_out(&self, slab: u32) -> Option<usize> {
        let slabs = self.0;
        let mut state = slabs.state(slab);
        loop {
            let empty = state.is(Phase::Active) && state.used() == 0;
            if !empty && slabs.has_room(state) {
                return Some(slabs.level(state));
            }
            let new = if empty {
                SlabState::new(Phase::Held, 0, 0, false)
            } else {
                state.with_listed(false)
            };
            match slabs.change(slab, state, new) {
                Ok(()) => {
                    if empty {
                        slabs.count_empties(-1);
                        slabs.put_away(slab);
                    }
                    return None;
                }
                Err(now) => state = now,
            }
        }
    }

    /// Gives spare slabs back to the kernel until at most `keep_bytes` of them
    /// are left; the lowest stay, neighbours go in one call.
    pub(crate) fn release_spares(&self, keep_bytes: u64) {
        let slabs = self.0;
        if slabs.mem.global(Global::SpareBytes).load(Acquire) <= keep_bytes {
            return;
        }
        let held = SlabState::new(Phase::Held, 0, 0, false);
        while let Some(slab) = slabs.pop(slabs.spare_list()) {
            let bytes = slabs.backed_bytes(slab);
            slabs
                .mem
                .global(Global::SpareBytes)
                .fetch_sub(bytes, AcqRel);
            slabs.mem.slab(slab)[row::STATE].store(held.0, Release);
        }
        // Nothing but this turn makes or ends phase Held. First those that
        // stay, so that inserters miss them for a moment only.
        let bump = slabs.bump();
        let mut kept = 0;
        for slab in 0..bump {
            if slabs.state(slab).is(Phase::Held) {
                kept += slabs.backed_bytes(slab);
                if kept > keep_bytes {
                    break;
                }
                slabs.put_away(slab);
            }
        }
        let mut runs = [(0_u32, 0_u32); RUNS_MAX];
        let mut count = 0;
        // Downwards, so that the lowest slabs end up on top of the unbacked list.
        for slab in (0..bump).rev() {
            if !slabs.state(slab).is(Phase::Held) {
                continue;
            }
            if count > 0 && runs[count - 1].0 == slab + 1 {
                runs[count - 1] = (slab, runs[count - 1].1 + 1);
                continue;
            }
            if count == RUNS_MAX {
                self.give_back(&runs);
                count = 0;
            }
            runs[count] = (slab, 1);
            count += 1;
        }
        self.give_back(&runs[..count]);
    }

    fn give_back(&self, runs: &[(u32, u32)]) {
        let slabs = self.0;
        let worked = slabs.mem.decommit(runs);
        for &(first, count) in runs {
            for slab in (first..first + count).rev() {
                if worked {
                    let bytes = slabs.backed_bytes(slab);
                    slabs.mem.slab(slab)[row::BACKED].store(0, Release);
                    slabs.mem.global(Global::Held).fetch_sub(bytes, AcqRel);
                }
                // After a refusal it still holds memory and is spare again.
                slabs.put_away(slab);
            }
        }
    }

    /// Marks sparse slabs of `window` as draining until emptying them brings the
    /// free space in its part-filled slabs down to what `aim` says, or
    /// `max_slots` slots would have to move. Returns the number of slots to move.
    ///
    /// `aim` is told the bytes of the slots in use there, and says which free
    /// bytes are worth a compaction, and how many are to be left.
    /// `free_slots` is scratch space, one entry for each class.
    pub(crate) fn mark_sparse(
        &self,
        window: Range<u32>,
        aim: impl FnOnce(u64) -> (u64, u64),
        max_slots: usize,
        free_slots: &mut [u32],
    ) -> usize {
        let slabs = self.0;
        free_slots.fill(0);
        let (mut free_bytes, mut live_bytes) = (0, 0);
        let mut census = [0_u32; LEVELS];
        for slab in window.clone() {
            let state = slabs.state(slab);
            if !state.is(Phase::Active) {
                continue;
            }
            live_bytes += self.used_bytes(state);
            if let Some((state, backed)) = self.part_filled(slab) {
                let class = usize::from(state.class());
                let free = self.free_backed_slots(state, backed);
                free_bytes += backed.saturating_sub(self.used_bytes(state));
                free_slots[class] = free_slots[class].saturating_add(free);
                census[slabs.level(state)] += 1;
            }
        }
        let (trigger_bytes, target_bytes) = aim(live_bytes);
        if free_bytes <= trigger_bytes {
            return 0;
        }
        let mut moving = 0;
        for (level, _) in census.iter().enumerate().filter(|&(_, &count)| count > 0) {
            for slab in window.clone() {
                if free_bytes <= target_bytes || moving >= max_slots {
                    return moving;
                }
                let Some((state, backed)) = self.part_filled(slab) else {
                    continue;
                };
                if slabs.level(state) != level {
                    continue;
                }
                // What the class's other slabs cannot take in, beside what is
                // already promised to them, goes to a fresh slab, which will
                // hold just that.
                let slot_bytes = u64::from(slabs.mem.geometry(state.class()).slot_bytes);
                let class = usize::from(state.class());
                let free = self.free_backed_slots(state, backed);
                let left = i64::from(free_slots[class]) - i64::from(free) - i64::from(state.used());
                let homeless = left.min(0).unsigned_abs();
                let gain = backed.saturating_sub(homeless * slot_bytes);
                if gain * GAIN_SHARE_MIN < backed {
                    continue;
                }
                if slabs
                    .change(slab, state, state.with_phase(Phase::Draining))
                    .is_ok()
                {
                    free_slots[class] = left.max(0) as u32;
                    free_bytes = free_bytes.saturating_sub(gain);
                    moving += state.used() as usize;
                }
            }
        }
        moving
    }

    /// The state and backed bytes of a slab that serves a class and is
    /// neither empty nor full.
    fn part_filled(&self, slab: u32) -> Option<(SlabState, u64)> {
        let state = self.0.state(slab);
        (state.used() > 0 && self.0.has_room(state)).then(|| (state, self.0.backed_bytes(slab)))
    }

    /// Bytes of the slots in use.
    fn used_bytes(&self, state: SlabState) -> u64 {
        let slot_bytes = u64::from(self.0.mem.geometry(state.class()).slot_bytes);
        u64::from(state.used()) * slot_bytes
    }

    /// Free slots of a slab that need no new memory, about.
    fn free_backed_slots(&self, state: SlabState, backed: u64) -> u32 {
        let cut = self.0.mem.geometry(state.class());
        let whole = (backed / u64::from(cut.slot_bytes)) as u32;
        whole.min(cut.slots).saturating_sub(state.used())
    }

    /// Calls `visit` for the slots of a draining slab that are taken, until it
    /// returns `false`.
    pub(crate) fn for_each_taken(&self, slab: u32, mut visit: impl FnMut(u32) -> bool) {
        for (number, word) in self.0.mem.slab(slab)[row::BITMAP..].iter().enumerate() {
            let mut taken = word.load(Acquire);
            while taken != 0 {
                let bit = taken.trailing_zeros();
                taken &= taken - 1;
                if !visit(number as u32 * 64 + bit) {
                    return;
                }
            }
        }
    }

    /// Ends the draining of the slabs of `window`; those that became empty lose
    /// their memory first, neighbours in one call, whatever list they are on.
    pub(crate) fn give_back_drained(&self, window: Range<u32>) {
        let slabs = self.0;
        let mut runs = [(0_u32, 0_u32); RUNS_MAX];
        let mut count = 0_usize;
        for slab in window {
            let state = slabs.state(slab);
            if !state.is(Phase::Draining) {
                continue;
            }
            if state.used() > 0 {
                self.finish_drain(slab);
                continue;
            }
            if let Some(last) = count.checked_sub(1).map(|last| &mut runs[last])
                && last.0 + last.1 == slab
            {
                last.1 += 1;
                continue;
            }
            if count == RUNS_MAX {
                self.empty_drained(&runs);
                count = 0;
            }
            runs[count] = (slab, 1);
            count += 1;
        }
        self.empty_drained(&runs[..count]);
    }

    /// The slabs are draining and empty: nobody takes a slot of theirs or has one,
    /// and none will before the draining ends.
    fn empty_drained(&self, runs: &[(u32, u32)]) {
        let slabs = self.0;
        let worked = slabs.mem.decommit(runs);
        for slab in runs.iter().flat_map(|&(first, count)| first..first + count) {
            if worked {
                let bytes = slabs.backed_bytes(slab);
                slabs.mem.slab(slab)[row::BACKED].store(0, Release);
                slabs.mem.global(Global::Held).fetch_sub(bytes, AcqRel);
            }
            self.finish_drain(slab);
        }
    }

    /// Ends the draining of a slab: away if it is empty, back to its list if
    /// not.
    pub(crate) fn finish_drain(&self, slab: u32) {
        let slabs = self.0;
        let mut state = slabs.state(slab);
        while state.is(Phase::Draining) {
            let empty = state.used() == 0;
            let new = if empty && !state.listed() {
                SlabState::new(Phase::Held, 0, 0, false)
            } else {
                // Listed whether or not it has room: whoever meets a full slab
                // on a list takes it off.
                state.with_phase(Phase::Active).with_listed(true)
            };
            match slabs.change(slab, state, new) {
                Ok(()) => {
                    if new.is(Phase::Held) {
                        slabs.put_away(slab);
                    } else if empty {
                        slabs.count_empties(1);
                    } else if !state.listed() {
                        slabs.list(state.class(), slab);
                    }
                    return;
                }
                Err(now) => state = now,
            }
        }
    }
}

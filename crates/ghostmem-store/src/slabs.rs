//! Taking and giving back slots: the lock-free heart of the store.
//!
//! Everything here may run inside a fault handler and on any number of threads
//! at once. See [`crate::state`] for the protocol of a single slab.
//!
//! Where a new slot comes from, in this order:
//! 0. the slab of the class that the processor took one of last: evictors of one class
//!    meet in a row only where its list is short;
//! 1. the class's list of partly filled slabs;
//! 2. a slab that serves no class: spare (backed), unbacked, or never used;
//! 3. a partly filled slab of a slightly larger class;
//! 4. any slab that has room or is empty, found by looking at all of them.
//!
//! Steps 3 and 4 happen only when address space or the byte limit is
//! exhausted. Step 4 makes the answer "full" independent of where slabs happen
//! to be listed: an empty slab on another class's list changes class in place,
//! by one compare-and-swap, and is put on the right list by whoever meets it
//! on the wrong one.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::class::PAGE_SIZE;
use crate::list::{link_to, unlink};
use crate::memory::{Memory, Word};
use crate::state::{Global, Phase, SlabState, row};

/// How many larger classes may lend a slot when memory is short: each is at
/// least 1/64 larger, so at most about an eighth of the slot is wasted.
const LENDERS: usize = 8;

/// Listed slabs that a processor looks at for one of its own: those that were filled up
/// stay listed until they come to the top.
const LOOKS_APART: usize = 16;

#[cfg(test)]
std::thread_local! {
    /// How often this thread looked at the row of a slab.
    pub(crate) static LOOKS: core::cell::Cell<u64> = const { core::cell::Cell::new(0) };
}

/// The slab protocol over some memory.
#[derive(Debug)]
pub(crate) struct Slabs<M> {
    pub(crate) mem: M,
}

/// A slot taken by [`Slabs::allocate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotRef {
    pub(crate) slab: u32,
    pub(crate) index: u32,
    /// The class of the slab, possibly larger than the one asked for.
    pub(crate) class: u8,
}

/// Which slab out of use to prefer when a class needs one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prefer {
    /// A spare one: its memory is there, no page fault.
    Spare,
    /// An unbacked one: only the pages that get used become backed.
    Unbacked,
}

impl<M: Memory> Slabs<M> {
    /// Takes a slot of `class`; `None` when the store is full.
    pub(crate) fn allocate(&self, class: u8, prefer: Prefer) -> Option<SlotRef> {
        // What is copied goes where it is dense, see `Prefer`.
        let last = match prefer {
            Prefer::Spare => self.mem.last_slab(class),
            Prefer::Unbacked => None,
        };
        self.allocate_by(class, prefer, last)
    }

    /// As [`Slabs::allocate`], on a processor that keeps its last slab in a word.
    pub(crate) fn allocate_by(
        &self,
        class: u8,
        prefer: Prefer,
        last: Option<(&M::Word, usize)>,
    ) -> Option<SlotRef> {
        let turn = self.mem.global(Global::Turn).load(Acquire);
        let at = last
            .and_then(|(last, steps)| self.take_own(class, last, steps))
            .or_else(|| self.take_listed(class))
            .or_else(|| self.take_unused(class, prefer))
            .or_else(|| self.take_larger(class))
            .or_else(|| self.take_anywhere(class, turn))?;
        if let Some((last, _)) = last.filter(|_| at.class == class) {
            let link = link_to(Some(at.slab));
            if last.load(Relaxed) != link {
                last.store(link, Relaxed);
            }
        }
        Some(at)
    }

    /// Gives a slot back. `false`, and nothing happens, when it was not taken.
    pub(crate) fn release(&self, slab: u32, index: u32) -> bool {
        let word = &self.mem.slab(slab)[row::BITMAP + index as usize / 64];
        let bit = 1 << (index % 64);
        // Release: what the owner read of the slot happened before the next
        // owner, who sets the bit with Acquire, writes it.
        if word.fetch_and(!bit, Release) & bit == 0 {
            return false;
        }
        self.drop_ticket(slab);
        true
    }

    pub(crate) fn state(&self, slab: u32) -> SlabState {
        #[cfg(test)]
        LOOKS.with(|looks| looks.set(looks.get() + 1));
        SlabState(self.mem.slab(slab)[row::STATE].load(Acquire))
    }

    /// Replaces the state word; the one there now when it is not `from`.
    pub(crate) fn change(
        &self,
        slab: u32,
        from: SlabState,
        to: SlabState,
    ) -> Result<(), SlabState> {
        match self.mem.slab(slab)[row::STATE].swap_if(from.0, to.0, AcqRel) {
            Ok(_) => Ok(()),
            Err(now) => Err(SlabState(now)),
        }
    }

    /// The slabs used so far are those below this index.
    pub(crate) fn bump(&self) -> u32 {
        self.mem.global(Global::Bump).load(Acquire) as u32
    }

    /// Bytes of pages in a backed mask.
    pub(crate) fn mask_bytes(mask: u64) -> u64 {
        u64::from(mask.count_ones()) * PAGE_SIZE as u64
    }

    /// Bytes of a slab's backed pages.
    pub(crate) fn backed_bytes(&self, slab: u32) -> u64 {
        Self::mask_bytes(self.mem.slab(slab)[row::BACKED].load(Acquire))
    }

    fn slots(&self, class: u8) -> u32 {
        self.mem.geometry(class).slots
    }

    pub(crate) fn has_room(&self, state: SlabState) -> bool {
        state.is(Phase::Active) && state.used() < self.slots(state.class())
    }

    /// Lists a slab whose `list` flag the caller set.
    pub(crate) fn list(&self, class: u8, slab: u32) {
        self.push(usize::from(class), slab);
    }

    /// Takes a slot of the slab that the processor used last, or else of the one that
    /// comes after `steps` others with room in the list. A slab that is full by now, or something else, is
    /// looked at in vain: a note of it says nothing about it.
    fn take_own(&self, class: u8, last: &M::Word, steps: usize) -> Option<SlotRef> {
        let kept = unlink(last.load(Relaxed));
        if let Some(slab) = kept.filter(|&slab| self.take_ticket(slab, class)) {
            return self.settle(slab, class);
        }
        if steps == 0 {
            return None; // the top
        }
        // Links may be stale, but lead to slabs.
        let below = |slab: &u32| self.next(*slab);
        let with_room = |slab: &u32| {
            let state = self.state(*slab);
            state.class() == class && self.has_room(state)
        };
        core::iter::successors(self.top(usize::from(class)).slab(), below)
            .take(LOOKS_APART)
            .filter(with_room)
            .skip(steps)
            .find(|&slab| self.take_ticket(slab, class))
            .and_then(|slab| self.settle(slab, class))
    }

    fn take_listed(&self, class: u8) -> Option<SlotRef> {
        let list = usize::from(class);
        loop {
            let head = self.top(list);
            let slab = head.slab()?;
            if self.take_ticket(slab, class) {
                return self.settle(slab, class);
            }
            // Full, draining, or of another class: it does not belong here.
            if self.pop_seen(list, head) {
                self.relist(slab);
            }
        }
    }

    fn take_unused(&self, class: u8, prefer: Prefer) -> Option<SlotRef> {
        let slab = match prefer {
            Prefer::Spare => self.pop_spare().or_else(|| self.pop_unbacked(class)),
            Prefer::Unbacked => self.pop_unbacked(class).or_else(|| self.pop_spare()),
        }?;
        if !self.mem.prepare(slab, class) {
            self.put_away(slab);
            return None;
        }
        // The slab is nobody else's and its bitmap is clear. It starts with
        // one ticket, ours, so that it cannot be found empty meanwhile.
        let state = SlabState::new(Phase::Active, class, 1, true);
        self.mem.slab(slab)[row::STATE].store(state.0, Release);
        self.list(class, slab);
        self.settle(slab, class)
    }

    fn take_larger(&self, class: u8) -> Option<SlotRef> {
        let class = usize::from(class);
        let end = self.mem.class_count().min(class + 1 + LENDERS);
        (class + 1..end).find_map(|larger| self.take_listed(larger as u8))
    }

    /// `turn` is the turn word from before the lists were consulted.
    fn take_anywhere(&self, class: u8, turn: u64) -> Option<SlotRef> {
        let none_empty = self.mem.global(Global::Empties).load(Acquire) as i64 <= 0;
        let none_misplaced = self.mem.global(Global::Misplaced).load(Acquire) == 0;
        let at_rest = turn.is_multiple_of(2) && self.mem.global(Global::Turn).load(Acquire) == turn;
        if none_empty && none_misplaced && at_rest {
            return None; // the lists told the whole truth
        }
        (0..self.bump()).find_map(|slab| {
            let state = self.state(slab);
            if !state.is(Phase::Active) {
                return None;
            }
            let taken = if state.class() == class {
                self.take_ticket(slab, class)
            } else {
                state.used() == 0 && self.convert(slab, state, class)
            };
            if taken {
                self.settle(slab, class)
            } else {
                None
            }
        })
    }

    /// Turns an empty slab of another class into one of `class` and takes its
    /// first ticket.
    fn convert(&self, slab: u32, empty: SlabState, class: u8) -> bool {
        if !self.affordable(slab, class) || !self.mem.prepare(slab, class) {
            return false;
        }
        let ours = SlabState::new(Phase::Active, class, 1, empty.listed());
        // Raised before the swap, so that nobody sees the slab misplaced and
        // the count zero, and again after it, in case the lists were rebuilt
        // and the count cleared in between. Too high a count does no harm.
        let misplaced = self.mem.global(Global::Misplaced);
        misplaced.fetch_add(1, AcqRel);
        if self.change(slab, empty, ours).is_err() {
            return false;
        }
        misplaced.fetch_add(1, AcqRel);
        self.count_empties(-1);
        true
    }

    /// Raises `used` if the slab serves `class` and has room.
    fn take_ticket(&self, slab: u32, class: u8) -> bool {
        let slots = self.slots(class);
        let mut state = self.state(slab);
        loop {
            let fits = state.is(Phase::Active) && state.class() == class && state.used() < slots;
            if !fits {
                return false;
            }
            match self.change(slab, state, state.with_used(state.used() + 1)) {
                Ok(()) => {
                    if state.used() == 0 {
                        self.count_empties(-1);
                    }
                    return true;
                }
                Err(now) => state = now,
            }
        }
    }

    /// Lowers `used`, and lists the slab if that made the first room in it.
    fn drop_ticket(&self, slab: u32) {
        let mut state = self.state(slab);
        loop {
            debug_assert!(state.used() > 0, "a ticket is given back once");
            let active = state.is(Phase::Active);
            let list_it = active && !state.listed();
            let used = state.used().saturating_sub(1);
            let new = state.with_used(used).with_listed(state.listed() || list_it);
            match self.change(slab, state, new) {
                Ok(()) => {
                    if active && used == 0 {
                        self.count_empties(1);
                    }
                    if list_it {
                        self.list(state.class(), slab);
                    }
                    return;
                }
                Err(now) => state = now,
            }
        }
    }

    /// Turns a ticket into a slot: a bit of the bitmap, then memory behind it.
    /// Gives the ticket back when the byte limit refuses the memory.
    fn settle(&self, slab: u32, class: u8) -> Option<SlotRef> {
        let index = self.claim_bit(slab, class);
        if self.back(slab, self.mem.geometry(class).page_mask(index)) {
            Some(SlotRef { slab, index, class })
        } else {
            self.release(slab, index);
            None
        }
    }

    /// The lowest free slot, so that slabs fill from the front and their tails
    /// stay unbacked. The caller's ticket guarantees that there is one at every
    /// instant; a failed round means that other threads took and gave back
    /// slots meanwhile.
    fn claim_bit(&self, slab: u32, class: u8) -> u32 {
        let slots = self.slots(class);
        let words = &self.mem.slab(slab)[row::BITMAP..];
        loop {
            for (number, word) in words.iter().enumerate() {
                let first = number as u32 * 64;
                if first >= slots {
                    break;
                }
                let valid = u64::MAX >> (64 - (slots - first).min(64));
                let mut free = !word.load(Relaxed) & valid;
                while free != 0 {
                    let bit = free & free.wrapping_neg();
                    // Acquire: pairs with `release`.
                    let before = word.fetch_or(bit, Acquire);
                    if before & bit == 0 {
                        return first + bit.trailing_zeros();
                    }
                    free = !before & valid;
                }
            }
            self.mem.relax();
        }
    }

    /// Makes sure that the pages of `mask` count as held; `false` when the
    /// byte limit forbids it.
    fn back(&self, slab: u32, mask: u64) -> bool {
        let backed = &self.mem.slab(slab)[row::BACKED];
        let missing = mask & !backed.load(Acquire);
        if missing == 0 {
            return true;
        }
        if !self.charge(Self::mask_bytes(missing)) {
            return false;
        }
        // A neighbour may have backed a shared page first and paid for it.
        let paid_twice = missing & backed.fetch_or(missing, AcqRel);
        if paid_twice != 0 {
            let bytes = Self::mask_bytes(paid_twice);
            self.mem.global(Global::Held).fetch_sub(bytes, AcqRel);
        }
        true
    }

    /// Adds to the held bytes unless that would exceed the limit.
    fn charge(&self, bytes: u64) -> bool {
        let held = self.mem.global(Global::Held);
        let mut now = held.load(Acquire);
        loop {
            let sum = now.saturating_add(bytes);
            if sum > self.mem.global(Global::Limit).load(Relaxed) {
                return false;
            }
            match held.swap_if(now, sum, AcqRel) {
                Ok(_) => return true,
                Err(seen) => now = seen,
            }
        }
    }

    /// Whether the limit leaves room for the first slot of `class` in `slab`.
    fn affordable(&self, slab: u32, class: u8) -> bool {
        let backed = self.mem.slab(slab)[row::BACKED].load(Acquire);
        self.affords(self.mem.geometry(class).page_mask(0) & !backed)
    }

    fn affords(&self, missing: u64) -> bool {
        let held = self.mem.global(Global::Held).load(Acquire);
        missing == 0
            || held.saturating_add(Self::mask_bytes(missing))
                <= self.mem.global(Global::Limit).load(Relaxed)
    }

    fn pop_spare(&self) -> Option<u32> {
        let slab = self.pop(self.spare_list())?;
        let bytes = self.backed_bytes(slab);
        self.mem.global(Global::SpareBytes).fetch_sub(bytes, AcqRel);
        Some(slab)
    }

    fn pop_unbacked(&self, class: u8) -> Option<u32> {
        // Asked first, lest a store at its limit activates slabs in vain.
        if !self.affords(self.mem.geometry(class).page_mask(0)) {
            return None;
        }
        self.pop(self.unbacked_list()).or_else(|| self.pop_bump())
    }

    fn pop_bump(&self) -> Option<u32> {
        let bump = self.mem.global(Global::Bump);
        let mut now = bump.load(Acquire);
        while now < u64::from(self.mem.slab_count()) {
            match bump.swap_if(now, now + 1, AcqRel) {
                Ok(_) => return Some(now as u32),
                Err(seen) => now = seen,
            }
        }
        None
    }

    /// Puts an empty slab that the caller owns on the spare list, or on the
    /// unbacked one if it has no memory.
    pub(crate) fn put_away(&self, slab: u32) {
        let bytes = self.backed_bytes(slab);
        let (phase, list) = if bytes == 0 {
            (Phase::Unbacked, self.unbacked_list())
        } else {
            self.mem.global(Global::SpareBytes).fetch_add(bytes, AcqRel);
            (Phase::Spare, self.spare_list())
        };
        self.mem.slab(slab)[row::STATE].store(SlabState::new(phase, 0, 0, false).0, Release);
        self.push(list, slab);
    }

    /// Settles what becomes of a slab just popped off a class's list: onto
    /// the right list if it has room, else off the lists.
    fn relist(&self, slab: u32) {
        let mut state = self.state(slab);
        loop {
            if self.has_room(state) {
                self.list(state.class(), slab);
                return;
            }
            match self.change(slab, state, state.with_listed(false)) {
                Ok(()) => return,
                Err(now) => state = now,
            }
        }
    }

    pub(crate) fn count_empties(&self, change: i64) {
        self.mem
            .global(Global::Empties)
            .fetch_add(change as u64, AcqRel);
    }
}

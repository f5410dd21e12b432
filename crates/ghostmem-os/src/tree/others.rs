//! What a process does for the slots of others: measures those that do not say what they
//! take, and frees those whose processes are gone.

use core::sync::atomic::{AtomicU64, Ordering};

use super::identity::{START_BITS, grave_of, identity_of, is_grave, is_process, may_be_one};
use super::seen::{Seen, stat_of, taken_by};
use super::{
    BEGUN, FAULTS, GRANTED, IDENTITY, Kinship, LOOKS, MORE, NONE, PASSES, Page, READ, SAID, SHARED,
    SLOTS, SLOTS_MAX, STAMP, TAKEN, UNREAD, passed_of, put_kinship,
};
use crate::clock;

/// A figure that is older is looked at by others, nanoseconds.
pub(super) const OLD_NS: u64 = 100_000_000;
/// What a process was granted is its own for so long, nanoseconds. One that spoke earlier
/// speaks before it takes more: others may have lowered that by what it had given back.
pub const KEPT_NS: u64 = OLD_NS / 2;
/// The figure of one that keeps the bound is looked at sooner, as long as only its faults
/// have to be asked for: a forked child has no thread, and writes to pages that it shares
/// without a word to anybody.
pub(super) const QUIET_NS: u64 = 4_000_000;
/// What one that ended had shared stays charged for so long at most: a kin may have no way
/// to read its part, and others read it for one that is held up.
pub(super) const GRAVE_NS: u64 = 2_000_000_000;
/// So many are looked at in turn.
const LOOKED_AT: usize = 4;
/// Bytes that a minor fault adds at most.
const FAULT_BYTES: u64 = 4096;

impl Page<'_> {
    /// Whether others rely at the moment `now_ns` on the process in a slot, which was there
    /// until `end_ns`; of the one in the slot `mine` it is known when it read its part last.
    pub(super) fn is_relied_on(
        self,
        ended: &[AtomicU64],
        end_ns: u64,
        now_ns: u64,
        (mine, read_ns): (usize, u64),
    ) -> bool {
        let kinship = kinship_in(ended);
        kinship.passes_bytes > 0
            && now_ns.saturating_sub(end_ns) <= GRAVE_NS
            && (0..self.slots()).any(|index| {
                let slot = self.slot(index);
                let is_there = is_process(slot[IDENTITY].load(Ordering::Acquire));
                let knows = index == mine && read_ns > end_ns;
                let is_other = is_there && !core::ptr::eq(slot, ended);
                is_other && !knows && kinship_in(slot).relies_on(&kinship, end_ns)
            })
    }

    pub(super) fn has_others(self, mine: usize) -> bool {
        let mut others = (0..self.slots()).filter(|&index| index != mine);
        others.any(|index| self.slot(index)[IDENTITY].load(Ordering::Acquire) != 0)
    }

    pub(super) fn look_around(self, mine: usize, now_ns: u64) {
        /// Slots freed in one call, at most: a shell makes processes faster than others
        /// look.
        const FREED_MOST: usize = 64;
        let slots = self.slots();
        let first = usize::try_from(now_ns >> 20).unwrap_or(0);
        (0..slots).for_each(|index| self.forget_ended(self.slot(index), now_ns));
        (0..slots)
            .map(|index| (first.wrapping_add(index)) % slots)
            .filter(|&index| index != mine)
            .filter(|&index| self.count_faults(self.slot(index), now_ns))
            .take(LOOKED_AT)
            .for_each(drop);
        for _ in 0..FREED_MOST {
            if !self.look_after_oldest(mine, now_ns) {
                break;
            }
        }
    }

    /// Measures the process that has said nothing for longest; whether it was gone.
    fn look_after_oldest(self, mine: usize, now_ns: u64) -> bool {
        let old = |index: &usize| {
            let slot = self.slot(*index);
            let stamp = slot[STAMP].load(Ordering::Relaxed);
            let is_there = is_process(slot[IDENTITY].load(Ordering::Acquire));
            is_there && now_ns.saturating_sub(stamp) > OLD_NS
        };
        let oldest = (0..self.slots())
            .filter(|&index| index != mine)
            .filter(old)
            .min_by_key(|&index| self.slot(index)[STAMP].load(Ordering::Relaxed));
        let Some(slot) = oldest.map(|index| self.slot(index)) else {
            return false;
        };
        let identity = slot[IDENTITY].load(Ordering::Acquire);
        let stamp = slot[STAMP].load(Ordering::Relaxed);
        let granted = slot[GRANTED].load(Ordering::SeqCst);
        let won = slot[STAMP].compare_exchange(stamp, now_ns, Ordering::AcqRel, Ordering::Relaxed);
        if !is_process(identity) || won.is_err() {
            // Somebody else is at it.
            return false;
        }
        let process = identity >> START_BITS;
        match stat_of(process) {
            Seen::There(stat) if may_be_one(identity, identity_of(process, stat.start)) => {
                if let Some((whole, part)) = taken_by(process) {
                    Self::lower_grant(slot, granted, part, now_ns);
                    slot[SAID].store(part, Ordering::Relaxed);
                    slot[FAULTS].store(stat.faults, Ordering::Relaxed);
                    slot[TAKEN].store(part, Ordering::Relaxed);
                    // Who shares nothing has no part that it could rely on.
                    if slot[BEGUN].load(Ordering::Relaxed) != 0 {
                        slot[PASSES].store(passed_of(whole, part), Ordering::Relaxed);
                        slot[UNREAD].store(0, Ordering::Relaxed);
                        slot[READ].store(now_ns, Ordering::Relaxed);
                    }
                }
                false
            }
            // What cannot be seen now counts as it did.
            Seen::Hidden => false,
            // Another's number by now, or nobody's.
            Seen::There(_) | Seen::Gone => {
                self.bury(slot, identity, now_ns);
                true
            }
        }
    }

    /// A process was granted so much in all, by what it took itself for, and has not looked
    /// since. By the kernel it takes `part` now, and what it may take before it looks is no
    /// more than it was: a forked child that maps shared memory, and then does nothing, would
    /// be charged for all of it for ever. Pages may have left since, which come back under the
    /// old grant: so it speaks first ([`KEPT_NS`]). Not where it speaks for itself meanwhile:
    /// it says when, and then what it was granted.
    pub(super) fn lower_grant(slot: &[AtomicU64], granted: u64, part: u64, now_ns: u64) {
        let lower = part.saturating_add(slot[MORE].load(Ordering::Relaxed));
        let spoke = slot[STAMP].load(Ordering::Acquire) != now_ns;
        if granted != 0 && lower < granted && !spoke {
            let word = &slot[GRANTED];
            let _else_it_spoke =
                word.compare_exchange(granted, lower, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Frees the slot of a process that ended; or keeps it for what the process had shared,
    /// while others rely on that.
    fn bury(self, slot: &[AtomicU64], identity: u64, now_ns: u64) {
        // It may have ended since its finder looked at the clock.
        let end_ns = clock::now_ns().max(now_ns);
        if !self.is_relied_on(slot, end_ns, end_ns, (NONE, 0)) {
            return free(slot, identity);
        }
        let word = &slot[IDENTITY];
        if word.load(Ordering::Acquire) == identity {
            slot[STAMP].store(end_ns, Ordering::Relaxed);
            let grave = grave_of(end_ns);
            let _kept_once =
                word.compare_exchange(identity, grave, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The process in a slot becomes another program: what it shared goes with its memory,
    /// and stays charged in a slot of its own, as that of a process that ends, while others
    /// rely on it. Where no slot is free they are not told.
    pub(super) fn bury_shared(self, index: usize, now_ns: u64) {
        let slot = self.slot(index);
        if !self.is_relied_on(slot, now_ns, now_ns, (NONE, 0)) {
            return;
        }
        let identity = slot[IDENTITY].load(Ordering::Acquire);
        for index in 0..SLOTS_MAX {
            let grave = self.slot(index);
            // The process's own until it says what is charged: should it end now, whoever
            // comes by frees it.
            let won =
                grave[IDENTITY].compare_exchange(0, identity, Ordering::AcqRel, Ordering::Relaxed);
            if won.is_err() {
                continue;
            }
            for word in &grave[IDENTITY + 1..] {
                word.store(0, Ordering::Relaxed);
            }
            put_kinship(grave, kinship_in(slot));
            grave[STAMP].store(now_ns, Ordering::Relaxed);
            self.0[SLOTS].fetch_max(index as u64 + 1, Ordering::AcqRel);
            let _else_freed = grave[IDENTITY].compare_exchange(
                identity,
                grave_of(now_ns),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            return;
        }
    }

    /// Frees the slot of one that ended, when nobody relies on it any more.
    fn forget_ended(self, slot: &[AtomicU64], now_ns: u64) {
        let identity = slot[IDENTITY].load(Ordering::Acquire);
        if is_grave(identity) {
            let end_ns = slot[STAMP].load(Ordering::Relaxed);
            if !self.is_relied_on(slot, end_ns, now_ns, (NONE, 0)) {
                free(slot, identity);
            }
        }
    }

    /// Adds what a process that keeps the bound may have written since it said what it takes,
    /// and frees its slot where it is gone; whether that was due.
    fn count_faults(self, slot: &[AtomicU64], now_ns: u64) -> bool {
        let stamp = slot[STAMP].load(Ordering::Relaxed);
        let looks = slot[LOOKS].load(Ordering::Relaxed) == 1;
        if !looks || stamp == 0 || now_ns.saturating_sub(stamp) <= QUIET_NS {
            return false;
        }
        let identity = slot[IDENTITY].load(Ordering::Acquire);
        if !is_process(identity) {
            return false;
        }
        let process = identity >> START_BITS;
        let stat = match stat_of(process) {
            Seen::There(stat) if may_be_one(identity, identity_of(process, stat.start)) => stat,
            // What cannot be seen now counts as it did.
            Seen::Hidden => return true,
            // What it took came free as it ended, and others may have that at once.
            Seen::There(_) | Seen::Gone => {
                self.bury(slot, identity, now_ns);
                return true;
            }
        };
        let new = stat
            .faults
            .saturating_sub(slot[FAULTS].load(Ordering::Relaxed));
        let said = slot[SAID].load(Ordering::Relaxed);
        let new = new.saturating_mul(FAULT_BYTES);
        let taken = said.saturating_add(new.min(slot[SHARED].load(Ordering::Relaxed)));
        // Not where it spoke for itself meanwhile.
        if slot[STAMP].load(Ordering::Relaxed) == stamp {
            slot[TAKEN].store(taken, Ordering::Relaxed);
        }
        true
    }
}

/// Frees a slot for the next, who takes the figures away: whoever comes late to this may
/// find another process in it.
pub(super) fn free(slot: &[AtomicU64], identity: u64) {
    let _freed_once =
        slot[IDENTITY].compare_exchange(identity, 0, Ordering::AcqRel, Ordering::Relaxed);
}

fn kinship_in(slot: &[AtomicU64]) -> Kinship {
    Kinship {
        passes_bytes: slot[PASSES].load(Ordering::Relaxed),
        begun_ns: slot[BEGUN].load(Ordering::Relaxed),
        read_ns: slot[READ].load(Ordering::Relaxed),
        unread: slot[UNREAD].load(Ordering::Relaxed) != 0,
    }
}

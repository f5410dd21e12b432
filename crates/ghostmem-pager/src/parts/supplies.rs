//! What the supplies that memory is taken from, groups and the machine, left at the last
//! measurement: written by the one who looks, read by those who need memory.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ghostmem_os::meter::Supply;
use ghostmem_policy::bound::{Allowance, starved_reserve_bytes};

/// An [`Allowance`] in words of its own: one looker writes, others read one word each.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) bytes: AtomicU64,
    pub(crate) headroom_bytes: AtomicU64,
    short_bytes: AtomicU64,
    shared: AtomicBool,
}

impl Shelf {
    pub(crate) const fn of(allowance: Allowance) -> Self {
        Self {
            bytes: AtomicU64::new(allowance.bytes),
            headroom_bytes: AtomicU64::new(allowance.headroom_bytes),
            short_bytes: AtomicU64::new(allowance.short_bytes),
            shared: AtomicBool::new(allowance.shared),
        }
    }

    pub(crate) fn put(&self, allowance: Allowance) {
        self.bytes.store(allowance.bytes, Ordering::Relaxed);
        self.headroom_bytes
            .store(allowance.headroom_bytes, Ordering::Relaxed);
        self.short_bytes
            .store(allowance.short_bytes, Ordering::Relaxed);
        self.shared.store(allowance.shared, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Allowance {
        Allowance {
            bytes: self.bytes.load(Ordering::Relaxed),
            headroom_bytes: self.headroom_bytes.load(Ordering::Relaxed),
            short_bytes: self.short_bytes.load(Ordering::Relaxed),
            shared: self.shared.load(Ordering::Relaxed),
        }
    }
}

/// The supplies together. The one with the tightest allowance binds.
#[derive(Debug)]
pub(crate) struct Supplies {
    allowance: Shelf,
    left_bytes: AtomicU64,
    others_bytes: AtomicU64,
    spare_bytes: AtomicU64,
    in_a_group: AtomicBool,
    measured: AtomicU64,
}

impl Supplies {
    pub(crate) const fn new() -> Self {
        Self {
            allowance: Shelf::of(Allowance::ALL),
            left_bytes: AtomicU64::new(u64::MAX),
            others_bytes: AtomicU64::new(0),
            spare_bytes: AtomicU64::new(0),
            in_a_group: AtomicBool::new(false),
            measured: AtomicU64::new(0),
        }
    }

    pub(crate) fn put(&self, found: &Found) {
        self.allowance.put(found.allowance);
        self.left_bytes.store(found.left_bytes, Ordering::Relaxed);
        self.others_bytes
            .store(found.others_bytes, Ordering::Relaxed);
        self.spare_bytes.store(found.spare_bytes, Ordering::Relaxed);
        self.in_a_group.store(found.in_a_group, Ordering::Relaxed);
        self.measured.fetch_add(1, Ordering::Release);
    }

    /// In a forked child: what was spare was the parent's.
    pub(crate) fn forget_spare(&self) {
        self.spare_bytes.store(0, Ordering::Relaxed);
        self.others_bytes.store(0, Ordering::Relaxed);
    }

    /// Whether one of them is a group with a limit below the machine's memory.
    pub(crate) fn are_groups(&self) -> bool {
        self.in_a_group.load(Ordering::Relaxed)
    }

    /// What they allow.
    pub(crate) fn allowance(&self) -> Allowance {
        self.allowance.get()
    }

    /// What the fullest of them had left, with what can be swapped out for it, bytes.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.left_bytes.load(Ordering::Relaxed)
    }

    /// What others take of the one that binds, bytes; nothing where none does.
    pub(crate) fn others_bytes(&self) -> u64 {
        self.others_bytes.load(Ordering::Relaxed)
    }

    /// What a process that is starved may still take in each of them, bytes, and the number
    /// of the measurement that says so.
    pub(crate) fn spare_bytes(&self) -> (u64, u64) {
        let measured = self.measured.load(Ordering::Acquire);
        (self.spare_bytes.load(Ordering::Relaxed), measured)
    }
}

/// What one measurement finds, supply by supply.
#[derive(Debug)]
pub(crate) struct Found {
    taken_bytes: u64,
    starved: bool,
    machine_bytes: u64,
    in_a_group: bool,
    allowance: Allowance,
    left_bytes: u64,
    others_bytes: u64,
    spare_bytes: u64,
}

impl Found {
    /// For a process that takes `taken_bytes`, of which hardly anything is resident when
    /// it is `starved`, on a machine of `machine_bytes`.
    pub(crate) const fn new(taken_bytes: u64, starved: bool, machine_bytes: u64) -> Self {
        Self {
            taken_bytes,
            starved,
            machine_bytes,
            in_a_group: false,
            allowance: Allowance::ALL,
            left_bytes: u64::MAX,
            others_bytes: 0,
            spare_bytes: u64::MAX,
        }
    }

    pub(crate) fn add(&mut self, supply: &Supply) {
        let (limit, left) = (supply.limit_bytes, supply.left_bytes);
        self.in_a_group |= limit < self.machine_bytes;
        let mut allowance = Allowance::of_supply(limit, left, self.taken_bytes, self.starved);
        if supply.swap_bytes > 0 {
            allowance.short_bytes = 0;
        }
        let used = limit.saturating_sub(left);
        let spare = left.saturating_sub(starved_reserve_bytes(limit));
        self.spare_bytes = self.spare_bytes.min(spare);
        let with_swap = left.saturating_add(supply.swap_bytes);
        self.left_bytes = self.left_bytes.min(with_swap);
        self.tighten(allowance, used.saturating_sub(self.taken_bytes));
    }

    /// Adds a bound of the process's own: where it is the tightest, others have no part.
    pub(crate) fn bind(&mut self, allowance: Allowance) {
        self.tighten(allowance, 0);
    }

    /// Adds what a supply allows of which others take `others_bytes`.
    fn tighten(&mut self, allowance: Allowance, others_bytes: u64) {
        if allowance.most_bytes() < self.allowance.most_bytes() {
            self.others_bytes = others_bytes;
        }
        self.allowance = self.allowance.tighter(allowance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn supply(limit: u64, left: u64) -> Supply {
        Supply {
            limit_bytes: limit * MIB,
            left_bytes: left * MIB,
            swap_bytes: 0,
        }
    }

    #[test]
    fn what_is_spare_is_spare_in_each_supply() {
        // The machine binds, being short of its reserve; the group has less to spare.
        let machine = supply(64 << 10, 960);
        let group = supply(260, 20);
        let spare = 20 * MIB - starved_reserve_bytes(260 * MIB);
        for supplies in [[machine, group], [group, machine]] {
            let mut found = Found::new(100 * MIB, false, 64 << 30);
            supplies.iter().for_each(|supply| found.add(supply));
            assert_eq!(found.spare_bytes, spare);
            assert_eq!(found.left_bytes, 20 * MIB);
            assert!(found.in_a_group);
        }
    }

    #[test]
    fn the_machine_is_no_group() {
        let mut found = Found::new(100 * MIB, false, 64 << 30);
        found.add(&supply(64 << 10, 960));
        assert!(!found.in_a_group);
    }

    #[test]
    fn others_have_no_part_in_a_bound_of_the_process_s_own() {
        let mut found = Found::new(100 * MIB, false, 64 << 30);
        found.add(&supply(260, 20));
        assert_eq!(found.others_bytes, 140 * MIB);
        found.bind(Allowance::of_bound(90 << 20));
        assert_eq!(found.others_bytes, 0);
    }

    #[test]
    fn a_forked_child_takes_nothing_that_its_parent_saw() {
        let supplies = Supplies::new();
        let mut found = Found::new(100 * MIB, false, 64 << 30);
        found.add(&supply(260, 20));
        supplies.put(&found);
        assert!(supplies.spare_bytes().0 > 0 && supplies.others_bytes() > 0);
        assert!(supplies.are_groups());
        supplies.forget_spare();
        assert_eq!((supplies.spare_bytes().0, supplies.others_bytes()), (0, 0));
    }
}

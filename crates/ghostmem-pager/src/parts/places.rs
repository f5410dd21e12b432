//! What the places that memory is taken from, groups and the machine, left at the last
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

/// The places together. The one with the tightest allowance binds.
#[derive(Debug)]
pub(crate) struct Places {
    allowance: Shelf,
    left_bytes: AtomicU64,
    others_bytes: AtomicU64,
    spare_bytes: AtomicU64,
}

impl Places {
    pub(crate) const fn new() -> Self {
        Self {
            allowance: Shelf::of(Allowance::ALL),
            left_bytes: AtomicU64::new(u64::MAX),
            others_bytes: AtomicU64::new(0),
            spare_bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn put(&self, found: &Found) {
        self.allowance.put(found.allowance);
        self.left_bytes.store(found.left_bytes, Ordering::Relaxed);
        self.others_bytes
            .store(found.others_bytes, Ordering::Relaxed);
        self.spare_bytes.store(found.spare_bytes, Ordering::Relaxed);
    }

    /// What they allow.
    pub(crate) fn allowance(&self) -> Allowance {
        self.allowance.get()
    }

    /// What the fullest of them had left, with what can be swapped out for it, bytes.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.left_bytes.load(Ordering::Relaxed)
    }

    /// What others take of the one that binds, bytes.
    pub(crate) fn others_bytes(&self) -> u64 {
        self.others_bytes.load(Ordering::Relaxed)
    }

    /// What a process that is starved may still take of the one that binds, bytes.
    pub(crate) fn spare_bytes(&self) -> u64 {
        self.spare_bytes.load(Ordering::Relaxed)
    }
}

/// What one measurement finds, place by place.
#[derive(Debug)]
pub(crate) struct Found {
    taken_bytes: u64,
    starved: bool,
    allowance: Allowance,
    left_bytes: u64,
    others_bytes: u64,
    spare_bytes: u64,
}

impl Found {
    /// For a process that takes `taken_bytes`, of which hardly anything is resident when
    /// it is `starved`.
    pub(crate) const fn new(taken_bytes: u64, starved: bool) -> Self {
        Self {
            taken_bytes,
            starved,
            allowance: Allowance::ALL,
            left_bytes: u64::MAX,
            others_bytes: 0,
            spare_bytes: 0,
        }
    }

    pub(crate) fn add(&mut self, place: &Supply) {
        let (limit, left) = (place.limit_bytes, place.left_bytes);
        let mut allowance = Allowance::of_place(limit, left, self.taken_bytes, self.starved);
        if place.swap_bytes > 0 {
            allowance.short_bytes = 0;
        }
        if allowance.most_bytes() < self.allowance.most_bytes() {
            let used = limit.saturating_sub(left);
            self.others_bytes = used.saturating_sub(self.taken_bytes);
            self.spare_bytes = left.saturating_sub(starved_reserve_bytes(limit));
        }
        let with_swap = left.saturating_add(place.swap_bytes);
        self.left_bytes = self.left_bytes.min(with_swap);
        self.bind(allowance);
    }

    /// Adds a bound of the process's own.
    pub(crate) fn bind(&mut self, allowance: Allowance) {
        self.allowance = self.allowance.tighter(allowance);
    }
}

//! What a process takes where a fork shares its pages: each page counts once in all.
//!
//! The kernel charges a shared page to each process that maps it (`RssAnon`). It also says
//! each one's part (`Pss` of smaps_rollup): of a page that three map, a third. The parts of
//! all add up to what they take together, but reading them walks the page tables. So the
//! part is read ten times a second at most, and between two readings grows by the pages
//! that were written: each shared page that is written costs a minor fault, and so does
//! each new one. It is never more than what the kernel charges the process for.
//!
//! A child begins with nothing but its page tables, as its parent is charged for all. It
//! reads its part first after a tenth of a second, as its parent does. A process that
//! shares nothing any more is measured as before.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use ghostmem_os::meter::Meter;
use ghostmem_os::{PAGE_SIZE, clock, machine};

/// Time between two readings of the part, at least, nanoseconds.
const PARTS_NS: u64 = 100_000_000;
/// And so many times as long as the reading took.
const PARTS_SHARE: u64 = 20;

/// What a process shares with those it forked from, or that were forked from it.
#[derive(Debug)]
pub(crate) struct Kin {
    /// Something is shared.
    shares: AtomicBool,
    /// The part, at the last reading, bytes.
    part_bytes: AtomicU64,
    /// What the process took in full then, bytes, and its minor faults.
    whole_bytes: AtomicU64,
    faults: AtomicU64,
    /// When to read again, nanoseconds.
    due_ns: AtomicU64,
    /// What the process takes, less what the kernel charges it for, bytes.
    extra_bytes: AtomicI64,
    /// What the kernel charged it for at the last look, bytes.
    seen_bytes: AtomicU64,
    /// Minor faults at that look.
    seen_faults: AtomicU64,
}

impl Kin {
    /// Minor faults at the last measurement.
    pub(crate) fn faults(&self) -> u64 {
        self.seen_faults.load(Ordering::Relaxed)
    }

    pub(crate) const fn new() -> Self {
        Self {
            shares: AtomicBool::new(false),
            part_bytes: AtomicU64::new(0),
            whole_bytes: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            due_ns: AtomicU64::new(0),
            extra_bytes: AtomicI64::new(0),
            seen_bytes: AtomicU64::new(0),
            seen_faults: AtomicU64::new(0),
        }
    }

    /// What the process takes, less what the kernel charges it for.
    pub(crate) fn extra_bytes(&self) -> i64 {
        self.extra_bytes.load(Ordering::Relaxed)
    }

    /// Pages are shared from now on: in a child, which the kernel charges for `child`
    /// bytes, or in its parent.
    pub(crate) fn begin(&self, child: Option<u64>) {
        let seen = self.seen_bytes.load(Ordering::Relaxed);
        let whole = child.unwrap_or(seen);
        // Of a child nothing is new but its page tables.
        let part = match child {
            Some(whole) => whole / 512,
            None => seen.saturating_add_signed(self.extra_bytes()),
        };
        self.part_bytes.store(part, Ordering::Relaxed);
        self.whole_bytes.store(whole, Ordering::Relaxed);
        // A child had none before the fork: what it wrote since is its own.
        let faults = match child {
            Some(_) => 0,
            None => machine::minor_faults(),
        };
        self.faults.store(faults, Ordering::Relaxed);
        self.seen_faults.store(faults, Ordering::Relaxed);
        self.due_ns
            .store(clock::now_ns() + PARTS_NS, Ordering::Relaxed);
        self.note(whole, part);
        self.shares.store(true, Ordering::Relaxed);
    }

    fn note(&self, whole: u64, part: u64) {
        self.seen_bytes.store(whole, Ordering::Relaxed);
        self.extra_bytes
            .store(part.wrapping_sub(whole).cast_signed(), Ordering::Relaxed);
    }

    /// At the moment `now` the kernel charges the process for `whole` bytes.
    pub(crate) fn measure(&self, now: u64, whole: u64, meter: &Meter) {
        let faults = machine::minor_faults();
        self.seen_faults.store(faults, Ordering::Relaxed);
        if !self.shares.load(Ordering::Relaxed) {
            self.note(whole, whole);
            return;
        }
        if now >= self.due_ns.load(Ordering::Relaxed) {
            let part = meter.part_bytes();
            let took = clock::now_ns().saturating_sub(now);
            let next = PARTS_NS.max(took.saturating_mul(PARTS_SHARE));
            self.due_ns.store(now + next, Ordering::Relaxed);
            if let Some(part) = part {
                let part = part.min(whole);
                self.part_bytes.store(part, Ordering::Relaxed);
                self.whole_bytes.store(whole, Ordering::Relaxed);
                self.faults.store(faults, Ordering::Relaxed);
                if whole - part <= whole / 64 {
                    self.shares.store(false, Ordering::Relaxed);
                }
                self.note(whole, part);
                return;
            }
        }
        let new = faults.saturating_sub(self.faults.load(Ordering::Relaxed));
        let grown = whole.saturating_sub(self.whole_bytes.load(Ordering::Relaxed));
        let more = grown.max(new.saturating_mul(PAGE_SIZE as u64));
        let part = self.part_bytes.load(Ordering::Relaxed);
        self.note(whole, part.saturating_add(more).min(whole));
    }
}

// Elsewhere nobody says what a process takes.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn who_forked_nothing_takes_what_it_is_charged_for() {
        let kin = Kin::new();
        kin.measure(5, 100 * MIB, &Meter::new());
        assert_eq!(kin.extra_bytes(), 0);
    }

    #[test]
    fn a_child_begins_with_its_page_tables_and_grows_by_what_it_writes() {
        let (kin, meter) = (Kin::new(), Meter::new());
        kin.begin(Some(512 * MIB));
        assert_eq!(kin.extra_bytes(), -511 * (MIB as i64));
        // What it faulted for counts, 20 MiB that it was charged for at the least.
        kin.measure(5, 532 * MIB, &meter);
        assert!(kin.extra_bytes() >= (21 - 532) * (MIB as i64));
    }

    #[test]
    fn a_parent_is_charged_for_all_until_the_parts_are_read() {
        let (kin, meter) = (Kin::new(), Meter::new());
        kin.measure(5, 100 * MIB, &meter);
        kin.begin(None);
        assert_eq!(kin.extra_bytes(), 0);
        // Its part is read when that is due: this process shares little with anybody.
        meter.open(false);
        meter.open_parts();
        let whole = meter.process_bytes().unwrap();
        kin.measure(u64::MAX / 2, whole, &meter);
        assert!(
            kin.extra_bytes().unsigned_abs() <= whole,
            "{}",
            kin.extra_bytes()
        );
    }
}

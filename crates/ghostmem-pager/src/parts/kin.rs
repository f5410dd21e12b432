//! What a process takes where a fork shares its pages: each page counts once in all.
//!
//! The kernel charges a shared page to each process that maps it (`RssAnon`). It also says
//! each one's part (`Pss` of smaps_rollup): of a page that three map, a third. The parts of
//! all add up to what they take together, but reading them walks the page tables. So the
//! part is read ten times a second at most, and between two readings grows by the pages
//! that were written: each shared page that is written costs a minor fault, and so does
//! each new one. A page that the engine puts in place is no minor fault, and may be there
//! instead of a shared one that left: it counts as well. Only pages that were resident at
//! the process's last fork can have been shared and left. So no more are counted than there
//! are more resident pages now, and those. The part is never more than what the kernel
//! charges the process for.
//!
//! Where so much was put in place or written that the part is hardly known any more, it is
//! read sooner: what was counted twice leaves pages no room.
//!
//! A child begins with nothing but its page tables, as its parent is charged for all. It
//! reads its part first after a tenth of a second, as its parent does. A process that
//! shares nothing any more is measured as before. When one ends, its part becomes that of
//! the others: they are told what that is ([`ghostmem_os::tree::Kinship`]).

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use ghostmem_os::meter::Meter;
use ghostmem_os::tree::{Kinship, passed_of};
use ghostmem_os::{PAGE_SIZE, clock, machine};

/// Time between two readings of the part, at least, nanoseconds.
const PARTS_NS: u64 = 100_000_000;
/// And so many times as long as the reading took.
const PARTS_SHARE: u64 = 20;
/// The first of these where the part may have grown by this share of the whole.
const SOON_NS: u64 = 20_000_000;
const SOON_SHARE: u64 = 16;

/// Pages of the engine's, by its own count.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Placed {
    /// Put in place so far.
    pub(crate) pages: u64,
    /// Resident now.
    pub(crate) resident: u64,
}

impl Placed {
    /// Bytes of those that are resident.
    pub(crate) const fn resident_bytes(&self) -> u64 {
        self.resident.saturating_mul(PAGE_SIZE as u64)
    }
}

/// What a process shares with those it forked from, or that were forked from it.
#[derive(Debug)]
pub(crate) struct Kin {
    /// Something is shared.
    shares: AtomicBool,
    /// Forks so far: a reading that one of them came into says nothing of it.
    forks: AtomicU64,
    /// The part, at the last reading, bytes.
    part_bytes: AtomicU64,
    /// What the process took in full then, bytes, its minor faults, the pages that the
    /// engine had put in place, and those that were resident.
    whole_bytes: AtomicU64,
    faults: AtomicU64,
    placed: AtomicU64,
    resident: AtomicU64,
    /// Pages that were resident at its last fork: no others of the engine's are shared.
    forked: AtomicU64,
    /// When to read again, nanoseconds; and where the part may have grown much.
    due_ns: AtomicU64,
    soon_ns: AtomicU64,
    /// What it would pass on, since when it shares, and when it read its part.
    passes_bytes: AtomicU64,
    begun_ns: AtomicU64,
    read_ns: AtomicU64,
    /// When the fork that goes on began, nanoseconds.
    forked_ns: AtomicU64,
    /// It was forked, and has not read its part since.
    unread: AtomicBool,
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
            forks: AtomicU64::new(0),
            part_bytes: AtomicU64::new(0),
            whole_bytes: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            placed: AtomicU64::new(0),
            resident: AtomicU64::new(0),
            forked: AtomicU64::new(0),
            due_ns: AtomicU64::new(0),
            soon_ns: AtomicU64::new(0),
            passes_bytes: AtomicU64::new(0),
            begun_ns: AtomicU64::new(0),
            read_ns: AtomicU64::new(0),
            forked_ns: AtomicU64::new(0),
            unread: AtomicBool::new(false),
            extra_bytes: AtomicI64::new(0),
            seen_bytes: AtomicU64::new(0),
            seen_faults: AtomicU64::new(0),
        }
    }

    /// What the process takes, less what the kernel charges it for.
    pub(crate) fn extra_bytes(&self) -> i64 {
        self.extra_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the engine's pages that it may share, at most.
    pub(crate) fn forked_bytes(&self) -> u64 {
        let forked = self.forked.load(Ordering::Relaxed);
        forked.saturating_mul(PAGE_SIZE as u64)
    }

    /// What it shares, for the time when it has ended.
    pub(crate) fn kinship(&self) -> Kinship {
        if !self.shares.load(Ordering::Relaxed) {
            return Kinship::default();
        }
        Kinship {
            passes_bytes: self.passes_bytes.load(Ordering::Relaxed),
            begun_ns: self.begun_ns.load(Ordering::Relaxed),
            read_ns: self.read_ns.load(Ordering::Relaxed),
            unread: self.unread.load(Ordering::Relaxed),
        }
    }

    /// Before a fork: both sides share since now.
    pub(crate) fn before_fork(&self) {
        self.forked_ns.store(clock::now_ns(), Ordering::Relaxed);
    }

    /// In a parent, after a fork: its pages are shared. The engine `placed` so many.
    pub(crate) fn begin_in_parent(&self, placed: Placed) {
        let whole = self.seen_bytes.load(Ordering::Relaxed);
        let part = whole.saturating_add_signed(self.extra_bytes());
        self.passes_bytes.store(part, Ordering::Relaxed);
        let forked_ns = self.take_forked_ns();
        if !self.shares.load(Ordering::Relaxed) {
            self.begun_ns.store(forked_ns, Ordering::Relaxed);
            self.read_ns.store(0, Ordering::Relaxed);
            self.unread.store(false, Ordering::Relaxed);
        }
        self.begin((whole, part), machine::minor_faults(), placed);
    }

    /// In a forked child, of which the kernel says that it takes `whole` bytes: where it
    /// does not say, it is what the parent took last. Returns what it is taken for.
    pub(crate) fn begin_in_child(&self, whole: Option<u64>, placed: Placed) -> u64 {
        let whole = whole.unwrap_or_else(|| self.seen_bytes.load(Ordering::Relaxed));
        // Whoever counts what is shared, half of it at the most is the child's.
        self.passes_bytes.store(whole / 2, Ordering::Relaxed);
        let forked_ns = self.take_forked_ns();
        self.begun_ns.store(forked_ns, Ordering::Relaxed);
        self.read_ns.store(0, Ordering::Relaxed);
        self.unread.store(true, Ordering::Relaxed);
        // Nothing is new but its page tables, and it had no fault before the fork: what it
        // wrote since is its own.
        self.begin((whole, whole / 512), 0, placed);
        whole
    }

    /// When the fork began, or now where nobody was there to note it.
    fn take_forked_ns(&self) -> u64 {
        match self.forked_ns.swap(0, Ordering::Relaxed) {
            0 => clock::now_ns(),
            forked_ns => forked_ns,
        }
    }

    fn begin(&self, (whole, part): (u64, u64), faults: u64, placed: Placed) {
        self.part_bytes.store(part, Ordering::Relaxed);
        self.whole_bytes.store(whole, Ordering::Relaxed);
        self.faults.store(faults, Ordering::Relaxed);
        self.seen_faults.store(faults, Ordering::Relaxed);
        self.note_placed(placed);
        self.forked.store(placed.resident, Ordering::Relaxed);
        let now = clock::now_ns();
        self.due_ns.store(now + PARTS_NS, Ordering::Relaxed);
        self.soon_ns.store(now + PARTS_NS, Ordering::Relaxed);
        self.note(whole, part);
        self.shares.store(true, Ordering::Relaxed);
        // Last, so that whoever sees no fork wrote nothing after what is written here.
        self.forks.fetch_add(1, Ordering::AcqRel);
    }

    fn note_placed(&self, placed: Placed) {
        self.placed.store(placed.pages, Ordering::Relaxed);
        self.resident.store(placed.resident, Ordering::Relaxed);
    }

    /// The part was read at a moment, by this process or by others: what ended before is
    /// charged to nobody else since. Where this process does not know of it, it reads next.
    pub(crate) fn heed(&self, read_ns: impl FnOnce() -> u64) {
        let shares = self.shares.load(Ordering::Relaxed);
        if shares && read_ns() > self.read_ns.load(Ordering::Relaxed) {
            self.due_ns.store(0, Ordering::Relaxed);
            self.soon_ns.store(0, Ordering::Relaxed);
        }
    }

    fn note(&self, whole: u64, part: u64) {
        self.seen_bytes.store(whole, Ordering::Relaxed);
        self.extra_bytes
            .store(part.wrapping_sub(whole).cast_signed(), Ordering::Relaxed);
    }

    /// At the moment `now` the kernel charges the process for `whole` bytes, and the engine
    /// put so many pages in place: asked for where something is shared. Whether the part
    /// was read.
    pub(crate) fn measure(
        &self,
        now: u64,
        whole: u64,
        placed: impl Fn() -> Placed,
        meter: &Meter,
    ) -> bool {
        let forks = self.forks.load(Ordering::Acquire);
        let faults = machine::minor_faults();
        self.seen_faults.store(faults, Ordering::Relaxed);
        if !self.shares.load(Ordering::Relaxed) {
            self.note(whole, whole);
            return false;
        }
        let begun = placed();
        let more = self.grown_bytes(whole, faults, begun);
        let due = if more > whole / SOON_SHARE {
            &self.soon_ns
        } else {
            &self.due_ns
        };
        if now >= due.load(Ordering::Relaxed) {
            let part = meter.part_bytes();
            let took = clock::now_ns().saturating_sub(now);
            let rest = took.saturating_mul(PARTS_SHARE);
            self.due_ns
                .store(now + PARTS_NS.max(rest), Ordering::Relaxed);
            self.soon_ns
                .store(now + SOON_NS.max(rest), Ordering::Relaxed);
            if let Some(part) = part {
                let part = part.min(whole);
                self.part_bytes.store(part, Ordering::Relaxed);
                self.whole_bytes.store(whole, Ordering::Relaxed);
                self.faults.store(faults, Ordering::Relaxed);
                // A frame is given back a moment after its page has left, and pages come while
                // the part is read: what both counts have was there.
                let resident = begun.resident.min(placed().resident);
                self.note_placed(Placed { resident, ..begun });
                let passes = passed_of(whole, part);
                self.passes_bytes.store(passes, Ordering::Relaxed);
                self.read_ns.store(now, Ordering::Relaxed);
                self.unread.store(false, Ordering::Relaxed);
                if whole - part <= whole / 64 {
                    self.shares.store(false, Ordering::Relaxed);
                }
                self.note(whole, part);
                if self.forks.load(Ordering::Acquire) == forks {
                    return true;
                }
                // Another thread forked meanwhile: the part is one from before that.
                self.passes_bytes.store(part, Ordering::Relaxed);
                self.shares.store(true, Ordering::Relaxed);
                self.due_ns.store(0, Ordering::Relaxed);
                self.soon_ns.store(0, Ordering::Relaxed);
                return false;
            }
        }
        let part = self.part_bytes.load(Ordering::Relaxed);
        self.note(whole, part.saturating_add(more).min(whole));
        false
    }

    /// What the part may have grown by since it was read, bytes.
    fn grown_bytes(&self, whole: u64, faults: u64, placed: Placed) -> u64 {
        let since = |now: u64, then: &AtomicU64| now.saturating_sub(then.load(Ordering::Relaxed));
        // Of the engine's pages no more came to be its own than there are more of them, and
        // than shared ones that they may be there for.
        let forked = self.forked.load(Ordering::Relaxed);
        let more = since(placed.resident.saturating_add(forked), &self.resident);
        let own = since(placed.pages, &self.placed).min(more);
        let pages = since(faults, &self.faults).saturating_add(own);
        since(whole, &self.whole_bytes).max(pages.saturating_mul(PAGE_SIZE as u64))
    }
}

// Elsewhere nobody says what a process takes.
#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// So many pages put in place, where all pages that there are may be shared.
    const fn placed(pages: u64) -> Placed {
        let resident = 1 << 40;
        Placed { pages, resident }
    }

    #[test]
    fn who_forked_nothing_takes_what_it_is_charged_for() {
        let kin = Kin::new();
        let nobody_asks = || -> Placed { unreachable!("it shares nothing") };
        assert!(!kin.measure(5, 100 * MIB, nobody_asks, &Meter::new()));
        assert_eq!(kin.extra_bytes(), 0);
        assert_eq!(kin.kinship(), Kinship::default());
    }

    #[test]
    fn a_child_begins_with_its_page_tables_and_grows_by_what_it_writes() {
        let (kin, meter) = (Kin::new(), Meter::new());
        kin.begin_in_child(Some(512 * MIB), placed(0));
        assert_eq!(kin.extra_bytes(), -511 * (MIB as i64));
        // What it faulted for counts, 20 MiB that it was charged for at the least.
        kin.measure(5, 532 * MIB, || placed(0), &meter);
        assert!(kin.extra_bytes() >= (21 - 532) * (MIB as i64));
    }

    #[test]
    fn a_child_that_nothing_can_be_read_of_begins_as_a_child() {
        let kin = Kin::new();
        kin.measure(5, 512 * MIB, || placed(0), &Meter::new());
        assert_eq!(kin.begin_in_child(None, placed(0)), 512 * MIB);
        assert_eq!(kin.extra_bytes(), -511 * (MIB as i64));
        let child = kin.kinship();
        assert!(child.unread && child.passes_bytes == 256 * MIB);
    }

    /// The child may run before its parent does, and the parent end at once.
    #[test]
    fn both_sides_of_a_fork_share_since_the_same_moment() {
        let (parent, child) = (Kin::new(), Kin::new());
        parent.before_fork();
        let forked_ns = parent.forked_ns.load(Ordering::Relaxed);
        child.forked_ns.store(forked_ns, Ordering::Relaxed);
        parent.measure(5, 100 * MIB, || placed(0), &Meter::new());
        child.begin_in_child(Some(100 * MIB), placed(0));
        parent.begin_in_parent(placed(0));
        assert_eq!(parent.kinship().begun_ns, forked_ns);
        assert_eq!(child.kinship().begun_ns, forked_ns);
        let end_ns = clock::now_ns();
        assert!(child.kinship().relies_on(&parent.kinship(), end_ns));
    }

    #[test]
    fn a_parent_is_charged_for_all_until_the_parts_are_read() {
        let (kin, meter) = (Kin::new(), Meter::new());
        kin.measure(5, 100 * MIB, || placed(0), &meter);
        kin.begin_in_parent(placed(0));
        assert_eq!(kin.extra_bytes(), 0);
        // Its part is read when that is due: this process shares little with anybody.
        meter.open(false);
        meter.open_parts();
        let whole = meter.process_bytes().unwrap();
        assert!(kin.measure(u64::MAX / 2, whole, || placed(0), &meter));
        assert!(
            kin.extra_bytes().unsigned_abs() <= whole,
            "{}",
            kin.extra_bytes()
        );
    }

    /// A page that is restored in place of a shared one that left changes nothing in all
    /// that the kernel charges, and no minor fault tells of it.
    #[test]
    fn what_the_engine_puts_in_place_counts_until_the_part_is_read() {
        let (kin, meter) = (Kin::new(), Meter::new());
        let whole = 1 << 40;
        kin.begin_in_child(Some(whole), placed(1000));
        assert_eq!(kin.grown_bytes(whole, 0, placed(1000)), 0);
        assert_eq!(kin.grown_bytes(whole, 0, placed(1000 + 5120)), 20 * MIB);
        assert_eq!(kin.grown_bytes(whole, 256, placed(1000 + 5120)), 21 * MIB);
        // Pages that are new are charged as well: they count once.
        assert_eq!(
            kin.grown_bytes(whole + 50 * MIB, 256, placed(6120)),
            50 * MIB
        );
        let counted = |pages: u64| {
            kin.measure(5, whole, || placed(pages), &meter);
            whole.saturating_add_signed(kin.extra_bytes())
        };
        let before = counted(1000);
        assert!(counted(1000 + 5120) >= before + 20 * MIB);
        // No more than it is charged for, whatever was put in place.
        assert_eq!(counted(1 << 40), whole);
    }

    /// A child with 4 MiB of pages at its fork that goes round in 100 MiB: what comes back
    /// is there for what left, and hardly any of that was shared. Without it each counts as
    /// new, and leaves a page of others no room.
    #[test]
    fn pages_that_leave_and_come_back_count_as_far_as_they_may_have_been_shared() {
        let kin = Kin::new();
        let whole = 200 * MIB;
        let at_fork = Placed {
            pages: 1000,
            resident: 1024,
        };
        kin.begin_in_child(Some(whole), at_fork);
        let grown = |pages: u64, resident: u64| {
            let now = Placed { pages, resident };
            kin.grown_bytes(whole, 0, now)
        };
        assert_eq!(grown(1000 + 500_000, 1024), 4 * MIB);
        assert_eq!(
            grown(1000 + 500_000, 1024 + 5120),
            24 * MIB,
            "there are more"
        );
        assert_eq!(grown(1000 + 500_000, 512), 2 * MIB, "there are fewer");
        assert_eq!(grown(1000 + 256, 1024 + 5120), MIB, "no more than came");
        assert_eq!(kin.forked_bytes(), 4 * MIB);
        // Another fork: all of them are shared again.
        kin.begin_in_parent(Placed {
            pages: 501_000,
            resident: 6144,
        });
        assert_eq!(kin.forked_bytes(), 24 * MIB);
        assert_eq!(grown(501_000 + 500_000, 6144), 24 * MIB);
    }

    #[test]
    fn a_part_that_may_have_grown_much_is_read_sooner() {
        let (kin, meter) = (Kin::new(), Meter::new());
        meter.open(false);
        meter.open_parts();
        let whole = 1 << 40;
        kin.begin_in_parent(placed(0));
        let now = clock::now_ns();
        kin.whole_bytes.store(whole, Ordering::Relaxed);
        assert!(kin.measure(now + 2 * PARTS_NS, whole, || placed(0), &meter));
        let read = now + 2 * PARTS_NS;
        let much = whole / SOON_SHARE / PAGE_SIZE as u64 + 1;
        // The clock of the reading is behind: what it took is nothing.
        assert!(!kin.measure(read + SOON_NS - 1, whole, || placed(much), &meter));
        assert!(
            !kin.measure(read + SOON_NS, whole, || placed(0), &meter),
            "it grew little"
        );
        assert!(kin.measure(read + SOON_NS, whole, || placed(much), &meter));
        assert!(kin.measure(read + SOON_NS + PARTS_NS, whole, || placed(much), &meter));
    }

    /// A reading takes a while, and says of a fork that comes into it that nothing is shared.
    /// Without another look at the count of forks, what that one began would be undone.
    #[test]
    fn a_fork_that_comes_into_a_reading_is_not_forgotten() {
        let (kin, meter) = (Kin::new(), Meter::new());
        meter.open(false);
        meter.open_parts();
        let whole = meter.process_bytes().unwrap();
        kin.begin_in_parent(placed(0));
        let asked = core::cell::Cell::new(0);
        let forks_at_the_second = || {
            asked.set(asked.get() + 1);
            if asked.get() == 2 {
                kin.begin_in_parent(placed(0));
            }
            placed(0)
        };
        let now = clock::now_ns() + 2 * PARTS_NS;
        assert!(!kin.measure(now, whole / 2, forks_at_the_second, &meter));
        assert_eq!(asked.get(), 2);
        let kinship = kin.kinship();
        assert!(kinship.begun_ns > 0, "it shares");
        assert_eq!(
            kinship.passes_bytes,
            whole / 2,
            "all that it is charged for"
        );
        // Read again at once.
        assert!(kin.measure(now + 1, whole / 2, || placed(0), &meter));
        assert_eq!(kin.kinship().begun_ns, 0, "it shares nothing");
    }

    /// Others measured a process that was held up: what ended before that is charged to it
    /// alone, so its own figure must not be from before.
    #[test]
    fn a_part_that_others_read_is_read_next() {
        let (kin, meter) = (Kin::new(), Meter::new());
        meter.open(false);
        meter.open_parts();
        let whole = 1 << 40;
        kin.begin_in_parent(placed(0));
        let read = clock::now_ns() + 2 * PARTS_NS;
        assert!(kin.measure(read, whole, || placed(0), &meter));
        kin.heed(|| read);
        assert!(!kin.measure(read + 5, whole, || placed(0), &meter));
        kin.heed(|| read + 3);
        assert!(kin.measure(read + 6, whole, || placed(0), &meter));
        assert_eq!(kin.kinship().read_ns, read + 6);
    }

    #[test]
    fn what_is_passed_on_is_the_part_that_was_read() {
        let (kin, meter) = (Kin::new(), Meter::new());
        meter.open(false);
        meter.open_parts();
        kin.measure(5, 100 * MIB, || placed(0), &meter);
        kin.begin_in_parent(placed(0));
        let parent = kin.kinship();
        assert_eq!(parent.passes_bytes, 100 * MIB, "the kin count none of it");
        assert!(parent.begun_ns > 0 && parent.read_ns == 0 && !parent.unread);
        // A fork of one that shares already: it is known since when.
        kin.begin_in_parent(placed(0));
        assert_eq!(kin.kinship(), parent);
        let read_ns = u64::MAX / 2;
        assert!(kin.measure(read_ns, 1 << 40, || placed(0), &meter));
        let part = (1_u64 << 40).saturating_add_signed(kin.extra_bytes());
        let read = kin.kinship();
        assert_eq!((read.passes_bytes, read.read_ns), (part, read_ns));
        let child = Kin::new();
        child.begin_in_child(Some(90 * MIB), placed(0));
        let child = child.kinship();
        assert!(child.unread && child.passes_bytes == 45 * MIB);
    }
}

//! The bound on everything a process takes: what was asked for, and what the last look
//! found. Read by those who need a frame, written by one looker at a time.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use ghostmem_os::meter::Meter;
use ghostmem_os::tree::{Said, Tree};
use ghostmem_os::{PAGE_SIZE, clock, machine};
use ghostmem_policy::bound::{Allowance, Look, Share, Strain, headroom_bytes, is_starved};

use crate::parts::balloons::Balloons;
use crate::parts::forks::Forks;
use crate::parts::kin::{Kin, Placed};
use crate::parts::spin::{SpinGuard, SpinLock};
use crate::parts::supplies::{Found, Shelf, Supplies};

mod need;
mod pace;
mod readings;

/// Fewest pages that stay resident under a bound: 1 MiB.
pub(crate) const LEAST_PAGES: i64 = 256;

/// The clock follows when the limit is off by this part.
const CLOCK_STEP: i64 = 4;

/// A bound on the whole process: a number, what groups and the machine leave, or both.
#[derive(Debug)]
pub(crate) struct ProcessBound {
    /// What was asked for, bytes.
    asked_bytes: Option<usize>,
    /// What memory groups and the machine leave counts.
    follows: bool,
    /// The page of the processes that have a bound together.
    tree: Option<&'static Tree>,
    /// What this process takes with its part of what a fork shares.
    kin: Kin,
    /// Its equal part of that bound, bytes.
    equal_bytes: AtomicU64,
    /// What it may come to of that bound as the others give back what they can, bytes.
    obtainable_bytes: AtomicU64,
    /// What forks may come to.
    forks: Forks,
    /// When a thread looked for more than was free, nanoseconds.
    wanted_ns: AtomicU64,
    /// What the process takes, and what is left.
    pub(crate) meter: Meter,
    /// What groups and the machine allowed at the last measurement.
    supplies: Supplies,
    /// Hardly anything of this process is resident.
    starved: AtomicBool,
    /// Who asks others to give back.
    pub(crate) balloons: Balloons,
    /// What was allowed at the last look, in all.
    allowed: Shelf,
    /// Most pages that may be resident, whatever the bound leaves.
    most_pages: AtomicI64,
    /// Memory of the process that is not the heap's, bytes, by the last measurement.
    other_bytes: AtomicUsize,
    /// When that was, nanoseconds.
    pub(crate) measured_ns: AtomicU64,
    /// The most that was measured, bytes.
    peak_bytes: AtomicUsize,
    /// Pages that could be resident if the heap took all that is left.
    reach_pages: AtomicI64,
    /// Bytes that were left at the last look.
    room_bytes: AtomicI64,
    /// The resident limit that turnovers are counted by: it follows in large steps, as
    /// each makes the epochs of pages that are away mean something else.
    clock_pages: AtomicI64,
    /// What the bound has no place for: a [`Strain`].
    strain: AtomicU8,
    /// A touch was refused since the strain began.
    refusing: AtomicBool,
    /// What the allocation that was refused last would have taken beyond the bound, bytes.
    denied_bytes: AtomicUsize,
    /// It was said that one is refused.
    said_denied: AtomicBool,
    /// Memory of the machine, bytes.
    machine_bytes: usize,
    /// Somebody looks.
    looking: SpinLock,
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl ProcessBound {
    /// A bound of `asked_bytes`, of what groups and the machine leave (`follows`), with
    /// the processes of a `tree`, or of several of these; `None` for none.
    pub(crate) fn new(
        asked_bytes: Option<usize>,
        follows: bool,
        tree: Option<&'static Tree>,
        most_pages: i64,
    ) -> Option<Self> {
        if asked_bytes.is_none() && !follows && tree.is_none() {
            return None;
        }
        let asked = asked_bytes.map_or(Allowance::ALL, Allowance::of_bound);
        Some(Self {
            asked_bytes,
            follows,
            tree,
            kin: Kin::new(),
            equal_bytes: AtomicU64::new(0),
            obtainable_bytes: AtomicU64::new(0),
            forks: Forks::new(),
            wanted_ns: AtomicU64::new(0),
            meter: Meter::new(),
            supplies: Supplies::new(),
            starved: AtomicBool::new(false),
            balloons: Balloons::new(),
            allowed: Shelf::of(asked),
            most_pages: AtomicI64::new(most_pages),
            other_bytes: AtomicUsize::new(0),
            measured_ns: AtomicU64::new(0),
            peak_bytes: AtomicUsize::new(0),
            reach_pages: AtomicI64::new(0),
            room_bytes: AtomicI64::new(0),
            clock_pages: AtomicI64::new(LEAST_PAGES),
            strain: AtomicU8::new(0),
            refusing: AtomicBool::new(false),
            denied_bytes: AtomicUsize::new(0),
            said_denied: AtomicBool::new(false),
            machine_bytes: size(machine::ram_bytes()),
            looking: SpinLock::new(),
        })
    }

    /// Opens what is looked at.
    pub(crate) fn open(&self) {
        self.meter.open(self.follows);
        if let Some(tree) = self.tree {
            self.meter.open_parts();
            tree.join();
        }
    }

    /// Whether a number was asked for, for this process or for a tree.
    pub(crate) const fn is_asked(&self) -> bool {
        self.asked_bytes.is_some() || self.tree.is_some()
    }

    /// Whether others may give back what this process needs.
    pub(crate) const fn may_be_given(&self) -> bool {
        self.tree.is_some()
    }

    /// The number that people know, bytes.
    pub(crate) fn said_bytes(&self) -> usize {
        match (self.tree, self.asked_bytes) {
            (_, Some(bytes)) => bytes,
            (Some(tree), None) => size(tree.bound_bytes()),
            (None, None) => self.bytes(),
        }
    }

    /// What the heap may hold at most beside what is not its own: what is free, or what
    /// others give back for it.
    pub(crate) fn heap_bytes(&self) -> usize {
        let most = self.allowed.get().most_bytes();
        let most = most.max(self.obtainable_bytes.load(Ordering::Relaxed));
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let beside = i64::try_from(self.other_bytes()).unwrap_or(i64::MAX);
        let beside = beside.saturating_add(self.kin.extra_bytes());
        size(most.saturating_sub(beside).max(0).unsigned_abs())
    }

    /// What the process takes where the heap takes `own` bytes: measured, with its part of
    /// what it shares.
    pub(crate) fn held_bytes(&self, own: usize) -> u64 {
        let all = own.saturating_add(self.other_bytes());
        (all as u64).saturating_add_signed(self.kin.extra_bytes())
    }

    /// Before a fork, in the process that makes it.
    pub(crate) fn before_fork(&self) {
        if self.tree.is_some() {
            self.kin.before_fork();
        }
    }

    /// In the parent, after a fork: its pages are shared from now on, and others are told
    /// at once. The engine `placed` so many pages.
    pub(crate) fn after_fork_in_parent(&self, placed: Placed) {
        if let Some(tree) = self.tree {
            self.kin.begin_in_parent(placed);
            tree.say_kinship(self.kin.kinship());
        }
    }

    /// Looks after another process of the tree, if one needs it.
    pub(crate) fn look_after_others(&self, now: u64) {
        if let Some(tree) = self.tree {
            tree.look_after_one(now);
        }
    }

    /// Whether one bound holds this process and those it forks: that of its tree, or of a
    /// group. A bound on each process charges both for a page that they share; and nobody
    /// asked for the bound where the machine alone bounds them.
    pub(crate) fn holds_children(&self) -> bool {
        self.tree.is_some() || self.supplies.are_groups()
    }

    /// Pages that may be resident when this process, whose heap takes `own` bytes, forks,
    /// by what that bound left at the last look.
    pub(crate) fn shareable_pages(&self, own: usize) -> i64 {
        let allowed = match self.tree {
            Some(_) => self.allowed.get(),
            None => self.supplies.allowance(),
        };
        let room = allowed.most_bytes().saturating_sub(self.held_bytes(own));
        self.forks.shareable_pages(room).max(LEAST_PAGES)
    }

    /// Whether `used` pages may stay at a fork at the moment `now` without a look: they are
    /// the fewest, or the bound was far away lately.
    pub(crate) fn may_fork_unseen(&self, now: u64, own: usize, used: i64) -> bool {
        let age = match self.measured_ns.load(Ordering::Relaxed) {
            0 => u64::MAX,
            measured => now.saturating_sub(measured),
        };
        used <= LEAST_PAGES || Forks::needs_no_look(used, self.shareable_pages(own), age)
    }

    /// Whether there is room for the fewest pages, before there are any: within what was
    /// asked for, and in each supply.
    pub(crate) fn can_begin(&self) -> bool {
        let least = (LEAST_PAGES as usize * PAGE_SIZE) as u64;
        let room = self.room_bytes.load(Ordering::Relaxed);
        let within = match self.tree {
            Some(_) => room >= LEAST_PAGES * PAGE_SIZE as i64,
            None => !self.is_asked() || self.strain() == Strain::None,
        };
        within && self.supplies.left_bytes() >= least
    }

    /// Whether a touch was refused since the strain began: others are refused at once.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// Notes that a touch is refused; whether it is the first one.
    pub(crate) fn begin_to_refuse(&self) -> bool {
        !self.refusing.swap(true, Ordering::Relaxed)
    }

    /// Notes that an allocation is refused, and what it would have taken beyond the bound.
    pub(crate) fn note_denied(&self, missing_bytes: usize) {
        self.denied_bytes.store(missing_bytes, Ordering::Relaxed);
    }

    /// What was noted last, if that is to be said: it is the first, and such that a larger
    /// bound could hold it on this machine.
    pub(crate) fn denied_for_the_first_time(&self) -> Option<usize> {
        let missing = self.denied_bytes.load(Ordering::Relaxed);
        let sayable = missing <= self.machine_bytes;
        (sayable && !self.said_denied.swap(true, Ordering::Relaxed)).then_some(missing)
    }

    /// Whether a supply binds of which others, that keep no bound with this process, take
    /// more than `least_bytes`: they may give back what it is refused.
    pub(crate) fn binds_beside_others(&self, least_bytes: u64) -> bool {
        self.follows && !self.is_asked() && self.supplies.others_bytes() > least_bytes
    }

    /// The right to look, unless somebody has it: a thread that holds it and is
    /// interrupted by a fault of its own does not wait for itself.
    pub(crate) fn try_look(&self) -> Option<Looking<'_>> {
        let right = self.looking.try_lock()?;
        Some(Looking {
            bound: self,
            _right: right,
        })
    }

    /// Whether somebody looks: what was found before may be old.
    pub(crate) fn is_looked_at(&self) -> bool {
        self.looking.is_held()
    }

    /// In a forked child: whoever looked is not there, and what was measured was the
    /// parent's. Others of its tree are told at once what it may write. `placed` counts what
    /// its engine, and its parent's before, put in place.
    pub(crate) fn after_fork_in_child(&self, placed: Placed) {
        self.looking.release();
        self.balloons.after_fork_in_child();
        self.supplies.forget_spare();
        self.measured_ns.store(0, Ordering::Relaxed);
        self.peak_bytes.store(0, Ordering::Relaxed);
        self.said_denied.store(false, Ordering::Relaxed);
        self.wanted_ns.store(0, Ordering::Relaxed);
        self.forks.after_fork_in_child();
        self.meter.after_fork_in_child();
        if let Some(tree) = self.tree {
            tree.join();
            let whole = self.meter.process_bytes();
            let whole = self.kin.begin_in_child(whole, placed);
            let shared = self.shared_bytes();
            let taken = whole.saturating_sub(shared);
            tree.say(Said {
                taken_bytes: taken,
                granted_bytes: taken.saturating_add(self.unseen_bytes(placed.resident_bytes())),
                faults: self.kin.faults(),
                shared_bytes: shared,
                // Not known before it looks.
                needed_bytes: 0,
                kinship: self.kin.kinship(),
                wanted_bytes: 0,
                wanted_ns: 0,
                now_ns: clock::now_ns(),
            });
        }
    }

    /// What of this process is charged to others of a fork, bytes.
    fn shared_bytes(&self) -> u64 {
        self.kin.extra_bytes().min(0).unsigned_abs()
    }
}

/// The right to look.
pub(crate) struct Looking<'a> {
    bound: &'a ProcessBound,
    _right: SpinGuard<'a>,
}

impl Looking<'_> {
    /// Whether the last measurement is older than `ns` at the moment `now`.
    pub(crate) fn is_due(&self, now: u64, ns: u64) -> bool {
        let measured = self.bound.measured_ns.load(Ordering::Relaxed);
        measured == 0 || now.saturating_sub(measured) >= ns
    }

    /// Measures what the process takes, of which `ours` bytes are the heap's, and what is
    /// left where it takes it from; whether all could be seen, and was within the bound.
    /// What cannot be seen stays as it was. Where pages are shared it is asked for those that
    /// the engine put in place.
    pub(crate) fn measure(&self, now: u64, ours: usize, placed: impl Fn() -> Placed) -> bool {
        let bound = self.bound;
        bound.measured_ns.store(now.max(1), Ordering::Relaxed);
        let Some(total) = bound.meter.process_bytes() else {
            return false;
        };
        let taken = size(total);
        bound
            .other_bytes
            .store(taken.saturating_sub(ours), Ordering::Relaxed);
        bound.peak_bytes.fetch_max(taken, Ordering::Relaxed);
        if let Some(tree) = bound.tree {
            bound.kin.heed(|| tree.read_by_any_ns());
            if bound.kin.measure(now, total, placed, &bound.meter) {
                tree.note_reading(now);
            }
        }
        let kept = bound.asked_bytes.is_none_or(|bytes| taken <= bytes);
        if !bound.follows {
            return kept;
        }
        let starved = bound.starved.load(Ordering::Relaxed) || bound.balloons.is_going_on();
        let mut found = Found::new(total, starved, bound.machine_bytes as u64);
        let seen = bound.meter.supplies(|supply| found.add(&supply));
        // One set below what is there already takes nothing away: the kernel keeps to it
        // by refusing mappings.
        let own = bound.meter.own_limit_bytes();
        if let Some(bytes) = own.filter(|&bytes| bytes / 2 >= total) {
            found.bind(Allowance::of_bound(size(bytes)));
        }
        if seen {
            bound.supplies.put(&found);
        }
        seen && kept
    }

    /// What is allowed at the moment `now`.
    pub(crate) fn allowance(&self, now: u64) -> Allowance {
        let asked = self.bound.asked_bytes;
        let asked = asked.map_or(Allowance::ALL, Allowance::of_bound);
        let allowed = asked.tighter(self.bound.supplies.allowance());
        let Some(tree) = self.bound.tree else {
            return allowed;
        };
        let others = tree.others(now);
        self.bound.forks.note_sharing(others.sharing);
        let share = Share {
            bound_bytes: tree.bound_bytes(),
            others_bytes: others.charged_bytes,
            others_needed_bytes: others.needed_bytes,
            unbound_bytes: others.unbound_bytes,
            members: others.looking + 1,
            others_want_bytes: others.wanted_bytes,
        };
        self.bound
            .equal_bytes
            .store(share.equal_bytes(), Ordering::Relaxed);
        self.bound
            .obtainable_bytes
            .store(share.obtainable_bytes(), Ordering::Relaxed);
        allowed.tighter(share.allowance())
    }

    /// Tells the tree what is held, granted and `needed_bytes`; what may be granted of it.
    /// Others are not asked to give back what is looked for at a `fork`.
    fn announce(
        &self,
        now: u64,
        look: &Look,
        needed_bytes: u64,
        limit_pages: i64,
        fork: bool,
    ) -> i64 {
        let Some(tree) = self.bound.tree else {
            return limit_pages;
        };
        let page = look.page_bytes.max(1);
        let shared_bytes = self.bound.shared_bytes();
        let resident_bytes = look.used_pages.max(0).unsigned_abs() * page;
        let unseen_bytes = self.bound.unseen_bytes(resident_bytes);
        let equal = self.bound.equal_bytes.load(Ordering::Relaxed);
        let (wanted_bytes, wanted_ns) = match fork {
            true => (0, 0),
            false => self.bound.wanted_of_others(look, equal),
        };
        let say = |pages: i64| {
            let more = (pages - look.used_pages).max(0).unsigned_abs() * page;
            let granted_bytes = look.held_bytes.saturating_add(more + unseen_bytes);
            tree.say(Said {
                taken_bytes: look.held_bytes,
                granted_bytes,
                faults: self.bound.kin.faults(),
                shared_bytes,
                // What was handed out beyond the equal part is for nobody to make room for.
                needed_bytes: needed_bytes.min(look.held_bytes.max(equal)),
                kinship: self.bound.kin.kinship(),
                wanted_bytes,
                wanted_ns,
                now_ns: now,
            });
            granted_bytes
        };
        let granted = say(limit_pages);
        // Those who announced at the same moment are seen now.
        let others = tree.others(now).charged_bytes;
        let bound = tree.bound_bytes();
        let most = bound.saturating_sub(headroom_bytes(size(bound)) as u64);
        let excess = granted.saturating_add(others).saturating_sub(most);
        if excess == 0 || limit_pages <= look.used_pages {
            return limit_pages;
        }
        let less = i64::try_from(excess.div_ceil(page)).unwrap_or(i64::MAX);
        let least = look.used_pages.max(look.least_pages).min(look.most_pages);
        let limit_pages = limit_pages.saturating_sub(less).max(least);
        say(limit_pages);
        limit_pages
    }

    /// Notes what of the heap is resident and what is stored, bytes.
    pub(crate) fn note_stored(&self, resident_bytes: u64, stored_bytes: u64) {
        let was = self.bound.starved.load(Ordering::Relaxed);
        let starved = is_starved(resident_bytes, stored_bytes, was);
        self.bound.starved.store(starved, Ordering::Relaxed);
    }

    /// Notes what follows from the look at the moment `now`; the resident limit. The
    /// process needs `needed_bytes` when it gives back all it can. See [`Looking::announce`]
    /// for what is different at a `fork`.
    pub(crate) fn found(&self, now: u64, look: &Look, needed_bytes: u64, fork: bool) -> i64 {
        let limit_pages = self.announce(now, look, needed_bytes, look.limit_pages(), fork);
        let strain = look.strain();
        let clock = self.bound.clock_pages();
        if (limit_pages - clock).abs() > clock / CLOCK_STEP {
            self.bound.clock_pages.store(limit_pages, Ordering::Relaxed);
        }
        self.bound.allowed.put(look.allowance);
        let reach = look.reach_pages();
        self.bound.reach_pages.store(reach, Ordering::Relaxed);
        let room = look.room_bytes();
        self.bound.room_bytes.store(room, Ordering::Relaxed);
        self.bound.strain.store(strain as u8, Ordering::Relaxed);
        if strain == Strain::None && self.bound.is_refusing() {
            self.bound.refusing.store(false, Ordering::Relaxed);
        }
        limit_pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_told_that_another_looks_takes_nothing_from_that_one() {
        let bound = ProcessBound::new(Some(64 << 20), false, None, 1000).unwrap();
        let looking = bound.try_look().unwrap();
        assert!(bound.try_look().is_none());
        assert!(bound.try_look().is_none(), "the first one looks still");
        drop(looking);
        assert!(bound.try_look().is_some());
    }
}

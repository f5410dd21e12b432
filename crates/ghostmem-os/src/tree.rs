//! The page that the processes of one `ghostmem run` share: what each of them takes, so
//! that one number holds them all together.
//!
//! ```text
//!   word 0  MARK        it is such a page
//!        1  key         of this run: another's page under the same number is not ours
//!        2  bound       bytes that all may take together
//!        3  slots       so many slots were ever in use
//!        4  unnoted     processes that found no slot
//!        8  slot 0:  identity  process number << 42 | when it started; 0: free
//!                    taken     bytes, as it measured itself or was measured
//!                    granted   bytes that it may come to before it looks again
//!                    stamp     when `taken` was true, nanoseconds
//!                    hungry    when it last looked for more in vain
//!                    looks     1: it has a heap, and keeps within the bound
//!                    said      as `taken`, without what was seen to be new since
//!                    faults    minor faults that it had then
//!                    shared    bytes that it shared then, and may come to be its own
//!                    needed    bytes that it keeps when it gives back all it can, what it
//!                              handed out being written
//!                    passes    bytes that become its kin's when it ends
//!                    begun     since when it shares pages of a fork
//!                    read      when its part of them was read last
//!                    unread    1: it was forked, and its part was not read since
//!                    wanted    bytes that others are to leave it, while it is hungry
//!                    more      bytes that it may take before it looks again
//!       24  slot 1 ...
//! ```
//! The page is a memory file of a sealed size. Its descriptor has a high number, goes to
//! programs that are executed, and is protected as the engine's others are. A process that
//! lost it asks its parent's, then the first process's. What `/proc` says of others is read
//! apart ([`crate::apart`]).
//!
//! Nothing here waits for another process: one may be killed, or stopped, at any
//! instruction. A slot is taken by one compare-and-swap with the whole identity. A grant
//! is announced first and counts from then on; who announces looks at all others after
//! that, and takes back what is too much. Of two who announce at once at least one sees
//! the other, so what was confirmed never exceeds the bound. A slot whose process is gone is
//! freed by whoever looks at it, 4 ms after it spoke last; or it stays for what the process
//! had shared, until those that rely on it know, 2 s at most (`tree::ended`). One whose process does not look
//! for itself is measured by whoever comes by.
//!
//! All but [`Tree::create`] and [`Tree::open`] is async-signal-safe.

use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::apart::{Apart, Refused};
use crate::error::OsError;
use crate::shared::SharedWords;
use crate::{clock, descriptor, doorway};
use identity::{
    START_BITS, START_MASK, ask_identity, is_grave, is_process, may_be_one, own_number,
};
use seen::Name;

pub use ended::{Kinship, passed_of};
pub use others::KEPT_NS;

mod ended;
mod identity;
mod others;
mod seen;

/// The first word: "ghosttre".
const MARK: u64 = u64::from_le_bytes(*b"ghosttre");
const KEY: usize = 1;
const BOUND: usize = 2;
const SLOTS: usize = 3;
const UNNOTED: usize = 4;

const FIRST: usize = 8;
const SLOT_WORDS: usize = 16;
/// Words of the page: 128 KiB, of which only what was used is memory.
const WORDS: usize = 16_384;
const SLOTS_MAX: usize = (WORDS - FIRST) / SLOT_WORDS;

const IDENTITY: usize = 0;
const TAKEN: usize = 1;
const GRANTED: usize = 2;
const STAMP: usize = 3;
const HUNGRY: usize = 4;
const LOOKS: usize = 5;
const SAID: usize = 6;
const FAULTS: usize = 7;
const SHARED: usize = 8;
const NEEDED: usize = 9;
const PASSES: usize = 10;
const BEGUN: usize = 11;
const READ: usize = 12;
const UNREAD: usize = 13;
const WANTED: usize = 14;
const MORE: usize = 15;

/// A need that is older is none any more, nanoseconds.
const HUNGRY_NS: u64 = 60_000_000;

/// No slot.
const NONE: usize = usize::MAX;

/// The page, and this process's slot in it.
#[derive(Debug)]
pub struct Tree {
    words: SharedWords,
    slot: AtomicUsize,
    /// Number and start of the process that opened it, or joined since; 0: not known.
    identity: AtomicU64,
    /// When this process read its part last, nanoseconds: it says so a moment later.
    read_ns: AtomicU64,
    /// Where others' files are read; `None`: here.
    apart: Option<Apart>,
}

/// The words of the page, whoever has them mapped.
#[derive(Clone, Copy)]
struct Page<'w>(&'w [AtomicU64]);

impl<'w> Page<'w> {
    fn slot(self, index: usize) -> &'w [AtomicU64] {
        let at = FIRST + index * SLOT_WORDS;
        &self.0[at..at + SLOT_WORDS]
    }

    fn slots(self) -> usize {
        let used = self.0[SLOTS].load(Ordering::Acquire);
        usize::try_from(used).map_or(SLOTS_MAX, |used| used.min(SLOTS_MAX))
    }
}

/// What the other processes take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Others {
    /// Bytes of all of them, as measured, or as granted where that is more; and what was
    /// shared by those that ended, while their kin do not know it.
    pub charged_bytes: u64,
    /// Bytes that they keep when they give back all they can; what is not known of them
    /// counts as charged.
    pub needed_bytes: u64,
    /// Bytes charged to those that do not keep within the bound.
    pub unbound_bytes: u64,
    /// Processes that do.
    pub looking: u64,
    /// Those among them that share pages of a fork.
    pub sharing: u64,
    /// What those among them are to find free that looked for more in vain, bytes.
    pub wanted_bytes: u64,
}

/// What this process says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// Bytes that it takes.
    pub taken_bytes: u64,
    /// Bytes that it may come to before it looks again.
    pub granted_bytes: u64,
    /// Its minor faults so far.
    pub faults: u64,
    /// Bytes that it shares: each fault may make a page of them its own.
    pub shared_bytes: u64,
    /// Bytes that it keeps when it gives back all it can, what it handed out being written.
    pub needed_bytes: u64,
    /// What it shares, for the time when it has ended.
    pub kinship: Kinship,
    /// What others are to leave it, as it looked for more in vain, bytes.
    pub wanted_bytes: u64,
    /// When it did, nanoseconds; 0: it has enough.
    pub wanted_ns: u64,
    /// The moment, nanoseconds.
    pub now_ns: u64,
}

impl Tree {
    /// A page for `bound_bytes`, known by `key`; and the descriptor that programs which
    /// are executed from here find it by.
    ///
    /// # Errors
    /// The kernel's refusal of a memory file.
    pub fn create(bound_bytes: u64, key: u64) -> Result<(Self, i32), OsError> {
        let words = SharedWords::create(WORDS)?;
        words[BOUND].store(bound_bytes, Ordering::Relaxed);
        words[KEY].store(key, Ordering::Relaxed);
        words[0].store(MARK, Ordering::Release);
        let file = words.file().unwrap_or(-1);
        descriptor::leave_to_programs(file)?;
        Ok((Self::of(words), file))
    }

    /// The page of the run `key`, whose descriptor is `file` here, in the parent, or in
    /// the process `first`; `None` where it is in none of them.
    #[must_use]
    pub fn open(file: i32, key: u64, first: i32) -> Option<Self> {
        // SAFETY: takes nothing and cannot fail.
        let parent = unsafe { libc::getppid() };
        for process in [0, parent, first] {
            let mut path = Name::new();
            let written = match process {
                0 => write!(path, "/proc/self/fd/{file}"),
                other => write!(path, "/proc/{other}/fd/{file}"),
            };
            let opened = written.ok().and_then(|()| path.as_c_str());
            let opened = opened.and_then(|path| SharedWords::open(path).ok());
            let Some(words) = opened.filter(|words| is_page_of(words, key)) else {
                continue;
            };
            if process == 0 {
                descriptor::own(file);
            }
            return Some(Self::of(words));
        }
        None
    }

    fn of(words: SharedWords) -> Self {
        Self {
            words,
            slot: AtomicUsize::new(NONE),
            identity: AtomicU64::new(ask_identity().unwrap_or(0)),
            read_ns: AtomicU64::new(0),
            apart: Apart::new().ok(),
        }
    }

    fn page(&self) -> Page<'_> {
        Page(&self.words)
    }

    /// Number and start of this process. The start is asked for once: later there may be a
    /// filter of the program's, or no number for a file.
    fn own_identity(&self) -> Option<u64> {
        let known = self.identity.load(Ordering::Relaxed);
        match own_number()? {
            process if known >> START_BITS == process => Some(known),
            _ => ask_identity(),
        }
    }

    /// Bytes that all may take together.
    #[must_use]
    pub fn bound_bytes(&self) -> u64 {
        self.words[BOUND].load(Ordering::Relaxed)
    }

    /// Processes that found no slot: they are not counted.
    #[must_use]
    pub fn unnoted(&self) -> u64 {
        self.words[UNNOTED].load(Ordering::Relaxed)
    }

    fn slot(&self, index: usize) -> &[AtomicU64] {
        self.page().slot(index)
    }

    fn slots(&self) -> usize {
        self.page().slots()
    }

    /// Notes the calling process, which may be about to execute another program; it does
    /// not look for itself. Nothing is kept in memory that a vfork's parent has, too.
    pub fn note_caller(&self) {
        let identity = self.own_identity();
        let Some(index) = identity.and_then(|identity| self.take_slot(identity)) else {
            return;
        };
        self.page().bury_shared(index, clock::now_ns());
        // What was granted goes with the memory that exec takes away, and the next program
        // says for itself whether it looks. Whoever comes by measures it until then.
        let slot = self.slot(index);
        for word in [
            LOOKS, GRANTED, SHARED, NEEDED, HUNGRY, STAMP, PASSES, BEGUN, READ, UNREAD, WANTED,
        ] {
            slot[word].store(0, Ordering::Relaxed);
        }
    }

    /// Notes that this process read its part of what it shares, at a moment: what ended
    /// before that is in it, also where it has not said so yet.
    pub fn note_reading(&self, read_ns: u64) {
        self.read_ns.store(read_ns, Ordering::Relaxed);
    }

    /// When this process's part was read last, by itself or by others, nanoseconds. What
    /// ended before that is charged to nobody else any more.
    #[must_use]
    pub fn read_by_any_ns(&self) -> u64 {
        match self.slot.load(Ordering::Relaxed) {
            NONE => 0,
            slot if self.is_mine(slot) => self.slot(slot)[READ].load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// Takes a slot for this process, which looks for itself from now on: the one it has,
    /// or a new one. Whether it has one.
    pub fn join(&self) -> bool {
        if let Some(apart) = &self.apart {
            apart.settle();
        }
        let identity = self.own_identity();
        self.identity
            .store(identity.unwrap_or(0), Ordering::Relaxed);
        self.read_ns.store(0, Ordering::Relaxed);
        let slot = identity.and_then(|identity| self.take_slot(identity));
        if let Some(slot) = slot {
            self.slot(slot)[LOOKS].store(1, Ordering::Relaxed);
        }
        self.slot.store(slot.unwrap_or(NONE), Ordering::Relaxed);
        slot.is_some()
    }

    /// Whether this process has its slot still: in another namespace its number means
    /// another process, or none.
    fn is_mine(&self, slot: usize) -> bool {
        let identity = self.slot(slot)[IDENTITY].load(Ordering::Relaxed);
        own_number() == Some(identity >> START_BITS)
    }

    /// The slot of a process, or a free one. One whose start is not known is the process of
    /// that number: no two have it at once.
    fn take_slot(&self, identity: u64) -> Option<usize> {
        let (mut free, mut alike) = (None, None);
        for index in 0..SLOTS_MAX {
            let seen = self.slot(index)[IDENTITY].load(Ordering::Acquire);
            if seen == identity {
                return Some(index);
            }
            if seen == 0 {
                free = free.or(Some(index));
                if index >= self.slots() {
                    break;
                }
            } else if may_be_one(seen, identity) {
                alike = alike.or(Some((index, seen)));
            }
        }
        if let Some((index, seen)) = alike
            && self.learn(index, seen, identity)
        {
            return Some(index);
        }
        for index in free.unwrap_or(SLOTS_MAX)..SLOTS_MAX {
            let slot = &self.slot(index)[IDENTITY];
            let won = slot.compare_exchange(0, identity, Ordering::AcqRel, Ordering::Relaxed);
            if won.is_ok() {
                // What another left there. Others may see it until now, as this process's:
                // that is more than it takes.
                for word in &self.slot(index)[IDENTITY + 1..] {
                    word.store(0, Ordering::Relaxed);
                }
                self.words[SLOTS].fetch_max(index as u64 + 1, Ordering::AcqRel);
                return Some(index);
            }
        }
        self.words[UNNOTED].fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Notes the start of the process in a slot, where it was not known; whether the slot
    /// is its still.
    fn learn(&self, index: usize, seen: u64, identity: u64) -> bool {
        let slot = &self.slot(index)[IDENTITY];
        if identity & START_MASK == 0 {
            return slot.load(Ordering::Acquire) == seen;
        }
        let learnt = slot.compare_exchange(seen, identity, Ordering::AcqRel, Ordering::Relaxed);
        learnt.is_ok()
    }

    /// Says what this process takes and was granted.
    pub fn say(&self, said: Said) {
        let slot = self.slot.load(Ordering::Relaxed);
        if slot == NONE || !self.is_mine(slot) {
            if !self.join() {
                return;
            }
            return self.say_in(self.slot.load(Ordering::Relaxed), said);
        }
        self.say_in(slot, said);
    }

    fn say_in(&self, slot: usize, said: Said) {
        let slot = self.slot(slot);
        // An exec that failed took this back.
        slot[LOOKS].store(1, Ordering::Relaxed);
        slot[TAKEN].store(said.taken_bytes, Ordering::Relaxed);
        slot[SAID].store(said.taken_bytes, Ordering::Relaxed);
        slot[FAULTS].store(said.faults, Ordering::Relaxed);
        slot[SHARED].store(said.shared_bytes, Ordering::Relaxed);
        slot[NEEDED].store(said.needed_bytes, Ordering::Relaxed);
        put_kinship(slot, said.kinship);
        slot[STAMP].store(said.now_ns, Ordering::Relaxed);
        slot[WANTED].store(said.wanted_bytes, Ordering::Relaxed);
        slot[HUNGRY].store(said.wanted_ns, Ordering::Relaxed);
        let more = said.granted_bytes.saturating_sub(said.taken_bytes);
        slot[MORE].store(more, Ordering::Relaxed);
        // Before the others are looked at: one of two who announce at once sees the other.
        slot[GRANTED].store(said.granted_bytes, Ordering::SeqCst);
    }

    /// Says what this process shares from a fork on, before it looks: it may end first.
    pub fn say_kinship(&self, kinship: Kinship) {
        let slot = self.slot.load(Ordering::Relaxed);
        if slot != NONE && self.is_mine(slot) {
            put_kinship(self.slot(slot), kinship);
        }
    }

    /// What all other processes take at the moment `now_ns`.
    #[must_use]
    pub fn others(&self, now_ns: u64) -> Others {
        let mine = self.slot.load(Ordering::Relaxed);
        let read_ns = self.read_ns.load(Ordering::Relaxed);
        let mut others = Others::default();
        for index in (0..self.slots()).filter(|&index| index != mine) {
            let slot = self.slot(index);
            let identity = slot[IDENTITY].load(Ordering::Acquire);
            if is_grave(identity) {
                // Its kin can give it back: they have it.
                let end_ns = slot[STAMP].load(Ordering::Relaxed);
                let known = (mine, read_ns);
                if self.page().is_relied_on(slot, end_ns, now_ns, known) {
                    let passed = slot[PASSES].load(Ordering::Relaxed);
                    others.charged_bytes = others.charged_bytes.saturating_add(passed);
                }
            }
            if !is_process(identity) {
                continue;
            }
            let granted = slot[GRANTED].load(Ordering::SeqCst);
            let taken = slot[TAKEN].load(Ordering::Relaxed);
            let charged = granted.max(taken);
            others.charged_bytes = others.charged_bytes.saturating_add(charged);
            let looks = slot[LOOKS].load(Ordering::Relaxed) != 0;
            let needed = match slot[NEEDED].load(Ordering::Relaxed) {
                needed if looks && needed != 0 => needed,
                _ => charged,
            };
            others.needed_bytes = others.needed_bytes.saturating_add(needed);
            if !looks {
                others.unbound_bytes = others.unbound_bytes.saturating_add(charged);
                continue;
            }
            others.looking += 1;
            others.sharing += u64::from(slot[SHARED].load(Ordering::Relaxed) > 0);
            let hungry = slot[HUNGRY].load(Ordering::Relaxed);
            if hungry != 0 && now_ns.saturating_sub(hungry) < HUNGRY_NS {
                let wanted = slot[WANTED].load(Ordering::Relaxed);
                others.wanted_bytes = others.wanted_bytes.saturating_add(wanted);
            }
        }
        others
    }

    /// Measures one process that has not said for a while what it takes, and frees the
    /// slots of some that are gone. Calls in turn come by all of them. Nothing happens while
    /// another thread is at it.
    pub fn look_after_one(&self, now_ns: u64) {
        if doorway::is_confined() {
            return;
        }
        let mine = self.slot.load(Ordering::Relaxed);
        let page = self.page();
        if !page.has_others(mine) {
            return;
        }
        // The program's numbers are none of the engine's business, not for a moment.
        let apart = self.apart.as_ref();
        let looked = apart.map_or(Err(Refused::NotToBeHad), |apart| {
            apart.run(move || page.look_around(mine, now_ns))
        });
        if looked == Err(Refused::NotToBeHad) {
            page.look_around(mine, now_ns);
        }
    }
}

fn put_kinship(slot: &[AtomicU64], kinship: Kinship) {
    slot[PASSES].store(kinship.passes_bytes, Ordering::Relaxed);
    slot[BEGUN].store(kinship.begun_ns, Ordering::Relaxed);
    slot[READ].store(kinship.read_ns, Ordering::Relaxed);
    slot[UNREAD].store(u64::from(kinship.unread), Ordering::Relaxed);
}

fn is_page_of(words: &SharedWords, key: u64) -> bool {
    words.len() >= WORDS
        && words[0].load(Ordering::Acquire) == MARK
        && words[KEY].load(Ordering::Relaxed) == key
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::identity::{grave_of, identity_of};
    use super::others::{GRAVE_NS, OLD_NS, QUIET_NS, free};
    use super::seen::{Seen, stat_of};
    use super::*;
    use crate::calls;
    use crate::stack::forked;

    const MIB: u64 = 1 << 20;

    fn said(taken: u64, granted: u64, now_ns: u64) -> Said {
        Said {
            taken_bytes: taken * MIB,
            granted_bytes: granted * MIB,
            faults: 0,
            shared_bytes: 0,
            needed_bytes: taken * MIB / 4,
            kinship: Kinship::default(),
            wanted_bytes: 0,
            wanted_ns: 0,
            now_ns,
        }
    }

    /// A process that does nothing.
    fn sleeping() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn start_of(process: u64) -> Option<u64> {
        match stat_of(process) {
            Seen::There(stat) => Some(stat.start),
            _ => None,
        }
    }

    /// The page as another process has it.
    fn again(file: i32, key: u64) -> Tree {
        Tree::open(file, key, 1).unwrap()
    }

    #[test]
    fn without_a_proc_nobody_is_taken_for_gone() {
        let own = u64::from(std::process::id());
        assert!(matches!(stat_of(own), Seen::There(_)));
        assert!(matches!(stat_of(u64::from(u32::MAX)), Seen::Gone));
        let code = forked(|| {
            // SAFETY: a valid path. The child sees nothing but that folder from now on.
            if unsafe { libc::chroot(c"/dev/pts".as_ptr()) } != 0 {
                return 2;
            }
            i32::from(matches!(stat_of(own), Seen::Hidden))
        });
        if code == 2 {
            eprintln!("SKIPPED without_a_proc_nobody_is_taken_for_gone: chroot(2) needs root");
            return;
        }
        assert_eq!(code, 1);
    }

    #[test]
    fn a_page_is_found_by_its_number_and_its_key_alone() {
        let (tree, file) = Tree::create(300 * MIB, 77).unwrap();
        assert_eq!(again(file, 77).bound_bytes(), 300 * MIB);
        assert!(Tree::open(file, 78, 1).is_none(), "another run's");
        assert!(Tree::open(2, 77, 1).is_none(), "another file");
        assert_eq!(tree.bound_bytes(), 300 * MIB);
    }

    #[test]
    fn what_was_granted_goes_with_exec() {
        let (tree, file) = Tree::create(300 * MIB, 2).unwrap();
        assert!(tree.join());
        tree.say(said(10, 200, 5));
        tree.note_caller();
        let seen = again(file, 2).others(5);
        assert_eq!((seen.charged_bytes, seen.looking), (10 * MIB, 0));
        assert_eq!(seen.unbound_bytes, 10 * MIB);
        assert_eq!(seen.needed_bytes, 10 * MIB, "it gives nothing back");
        // The exec failed.
        tree.say(said(10, 200, 6));
        let seen = again(file, 2).others(6);
        assert_eq!((seen.charged_bytes, seen.looking), (200 * MIB, 1));
    }

    #[test]
    fn a_process_has_one_slot_however_often_it_joins() {
        let (tree, file) = Tree::create(300 * MIB, 1).unwrap();
        tree.note_caller();
        assert_eq!(tree.others(0).looking, 0);
        assert!(tree.join() && tree.join());
        tree.say(said(10, 12, 5));
        assert_eq!(tree.others(5), Others::default(), "it is no other");
        let other = again(file, 1);
        let seen = other.others(5);
        assert_eq!((seen.charged_bytes, seen.looking), (12 * MIB, 1));
        assert_eq!(seen.needed_bytes, 10 * MIB / 4);
    }

    #[test]
    fn who_ended_is_forgotten_and_who_does_not_look_is_measured() {
        let (tree, _file) = Tree::create(300 * MIB, 2).unwrap();
        let mut child = sleeping();
        let start = start_of(u64::from(child.id())).unwrap();
        let identity = u64::from(child.id()) << START_BITS | start;
        tree.take_slot(identity).unwrap();
        // An identity of the same number that started at another time is nobody's.
        tree.take_slot(identity ^ 1).unwrap();
        assert!(tree.join());
        let now = 10 * OLD_NS;
        for _ in 0..2 {
            tree.look_after_one(now);
        }
        let others = tree.others(now);
        assert!(
            others.unbound_bytes > 0 && others.unbound_bytes < 32 * MIB,
            "{others:?}"
        );
        let taken =
            || (0..tree.slots()).filter(|&i| tree.slot(i)[IDENTITY].load(Ordering::Relaxed) != 0);
        assert_eq!(taken().count(), 2, "itself and the child");
        child.kill().unwrap();
        // Not waited for: a process that ended and was not asked takes nothing either.
        while start_of(u64::from(child.id())).is_some() {
            std::thread::yield_now();
        }
        tree.look_after_one(3 * now);
        assert_eq!(tree.others(3 * now), Others::default());
        child.wait().unwrap();
        assert_eq!(taken().count(), 1);
    }

    #[test]
    fn one_that_kept_the_bound_and_ended_is_free_before_its_figure_is_old() {
        let (tree, _file) = Tree::create(300 * MIB, 11).unwrap();
        assert!(tree.join());
        let mut other = sleeping();
        let number = u64::from(other.id());
        let identity = identity_of(number, start_of(number).unwrap());
        let slot = tree.take_slot(identity).unwrap();
        let now = 10 * OLD_NS;
        for (word, value) in [(LOOKS, 1), (STAMP, now), (TAKEN, MIB), (GRANTED, 9 * MIB)] {
            tree.slot(slot)[word].store(value, Ordering::Relaxed);
        }
        let soon = now + 2 * QUIET_NS;
        tree.look_after_one(soon);
        assert_eq!(tree.others(soon).charged_bytes, 9 * MIB);
        // Its parent has not asked how it ended.
        other.kill().unwrap();
        while start_of(number).is_some() {
            std::thread::yield_now();
        }
        tree.look_after_one(soon);
        let others = tree.others(soon);
        other.wait().unwrap();
        assert_eq!(others, Others::default());
    }

    /// A process that shares pages of a fork, in a slot of the tree.
    fn sharing(tree: &Tree, number: u64, kinship: Kinship, now_ns: u64) -> usize {
        let start = start_of(number).unwrap();
        let slot = tree.take_slot(identity_of(number, start)).unwrap();
        let words = [
            (LOOKS, 1),
            (STAMP, now_ns),
            (TAKEN, 50 * MIB),
            (GRANTED, 50 * MIB),
            (PASSES, kinship.passes_bytes),
            (BEGUN, kinship.begun_ns),
            (READ, kinship.read_ns),
            (UNREAD, u64::from(kinship.unread)),
        ];
        for (word, value) in words {
            tree.slot(slot)[word].store(value, Ordering::Relaxed);
        }
        slot
    }

    fn end(process: &mut Child) {
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn what_an_ended_process_shared_stays_charged_until_its_kin_read_again() {
        let (tree, file) = Tree::create(300 * MIB, 13).unwrap();
        assert!(tree.join());
        let now = clock::now_ns();
        let share = |begun_ns: u64, read_ns: u64| Kinship {
            passes_bytes: 20 * MIB,
            begun_ns,
            read_ns,
            unread: false,
        };
        let say = |kinship: Kinship, now_ns: u64| {
            tree.say(Said {
                kinship,
                ..said(10, 10, now_ns)
            });
        };
        // Both read while both are there: each counts half.
        say(share(now, now + 10), now);
        let mut other = sleeping();
        sharing(&tree, u64::from(other.id()), share(now, now + 10), now);
        end(&mut other);
        let soon = now + 2 * QUIET_NS;
        tree.look_after_one(soon);
        let others = tree.others(soon);
        assert_eq!((others.charged_bytes, others.looking), (20 * MIB, 0));
        assert_eq!(others.needed_bytes, 0, "those who have it can give it back");
        // As long as that takes, where it is not too long.
        tree.look_after_one(soon + 5 * OLD_NS);
        assert_eq!(tree.others(soon + 5 * OLD_NS).charged_bytes, 20 * MIB);
        // It reads, and counts all of it at once; others hear of that when it says so.
        let third = again(file, 13);
        let late = clock::now_ns().max(soon) + 1;
        tree.note_reading(late);
        assert_eq!(tree.others(late).charged_bytes, 0);
        assert_eq!(third.others(late).charged_bytes, 30 * MIB);
        say(share(now, late), late);
        assert_eq!(third.others(late).charged_bytes, 10 * MIB);
        // And the slot is free for the next.
        tree.look_after_one(late);
        assert_eq!(tree.take_slot(identity_of(70, 9)), Some(1));
    }

    /// A forked child maps memory that all share, takes itself for its owner, and then does
    /// nothing, without a thread that would look again.
    #[test]
    fn who_does_nothing_is_charged_for_what_it_takes_and_may_take_before_it_looks() {
        let (tree, _file) = Tree::create(300 * MIB, 22).unwrap();
        assert!(tree.join());
        let now = clock::now_ns();
        let mut idle = sleeping();
        let slot = sharing(&tree, u64::from(idle.id()), Kinship::default(), now);
        let word = |word: usize| &tree.slot(slot)[word];
        word(MORE).store(3 * MIB, Ordering::Relaxed);
        word(GRANTED).store(43 * MIB, Ordering::Relaxed);
        assert_eq!(tree.others(now).charged_bytes, 50 * MIB);
        let look = |after_ns: u64| {
            tree.look_after_one(now + after_ns);
            tree.others(now + after_ns).charged_bytes
        };
        let first = look(2 * OLD_NS);
        let takes = word(TAKEN).load(Ordering::Relaxed);
        assert!(takes > 0 && takes < 20 * MIB);
        assert_eq!(first, takes + 3 * MIB);
        // It stays so, and what it says for itself is what counts.
        assert!(look(4 * OLD_NS) <= 20 * MIB);
        word(GRANTED).store(60 * MIB, Ordering::Relaxed);
        assert_eq!(tree.others(now).charged_bytes, 60 * MIB);
        end(&mut idle);
    }

    /// One that takes more than it said keeps what it was granted.
    #[test]
    fn a_grant_is_never_raised_by_others_nor_lowered_where_its_process_speaks() {
        let (tree, _file) = Tree::create(300 * MIB, 23).unwrap();
        let slot = tree.take_slot(identity_of(70, 9)).unwrap();
        let slot = tree.slot(slot);
        let lowered = |more: u64, part: u64, stamp: u64| {
            slot[MORE].store(more * MIB, Ordering::Relaxed);
            slot[GRANTED].store(50 * MIB, Ordering::Relaxed);
            slot[STAMP].store(stamp, Ordering::Relaxed);
            Page::lower_grant(slot, 50 * MIB, part * MIB, 7);
            slot[GRANTED].load(Ordering::Relaxed) / MIB
        };
        assert_eq!(lowered(5, 20, 7), 25);
        assert_eq!(lowered(5, 48, 7), 50, "it takes more by now");
        assert_eq!(lowered(5, 20, 8), 50, "it spoke");
        slot[GRANTED].store(30 * MIB, Ordering::Relaxed);
        Page::lower_grant(slot, 50 * MIB, MIB, 8);
        assert_eq!(slot[GRANTED].load(Ordering::Relaxed), 30 * MIB, "again");
    }

    /// A kin may never read again, as one that a filter lets open no file.
    #[test]
    fn what_an_ended_process_shared_is_not_charged_for_ever() {
        let (tree, _file) = Tree::create(300 * MIB, 18).unwrap();
        assert!(tree.join());
        let now = clock::now_ns();
        let share = Kinship {
            passes_bytes: 20 * MIB,
            begun_ns: now,
            read_ns: now + 10,
            unread: false,
        };
        tree.say(Said {
            kinship: share,
            ..said(10, 10, now)
        });
        let mut other = sleeping();
        sharing(&tree, u64::from(other.id()), share, now);
        end(&mut other);
        let soon = now + 2 * QUIET_NS;
        tree.look_after_one(soon);
        let later = clock::now_ns().max(soon) + GRAVE_NS + 1;
        assert_eq!(tree.others(soon).charged_bytes, 20 * MIB);
        assert_eq!(tree.others(later), Others::default());
        tree.look_after_one(later);
        assert_eq!(tree.take_slot(identity_of(70, 9)), Some(1));
    }

    /// Those that share nothing are measured as well; that is no reading of a part.
    #[test]
    fn who_shares_nothing_keeps_nothing_charged() {
        let (tree, _file) = Tree::create(300 * MIB, 19).unwrap();
        assert!(tree.join());
        let now = clock::now_ns();
        let mut all = [sleeping(), sleeping()];
        let stranger = sharing(&tree, u64::from(all[0].id()), Kinship::default(), 0);
        tree.look_after_one(now);
        let kinship = |word: usize| tree.slot(stranger)[word].load(Ordering::Relaxed);
        assert_eq!([PASSES, BEGUN, READ, UNREAD].map(kinship), [0; 4]);
        assert!(kinship(TAKEN) > 0 && kinship(TAKEN) < 50 * MIB, "measured");
        // As one that was measured so by a version before.
        tree.slot(stranger)[READ].store(now, Ordering::Relaxed);
        let shares = Kinship {
            passes_bytes: 20 * MIB,
            begun_ns: now / 2,
            read_ns: now / 2,
            unread: false,
        };
        let slot = sharing(&tree, u64::from(all[1].id()), shares, now);
        end(&mut all[1]);
        tree.look_after_one(now + 2 * QUIET_NS);
        let identity = tree.slot(slot)[IDENTITY].load(Ordering::Relaxed);
        end(&mut all[0]);
        assert_eq!(identity, 0);
    }

    /// A shell forks and is gone before it looks again: its child has what it shared.
    #[test]
    fn who_ends_right_after_a_fork_has_said_what_it_shares() {
        let (tree, file) = Tree::create(300 * MIB, 20).unwrap();
        assert!(tree.join());
        tree.say(said(10, 10, 5));
        let kinship = Kinship {
            passes_bytes: 20 * MIB,
            begun_ns: 7,
            read_ns: 0,
            unread: false,
        };
        tree.say_kinship(kinship);
        let other = again(file, 20);
        let said = [PASSES, BEGUN].map(|word| other.slot(0)[word].load(Ordering::Relaxed));
        assert_eq!(said, [20 * MIB, 7]);
        assert_eq!(other.others(5).charged_bytes, 10 * MIB, "the rest stays");
    }

    /// A forked child that executes a program gives back what it shared, as one that ends
    /// does, and nobody is told otherwise: it lives.
    #[test]
    fn what_a_process_shared_that_becomes_another_program_stays_charged_as_well() {
        let (tree, _file) = Tree::create(300 * MIB, 21).unwrap();
        assert!(tree.join());
        let now = clock::now_ns();
        let kinship = |read_ns: u64| Kinship {
            passes_bytes: 20 * MIB,
            begun_ns: now,
            read_ns,
            unread: read_ns == 0,
        };
        let execs = || {
            let joined = tree.join();
            tree.say(Said {
                kinship: kinship(0),
                ..said(10, 10, clock::now_ns())
            });
            tree.note_caller();
            // The new program, which may be one of ours.
            tree.note_caller();
            i32::from(joined)
        };
        // Its parent counts all it has: nobody relies on the child.
        assert_eq!(forked(execs), 1);
        assert_eq!(tree.others(clock::now_ns()).charged_bytes, 10 * MIB);
        tree.say(Said {
            kinship: kinship(now + 10),
            ..said(10, 10, now)
        });
        assert_eq!(forked(execs), 1);
        let soon = clock::now_ns();
        assert_eq!(tree.others(soon).charged_bytes, (10 + 10 + 20) * MIB);
        tree.note_reading(soon + 1);
        assert_eq!(tree.others(soon + 1).charged_bytes, (10 + 10) * MIB);
    }

    #[test]
    fn one_that_others_measured_is_told_when() {
        let (tree, file) = Tree::create(300 * MIB, 16).unwrap();
        assert!(tree.join());
        assert_eq!(tree.read_by_any_ns(), 0);
        let now = 10 * OLD_NS;
        let kinship = Kinship {
            passes_bytes: 20 * MIB,
            begun_ns: 1,
            read_ns: 5,
            unread: false,
        };
        tree.say(Said {
            kinship,
            ..said(10, 10, now)
        });
        assert_eq!(tree.read_by_any_ns(), 5);
        let other = again(file, 16);
        other.look_after_one(now + OLD_NS / 2);
        assert_eq!(tree.read_by_any_ns(), 5, "it spoke lately");
        other.look_after_one(now + 2 * OLD_NS);
        assert_eq!(tree.read_by_any_ns(), now + 2 * OLD_NS);
    }

    #[test]
    fn kin_that_ended_as_well_keep_nothing_charged() {
        let (tree, _file) = Tree::create(300 * MIB, 14).unwrap();
        assert!(tree.join());
        let now = clock::now_ns();
        let shares = Kinship {
            passes_bytes: 20 * MIB,
            begun_ns: now,
            read_ns: now + 10,
            unread: false,
        };
        let mut all = [sleeping(), sleeping()];
        for process in &all {
            sharing(&tree, u64::from(process.id()), shares, now);
        }
        end(&mut all[0]);
        let soon = now + 2 * QUIET_NS;
        tree.look_after_one(soon);
        assert_eq!(tree.others(soon).charged_bytes, 70 * MIB);
        end(&mut all[1]);
        // One look finds the second, the next that nobody is left.
        for _ in 0..2 {
            tree.look_after_one(soon + QUIET_NS);
        }
        assert_eq!(tree.others(soon + QUIET_NS), Others::default());
        assert_eq!(tree.take_slot(identity_of(70, 9)), Some(1));
    }

    #[test]
    fn what_a_short_fork_shared_is_free_when_its_parent_has_not_read() {
        let (tree, _file) = Tree::create(300 * MIB, 15).unwrap();
        assert!(tree.join());
        let now = clock::now_ns();
        // The parent counts all since long before.
        tree.say(Said {
            kinship: Kinship {
                passes_bytes: 20 * MIB,
                begun_ns: now / 2,
                read_ns: now / 2,
                unread: false,
            },
            ..said(10, 10, now)
        });
        let forked = Kinship {
            passes_bytes: 20 * MIB,
            begun_ns: now,
            read_ns: 0,
            unread: true,
        };
        let mut child = sleeping();
        sharing(&tree, u64::from(child.id()), forked, now);
        end(&mut child);
        let soon = now + 2 * QUIET_NS;
        tree.look_after_one(soon);
        assert_eq!(tree.others(soon), Others::default());
    }

    #[test]
    fn a_process_has_one_slot_whether_its_start_is_known_or_not() {
        let (tree, file) = Tree::create(300 * MIB, 6).unwrap();
        let known = identity_of(70, 9);
        let slot = tree.take_slot(known).unwrap();
        assert_eq!(tree.take_slot(identity_of(70, 0)), Some(slot));
        let seen = || tree.slot(slot)[IDENTITY].load(Ordering::Relaxed);
        assert_eq!(seen(), known, "the start stays");
        // The other way round: it becomes known.
        let other = tree.take_slot(identity_of(71, 0)).unwrap();
        assert_eq!(tree.take_slot(identity_of(71, 8)), Some(other));
        assert_eq!(tree.take_slot(identity_of(71, 8)), Some(other));
        // Another process had the number before, and another one has it elsewhere.
        let later = tree.take_slot(identity_of(70, 10)).unwrap();
        assert!(![slot, other].contains(&later));
        assert_eq!(tree.take_slot(identity_of(70, 10)), Some(later));
        assert_eq!(tree.take_slot(known), Some(slot));
        assert_eq!(tree.slots(), 3);
        // A program that has a filter in force, and executes another.
        let code = forked(|| {
            tree.note_caller();
            doorway::confine();
            tree.note_caller();
            let joined = tree.join() && again(file, 6).join();
            i32::from(joined && tree.slots() == 4)
        });
        assert_eq!(code, 1, "{} slots", tree.slots());
    }

    #[test]
    fn others_are_looked_after_where_no_number_is_free() {
        let (tree, _file) = Tree::create(300 * MIB, 8).unwrap();
        assert!(tree.join());
        let mut other = sleeping();
        let number = u64::from(other.id());
        let identity = identity_of(number, start_of(number).unwrap());
        let slot = tree.take_slot(identity).unwrap();
        let code = forked(|| {
            tree.apart.as_ref().inspect(|apart| apart.settle());
            let limit = libc::rlimit {
                rlim_cur: 1,
                rlim_max: 1,
            };
            // SAFETY: a valid limit; number 0 is open, or the next call has it.
            let set = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
            let full = calls::open(c"/dev/null", libc::O_RDONLY, 0) <= 0;
            tree.look_after_one(10 * OLD_NS);
            let seen = tree.slot(slot)[TAKEN].load(Ordering::Relaxed);
            let stays = tree.slot(slot)[IDENTITY].load(Ordering::Relaxed) == identity;
            let none = set == 0 && full;
            i32::from(none) + 2 * i32::from(stays) + 4 * i32::from(seen > 0)
        });
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(code, 7);
    }

    #[test]
    fn who_finds_another_thread_at_it_takes_no_number_of_the_programs() {
        let (tree, _file) = Tree::create(300 * MIB, 9).unwrap();
        assert!(tree.join());
        let mut other = sleeping();
        let slot = tree
            .take_slot(identity_of(u64::from(other.id()), 0))
            .unwrap();
        let taken = || tree.slot(slot)[TAKEN].load(Ordering::Relaxed);
        let turn = tree.apart.as_ref().unwrap().take_turn().unwrap();
        tree.look_after_one(10 * OLD_NS);
        let beside = taken();
        drop(turn);
        tree.look_after_one(10 * OLD_NS);
        let after = taken();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(beside, 0, "looked at beside the thread that is at it");
        assert!(after > 0);
    }

    #[test]
    fn slots_are_used_again_and_who_finds_none_is_counted() {
        let (tree, _file) = Tree::create(MIB, 3).unwrap();
        for process in 0..SLOTS_MAX as u64 {
            assert!(tree.take_slot((process + 1) << START_BITS | 9).is_some());
        }
        assert_eq!(tree.take_slot(1 << 60), None);
        assert_eq!(tree.unnoted(), 1);
        free(tree.slot(7), 8 << START_BITS | 9);
        assert_eq!(tree.take_slot(1 << 60), Some(7));
    }

    /// Whoever found that a process is gone may be held up until the slot is another's.
    #[test]
    fn who_frees_a_slot_late_takes_nothing_from_the_next() {
        let (tree, _file) = Tree::create(300 * MIB, 17).unwrap();
        let (gone, next) = (identity_of(70, 9), identity_of(71, 9));
        let slot = tree.take_slot(gone).unwrap();
        for word in &tree.slot(slot)[TAKEN..] {
            word.store(7 * MIB, Ordering::Relaxed);
        }
        free(tree.slot(slot), gone);
        assert_eq!(tree.others(5), Others::default());
        assert_eq!(tree.take_slot(next), Some(slot));
        assert_eq!(tree.others(5).charged_bytes, 0, "the last one's figures");
        tree.slot(slot)[GRANTED].store(3 * MIB, Ordering::Relaxed);
        free(tree.slot(slot), gone);
        assert_eq!(tree.others(5).charged_bytes, 3 * MIB);
        // One that ended there before is not one that ends there now.
        let now = 1 << START_BITS;
        let graves = [grave_of(now), grave_of(now + 2), grave_of(u64::MAX)];
        assert!(graves.iter().all(|&grave| is_grave(grave)));
        assert_ne!(graves[0], graves[1]);
        assert!(!is_grave(0) && !is_grave(next) && is_process(next));
        tree.slot(slot)[IDENTITY].store(graves[1], Ordering::Relaxed);
        free(tree.slot(slot), graves[0]);
        assert_eq!(tree.take_slot(identity_of(72, 9)), Some(slot + 1));
    }

    #[test]
    fn a_need_is_seen_by_the_others_for_a_while() {
        let (tree, file) = Tree::create(300 * MIB, 4).unwrap();
        assert!(tree.join());
        let hungry = |now_ns: u64| Said {
            wanted_bytes: 4 * MIB,
            wanted_ns: 1000,
            ..said(1, 1, now_ns)
        };
        tree.say(hungry(1000));
        let other = again(file, 4);
        assert_eq!(other.others(1000).wanted_bytes, 4 * MIB);
        assert_eq!(tree.others(1000).wanted_bytes, 0, "its own need");
        assert_eq!(other.others(1000 + HUNGRY_NS).wanted_bytes, 0);
        // As old as it is, whoever says it again.
        tree.say(hungry(1000 + HUNGRY_NS));
        assert_eq!(other.others(1000 + HUNGRY_NS).wanted_bytes, 0);
        tree.say(hungry(2000));
        tree.say(said(1, 1, 2000));
        assert_eq!(other.others(2000).wanted_bytes, 0);
    }

    #[test]
    fn who_shares_pages_of_a_fork_is_counted_among_those_that_look() {
        let (tree, file) = Tree::create(300 * MIB, 12).unwrap();
        assert!(tree.join());
        let other = again(file, 12);
        let seen = |shared_bytes: u64| {
            tree.say(Said {
                shared_bytes,
                ..said(9, 9, 1000)
            });
            let others = other.others(1000);
            (others.looking, others.sharing)
        };
        assert_eq!(seen(0), (1, 0));
        assert_eq!(seen(4096), (1, 1));
    }

    #[test]
    fn what_two_confirm_at_once_fits() {
        let (tree, file) = Tree::create(100, 5).unwrap();
        let mut at = [0_u64; 2];
        // Two slots, driven by two threads: announce, look, take back what is too much.
        for (place, process) in at.iter_mut().zip([1_u64, 2]) {
            *place = tree.take_slot(process << START_BITS | 1).unwrap() as u64;
        }
        let confirmed = [AtomicU64::new(0), AtomicU64::new(0)];
        std::thread::scope(|scope| {
            for me in 0..2 {
                let (at, confirmed) = (&at, &confirmed);
                scope.spawn(move || {
                    let page = again(file, 5);
                    page.slot.store(at[me] as usize, Ordering::Relaxed);
                    for turn in 0..20_000_u64 {
                        let wanted = 40 + turn % 40;
                        page.slot(at[me] as usize)[GRANTED].store(wanted, Ordering::SeqCst);
                        if wanted + page.others(0).charged_bytes > 100 {
                            page.slot(at[me] as usize)[GRANTED].store(0, Ordering::SeqCst);
                            continue;
                        }
                        confirmed[me].store(wanted, Ordering::SeqCst);
                        let both: u64 = confirmed.iter().map(|c| c.load(Ordering::SeqCst)).sum();
                        assert!(both <= 100, "{both}");
                        confirmed[me].store(0, Ordering::SeqCst);
                        page.slot(at[me] as usize)[GRANTED].store(0, Ordering::SeqCst);
                    }
                });
            }
        });
    }
}

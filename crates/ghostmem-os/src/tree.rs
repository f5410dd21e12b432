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
//!                    hungry    when it last needed more than there was
//!                    looks     1: it has a heap, and keeps within the bound
//!                    said      as `taken`, without what was seen to be new since
//!                    faults    minor faults that it had then
//!                    shared    bytes that it shared then, and may come to be its own
//!                    needed    bytes that it keeps when it gives back all it can, what it
//!                              handed out being written
//!       24  slot 1 ...
//! ```
//! The page is a memory file of a sealed size. Its descriptor has a high number, goes to
//! programs that are executed, and is protected as the engine's others are. A process that
//! lost it asks its parent's, then the first process's. What `/proc` says of others is read
//! apart ([`crate::apart`]).
//!
//! Nothing here waits for another process: one may be killed, or stopped, at any
//! instruction. A slot is claimed by one compare-and-swap with the whole identity. A grant
//! is announced first and counts from then on; who announces looks at all others after
//! that, and takes back what is too much. Of two who announce at once at least one sees
//! the other, so what was confirmed never exceeds the bound. A slot whose process is gone is
//! freed by whoever looks at it, 4 ms after it spoke last; one whose process does not look
//! for itself is measured by whoever comes by.
//!
//! All but [`Tree::create`] and [`Tree::open`] is async-signal-safe.

use core::ffi::CStr;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::apart::{self, Apart, Refused};
use crate::error::{OsError, errno};
use crate::report;
use crate::shared::SharedWords;
use crate::{calls, descriptor, doorway};

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

/// Process numbers are below 2^22 (`PID_MAX_LIMIT`); starts are in hundredths of seconds.
const START_BITS: u32 = 42;
const START_MASK: u64 = (1 << START_BITS) - 1;

/// A figure that is older is looked at by others, nanoseconds.
const OLD_NS: u64 = 100_000_000;
/// The figure of one that keeps the bound is looked at sooner, as long as only its faults
/// have to be asked for: a forked child has no thread, and writes to pages that it shares
/// without a word to anybody.
const QUIET_NS: u64 = 4_000_000;
/// So many are looked at in turn.
const LOOKED_AT: usize = 4;
/// Bytes that a minor fault adds at most.
const FAULT_BYTES: u64 = 4096;
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
    /// Bytes of all of them, as measured, or as granted where that is more.
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
    /// One of those needs more than there is.
    pub hungry: bool,
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
    /// It needs more than there is.
    pub hungry: bool,
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
        let Some(index) = identity.and_then(|identity| self.claim(identity)) else {
            return;
        };
        // What was granted goes with the memory that exec takes away, and the next program
        // says for itself whether it looks. Whoever comes by measures it until then.
        let slot = self.slot(index);
        for word in [LOOKS, GRANTED, SHARED, NEEDED, HUNGRY, STAMP] {
            slot[word].store(0, Ordering::Relaxed);
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
        let slot = identity.and_then(|identity| self.claim(identity));
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
    fn claim(&self, identity: u64) -> Option<usize> {
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
        slot[STAMP].store(said.now_ns, Ordering::Relaxed);
        let hungry = if said.hungry { said.now_ns } else { 0 };
        slot[HUNGRY].store(hungry, Ordering::Relaxed);
        // Before the others are looked at: one of two who announce at once sees the other.
        slot[GRANTED].store(said.granted_bytes, Ordering::SeqCst);
    }

    /// What all other processes take at the moment `now_ns`.
    #[must_use]
    pub fn others(&self, now_ns: u64) -> Others {
        let mine = self.slot.load(Ordering::Relaxed);
        let mut others = Others::default();
        for index in (0..self.slots()).filter(|&index| index != mine) {
            let slot = self.slot(index);
            if slot[IDENTITY].load(Ordering::Acquire) == 0 {
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
            others.hungry |= hungry != 0 && now_ns.saturating_sub(hungry) < HUNGRY_NS;
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

impl Page<'_> {
    fn has_others(self, mine: usize) -> bool {
        let mut others = (0..self.slots()).filter(|&index| index != mine);
        others.any(|index| self.slot(index)[IDENTITY].load(Ordering::Acquire) != 0)
    }

    fn look_around(self, mine: usize, now_ns: u64) {
        /// Slots freed in one call, at most: a shell makes processes faster than others
        /// look.
        const FREED_MOST: usize = 64;
        let slots = self.slots();
        let first = usize::try_from(now_ns >> 20).unwrap_or(0);
        (0..slots)
            .map(|index| (first.wrapping_add(index)) % slots)
            .filter(|&index| index != mine)
            .filter(|&index| count_faults(self.slot(index), now_ns))
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
            slot[IDENTITY].load(Ordering::Acquire) != 0 && now_ns.saturating_sub(stamp) > OLD_NS
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
        let won = slot[STAMP].compare_exchange(stamp, now_ns, Ordering::AcqRel, Ordering::Relaxed);
        if identity == 0 || won.is_err() {
            // Somebody else is at it.
            return false;
        }
        let process = identity >> START_BITS;
        match stat_of(process) {
            Seen::There(stat) if may_be_one(identity, identity_of(process, stat.start)) => {
                if let Some(bytes) = taken_by(process) {
                    slot[SAID].store(bytes, Ordering::Relaxed);
                    slot[FAULTS].store(stat.faults, Ordering::Relaxed);
                    slot[TAKEN].store(bytes, Ordering::Relaxed);
                }
                false
            }
            // What cannot be seen now counts as it did.
            Seen::Hidden => false,
            // Another's number by now, or nobody's.
            Seen::There(_) | Seen::Gone => {
                free(slot, identity);
                true
            }
        }
    }
}

/// Adds what a process that keeps the bound may have written since it said what it takes,
/// and frees its slot where it is gone; whether that was due.
fn count_faults(slot: &[AtomicU64], now_ns: u64) -> bool {
    let stamp = slot[STAMP].load(Ordering::Relaxed);
    let looks = slot[LOOKS].load(Ordering::Relaxed) == 1;
    if !looks || stamp == 0 || now_ns.saturating_sub(stamp) <= QUIET_NS {
        return false;
    }
    let identity = slot[IDENTITY].load(Ordering::Acquire);
    if identity == 0 {
        return false;
    }
    let process = identity >> START_BITS;
    let stat = match stat_of(process) {
        Seen::There(stat) if may_be_one(identity, identity_of(process, stat.start)) => stat,
        // What cannot be seen now counts as it did.
        Seen::Hidden => return true,
        // What it took came free as it ended, and others may have that at once.
        Seen::There(_) | Seen::Gone => {
            free(slot, identity);
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

/// Frees a slot for the next; its figures first, so that none is taken for another's.
fn free(slot: &[AtomicU64], identity: u64) {
    if slot[IDENTITY].load(Ordering::Acquire) == identity {
        for word in [
            TAKEN, SAID, FAULTS, SHARED, NEEDED, GRANTED, HUNGRY, LOOKS, STAMP,
        ] {
            slot[word].store(0, Ordering::Relaxed);
        }
        let _freed_once =
            slot[IDENTITY].compare_exchange(identity, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

fn is_page_of(words: &SharedWords, key: u64) -> bool {
    words.len() >= WORDS
        && words[0].load(Ordering::Acquire) == MARK
        && words[KEY].load(Ordering::Relaxed) == key
}

fn own_number() -> Option<u64> {
    u64::try_from(apart::process()).ok()
}

const fn identity_of(process: u64, start: u64) -> u64 {
    process << START_BITS | start & START_MASK
}

/// Whether two identities may be one process's: the same number, and the same start where
/// both are known.
const fn may_be_one(one: u64, other: u64) -> bool {
    let (start, other_start) = (one & START_MASK, other & START_MASK);
    one >> START_BITS == other >> START_BITS
        && (start == other_start || start == 0 || other_start == 0)
}

/// Number and start of this process; without the start where a filter of the program's may
/// let nobody ask for it.
fn ask_identity() -> Option<u64> {
    let process = own_number()?;
    if doorway::is_confined() {
        return Some(identity_of(process, 0));
    }
    match stat_of(process) {
        Seen::There(stat) => Some(identity_of(process, stat.start)),
        // There is no number for a file just now.
        Seen::Hidden => Some(identity_of(process, 0)),
        Seen::Gone => None,
    }
}

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy)]
struct Stat {
    /// Minor faults.
    faults: u64,
    /// When the process started, in ticks since the machine did.
    start: u64,
}

/// What there is to see of a process.
#[derive(Debug, Clone, Copy)]
enum Seen {
    There(Stat),
    /// There is no such process, or it has ended and only waits to be asked how.
    Gone,
    /// Nobody can tell: this process may open no file, or not that one.
    Hidden,
}

fn stat_of(process: u64) -> Seen {
    let mut text = [0; 512];
    let text = match read(process, "stat", &mut text) {
        Ok(text) => text,
        // Without a /proc, as in another root, nobody is to be seen, not this process either.
        Err(libc::ENOENT | libc::ESRCH) if is_seen() => return Seen::Gone,
        Err(_) => return Seen::Hidden,
    };
    match stat_in(text) {
        Some((b"Z" | b"X", _)) => Seen::Gone,
        Some((_, stat)) => Seen::There(stat),
        None => Seen::Hidden,
    }
}

/// Whether `/proc` shows this process.
fn is_seen() -> bool {
    let mut text = [0; 64];
    own_number().is_some_and(|process| read(process, "stat", &mut text).is_ok())
}

/// The state of a process, and what else `/proc/PID/stat` says of it.
fn stat_in(text: &[u8]) -> Option<(&[u8], Stat)> {
    // The name in brackets may hold anything, brackets too.
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let mut words = text[end + 1..]
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let state = words.next()?;
    // Fields 10 and 22; the state is field 3 (proc_pid_stat(5)).
    let faults = words.nth(6).and_then(report::number)?;
    let start = words.nth(11).and_then(report::number)?;
    Some((state, Stat { faults, start }))
}

/// What a process takes, its part of what it shares with others of a fork; all of that
/// where the kernel does not tell the parts.
fn taken_by(process: u64) -> Option<u64> {
    let mut text = [0; 2048];
    let status = read(process, "status", &mut text).ok()?;
    let whole = report::process_bytes_in(status)?;
    let tables = report::field_bytes(status, "VmPTE").unwrap_or(0);
    let parts = read(process, "smaps_rollup", &mut text).ok();
    let parts = parts.and_then(report::part_bytes_in);
    Some(parts.map_or(whole, |parts| whole.min(parts + tables)))
}

/// A file of a process's; `errno` where it cannot be read.
fn read<'t>(process: u64, file: &str, text: &'t mut [u8]) -> Result<&'t [u8], i32> {
    let mut path = Name::new();
    let written = write!(path, "/proc/{process}/{file}");
    let path = written.ok().and_then(|()| path.as_c_str());
    let path = path.ok_or(libc::ENAMETOOLONG)?;
    let fd = calls::open(path, libc::O_RDONLY, 0);
    if fd < 0 {
        return Err(errno());
    }
    let got = calls::read_at(fd, text, 0);
    let failed = errno();
    calls::close(fd);
    let got = usize::try_from(got).map_err(|_| failed)?;
    text.get(..got).ok_or(libc::EIO)
}

/// A short path, in a buffer of its own.
struct Name {
    bytes: [u8; 64],
    len: usize,
}

impl Name {
    const fn new() -> Self {
        Self {
            bytes: [0; 64],
            len: 0,
        }
    }

    fn as_c_str(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }
}

impl core::fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // The last byte stays zero.
        let room = self.bytes[..63].get_mut(self.len..).unwrap_or_default();
        let room = room.get_mut(..text.len()).ok_or(core::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;
    use crate::stack::forked;

    const MIB: u64 = 1 << 20;

    fn said(taken: u64, granted: u64, now_ns: u64) -> Said {
        Said {
            taken_bytes: taken * MIB,
            granted_bytes: granted * MIB,
            faults: 0,
            shared_bytes: 0,
            needed_bytes: taken * MIB / 4,
            hungry: false,
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
        tree.claim(identity).unwrap();
        // An identity of the same number that started at another time is nobody's.
        tree.claim(identity ^ 1).unwrap();
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
        let slot = tree.claim(identity).unwrap();
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

    #[test]
    fn a_process_has_one_slot_whether_its_start_is_known_or_not() {
        let (tree, file) = Tree::create(300 * MIB, 6).unwrap();
        let known = identity_of(70, 9);
        let slot = tree.claim(known).unwrap();
        assert_eq!(tree.claim(identity_of(70, 0)), Some(slot));
        let seen = || tree.slot(slot)[IDENTITY].load(Ordering::Relaxed);
        assert_eq!(seen(), known, "the start stays");
        // The other way round: it becomes known.
        let other = tree.claim(identity_of(71, 0)).unwrap();
        assert_eq!(tree.claim(identity_of(71, 8)), Some(other));
        assert_eq!(tree.claim(identity_of(71, 8)), Some(other));
        // Another process had the number before, and another one has it elsewhere.
        let later = tree.claim(identity_of(70, 10)).unwrap();
        assert!(![slot, other].contains(&later));
        assert_eq!(tree.claim(identity_of(70, 10)), Some(later));
        assert_eq!(tree.claim(known), Some(slot));
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
        let slot = tree.claim(identity).unwrap();
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
        let slot = tree.claim(identity_of(u64::from(other.id()), 0)).unwrap();
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
            assert!(tree.claim((process + 1) << START_BITS | 9).is_some());
        }
        assert_eq!(tree.claim(1 << 60), None);
        assert_eq!(tree.unnoted(), 1);
        free(tree.slot(7), 8 << START_BITS | 9);
        assert_eq!(tree.claim(1 << 60), Some(7));
    }

    #[test]
    fn a_need_is_seen_by_the_others_for_a_while() {
        let (tree, file) = Tree::create(300 * MIB, 4).unwrap();
        assert!(tree.join());
        let hungry = Said {
            hungry: true,
            ..said(1, 1, 1000)
        };
        tree.say(hungry);
        let other = again(file, 4);
        assert!(other.others(1000).hungry);
        assert!(!other.others(1000 + HUNGRY_NS).hungry);
        tree.say(said(1, 1, 2000));
        assert!(!other.others(2000).hungry);
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
            *place = tree.claim(process << START_BITS | 1).unwrap() as u64;
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

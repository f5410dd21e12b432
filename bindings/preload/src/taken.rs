//! Which parts of blocks the program has mapped: a table sorted by address.
//!
//! ```text
//!   block   ├──────────────────────────────────────────┤
//!   ranges  ├──────────┤      ├─────┤├─────────────────┤     neighbours are one
//!   holes               ├────┤                               unmapped: no range
//! ```
//! A block lives as long as the table has a range of it. A range is found by bisection.
//! One thread at a time looks or changes, every signal but ours blocked: a handler of
//! the program's may map memory, too. No fault looks at the table: those ask the heap for
//! holes, and wait here at most until a change is done.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_os::futex;

use crate::alone::{Alone, Taken};
use crate::bounce;
use crate::thread::{self, Undisturbed};

/// Ranges in the table: four times the kernel's own default bound on mappings
/// (`vm.max_map_count`). The memory of unused places is never touched.
const RANGES_MAX: usize = 1 << 18;

/// A part of a block that is mapped as far as the program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) block: usize,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// What [`Table::cut`] took out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) block: usize,
    /// Nothing else of the block is mapped.
    pub(crate) is_last: bool,
}

pub(crate) struct Table {
    /// The first of [`RANGES_MAX`] places; 0: not mapped yet.
    first: usize,
    count: usize,
}

struct Shared(UnsafeCell<Table>);
// SAFETY: used only by `with`, one thread at a time.
unsafe impl Sync for Shared {}

static TABLE: Shared = Shared(UnsafeCell::new(Table::new()));
static IN_USE: Alone = Alone::new();

/// Runs `body` as the only thread that has the table. It does not come back here.
pub(crate) fn with<R>(body: impl FnOnce(&mut Table) -> R) -> R {
    let _undisturbed = Undisturbed::new(thread::current());
    let _alone = IN_USE.take();
    let _change = Change::new();
    // SAFETY: this thread has the lock, so it is the only one here.
    body(unsafe { &mut *TABLE.0.get() })
}

/// Makes the table's memory now: later there may be none to be had.
pub(crate) fn map_ahead() {
    let _else_when_it_is_needed = with(Table::is_mapped);
}

/// The thread that changes something, by its state's address, 0: none does; and how often
/// one did. A thread that forks has the table, and changes nothing: it waits for those that
/// allocate, and one of these may be at a touch.
static CHANGER: AtomicUsize = AtomicUsize::new(0);
static CHANGES: AtomicUsize = AtomicUsize::new(0);

fn own_key() -> usize {
    core::ptr::from_ref(thread::current()).addr()
}

/// A touch of an address was refused, maybe in the midst of a change: what lies there goes,
/// something else comes, and to the program that is one step. Whether it is to be tried
/// again, once whoever changes something is done. A touch that is refused twice without
/// such a change in between is the program's own, and so is one that was refused
/// [`TRIES_MAX`] times, whatever others change elsewhere. Async-signal-safe.
pub(crate) fn is_to_be_tried_again(address: usize) -> bool {
    wait_for_change();
    if CHANGER.load(Ordering::Acquire) == own_key() {
        return false;
    }
    let last = &thread::current().tried_again;
    // Never what it is at first.
    let changes = CHANGES.load(Ordering::Acquire) + 1;
    let tries = match last.get() {
        [before, at, _] if [before, at] == [changes, address] => TRIES_MAX,
        [_, at, tries] if at == address => tries,
        _ => 0,
    };
    let again = tries < TRIES_MAX;
    last.set([changes, address, if again { tries + 1 } else { 0 }]);
    again
}

/// Waits until no other thread is in the midst of a change: what was seen of an address
/// before may be no more than that. Async-signal-safe.
pub(crate) fn wait_for_change() {
    let mut waited = 0;
    while ![0, own_key()].contains(&CHANGER.load(Ordering::Acquire)) {
        futex::pause(waited);
        waited = waited.saturating_add(1);
    }
}

/// What a look at addresses finds while nobody changes anything, or after so many looks that
/// each met a change. Async-signal-safe.
pub(crate) fn seen_between_changes<T>(look: impl Fn() -> T) -> T {
    let mut tries = 0;
    loop {
        wait_for_change();
        let before = CHANGES.load(Ordering::Acquire);
        let seen = look();
        let is_still = [0, own_key()].contains(&CHANGER.load(Ordering::Acquire))
            && CHANGES.load(Ordering::Acquire) == before;
        tries += 1;
        if is_still || tries == TRIES_MAX {
            return seen;
        }
    }
}

/// Touches of one address that are tried again, at most, if every one meets a change.
const TRIES_MAX: usize = 16;

/// Something changes while this is there; its thread has the table.
struct Change;

impl Change {
    fn new() -> Self {
        CHANGER.store(own_key(), Ordering::Relaxed);
        Self
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        CHANGES.fetch_add(1, Ordering::Release);
        CHANGER.store(0, Ordering::Release);
    }
}

/// Waits until nobody changes the table, and nobody does while the answer is there: a forked
/// child gets a whole one. With signals blocked, as a handler would wait for its own thread.
/// Not while pages cannot move (the gate), as whoever changes it moves them.
pub(crate) fn hold_still() -> Taken {
    IN_USE.take()
}

/// In a forked child: whoever was here in the parent is not.
pub(crate) fn forget_others() {
    CHANGER.store(0, Ordering::Relaxed);
    IN_USE.forget_others();
}

impl Table {
    pub(crate) const fn new() -> Self {
        Self { first: 0, count: 0 }
    }

    pub(crate) fn ranges(&self) -> &[Range] {
        if self.first == 0 {
            return &[];
        }
        // SAFETY: `count` places of the mapping are ranges, and only this table's owner
        // has it.
        unsafe { core::slice::from_raw_parts(self.first as *const Range, self.count) }
    }

    /// The first range that ends above an address.
    fn first_above(&self, address: usize) -> usize {
        self.ranges().partition_point(|range| range.end <= address)
    }

    /// The first range that has anything between two addresses.
    pub(crate) fn find(&self, start: usize, end: usize) -> Option<Range> {
        let found = self.ranges().get(self.first_above(start))?;
        (start < end && found.start < end).then_some(*found)
    }

    /// Whether all between two addresses is mapped.
    pub(crate) fn covers(&self, start: usize, end: usize) -> bool {
        let mut at = start;
        while at < end {
            match self.find(at, end) {
                Some(range) if range.start <= at => at = range.end,
                _ => return false,
            }
        }
        true
    }

    /// Whether anything of the block at `block`, which ends at `end`, is mapped.
    pub(crate) fn has_block(&self, block: usize, end: usize) -> bool {
        self.find(block, end)
            .is_some_and(|range| range.block == block)
    }

    /// Maps a part of a block, which may have mapped parts already; `false` when the
    /// table is full.
    pub(crate) fn insert(&mut self, range: Range) -> bool {
        let ranges = self.ranges();
        let mut from = ranges.partition_point(|other| other.end < range.start);
        let mut to = ranges.partition_point(|other| other.start <= range.end);
        // One in place of all that it meets. What is of another block only touches it.
        let is_of_another = |other: &Range| other.block != range.block;
        from += usize::from(
            ranges[from..to]
                .first()
                .is_some_and(|other| is_of_another(other) && other.end <= range.start),
        );
        to -= usize::from(
            ranges[from..to]
                .last()
                .is_some_and(|other| is_of_another(other) && other.start >= range.end),
        );
        let mut merged = range;
        for other in &ranges[from..to] {
            merged.start = merged.start.min(other.start);
            merged.end = merged.end.max(other.end);
        }
        self.replace(from, to, &[merged])
    }

    /// Takes the first mapped piece between two addresses out. A table that has no
    /// place for the rest of a range forgets the part behind the piece: it stays mapped
    /// until its block's other parts are unmapped.
    pub(crate) fn cut(&mut self, start: usize, end: usize) -> Option<Piece> {
        let index = self.first_above(start);
        let range = self.find(start, end)?;
        let (from, to) = (start.max(range.start), end.min(range.end));
        let (before, behind) = (Range { end: from, ..range }, Range { start: to, ..range });
        let rest = [before, behind];
        let has = |range: &Range| range.start < range.end;
        let done = match (has(&before), has(&behind)) {
            (true, true) => {
                self.replace(index, index + 1, &rest) || self.replace(index, index + 1, &rest[..1])
            }
            (true, false) => self.replace(index, index + 1, &rest[..1]),
            (false, true) => self.replace(index, index + 1, &rest[1..]),
            (false, false) => self.replace(index, index + 1, &[]),
        };
        debug_assert!(done, "no more places than before");
        let ranges = self.ranges();
        let beside = [index.wrapping_sub(1), index].map(|index| ranges.get(index));
        let is_last = beside
            .into_iter()
            .flatten()
            .all(|other| other.block != range.block);
        Some(Piece {
            start: from,
            end: to,
            block: range.block,
            is_last,
        })
    }

    /// Puts ranges in the place of those from `from` up to `to`.
    fn replace(&mut self, from: usize, to: usize, by: &[Range]) -> bool {
        let count = self.count - (to - from) + by.len();
        if count > RANGES_MAX || !self.is_mapped() {
            return false;
        }
        let place = |index: usize| (self.first as *mut Range).wrapping_add(index);
        let above = self.count - to;
        // SAFETY: both are places of the mapping, `above` of them, and all places may be
        // written.
        unsafe { place(to).copy_to(place(from + by.len()), above) };
        // SAFETY: as above.
        unsafe { place(from).copy_from(by.as_ptr(), by.len()) };
        self.count = count;
        true
    }

    fn is_mapped(&mut self) -> bool {
        if self.first == 0 {
            self.first = bounce::map(RANGES_MAX * size_of::<Range>()).unwrap_or(0);
        }
        self.first != 0
    }
}

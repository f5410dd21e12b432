//! What the engine remembers of each faulting thread: its runs of faults, and
//! whether it gets anywhere.
//!
//! ```text
//!   thread ── hash ──► set of four rows, one of them the thread's home
//!                      ┌──────┬──────┬──────┬──────┐
//!                      │ row  │ home │ row  │ row  │   a row is two cache lines
//!                      └──────┴──────┴──────┴──────┘
//! ```
//! A thread keeps the row it found and looks at its home first. While its run of
//! faults goes on it touches one line; the second one has its runs before that.
//! There are sixteen rows for each processor: a thread finds its set full
//! only where far more threads fault than processors run.
//!
//! Then a thread without a row takes that of one which *moved on*: whose last
//! fault was at another instruction than the one before. A row whose thread may
//! be stuck is *watched* and stays its thread's, until that thread moves on, or
//! does not fault for [`PATIENCE`]. So no stuck thread starves, however many
//! others there are: whoever holds a watched row gets on, or has the token after
//! a bounded number of faults and then gets on, or stops faulting; the row goes
//! to whichever thread faults next, and a stuck thread faults all the time. Once
//! it has the row, nobody takes it away before it gets on.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_fault::Fault;
use ghostmem_os::map::ZeroArray;
use ghostmem_os::{OsError, clock};
use ghostmem_policy::{Plan, RUNS, Runs, Stream};
use row::{BEFORE, INSTANT, PAGES, RUN, SEEN, STALE, THREAD, WANTED, WATCH};

/// Rows for each processor: as many threads as processors find their sets full
/// once in a hundred thousand tries.
const ROWS_PER_PROCESSOR: usize = 16;

/// 32 KiB at least, 2 MiB at most.
const ROWS_MIN: usize = 256;
const ROWS_MAX: usize = 1 << 14;

/// Rows that a thread may have.
const WAYS: usize = 4;

/// A thread that is stuck, and gets its turns on a processor, faults more often
/// than once in this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// One instruction touches at most this many pages (an AVX-512 gather of 16
/// elements, each across a page boundary, and the instruction itself).
pub(crate) const PAGES_PER_INSTRUCTION: u32 = 34;

/// Refaults in a row by one thread, without the program counter to tell one
/// instruction from the next, after which it counts as stuck (monitor
/// backend). Only asked for limits so small that one instruction can need all
/// of it, and of faults on so few pages.
const BLIND_FAULTS: u32 = 4096;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What is known of one thread, a word each: see [`row`].
type Row = [AtomicU64; 16];

/// Where its runs of faults are kept, that of its last fault first.
const RUN_WORDS: [usize; RUNS] = [RUN, BEFORE, BEFORE + 1, BEFORE + 2];

pub(crate) struct ThreadTable {
    /// A power of two of them.
    rows: ZeroArray<Row>,
}

impl ThreadTable {
    /// # Errors
    /// The kernel's refusal of memory.
    pub(crate) fn new(processors: usize) -> Result<Self, OsError> {
        let rows = processors
            .saturating_mul(ROWS_PER_PROCESSOR)
            .clamp(ROWS_MIN, ROWS_MAX);
        Ok(Self {
            rows: ZeroArray::new(rows.next_power_of_two())?,
        })
    }

    /// The rows that `thread` may have, its home first.
    fn rows_of(&self, thread: u64) -> impl Iterator<Item = &Row> {
        // The upper bits of the product depend on all of the sum's bits, also
        // where threads are told apart by small numbers in a row.
        let hash = (thread ^ thread >> 32).wrapping_mul(GOLDEN);
        let home = (hash >> 32) as usize & (self.rows.len() - 1);
        (0..WAYS).map(move |step| &self.rows[home ^ step])
    }

    /// The thread's row; `None` while all it could have are watched.
    fn row(&self, thread: u64) -> Option<&Row> {
        let mine = |row: &&Row| row[THREAD].load(Ordering::Relaxed) == thread;
        let Some(row) = self.rows_of(thread).find(mine) else {
            return self.find_room(thread);
        };
        if row[WANTED].load(Ordering::Relaxed) != 0 {
            row[WANTED].store(0, Ordering::Relaxed);
        }
        Some(row)
    }

    #[cold]
    fn find_room(&self, thread: u64) -> Option<&Row> {
        let holder = |row: &Row| row[THREAD].load(Ordering::Relaxed);
        let unused = self.rows_of(thread).filter(|row| holder(row) == 0);
        let moved_on = self
            .rows_of(thread)
            .filter(|row| row[WATCH].load(Ordering::Relaxed) == 0);
        let gone = self.rows_of(thread).filter(|row| Self::is_given_up(row));
        unused.chain(moved_on).chain(gone).find(|row| {
            // Two threads may want it; the other one looks on.
            let taken = row[THREAD].compare_exchange(
                holder(row),
                thread,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if taken.is_ok() {
                let words = [INSTANT, WATCH, PAGES, STALE, WANTED];
                for word in words.into_iter().chain(RUN_WORDS) {
                    row[word].store(0, Ordering::Relaxed);
                }
            }
            taken.is_ok()
        })
    }

    /// Whether a watched row's thread has not faulted for so long that it can
    /// be stuck no more.
    fn is_given_up(row: &Row) -> bool {
        let now = clock::now_ns();
        let wanted = row[WANTED].compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        wanted.is_err_and(|since| now.saturating_sub(since) > PATIENCE.as_nanos() as u64)
    }

    /// How many threads have faulted since the last call.
    pub(crate) fn active_since(&self) -> usize {
        let changed = |row: &&Row| {
            // Where the instant is not known, the run of faults moves.
            let instant = row[INSTANT].load(Ordering::Relaxed);
            let now = instant ^ row[RUN].load(Ordering::Relaxed).rotate_left(32);
            let changed = row[SEEN].load(Ordering::Relaxed) != now;
            if changed {
                row[SEEN].store(now, Ordering::Relaxed);
            }
            changed
        };
        self.rows.iter().filter(changed).count()
    }

    /// The readahead plan for a fault on `page`, a number unique in the heap.
    pub(crate) fn plan(&self, thread: u64, page: u64) -> Plan {
        let Some(row) = self.row(thread) else {
            return Plan::ONE;
        };
        let run = Stream::from_bits(row[RUN].load(Ordering::Relaxed));
        if run.goes_on_at(page) {
            let (plan, run) = run.go_on(page);
            row[RUN].store(run.to_bits(), Ordering::Relaxed);
            return plan;
        }
        let mut runs = Runs::from_words(RUN_WORDS.map(|word| row[word].load(Ordering::Relaxed)));
        let plan = runs.fault(page);
        for (word, bits) in RUN_WORDS.into_iter().zip(runs.to_words()) {
            row[word].store(bits, Ordering::Relaxed);
        }
        plan
    }

    /// Only the first `restored` pages of a plan were put in place.
    pub(crate) fn cut_short(&self, thread: u64, plan: Plan, page: u64, restored: u32) {
        let Some(row) = self.row(thread) else { return };
        let run = Stream::from_bits(row[RUN].load(Ordering::Relaxed));
        let run = run.cut_short(plan, page, restored);
        row[RUN].store(run.to_bits(), Ordering::Relaxed);
    }

    /// Counts a restoring fault; `true` when the thread has faulted more often
    /// at one instruction than any instruction can need: others take its
    /// pages away faster than it can use them.
    ///
    /// Without the program counter, refaults in a row are all there is to go by,
    /// and that they fall on few pages: one instruction has no more of them.
    pub(crate) fn is_stuck(&self, fault: &Fault, refault: bool) -> bool {
        let Some(row) = self.row(fault.thread) else {
            return false;
        };
        let instant = fault.instant;
        let same = if instant == 0 {
            let page = u64::from(fault.region) << 32 | fault.page as u64;
            let bit = 1_u64 << (page.wrapping_mul(GOLDEN) >> 58);
            let pages = row[PAGES].load(Ordering::Relaxed) | bit;
            let few = refault && pages.count_ones() <= PAGES_PER_INSTRUCTION;
            // A hash stands for one page or more: too many of them are too
            // many pages.
            row[PAGES].store(if few { pages } else { 0 }, Ordering::Relaxed);
            few
        } else {
            let before = row[INSTANT].swap(instant, Ordering::Relaxed);
            if before == 0 {
                // Its first fault in this row: the next one tells.
                row[WATCH].store(1, Ordering::Relaxed);
                return false;
            }
            before == instant
        };
        if !same {
            row[WATCH].store(0, Ordering::Relaxed);
            return false;
        }
        let repeats = row[WATCH].load(Ordering::Relaxed).max(1);
        row[WATCH].store(repeats + 1, Ordering::Relaxed);
        let bound = if instant == 0 {
            BLIND_FAULTS
        } else {
            2 * PAGES_PER_INSTRUCTION
        };
        repeats > u64::from(bound)
    }

    /// The thread's last fault was at another instruction.
    pub(crate) fn moved_on(&self, thread: u64, instant: u64) -> bool {
        let last = |row: &Row| row[INSTANT].load(Ordering::Relaxed);
        instant == 0 || self.row(thread).is_some_and(|row| last(row) != instant)
    }

    /// Counts a fault that found its page resident; `true` for the second one
    /// in a row on one page: the mapping itself must be looked at. Also `true`
    /// where nothing is remembered of the thread.
    pub(crate) fn is_stale_again(&self, thread: u64, page: u64) -> bool {
        self.row(thread).is_none_or(|row| {
            // Kept until the second one.
            row[WATCH].fetch_max(1, Ordering::Relaxed);
            row[STALE].swap(page + 1, Ordering::Relaxed) == page + 1
        })
    }
}

/// Words of a row.
mod row {
    /// The thread, 0 in a row that nobody has had yet.
    pub(super) const THREAD: usize = 0;
    /// The run of its last fault.
    pub(super) const RUN: usize = 1;
    /// Where its last restoring fault was; 0 at first.
    pub(super) const INSTANT: usize = 2;
    /// Its repeated faults, one more than there were; 0: not watched.
    pub(super) const WATCH: usize = 3;
    /// Pages of those repeats, a bit for each hash, where the instant is not
    /// known.
    pub(super) const PAGES: usize = 4;
    /// The page that was resident at its last fault, one more.
    pub(super) const STALE: usize = 5;
    /// When another thread wanted this row for the first time since its thread
    /// faulted, nanoseconds; 0: nobody did.
    pub(super) const WANTED: usize = 6;
    /// Its run and instant when threads were last counted.
    pub(super) const SEEN: usize = 7;
    /// Its runs before that one, from here on: a cache line of their own.
    pub(super) const BEFORE: usize = 8;
}

#[cfg(test)]
mod tests {
    use super::*;
    use ghostmem_fault::{AccessKind, Waits};
    use std::collections::BTreeSet;

    /// Kernel ids of threads started in a row, and addresses of their control
    /// blocks, as libc lays stacks out.
    fn threads(count: u64) -> [Vec<u64>; 2] {
        let ids = (0..count).map(|n| 31_000 + n).collect();
        let keys = (0..count)
            .map(|n| 0x7f3a_1c7f_f6c0 - n * 0x80_1000)
            .collect();
        [ids, keys]
    }

    fn fault(thread: u64, instant: u64) -> Fault {
        Fault {
            region: 0,
            page: 1,
            access: AccessKind::Read,
            present: false,
            thread,
            instant,
            waits: Waits::default(),
        }
    }

    #[test]
    fn threads_started_in_a_row_have_rows_of_their_own() {
        for threads in threads(64) {
            let table = ThreadTable::new(2).unwrap();
            // Each goes through memory of its own, one page after the other.
            let run = |page: u64| {
                let place = move |n: usize| (n as u64 + 1) << 20 | page;
                threads
                    .iter()
                    .enumerate()
                    .map(move |(n, &thread)| (thread, place(n)))
            };
            let mut ahead = BTreeSet::new();
            for (thread, page) in (0..4).flat_map(run) {
                if table.plan(thread, page).count > 1 {
                    ahead.insert(thread);
                }
            }
            assert_eq!(ahead.len(), 64, "readahead sees each thread's run");
            let homes = threads.iter().map(|&thread| {
                let home = table.rows_of(thread).next();
                core::ptr::from_ref(home.unwrap()).addr()
            });
            let homes: BTreeSet<usize> = homes.collect();
            assert!(homes.len() >= 48, "{} lines for 64 threads", homes.len());
        }
    }

    #[test]
    fn a_row_keeps_the_runs_of_its_thread_until_another_has_it() {
        let table = ThreadTable::new(2).unwrap();
        let mut next = [1 << 20, 2 << 20, 3 << 20];
        for turn in 1..=7 {
            for page in &mut next {
                let count = table.plan(31_000, *page).count;
                assert_eq!(count, 1 << (turn - 1), "turn {turn}");
                *page += u64::from(count);
            }
        }
        // What was left undone is asked for again.
        let plan = table.plan(31_000, next[1]);
        table.cut_short(31_000, plan, next[1], 5);
        assert_eq!(table.plan(31_000, next[1] + 5).proven, 4);
        // Other threads take every row.
        for thread in 40_000..50_000 {
            assert_eq!(table.plan(thread, next[0]).count, 1, "a new thread's first");
            assert_eq!(table.plan(thread, next[2]).count, 1);
        }
    }

    #[test]
    fn one_thread_that_repeats_among_a_thousand_that_get_on_is_seen() {
        for threads in threads(1000) {
            for stuck in [0, 499, 999] {
                let table = ThreadTable::new(2).unwrap();
                let seen = (1..).find(|&turn: &u64| {
                    threads.iter().enumerate().any(|(place, &thread)| {
                        let instant = if place == stuck {
                            7
                        } else {
                            turn.wrapping_mul(GOLDEN) ^ thread
                        };
                        table.moved_on(thread, instant);
                        let is = table.is_stuck(&fault(thread, instant), true);
                        table.plan(thread, turn);
                        assert!(!is || place == stuck, "{place} gets on");
                        is
                    }) || turn == 1000
                });
                // What it needs at most, and a turn of each other thread of
                // its set before that.
                let most = u64::from(2 * PAGES_PER_INSTRUCTION) + 40;
                assert!(seen.unwrap() <= most, "after {seen:?} turns");
            }
        }
    }

    #[test]
    fn a_thousand_threads_that_repeat_are_all_seen() {
        for threads in threads(1000) {
            let table = ThreadTable::new(2).unwrap();
            // Seen: the token takes it to its next instruction, and it is done.
            let mut left = threads.clone();
            let mut turns = 0;
            while !left.is_empty() {
                turns += 1;
                left.retain(|&thread| {
                    let stuck = table.is_stuck(&fault(thread, thread), true);
                    if stuck {
                        table.is_stuck(&fault(thread, 1), true);
                    }
                    !stuck
                });
                assert!(turns < 1000, "{} threads were never seen", left.len());
            }
        }
    }

    #[test]
    fn a_thread_that_faults_no_more_leaves_its_row_to_another() {
        let [_, threads] = threads(2000);
        let table = ThreadTable::new(2).unwrap();
        for &thread in &threads {
            // Once, and never again.
            table.is_stuck(&fault(thread, thread), true);
        }
        let late = 0x7f3a_0000_1000;
        assert!(table.row(late).is_none(), "watched, all of them");
        assert!(table.is_stale_again(late, 5), "its mapping is looked at");
        for row in table.rows_of(late) {
            let wanted = row[WANTED].load(Ordering::Relaxed);
            let patience = PATIENCE.as_nanos() as u64;
            row[WANTED].store(wanted.saturating_sub(patience).max(1), Ordering::Relaxed);
        }
        // One of them faults again in time.
        let kept = table.rows_of(late).nth(1).unwrap();
        let kept = kept[THREAD].load(Ordering::Relaxed);
        assert!(table.row(kept).is_some());
        assert!(table.row(late).is_some());
        assert!(
            table
                .row(kept)
                .is_some_and(|row| row[WATCH].load(Ordering::Relaxed) == 1)
        );
    }

    #[test]
    fn more_active_threads_than_the_smallest_table_was_made_for_are_counted() {
        for processors in [2, 65, 100, 256] {
            for threads in threads(processors as u64) {
                let table = ThreadTable::new(processors).unwrap();
                for turn in 1..4_u64 {
                    for &thread in &threads {
                        table.is_stuck(&fault(thread, turn.wrapping_mul(GOLDEN) ^ thread), true);
                    }
                    assert_eq!(table.active_since(), processors);
                    assert_eq!(table.active_since(), 0);
                }
            }
        }
    }
}

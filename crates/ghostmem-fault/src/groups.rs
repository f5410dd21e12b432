//! Which parts of a guard region have their markers.
//!
//! A marker is an entry of the kernel's page tables: 2 GiB of them for each TiB. So
//! a region begins inaccessible as a whole, which costs nothing, and a *group* of
//! pages, as many as one page table has, gets its markers and becomes accessible
//! when the first of its pages is put in place:
//!
//! ```text
//!   ── inaccessible ──┬─ group: markers ─┬─ inaccessible ─┬─ group ─┬─ group ─┬──
//!   mapping           │ mapping          │ mapping        │ one mapping       │
//! ```
//! In this order, so that no thread ever finds a page of it open that was not put
//! there. Both raise the same signal: the faulting thread does not mind which.
//!
//! Each run of groups splits the mapping. Beyond [`RUNS_MAX`] runs, and when the
//! kernel has no mapping left, a new group takes all between it and the nearest one
//! that is marked along: that lengthens a mapping and adds none. The first group of
//! a region is marked from the start, so that there is always one.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;

use ghostmem_os::bits::PageBits;
use ghostmem_os::error::{ENOMEM, OsError};
use ghostmem_os::futex;
use ghostmem_os::guard::FileMap;
use ghostmem_os::map::{PAGE_SIZE, ZeroArray};

/// Pages whose entries fill one page table.
const GROUP_PAGES: usize = PAGE_SIZE / size_of::<u64>();
const GROUP_BYTES: usize = GROUP_PAGES * PAGE_SIZE;

/// Most runs of groups in the process that are apart by choice. Each takes two
/// mappings, of the 65530 that `vm.max_map_count` allows by default.
const RUNS_MAX: usize = 2048;

/// Runs of groups in the process.
static RUNS: AtomicUsize = AtomicUsize::new(0);

/// How long a thread sleeps on another one's marking before it looks again.
const WAIT: Duration = Duration::from_millis(2);

/// The groups of one region.
pub(crate) struct Groups {
    /// One bit for each group that is marked, set for good.
    marked: ZeroArray<AtomicU64>,
    len: usize,
    /// 1 while a thread marks. That thread is in the engine, with signals blocked,
    /// and touches no ghost memory.
    marking: AtomicU64,
    /// How many are marked, and in how many runs.
    count: AtomicUsize,
    runs: AtomicUsize,
}

impl Groups {
    /// The groups of `map`, whose first is marked.
    ///
    /// # Errors
    /// No memory; a kernel without markers for files; no mapping left.
    pub(crate) fn new(map: &FileMap, away: &PageBits) -> Result<Self, OsError> {
        let len = map.len().div_ceil(GROUP_BYTES);
        let groups = Self {
            marked: ZeroArray::new(len.div_ceil(64))?,
            len,
            marking: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            runs: AtomicUsize::new(0),
        };
        groups.mark_range(map, away, 0, 1)?;
        Ok(groups)
    }

    /// Gives the groups of these pages their markers. One load where they have
    /// them. Async-signal-safe; the caller is inside the gate.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) fn prepare(
        &self,
        map: &FileMap,
        away: &PageBits,
        page: usize,
        pages: usize,
    ) -> Result<(), OsError> {
        let last = (page + pages.max(1) - 1) / GROUP_PAGES;
        (page / GROUP_PAGES..=last).try_for_each(|group| {
            if self.is_marked(group) {
                return Ok(());
            }
            self.mark(map, away, group)
        })
    }

    /// Gives pages to another mapping: no marking touches them from now on. Not for a
    /// fault's way; the caller is inside the gate, with signals blocked.
    pub(crate) fn give_away(&self, away: &PageBits, page: usize, pages: usize) {
        self.in_turn(|| away.set(page, page + pages));
    }

    /// Maps pages that were away anew, with markers where their groups have them. As
    /// [`Groups::give_away`].
    ///
    /// # Errors
    /// The kernel's refusal: they stay away.
    pub(crate) fn retake(
        &self,
        map: &FileMap,
        away: &PageBits,
        page: usize,
        pages: usize,
    ) -> Result<(), OsError> {
        self.in_turn(|| {
            map.map_part(page * PAGE_SIZE, pages * PAGE_SIZE)?;
            let (mut at, end) = (page, page + pages);
            while at < end {
                let group = at / GROUP_PAGES;
                let until = end.min((group + 1) * GROUP_PAGES);
                if self.is_marked(group) {
                    let (offset, len) = (at * PAGE_SIZE, (until - at) * PAGE_SIZE);
                    map.guard_even_locked(offset, len)?;
                    map.protect(offset, len, true)?;
                }
                at = until;
            }
            away.clear(page, end);
            Ok(())
        })
    }

    /// Runs `body` while no other thread marks.
    pub(crate) fn in_turn<R>(&self, body: impl FnOnce() -> R) -> R {
        while self
            .marking
            .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            futex::wait(&self.marking, 1, WAIT);
        }
        let result = body();
        self.marking.store(0, Ordering::Release);
        futex::wake_all(&self.marking);
        result
    }

    /// Memory of the page tables that markers keep, bytes, and of the bits here.
    pub(crate) fn metadata_bytes(&self) -> usize {
        let bits = (self.len / 8).min(self.count.load(Ordering::Relaxed) * PAGE_SIZE);
        self.count.load(Ordering::Relaxed) * PAGE_SIZE + bits
    }

    /// In a forked child, whose region is mapped afresh: nothing is marked but
    /// the first group.
    ///
    /// # Errors
    /// As [`Groups::new`].
    pub(crate) fn begin_again(&self, map: &FileMap, away: &PageBits) -> Result<(), OsError> {
        for word in self.marked.iter() {
            // Without making memory of what was never written.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
        self.count.store(0, Ordering::Relaxed);
        RUNS.fetch_sub(self.runs.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        self.marking.store(0, Ordering::Relaxed);
        self.mark_range(map, away, 0, 1)
    }

    fn is_marked(&self, group: usize) -> bool {
        // Pairs with the setting in `mark_range`: the markers are there.
        self.marked[group / 64].load(Ordering::Acquire) >> (group % 64) & 1 == 1
    }

    #[cold]
    fn mark(&self, map: &FileMap, away: &PageBits, group: usize) -> Result<(), OsError> {
        // Another thread's turn may have marked it.
        self.in_turn(|| match self.is_marked(group) {
            true => Ok(()),
            false => self.mark_around(map, away, group),
        })
    }

    fn mark_around(&self, map: &FileMap, away: &PageBits, group: usize) -> Result<(), OsError> {
        let (first, end) = self.gap_around(group);
        let alone = first < group && group + 1 < end;
        if !alone || RUNS.load(Ordering::Relaxed) < RUNS_MAX {
            match self.mark_range(map, away, group, group + 1) {
                Err(error) if alone && error.errno == ENOMEM => {}
                other => return other,
            }
        }
        // All of it on the nearer side; there is no group at `len`, and the first
        // is marked.
        if end == self.len || group - first <= end - group {
            self.mark_range(map, away, first, group + 1)
        } else {
            self.mark_range(map, away, group, end)
        }
    }

    /// The groups around `group` that are not marked, itself among them.
    fn gap_around(&self, group: usize) -> (usize, usize) {
        let mut first = group;
        while first > 0 && !self.is_marked(first - 1) {
            first -= 1;
        }
        let mut end = group + 1;
        while end < self.len && !self.is_marked(end) {
            end += 1;
        }
        (first, end)
    }

    /// Marks groups none of which is, and opens them to the markers; not what of them is
    /// away.
    fn mark_range(
        &self,
        map: &FileMap,
        away: &PageBits,
        first: usize,
        end: usize,
    ) -> Result<(), OsError> {
        let last = (end * GROUP_PAGES).min(map.len() / PAGE_SIZE);
        for (from, to) in away.gaps(first * GROUP_PAGES, last) {
            let (offset, len) = (from * PAGE_SIZE, (to - from) * PAGE_SIZE);
            map.guard_even_locked(offset, len)?;
            map.protect(offset, len, true)?;
        }
        for group in first..end {
            self.marked[group / 64].fetch_or(1 << (group % 64), Ordering::Release);
        }
        self.count.fetch_add(end - first, Ordering::Relaxed);
        let before = first > 0 && self.is_marked(first - 1);
        let after = end < self.len && self.is_marked(end);
        match (before, after) {
            (false, false) => {
                self.runs.fetch_add(1, Ordering::Relaxed);
                RUNS.fetch_add(1, Ordering::Relaxed);
            }
            (true, true) => {
                self.runs.fetch_sub(1, Ordering::Relaxed);
                RUNS.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        RUNS.fetch_sub(*self.runs.get_mut(), Ordering::Relaxed);
    }
}

//! Which pages of a region are handed out: a binary buddy over page numbers.
//!
//! A run of pages is rounded up to a power of two and starts at a multiple of
//! it. The rounding costs address space only: pages nobody touches have no
//! frame. The lowest fitting address is taken always, so that what is in use
//! stays together and page tables stay small.
//!
//! # Metadata
//! ```text
//!   nodes: one byte for each node of a complete binary tree over the pages
//!                            [1]                       order 3: pages 0..8
//!                  [2]                  [3]            order 2
//!             [4]       [5]        [6]       [7]       order 1
//!           [8] [9]  [10] [11]  [12] [13]  [14] [15]   order 0: single pages
//!
//!     0              every page below is free (so nothing needs initialising)
//!     d in 1..=o+1   the longest free aligned run below has order o - d;
//!                    d = o + 1: there is none
//!     TAKEN          one run starts here and fills this node
//!     FREEING        the same, and its owner gave it back: it is no block any
//!                    more, but its pages are not free yet
//!     FINISHING      the same, and one thread is about to make it free
//!
//!   lengths: for the first page of each run, how many pages were asked for
//! ```
//! Both arrays are demand-zero and are written only on the way from the root
//! to a run: a region of terabytes costs what is used of it, at most 6 bytes
//! for a page handed out alone. Below a 0 everything is 0, and below a `TAKEN`
//! but for the nodes at the left edge of a run that grew: what they held when it
//! did stays, so that a query on its way down there still finds the run.
//!
//! # Concurrency
//! Changes are made under one small lock, held for some hundred nanoseconds,
//! never while ghost memory is touched, never in a fault handler. Only the
//! turns of a run that was given back take none: its node alone changes, by
//! compare-and-swap. Queries take no lock: every node above a run that stays alive keeps a value that is
//! neither 0 nor `TAKEN`, whatever happens to its neighbours. No unsafe code
//! depends on any of this; all data are atomics.

use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use ghostmem_os::OsError;
use ghostmem_os::error::EINVAL;
use ghostmem_os::map::ZeroArray;
use ghostmem_os::shards::LineStart;
use ghostmem_os::touched::Touched;

use crate::parts::spin::SpinLock;

mod node;

use node::{FINISHING, FREEING, Position, ROOT, TAKEN, free_order, node_value};

/// Most pages a space can have: lengths are 32 bits wide (8 TiB of pages).
pub const PAGES_MAX: usize = 1 << 31;

/// Consecutive pages, numbered from the start of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// The first page.
    pub first: usize,
    /// How many pages were asked for; what they were rounded up to is nobody
    /// else's either.
    pub pages: usize,
}

/// Why a run was not freed. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FreeError {
    /// The page belongs to no run: it was freed before, or never handed out.
    NotAllocated {
        /// The page.
        page: usize,
    },
    /// The page lies inside a run that starts before it.
    Interior {
        /// The page.
        page: usize,
        /// The run it belongs to.
        run: PageRun,
    },
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllocated { page } => {
                write!(
                    f,
                    "page {page} is not allocated: freed twice, or never handed out"
                )
            }
            Self::Interior { page, run } => write!(
                f,
                "page {page} is inside a block; free page {}, its first of {}",
                run.first, run.pages
            ),
        }
    }
}

impl core::error::Error for FreeError {}

/// The pages of one region, and who has them.
#[derive(Debug)]
#[repr(C)]
pub struct BlockSpace {
    nodes: ZeroArray<AtomicU8>,
    lengths: ZeroArray<AtomicU32>,
    nodes_touched: Touched,
    lengths_touched: Touched,
    page_count: usize,
    /// Order of the root: the tree covers `1 << height` pages, perhaps more
    /// than there are. A run may round up past the end, not reach past it.
    height: u32,
    /// Queries read none of what follows.
    _written: LineStart,
    used: AtomicUsize,
    lock: SpinLock,
    _end: LineStart,
}

impl BlockSpace {
    /// A space of `page_count` free pages.
    ///
    /// Takes time and memory that do not depend on the count: about 6 bytes
    /// of address space for each page.
    ///
    /// # Errors
    /// `EINVAL` for no page or more than [`PAGES_MAX`]; the kernel's refusal
    /// to map the metadata.
    pub fn new(page_count: usize) -> Result<Self, OsError> {
        if page_count == 0 || page_count > PAGES_MAX {
            return Err(OsError::new("BlockSpace::new", EINVAL));
        }
        let covered = page_count.next_power_of_two();
        Ok(Self {
            nodes: ZeroArray::new(2 * covered)?,
            lengths: ZeroArray::new(page_count)?,
            nodes_touched: Touched::new::<AtomicU8>(2 * covered)?,
            lengths_touched: Touched::new::<AtomicU32>(page_count)?,
            page_count,
            height: covered.trailing_zeros(),
            _written: LineStart,
            used: AtomicUsize::new(0),
            lock: SpinLock::new(),
            _end: LineStart,
        })
    }

    /// Takes the lowest free run of `pages` pages whose first page is a
    /// multiple of `align_pages`.
    ///
    /// `None` when there is none, for no pages, and for an alignment that is
    /// not a power of two. The run occupies the larger of both, rounded up to
    /// a power of two.
    #[must_use]
    pub fn allocate(&self, pages: usize, align_pages: usize) -> Option<PageRun> {
        if pages == 0 || pages > self.page_count || !align_pages.is_power_of_two() {
            return None;
        }
        let length = u32::try_from(pages).ok()?;
        let order = pages
            .max(align_pages)
            .checked_next_power_of_two()?
            .trailing_zeros();
        if order > self.height {
            return None;
        }
        let _locked = self.lock.lock();
        let mut at = Position::root(self);
        if !self.has_free(at, order) {
            return None;
        }
        while at.order > order {
            let left = at.left();
            at = if self.has_free(left, order) {
                left
            } else {
                at.right()
            };
        }
        // The lowest fit; should it reach past the end, all others do.
        if at.first + pages > self.page_count {
            return None;
        }
        self.lengths_touched.note(at.first);
        self.nodes_touched.note(at.node);
        self.lengths[at.first].store(length, Ordering::Relaxed);
        // Release: a query that sees TAKEN sees the length.
        self.nodes[at.node].store(TAKEN, Ordering::Release);
        self.update_above(at);
        self.used.fetch_add(pages, Ordering::Relaxed);
        Some(PageRun {
            first: at.first,
            pages,
        })
    }

    /// Frees the run that starts at page `first`; returns how many pages were
    /// asked for.
    ///
    /// # Errors
    /// [`FreeError`] when no run starts there.
    pub fn free(&self, first: usize) -> Result<usize, FreeError> {
        let run = self.begin_free(first)?;
        // Somebody else may, who saw it given back.
        if self.begin_finish(first).is_some() {
            self.finish_free(first);
        }
        Ok(run.pages)
    }

    /// Takes the run that starts at page `first` from its owner: it is no run
    /// for anybody any more, and not free yet. Of two calls for one run only
    /// one succeeds, however close they are.
    ///
    /// # Errors
    /// [`FreeError`] when no run starts there.
    pub fn begin_free(&self, first: usize) -> Result<PageRun, FreeError> {
        let _locked = self.lock.lock();
        match self.find(first) {
            Some((at, run, TAKEN)) if run.first == first => {
                self.nodes[at.node].store(FREEING, Ordering::Release);
                Ok(run)
            }
            Some((_, run, TAKEN)) => Err(FreeError::Interior { page: first, run }),
            _ => Err(FreeError::NotAllocated { page: first }),
        }
    }

    /// The run around a page that was given back and is not free yet.
    #[must_use]
    pub fn freeing(&self, page: usize) -> Option<PageRun> {
        let (_, run, state) = self.find(page)?;
        (state != TAKEN).then_some(run)
    }

    /// Makes the caller the one that makes a given-back run free: the run; `None` when
    /// another thread is, or when there is none.
    ///
    /// It need not be the run that the caller gave back: another thread may have made
    /// that one free, and the next owner of its pages may have given them back since.
    /// What is to be done for a run that becomes free is done for the one returned.
    #[must_use = "whoever begins finishes"]
    pub fn begin_finish(&self, first: usize) -> Option<PageRun> {
        let node = self.turn(first, FREEING, FINISHING)?;
        // Nobody changes the length any more.
        let pages = self.lengths[first].load(Ordering::Relaxed) as usize;
        debug_assert!(self.nodes[node].load(Ordering::Relaxed) == FINISHING);
        Some(PageRun { first, pages })
    }

    /// Undoes [`BlockSpace::begin_finish`]: the run's pages are in use again.
    pub fn cancel_finish(&self, first: usize) {
        self.turn(first, FINISHING, FREEING);
    }

    /// Turns the state of a run that was given back, without the lock: nodes above it
    /// stay as they are, and only one thread of several succeeds. The run's node.
    fn turn(&self, first: usize, from: u8, to: u8) -> Option<usize> {
        let (at, _, _) = self.find(first).filter(|(_, run, _)| run.first == first)?;
        // Acquire: the length is seen that its owner gave it back with.
        let turned =
            self.nodes[at.node].compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed);
        turned.is_ok().then_some(at.node)
    }

    /// Makes the run free that the caller [began to
    /// finish](BlockSpace::begin_finish).
    pub fn finish_free(&self, first: usize) {
        let _locked = self.lock.lock();
        let Some((at, run, FINISHING)) = self.find(first) else {
            debug_assert!(false, "finished by whoever began it");
            return;
        };
        // What is left of where it was before it grew.
        let mut below = at;
        while below.order > 0 && self.nodes[below.left().node].swap(0, Ordering::Relaxed) != 0 {
            below = below.left();
        }
        self.nodes[at.node].store(0, Ordering::Release);
        self.lengths[first].store(0, Ordering::Relaxed);
        self.update_above(at);
        self.used.fetch_sub(run.pages, Ordering::Relaxed);
    }

    /// Makes the run that starts at page `first` `pages` pages long, where it
    /// is. One that outgrows what its length was rounded up to takes the half
    /// behind it, again and again, while all of that is free. `false` when that
    /// is not so, when no run starts there, and for no pages.
    #[must_use]
    pub fn resize(&self, first: usize, pages: usize) -> bool {
        let Ok(length) = u32::try_from(pages) else {
            return false;
        };
        let _locked = self.lock.lock();
        let Some((at, run, TAKEN)) = self.find(first) else {
            return false;
        };
        if run.first != first || pages == 0 || pages > self.page_count - first {
            return false;
        }
        let Some(grown) = self.room_for(at, pages) else {
            return false;
        };
        self.lengths[first].store(length, Ordering::Relaxed);
        if grown.order > at.order {
            // A query that came by before goes on down to the node that is taken still.
            self.nodes[grown.node].store(TAKEN, Ordering::Release);
            self.update_above(grown);
        }
        self.used.fetch_add(pages, Ordering::Relaxed);
        self.used.fetch_sub(run.pages, Ordering::Relaxed);
        true
    }

    /// The node with room for so many pages that a run would fill which fills `at` now;
    /// `None` where others are in the way.
    fn room_for(&self, mut at: Position, pages: usize) -> Option<Position> {
        while pages > 1 << at.order {
            let is_upper = at.node & 1 == 1;
            if at.node == ROOT || is_upper || self.nodes[at.node + 1].load(Ordering::Relaxed) != 0 {
                return None;
            }
            at = Position {
                node: at.node / 2,
                order: at.order + 1,
                first: at.first,
            };
        }
        Some(at)
    }

    /// The run a page belongs to, if any.
    ///
    /// Lock-free and async-signal-safe: at most one step for each level of
    /// the tree. Exact for runs that live throughout the call; a run that is
    /// being allocated or freed meanwhile may be seen or not.
    #[must_use]
    pub fn block_of(&self, page: usize) -> Option<PageRun> {
        let (_, run, state) = self.find(page)?;
        (state == TAKEN).then_some(run)
    }

    /// Pages handed out now, as asked for.
    #[must_use]
    pub fn used_pages(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Pages in the space.
    #[must_use]
    pub const fn page_count(&self) -> usize {
        self.page_count
    }

    /// Bytes of memory behind the metadata now, at most: from counters, in
    /// constant time.
    #[must_use]
    pub fn metadata_bytes(&self) -> usize {
        self.nodes_touched.bytes() + self.lengths_touched.bytes()
    }

    /// Takes the lock, for the handler before fork(2), so that the child does
    /// not inherit a change half made. Neither changes nor forks may follow on
    /// this thread before [`BlockSpace::unlock_after_fork`].
    ///
    /// A pair of calls and no guard, because the handlers of pthread_atfork(3)
    /// have nothing to keep a guard in.
    pub fn lock_for_fork(&self) {
        self.lock.acquire();
    }

    /// Lets go of what [`BlockSpace::lock_for_fork`] took: once in the parent
    /// and once in the child.
    pub fn unlock_after_fork(&self) {
        self.lock.release();
    }

    /// The node and the run a page belongs to, and the node's value: `TAKEN` or
    /// one of those that follow it.
    fn find(&self, page: usize) -> Option<(Position, PageRun, u8)> {
        if page >= self.page_count {
            return None;
        }
        let mut at = Position::root(self);
        let state = loop {
            match self.nodes[at.node].load(Ordering::Acquire) {
                0 => return None,
                state @ FINISHING..=TAKEN => break state,
                // Only while somebody changes this very run: a single page is
                // free or taken.
                _ if at.order == 0 => return None,
                _ => at = at.child_with(page),
            }
        };
        let run = PageRun {
            first: at.first,
            pages: self.lengths.get(at.first)?.load(Ordering::Relaxed) as usize,
        };
        // Past the pages asked for, or freed while we looked (length 0).
        (page - run.first < run.pages).then_some((at, run, state))
    }

    /// Whether a free run of the order lies in the node.
    fn has_free(&self, at: Position, order: u32) -> bool {
        free_order(self.nodes[at.node].load(Ordering::Relaxed), at.order)
            .is_some_and(|longest| longest >= order)
    }

    /// Brings the nodes above a changed one up to date.
    fn update_above(&self, changed: Position) {
        let mut node = changed.node;
        let mut order = changed.order;
        while node > ROOT {
            let [left, right] = [node & !1, node | 1]
                .map(|child| free_order(self.nodes[child].load(Ordering::Relaxed), order));
            node /= 2;
            order += 1;
            let value = node_value(left, right, order);
            self.nodes_touched.note(node);
            if self.nodes[node].swap(value, Ordering::Release) == value {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The same rules, naively: runs by first page with (asked, occupied).
    #[derive(Default)]
    struct Model(BTreeMap<usize, (usize, usize)>);

    impl Model {
        fn allocate(&mut self, pages: usize, align: usize, count: usize) -> Option<PageRun> {
            if pages == 0 || pages > count {
                return None;
            }
            let size = pages.max(align).next_power_of_two();
            let covered = count.next_power_of_two();
            (0..covered)
                .step_by(size)
                .take_while(|first| first + pages <= count && size <= covered)
                .find(|&first| {
                    self.0.iter().all(|(&other, &(_, taken))| {
                        first + size <= other || other + taken <= first
                    })
                })
                .map(|first| {
                    self.0.insert(first, (pages, size));
                    PageRun { first, pages }
                })
        }

        fn resize(&mut self, page: usize, pages: usize, count: usize) -> bool {
            let Some(&(_, taken)) = self.0.get(&page) else {
                return false;
            };
            let size = pages.next_power_of_two().max(taken);
            let others = self.0.range(page + 1..page + size).next().is_some();
            let fits = page.is_multiple_of(size) && size <= count.next_power_of_two();
            if pages == 0 || others || page + pages > count || (size > taken && !fits) {
                return false;
            }
            self.0.insert(page, (pages, size));
            true
        }

        fn block_of(&self, page: usize) -> Option<PageRun> {
            let (&first, &(pages, _)) = self.0.range(..=page).next_back()?;
            (page < first + pages).then_some(PageRun { first, pages })
        }

        fn free(&mut self, first: usize) -> Result<usize, FreeError> {
            match self.block_of(first) {
                None => Err(FreeError::NotAllocated { page: first }),
                Some(run) if run.first != first => Err(FreeError::Interior { page: first, run }),
                Some(run) => {
                    self.0.remove(&first);
                    Ok(run.pages)
                }
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Allocate(usize, u32),
        /// Frees the n-th run there is.
        FreeRun(prop::sample::Index),
        /// Frees some page, most often wrongly.
        FreePage(usize),
        /// Makes the n-th run there is so many pages long.
        Resize(prop::sample::Index, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_usize..20, 0_u32..5).prop_map(|(p, a)| Step::Allocate(p, a)),
            1 => (0_usize..400, 0_u32..10).prop_map(|(p, a)| Step::Allocate(p, a)),
            4 => any::<prop::sample::Index>().prop_map(Step::FreeRun),
            1 => (0_usize..400).prop_map(Step::FreePage),
            3 => (any::<prop::sample::Index>(), 0_usize..100)
                .prop_map(|(index, pages)| Step::Resize(index, pages)),
        ]
    }

    proptest! {
        #[test]
        fn it_does_what_the_naive_model_does(
            count in 1_usize..300,
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let space = BlockSpace::new(count).unwrap();
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Allocate(pages, align) => prop_assert_eq!(
                        space.allocate(pages, 1 << align),
                        model.allocate(pages, 1 << align, count)
                    ),
                    Step::FreeRun(index) => {
                        if !model.0.is_empty() {
                            let nth = index.index(model.0.len());
                            let first = *model.0.keys().nth(nth).unwrap();
                            prop_assert_eq!(space.free(first), model.free(first));
                        }
                    }
                    Step::FreePage(page) => {
                        prop_assert_eq!(space.free(page), model.free(page));
                    }
                    Step::Resize(index, pages) => {
                        if !model.0.is_empty() {
                            let nth = index.index(model.0.len());
                            let first = *model.0.keys().nth(nth).unwrap();
                            let grown = model.resize(first, pages, count);
                            prop_assert_eq!(space.resize(first, pages), grown);
                        }
                    }
                }
                let used: usize = model.0.values().map(|&(pages, _)| pages).sum();
                prop_assert_eq!(space.used_pages(), used);
                for page in 0..count + 3 {
                    prop_assert_eq!(space.block_of(page), model.block_of(page));
                }
            }
            // Freed again, it is one piece: nothing leaked, halves rejoined.
            let firsts: Vec<_> = model.0.keys().copied().collect();
            for first in firsts {
                space.free(first).unwrap();
            }
            prop_assert!(space.nodes.iter().all(|n| n.load(Ordering::Relaxed) == 0));
            prop_assert_eq!(
                space.allocate(count, 1),
                Some(PageRun { first: 0, pages: count })
            );
        }
    }

    #[test]
    fn impossible_requests_are_refused() {
        assert!(BlockSpace::new(0).is_err());
        assert!(BlockSpace::new(PAGES_MAX + 1).is_err());
        let space = BlockSpace::new(100).unwrap();
        assert_eq!(space.allocate(0, 1), None);
        assert_eq!(space.allocate(101, 1), None);
        assert_eq!(space.allocate(usize::MAX, 1), None);
        assert_eq!(space.allocate(1, 3), None);
        assert_eq!(space.allocate(1, 0), None);
        assert_eq!(space.allocate(1, 1 << 63), None);
        assert_eq!(
            space.free(usize::MAX),
            Err(FreeError::NotAllocated { page: usize::MAX })
        );
        assert_eq!(space.block_of(usize::MAX), None);
    }

    #[test]
    fn a_huge_space_costs_what_is_used_of_it() {
        // 4 TiB of pages.
        let space = BlockSpace::new(1 << 30).unwrap();
        let whole = space.allocate(1 << 30, 1).unwrap();
        assert_eq!(space.block_of((1 << 30) - 1), Some(whole));
        space.free(0).unwrap();
        // 1 GiB in single pages.
        for page in 0..1 << 18 {
            assert_eq!(space.allocate(1, 1).unwrap().first, page);
        }
        // 6 bytes a page, and a few dozen pages for the paths.
        let bytes = touched_bytes(&space.nodes) + (4 << 18);
        assert!(bytes <= (6 << 18) + (40 << 12), "{bytes} bytes");
    }

    /// Memory behind the nodes, by their contents: mincore over the whole
    /// array would take a while. Looks at what 2^19 pages can have touched.
    fn touched_bytes(nodes: &[AtomicU8]) -> usize {
        let mut touched = std::collections::BTreeSet::new();
        let mut level = ROOT;
        while level < nodes.len() {
            let end = (level + (1 << 19)).min(2 * level);
            for (at, node) in nodes[level..end].iter().enumerate() {
                if node.load(Ordering::Relaxed) != 0 {
                    touched.insert((level + at) / 4096);
                }
            }
            level *= 2;
        }
        touched.len() * 4096
    }

    /// Changes the owner of a run's pages, which must be `from` so far.
    fn claim(owner: &[AtomicU32], run: PageRun, from: u32, to: u32) {
        for page in &owner[run.first..run.first + run.pages] {
            assert_eq!(page.swap(to, Ordering::Relaxed), from);
        }
    }

    #[test]
    fn threads_never_get_the_same_page_and_queries_see_their_own_runs() {
        const PAGES: usize = 1 << 12;
        let space = BlockSpace::new(PAGES).unwrap();
        let owner: Vec<AtomicU32> = (0..PAGES).map(|_| AtomicU32::new(0)).collect();
        thread::scope(|scope| {
            for me in 1..=4_u32 {
                let (space, owner) = (&space, &owner);
                scope.spawn(move || {
                    let mut seed = u64::from(me) * 0x9E37_79B9;
                    let mut held = Vec::new();
                    for _ in 0..20_000 {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let pick = (seed >> 33) as usize;
                        if held.len() > 20 || (pick.is_multiple_of(2) && !held.is_empty()) {
                            let run: PageRun = held.swap_remove(pick % held.len());
                            assert_eq!(space.block_of(run.first + run.pages - 1), Some(run));
                            claim(owner, run, me, 0);
                            assert_eq!(space.free(run.first), Ok(run.pages));
                        } else if let Some(run) = space.allocate(1 + pick % 60, 1 << (pick % 4)) {
                            claim(owner, run, 0, me);
                            for page in run.first..run.first + run.pages {
                                assert_eq!(space.block_of(page), Some(run));
                            }
                            held.push(run);
                        }
                    }
                    for run in held {
                        claim(owner, run, me, 0);
                        space.free(run.first).unwrap();
                    }
                });
            }
        });
        assert_eq!(space.used_pages(), 0);
        assert_eq!(space.nodes[ROOT].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_run_is_given_back_once_and_is_nobodys_until_it_is_free() {
        let space = BlockSpace::new(64).unwrap();
        let run = space.allocate(5, 1).unwrap();
        assert_eq!(space.begin_free(0), Ok(run));
        for again in [space.begin_free(0).map(drop), space.free(0).map(drop)] {
            assert_eq!(again, Err(FreeError::NotAllocated { page: 0 }));
        }
        assert_eq!(space.block_of(2), None);
        assert_eq!(space.freeing(2), Some(run));
        assert_eq!(space.allocate(5, 1).unwrap().first, 8, "not free yet");
        assert_eq!(space.begin_finish(0), Some(run));
        assert_eq!(space.begin_finish(0), None);
        space.cancel_finish(0);
        assert_eq!(space.begin_finish(0), Some(run));
        space.finish_free(0);
        assert_eq!(space.freeing(2), None);
        assert_eq!(space.allocate(5, 1), Some(run));
        assert_eq!(space.begin_finish(0), None, "taken, not given back");
    }

    #[test]
    fn whoever_finishes_late_finishes_the_run_that_is_there_now() {
        let space = BlockSpace::new(64).unwrap();
        let run = space.allocate(5, 1).unwrap();
        assert_eq!(space.begin_free(0), Ok(run));
        // Somebody else is faster, and the pages have a new owner, who has more of them.
        assert_eq!(space.begin_finish(0), Some(run));
        space.finish_free(0);
        let next = space.allocate(8, 1).unwrap();
        assert_eq!(space.begin_free(0), Ok(next));
        assert_eq!(space.begin_finish(0), Some(PageRun { first: 0, pages: 8 }));
        space.finish_free(0);
        assert_eq!(space.used_pages(), 0);
    }

    #[test]
    fn of_many_that_begin_to_finish_one_does() {
        let space = BlockSpace::new(1 << 10).unwrap();
        for round in 0..500 {
            let run = space.allocate(1 + round % 9, 1).unwrap();
            space.begin_free(run.first).unwrap();
            let start = std::sync::Barrier::new(3);
            let begun = AtomicUsize::new(0);
            thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        start.wait();
                        if let Some(began) = space.begin_finish(run.first) {
                            assert_eq!(began, run);
                            begun.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert_eq!(begun.into_inner(), 1);
            space.finish_free(run.first);
        }
        assert_eq!(space.used_pages(), 0);
    }

    #[test]
    fn a_run_grows_and_shrinks_within_what_it_was_rounded_up_to() {
        let space = BlockSpace::new(100).unwrap();
        let run = space.allocate(5, 1).unwrap();
        let next = space.allocate(1, 1).unwrap();
        assert_eq!((run.first, next.first), (0, 8));
        assert!(space.resize(0, 8));
        assert_eq!(space.block_of(7), Some(PageRun { first: 0, pages: 8 }));
        assert_eq!(space.used_pages(), 9);
        assert!(!space.resize(0, 9));
        assert!(!space.resize(0, 0));
        assert!(!space.resize(1, 3));
        assert!(!space.resize(50, 1));
        assert!(space.resize(0, 2));
        assert_eq!(space.block_of(2), None);
        assert_eq!(space.free(0), Ok(2));
        assert_eq!(space.used_pages(), 1);
        // The last run is rounded up past the end of the space.
        let end = space.allocate(33, 1).unwrap();
        assert_eq!(end.first, 64);
        assert!(space.resize(64, 36));
        assert!(!space.resize(64, 37));
    }

    #[test]
    fn a_run_grows_over_the_free_half_behind_it() {
        let space = BlockSpace::new(64).unwrap();
        assert_eq!(space.allocate(8, 1).unwrap().first, 0);
        assert!(space.resize(0, 9) && space.resize(0, 30));
        let whole = PageRun {
            first: 0,
            pages: 30,
        };
        for page in [0, 8, 29] {
            assert_eq!(space.block_of(page), Some(whole));
        }
        assert_eq!(space.allocate(4, 1).unwrap().first, 32);
        assert!(!space.resize(0, 33), "somebody is there");
        assert!(!space.resize(32, 33), "it would end outside");
        assert!(space.resize(32, 32) && !space.resize(32, 33));
        assert_eq!(space.free(0), Ok(30));
        assert_eq!(
            space.allocate(32, 1).unwrap().first,
            0,
            "all of it is free again"
        );
        assert_eq!(space.free(0), Ok(32));
        assert_eq!(space.free(32), Ok(32));
        assert!(
            space
                .nodes
                .iter()
                .all(|node| node.load(Ordering::Relaxed) == 0)
        );
    }

    #[test]
    fn queries_find_a_run_while_it_grows() {
        const ROUNDS: usize = 20_000;
        let space = BlockSpace::new(1 << 12).unwrap();
        // Odd while the run lives.
        let round = AtomicUsize::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    assert_eq!(space.allocate(1, 1).unwrap().first, 0);
                    round.fetch_add(1, Ordering::SeqCst);
                    for order in 1..11 {
                        assert!(space.resize(0, 1 << order));
                    }
                    round.fetch_add(1, Ordering::SeqCst);
                    space.free(0).unwrap();
                }
            });
            loop {
                let before = round.load(Ordering::SeqCst);
                let seen = space.block_of(0);
                let same = before == round.load(Ordering::SeqCst);
                if before % 2 == 1 && same {
                    assert!(seen.is_some_and(|run| run.first == 0), "{seen:?}");
                }
                if before == 2 * ROUNDS {
                    return;
                }
            }
        });
    }

    #[test]
    fn the_fork_lock_keeps_changes_out_and_queries_in() {
        let space = BlockSpace::new(64).unwrap();
        let run = space.allocate(5, 1).unwrap();
        space.lock_for_fork();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| space.allocate(1, 1));
            thread::sleep(Duration::from_millis(30));
            assert!(!waiting.is_finished());
            assert_eq!(space.block_of(4), Some(run));
            space.unlock_after_fork();
            assert_eq!(waiting.join().unwrap().map(|r| r.first), Some(8));
        });
    }
}

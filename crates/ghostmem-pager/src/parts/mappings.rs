//! When the kernel has no mapping left (`vm.max_map_count`): guard by mprotect(2)
//! splits one into three for each resident page that stands alone.
//!
//! Pages are then *closed* and stay resident: what was split between them is one
//! mapping again, and the next touch of each opens it, for a fault but no restore.
//! A quarter of all resident pages goes at once, so that the program has mappings
//! for itself again and the next time is far. Pinned pages stay open, and long runs,
//! which take no more mappings than a single page.
//!
//! Closing needs no claim. A page that another thread opens at the same moment is
//! closed under it at worst, and its thread faults once more. One that is being
//! pinned is opened again: a pin waits for all who protect pages of its region, and
//! who closes some says so before it looks for pins (`protecting`). Async-signal-safe
//! throughout.

use core::sync::atomic::Ordering;

use ghostmem_os::OsError;
use ghostmem_os::error::ENOMEM;
use ghostmem_table::PageState;

use crate::parts::engine::Engine;
use crate::parts::region::Region;

/// Least pages closed at once.
const CLOSED_MIN: usize = 256;

/// Runs of so many resident pages or more are closed only when nothing else is
/// left: each takes two mappings, whatever its length.
const LONG_RUN: usize = 64;

/// Pages looked at on each side of one that cannot be closed by itself.
const REACH: usize = 1024;

/// How often a call is made again for which pages were closed.
const ATTEMPTS: usize = 8;

/// Whether a call failed for want of mappings.
fn is_full(error: &OsError) -> bool {
    error.errno == ENOMEM && error.call == "mprotect"
}

impl Engine {
    /// Makes `call`, which may split a mapping, and closes pages as long as there
    /// is none left for it. The caller is inside the gate.
    ///
    /// # Errors
    /// Those of the call.
    pub(crate) fn with_mappings<T>(
        &self,
        mut call: impl FnMut() -> Result<T, OsError>,
    ) -> Result<T, OsError> {
        for _ in 0..ATTEMPTS {
            match call() {
                Err(error)
                    if is_full(&error)
                        && self.backend.splits_mappings()
                        && self.close_some() > 0 => {}
                other => return other,
            }
        }
        call()
    }

    /// Lets the program use resident pages freely, as `Region::unprotect` does,
    /// with as many mappings as that takes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(crate) fn unprotect(
        &self,
        region: &Region,
        page: usize,
        pages: usize,
    ) -> Result<(), OsError> {
        self.with_mappings(|| region.mapped.unprotect(page, pages))
    }

    /// Closes a page that the kernel does not close by itself, as the run around
    /// it would be split, with all of that run; `false` when that fails too. The
    /// caller is inside the gate.
    pub(crate) fn close_around(&self, region: &Region, page: usize) -> bool {
        let _protecting = region.protecting.enter();
        self.close_around_from_inside(region, page)
    }

    /// As [`Engine::close_around`], for a caller that is inside
    /// `region.protecting`.
    pub(crate) fn close_around_from_inside(&self, region: &Region, page: usize) -> bool {
        if !self.backend.splits_mappings() {
            return false;
        }
        let (mut start, mut end) = (page, page + 1);
        while start > 0 && page - start < REACH && may_be_open(region, start - 1) {
            start -= 1;
        }
        while end < region.pages() && end - page < REACH && may_be_open(region, end) {
            end += 1;
        }
        let pinned = (start..end).any(|page| region.table.load(page).is_pinned());
        !pinned && Self::close(region, start, end)
    }

    /// Closes a quarter of the resident pages, going on where the last call
    /// ended; how many it was.
    fn close_some(&self) -> usize {
        let resident = usize::try_from(self.budget.used()).unwrap_or(0);
        let wanted = (resident / 4).max(CLOSED_MIN);
        // Long runs only in a second round.
        [LONG_RUN, usize::MAX]
            .into_iter()
            .map(|longest| self.close_up_to(wanted, longest))
            .find(|&closed| closed > 0)
            .unwrap_or(0)
    }

    fn close_up_to(&self, wanted: usize, longest: usize) -> usize {
        let mut closed = 0;
        let count = self.region_count();
        // Every region, and the first one's beginning at last.
        for _ in 0..=count {
            let place = self.closing.load(Ordering::Relaxed);
            let (index, from) = ((place >> 40) as usize, (place & ((1 << 40) - 1)) as usize);
            let index = if index < count { index } else { 0 };
            let Some(region) = self.region(index) else {
                break;
            };
            let end = Self::close_from(region, from, wanted, longest, &mut closed);
            let next = match end {
                Some(page) => (index as u64) << 40 | page as u64,
                None => ((index as u64 + 1) % count as u64) << 40,
            };
            self.closing.store(next, Ordering::Relaxed);
            if closed >= wanted {
                break;
            }
        }
        closed
    }

    /// Closes runs of a region from page `from` on, until `closed` is `wanted`;
    /// where to go on, if that is in this region.
    fn close_from(
        region: &Region,
        from: usize,
        wanted: usize,
        longest: usize,
        closed: &mut usize,
    ) -> Option<usize> {
        // Runs that are closed in one call, from the start of the first to the end
        // of the last, and their pages: what lies between is closed already.
        let mut range: Option<(usize, usize, usize)> = None;
        // Before the first look for a pin, until the last page is closed.
        let _protecting = region.protecting.enter();
        let mut next = region.resident.next(from);
        while let Some(start) = next {
            let mut end = start;
            let mut pinned = false;
            while end < region.pages() && end - start < REACH && may_be_open(region, end) {
                pinned |= region.table.load(end).is_pinned();
                end += 1;
            }
            // It left just now.
            let end = end.max(start + 1);
            next = region.resident.next(end);
            // Mappings of others may lie between.
            if let Some((_, before, _)) = range
                && region.mapped.next_away(before, start, true) < start
            {
                *closed += Self::close_range(region, range.take());
            }
            if pinned || end - start > longest {
                *closed += Self::close_range(region, range.take());
            } else {
                let (first, before) = range.map_or((start, 0), |(first, _, pages)| (first, pages));
                range = Some((first, end, before + end - start));
            }
            let pending = range.map_or(0, |(_, _, pages)| pages);
            if *closed + pending >= wanted {
                break;
            }
        }
        *closed += Self::close_range(region, range);
        next
    }

    fn close_range(region: &Region, range: Option<(usize, usize, usize)>) -> usize {
        match range {
            Some((start, end, pages)) if Self::close(region, start, end) => pages,
            _ => 0,
        }
    }

    fn close(region: &Region, start: usize, end: usize) -> bool {
        region.mapped.protect(start, end - start).is_ok()
    }
}

/// Whether a page may be open, or be opened just now.
fn may_be_open(region: &Region, page: usize) -> bool {
    !matches!(
        region.table.load(page).state(),
        PageState::Empty | PageState::Stored | PageState::Filled | PageState::Lost
    )
}

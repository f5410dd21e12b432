//! Forgetting the contents of pages.
//!
//! A page is claimed, its mapping taken away with those of its neighbours in one call, and
//! then it is empty. Pages that the kernel keeps (locked memory) and pinned ones stay.

use ghostmem_fault::Batch;
use ghostmem_os::error::EINVAL;
use ghostmem_os::{OsError, PAGE_SIZE};
use ghostmem_table::{Claim, PageState, Word};

use crate::parts::engine::Engine;
use crate::parts::region::Region;

/// Pages handled with signals blocked at a stretch.
pub(crate) const STRETCH: usize = 64;

/// What a discard could not forget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Pages that are pinned.
    pub(crate) pinned: bool,
    /// Pages whose frames the kernel did not take.
    pub(crate) kept: bool,
}

/// Pages to discard in one go.
#[derive(Clone, Copy)]
struct Stretch {
    pub(crate) first: usize,
    pub(crate) end: usize,
    /// First page and end of what is nobody's any more.
    gone: Option<(usize, usize)>,
}

/// The pages of a stretch whose frames stay.
struct Kept {
    pub(crate) pages: [usize; STRETCH],
    pub(crate) len: usize,
}

impl Kept {
    fn has(&self, page: usize) -> bool {
        self.pages[..self.len].contains(&page)
    }
}

impl Engine {
    /// Forgets the contents of whole pages inside a range: they read as zero
    /// afterwards. Bytes of pages that are only partly covered are left alone.
    /// Pinned pages keep their frames and their contents.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn discard(&self, address: usize, len: usize) -> Result<(), OsError> {
        let start = address
            .checked_next_multiple_of(PAGE_SIZE)
            .ok_or(OsError::new("discard", EINVAL))?;
        let end = address.saturating_add(len) & !(PAGE_SIZE - 1);
        if start >= end {
            return self.pages_of("discard", address, len).map(drop);
        }
        let (region, first, end) = self.pages_of("discard", start, end - start)?;
        self.discard_pages(region, first, end, false).map(drop)
    }

    /// `gone`: the range is nobody's any more. Locked pages go too then, and so
    /// does the lock, as with munmap(2). Pinned ones stay in any case.
    pub(crate) fn discard_pages(
        &self,
        region: &Region,
        first: usize,
        end: usize,
        gone: bool,
    ) -> Result<Left, OsError> {
        let mut page = first;
        let mut left = Left::default();
        // What was never touched is passed over, 512 pages at a look at one bit.
        while let Some((written, group_end)) = region.resident.next_written(page, end) {
            page = written;
            while page < group_end {
                if region.table.load(page) == Word::EMPTY {
                    page += 1;
                    continue;
                }
                let stretch = Stretch {
                    first: page,
                    end: (page + STRETCH).min(end),
                    gone: gone.then_some((first, end)),
                };
                let passed;
                (page, passed) =
                    self.quietly_in(region, stretch, |engine, region, stretch, _| {
                        engine.discard_stretch(region, stretch)
                    })?;
                left.pinned |= passed.pinned;
                left.kept |= passed.kept;
            }
        }
        Ok(left)
    }

    /// Discards pages until the stretch's end or one that another thread is busy
    /// with; where to go on, and what it passed.
    fn discard_stretch(&self, region: &Region, stretch: Stretch) -> (usize, Left) {
        let mut claims: [Option<Claim>; STRETCH] = [const { None }; STRETCH];
        let mut batch = Batch::new();
        let mut held = 0;
        let mut left = Left::default();
        // Claims whose pages could not be closed: one bit each.
        let mut open = 0_u64;
        let mut page = stretch.first;
        while page < stretch.end {
            let word = region.table.load(page);
            match word.state() {
                _ if word == Word::EMPTY => page += 1,
                PageState::Claimed | PageState::Dropping if held > 0 => break,
                PageState::Claimed | PageState::Dropping => self.wait_for(region, page, word),
                _ if word.is_pinned() => {
                    left.pinned = true;
                    page += 1;
                }
                _ => {
                    let Ok(claim) = region.table.claim(page, word) else {
                        continue;
                    };
                    if claim.before().state() == PageState::Resident {
                        if !close(self, region, page, stretch.gone) {
                            if stretch.gone.is_none() || !self.backend.splits_mappings() {
                                let before = claim.before();
                                self.release(region, claim, before);
                                left.kept = true;
                                page += 1;
                                continue;
                            }
                            open |= 1 << held;
                        }
                        region.mapped.add_to(&mut batch, page, 1);
                    }
                    claims[held] = Some(claim);
                    held += 1;
                    page += 1;
                }
            }
        }
        let kept = drop_all(region, &mut batch, stretch.gone);
        let mut dropped = 0;
        for (at, claim) in claims.iter_mut().enumerate() {
            let Some(claim) = claim.take() else { continue };
            let before = claim.before();
            let resident = before.state() == PageState::Resident;
            if resident && kept.has(claim.page()) {
                // The frame stays, and so do its bytes.
                left.kept = true;
                self.release(region, claim, before);
                continue;
            }
            if open >> at & 1 == 1 {
                // Its bytes are gone, and nobody's: whoever gets the page finds it
                // resident.
                self.release(region, claim, before.without_copy());
                if before.has_copy() {
                    self.free_slot(before);
                }
                continue;
            }
            dropped += i64::from(resident);
            self.release_empty(region, claim);
        }
        self.budget.give_back(dropped);
        (page, left)
    }

    /// Ends the claim of a page whose frame is gone, and what was stored of it with it. The
    /// caller gives a resident one's frame back to the budget.
    pub(crate) fn release_empty(&self, region: &Region, claim: Claim) {
        let before = claim.before();
        if before.state() == PageState::Resident {
            region.resident.remove(claim.page());
        }
        self.release(region, claim, Word::EMPTY);
        if before.state() == PageState::Stored || before.has_copy() {
            self.free_slot(before);
        }
    }
}

/// Keeps other threads out of a claimed page until its frame is gone; `false` when
/// the kernel refuses, and they are not.
pub(crate) fn close(
    engine: &Engine,
    region: &Region,
    page: usize,
    gone: Option<(usize, usize)>,
) -> bool {
    if !region.mapped.protects_from_loads()
        || region.mapped.protect(page, 1).is_ok()
        || engine.close_around(region, page)
    {
        return true;
    }
    // Locked memory takes no guard markers.
    gone.is_some_and(|(first, end)| {
        region.mapped.unlock(first, end - first).is_ok() && region.mapped.protect(page, 1).is_ok()
    })
}

/// Gives the frames of a batch back to the kernel; which pages keep theirs.
fn drop_all(region: &Region, batch: &mut Batch, gone: Option<(usize, usize)>) -> Kept {
    let none = || Kept {
        pages: [0; STRETCH],
        len: 0,
    };
    let drop_batch = |batch: &mut Batch, even_locked| {
        let mut kept = none();
        region.mapped.drop_batch(batch, even_locked, &mut |page| {
            kept.pages[kept.len] = page;
            kept.len += 1;
        });
        kept
    };
    let kept = drop_batch(batch, false);
    let Some((first, end)) = gone.filter(|_| kept.len > 0) else {
        return kept;
    };
    // The lock goes for all of it: else it would hold the next owner's pages. Where
    // that is refused, the advice for locked memory may not be.
    let _refused = region.mapped.unlock(first, end - first);
    for &page in &kept.pages[..kept.len] {
        region.mapped.add_to(batch, page, 1);
    }
    drop_batch(batch, true)
}

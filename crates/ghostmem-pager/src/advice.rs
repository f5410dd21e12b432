//! What a program may ask of ranges: bring them in, send them out, forget
//! them. To hold them: `pins`.
//!
//! These run on the program's threads, outside fault handlers: what owns a page
//! runs [quietly](Engine::quietly).

use core::sync::atomic::{Ordering, fence};

use ghostmem_fault::{AccessKind, Batch, Fault, Verdict, Waits};
use ghostmem_os::{OsError, PAGE_SIZE, clock, thread};
use ghostmem_policy::Heat;
use ghostmem_table::{Claim, State, Word};

use crate::engine::Engine;
use crate::region::Region;
use crate::space::{BlockSpace, PageRun};

/// Pages handled with signals blocked at a stretch.
const STRETCH: usize = 64;

/// `EINVAL`
pub(crate) const INVALID: i32 = 22;
/// `EIO`
const IO: i32 = 5;
/// `ENOMEM`
pub(crate) const NO_MEMORY: i32 = 12;

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
    first: usize,
    end: usize,
    /// First page and end of what is nobody's any more.
    gone: Option<(usize, usize)>,
}

/// The pages of a stretch whose frames stay.
struct Kept {
    pages: [usize; STRETCH],
    len: usize,
}

impl Kept {
    fn has(&self, page: usize) -> bool {
        self.pages[..self.len].contains(&page)
    }
}

/// Keeps other threads out of a claimed page until its frame is gone; `false` when
/// the kernel refuses, and they are not.
fn close(engine: &Engine, region: &Region, page: usize, gone: Option<(usize, usize)>) -> bool {
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

impl Engine {
    /// The pages that `len` bytes at `address` touch, in their region.
    pub(crate) fn pages_of(
        &self,
        call: &'static str,
        address: usize,
        len: usize,
    ) -> Result<(&Region, usize, usize), OsError> {
        let (region, first) = self.locate(address).ok_or(OsError::new(call, INVALID))?;
        let offset = address - region.base();
        let end = offset
            .checked_add(len)
            .ok_or(OsError::new(call, INVALID))?
            .div_ceil(PAGE_SIZE);
        if end > region.pages() {
            return Err(OsError::new(call, INVALID));
        }
        Ok((region, first, end))
    }

    /// Evicts the pages of a range now; how many it was.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn evict(&self, address: usize, len: usize) -> Result<usize, OsError> {
        let (region, first, end) = self.pages_of("evict", address, len)?;
        let mut evicted = 0;
        for start in (first..end).step_by(STRETCH) {
            let stop = (start + STRETCH).min(end);
            if region.resident.next(start).is_some_and(|page| page < stop) {
                evicted += self.quietly_in(
                    region,
                    (start, stop),
                    |engine, region, (start, stop), scratch| {
                        engine.evict_pages(region, start, stop, scratch)
                    },
                )?;
            }
        }
        Ok(evicted)
    }

    /// Evicts the coldest page; `false` when none can go.
    ///
    /// # Errors
    /// When no working memory can be had.
    pub fn evict_coldest(&self) -> Result<bool, OsError> {
        self.quietly((), |engine, (), scratch| {
            // Spared pages lose credit with each look, so this ends.
            (0..64).any(|_| engine.reclaim(1, scratch) > 0)
        })
    }

    /// Brings the pages of a range in, from its start, as far as half the
    /// limit reaches (others are evicted for them); how many came in.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's; `EIO` when a page is
    /// lost.
    pub fn prefetch(&self, address: usize, len: usize) -> Result<usize, OsError> {
        let (region, first, end) = self.pages_of("prefetch", address, len)?;
        let most = (self.budget.limit() / 2).max(1) as usize;
        let end = end.min(first.saturating_add(most));
        let absent = |page: &usize| {
            matches!(
                region.table.load(*page).state(),
                State::Stored | State::Filled
            )
        };
        let before = (first..end).filter(absent).count();
        for page in first..end {
            // Readahead brings in most of them before we get there.
            if absent(&page) {
                self.touch(region, page, AccessKind::Read)?;
            }
        }
        Ok(before.saturating_sub((first..end).filter(absent).count()))
    }

    /// Resolves a fault that nobody took.
    pub(crate) fn touch(
        &self,
        region: &Region,
        page: usize,
        access: AccessKind,
    ) -> Result<(), OsError> {
        let fault = Fault {
            region: region.index,
            page,
            access,
            present: true,
            thread: thread::key() as u64,
            instant: clock::now_ns(),
            waits: Waits::default(),
        };
        loop {
            let state = region.table.load(page).state();
            if state == State::Resident {
                return Ok(());
            }
            let mut refused = Ok(());
            let verdict = Waits::through(|waits| {
                let fault = Fault { waits, ..fault };
                self.quietly(fault, |engine, fault, scratch| {
                    engine.serve(&fault, scratch)
                })
                .unwrap_or_else(|error| {
                    refused = Err(error);
                    Verdict::Retry
                })
            });
            refused?;
            match verdict {
                Verdict::Refused => {
                    // Lost, or freed meanwhile and nobody's any more.
                    let lost = region.table.load(page).state() == State::Lost;
                    let errno = if lost { IO } else { INVALID };
                    return Err(OsError::new("restore", errno));
                }
                Verdict::Resolved | Verdict::Retry | Verdict::Wait { .. } => {}
            }
        }
    }

    /// Makes the pages of a range the next to leave.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn cold(&self, address: usize, len: usize) -> Result<(), OsError> {
        let (region, first, end) = self.pages_of("cold", address, len)?;
        let mut next = region.resident.next(first);
        while let Some(page) = next.filter(|&page| page < end) {
            let word = region.table.load(page);
            if matches!(word.state(), State::Resident) {
                let cold = word.with_heat(Heat::COLD.to_bits());
                let _raced = region.table.amend(page, word, cold);
            }
            next = region.resident.next(page + 1);
        }
        Ok(())
    }

    /// Forgets the contents of whole pages inside a range: they read as zero
    /// afterwards. Bytes of pages that are only partly covered are left alone.
    /// Pinned pages keep their frames and their contents.
    ///
    /// # Errors
    /// `EINVAL` when the range is not this engine's.
    pub fn discard(&self, address: usize, len: usize) -> Result<(), OsError> {
        let start = address
            .checked_next_multiple_of(PAGE_SIZE)
            .ok_or(OsError::new("discard", INVALID))?;
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
                _ if word.is_pinned() => {
                    left.pinned = true;
                    page += 1;
                }
                State::Claimed | State::Dropping if held > 0 => break,
                State::Claimed | State::Dropping => self.wait_for(region, page, word),
                _ => {
                    let Ok(claim) = region.table.claim(page, word) else {
                        continue;
                    };
                    if claim.before().state() == State::Resident {
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
            let resident = before.state() == State::Resident;
            if resident && kept.has(claim.page()) {
                // The frame stays, and so do its bytes.
                left.kept = true;
                self.release(region, claim, before);
                continue;
            }
            if open >> at & 1 == 1 {
                // Its bytes are gone, and nobody's: whoever gets the page finds it
                // resident.
                self.release(region, claim, before);
                continue;
            }
            if resident {
                region.resident.remove(claim.page());
                dropped += 1;
            }
            self.release(region, claim, Word::EMPTY);
            if before.state() == State::Stored || before.is_clean() {
                self.free_slot(before);
            }
        }
        self.budget.give_back(dropped);
        (page, left)
    }

    /// Frees the block that starts at `address`; its length in bytes. While
    /// pages of it are pinned their memory stays, and the address space is not
    /// handed out again. Nor is it, ever, where the kernel refuses to take the
    /// memory: who gets the block next would find its bytes.
    ///
    /// # Errors
    /// `EINVAL` when no block starts there: never allocated, freed already,
    /// or the middle of one.
    pub fn free(&self, address: usize) -> Result<usize, OsError> {
        let wrong = OsError::new("free", INVALID);
        let (region, page) = self.locate(address).ok_or(wrong)?;
        let blocks = region.blocks.as_ref().ok_or(wrong)?;
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(wrong);
        }
        // From here on it is nobody's: a second free is refused.
        let run = blocks.begin_free(page).map_err(|_| wrong)?;
        self.finish_free(region, blocks, run)?;
        Ok(run.pages * PAGE_SIZE)
    }

    /// Makes a block free that was given back, unless some of its pages are
    /// pinned: the last of those pins does it then, as what uses the memory
    /// behind the processor's back must not find it to be somebody else's.
    pub(crate) fn finish_free(
        &self,
        region: &Region,
        blocks: &BlockSpace,
        run: PageRun,
    ) -> Result<(), OsError> {
        let end = run.first + run.pages;
        // Pairs with the one in `unpin_pages`: either we see the pin gone, or
        // whoever took it off sees that the block was given back. And with the
        // one in `keep_allocated`: no fault claims an empty page of the block
        // after we passed it.
        fence(Ordering::SeqCst);
        while !region.has_pins_in(run.first, end) && blocks.begin_finish(run.first) {
            // The contents go before the address space can be handed out again.
            let discarded = self.discard_pages(region, run.first, end, true);
            // A page that was pinned when we passed it is full still, however
            // soon it was let go.
            if discarded == Ok(Left::default()) && !region.has_pins_in(run.first, end) {
                blocks.finish_free(run.first);
                self.note_freed(run.pages * PAGE_SIZE);
                return Ok(());
            }
            // Pinned by a thread that came before the block was given back.
            blocks.cancel_finish(run.first);
            if discarded?.kept {
                return Ok(());
            }
            fence(Ordering::SeqCst);
        }
        Ok(())
    }

    /// Gives up the claims from the first one on whose page is no longer part
    /// of a block: it was freed after we looked, and who freed it may have
    /// passed it already. How many steps are left, and how many claims.
    pub(crate) fn keep_allocated(
        &self,
        region: &Region,
        claims: &mut [Option<Claim>],
    ) -> (usize, usize) {
        // Who frees the block looks only where words were written.
        for claim in claims.iter().flatten() {
            region.resident.note(claim.page());
        }
        // Pairs with the one in `finish_free`: either we see that the block
        // was given back, or who frees it sees our claim, and waits.
        fence(Ordering::SeqCst);
        let is_freed = |claim: &Option<Claim>| {
            claim
                .as_ref()
                .is_some_and(|claim| !region.is_allocated(claim.page()))
        };
        let count = claims.iter().position(is_freed).unwrap_or(claims.len());
        let (kept, freed) = claims.split_at_mut(count);
        for claim in freed.iter_mut().filter_map(Option::take) {
            let before = claim.before();
            self.release(region, claim, before);
        }
        (count, kept.iter().flatten().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use ghostmem_codec::lz4::Lz4;
    use ghostmem_fault::{Backend, BackendKind};

    #[test]
    fn a_sparse_block_is_freed_without_a_look_at_each_page() {
        let config = Config {
            limit_pages: 64,
            memory_limit_bytes: None,
            backend: BackendKind::PREFERRED
                .iter()
                .find_map(|&kind| Backend::open(kind).ok())
                .unwrap(),
            codec: Lz4,
            compress: true,
            on_lost: None,
            readahead: false,
            background: false,
            background_in_children: false,
            keep_copies: true,
            store_capacity_bytes: 1 << 20,
        };
        let engine = Engine::new(config, None).unwrap();
        // 16 GiB, of which two pages far from each other are touched.
        let pages = 1 << 22;
        let address = Engine::allocate(&engine, pages, 1).unwrap();
        for page in [3, pages - 1] {
            let place = address + page * PAGE_SIZE;
            engine.pin(place, PAGE_SIZE).unwrap();
            engine.unpin(place, PAGE_SIZE).unwrap();
        }
        engine.free(address).unwrap();
        let (region, page) = engine.locate(address).unwrap();
        assert_eq!(region.table.load(page + 3), Word::EMPTY);
        assert_eq!(region.table.load(page + pages - 1), Word::EMPTY);
        // A page that is only read counts as backed, too.
        let looked_at = region.table.array().backed_bytes();
        assert_eq!(looked_at, 2 * PAGE_SIZE);
        engine.shut_down();
    }
}

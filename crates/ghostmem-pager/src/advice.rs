//! What a program may ask of ranges: bring them in, send them out, forget
//! them. To hold them: `pins`.
//!
//! These run on the program's threads, outside fault handlers: what owns a page
//! runs [quietly](Engine::quietly).

use core::sync::atomic::{Ordering, fence};

use ghostmem_fault::{AccessKind, Batch, Fault, FaultSink, Verdict};
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
        };
        loop {
            let state = region.table.load(page).state();
            if state == State::Resident {
                return Ok(());
            }
            let resolve = |engine: &Self, fault, scratch: &mut _| engine.on_fault(&fault, scratch);
            match self.quietly(fault, resolve)? {
                Verdict::Refused => {
                    // Lost, or freed meanwhile and nobody's any more.
                    let lost = region.table.load(page).state() == State::Lost;
                    let errno = if lost { IO } else { INVALID };
                    return Err(OsError::new("restore", errno));
                }
                Verdict::Resolved | Verdict::Retry => {}
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

    /// `all`: locked pages too, as the block is gone. Pinned ones stay; whether
    /// there were none.
    pub(crate) fn discard_pages(
        &self,
        region: &Region,
        first: usize,
        end: usize,
        all: bool,
    ) -> Result<bool, OsError> {
        let mut page = first;
        let mut pinned = false;
        while page < end {
            // Whole stretches that were never touched cost one look each.
            if region.table.load(page) == Word::EMPTY {
                page += 1;
                continue;
            }
            let stop = (page + STRETCH).min(end);
            let passed;
            (page, passed) = self.quietly_in(
                region,
                (page, stop, all),
                |engine, region, (page, stop, all), _| {
                    engine.discard_stretch(region, page, stop, all)
                },
            )?;
            pinned |= passed;
        }
        Ok(!pinned)
    }

    /// Discards pages until `end` or one that another thread is busy with;
    /// where to go on, and whether it passed a pinned one.
    fn discard_stretch(
        &self,
        region: &Region,
        first: usize,
        end: usize,
        all: bool,
    ) -> (usize, bool) {
        let mut pinned = false;
        let mut claims: [Option<Claim>; STRETCH] = [const { None }; STRETCH];
        let mut batch = Batch::new();
        let (mut held, mut resident) = (0, 0);
        let mut page = first;
        while page < end {
            let word = region.table.load(page);
            match word.state() {
                _ if word == Word::EMPTY => page += 1,
                _ if word.is_pinned() => {
                    pinned = true;
                    page += 1;
                }
                State::Claimed | State::Dropping if held > 0 => break,
                State::Claimed | State::Dropping => self.wait_for(region, page, word),
                _ => {
                    let Ok(claim) = region.table.claim(page, word) else {
                        continue;
                    };
                    if claim.before().state() == State::Resident {
                        // Keeps others out until the frame is gone; where
                        // that is refused (locked memory), the page stays.
                        if region.mapped.protects_from_loads()
                            && region.mapped.protect(page, 1).is_err()
                        {
                            let before = claim.before();
                            self.release(region, claim, before);
                            page += 1;
                            continue;
                        }
                        region.mapped.add_to(&mut batch, page, 1);
                        region.resident.remove(page);
                        resident += 1;
                    }
                    claims[held] = Some(claim);
                    held += 1;
                    page += 1;
                }
            }
        }
        let mut kept = [usize::MAX; STRETCH];
        let mut kept_len = 0;
        region.mapped.drop_batch(&mut batch, all, &mut |page| {
            kept[kept_len] = page;
            kept_len += 1;
        });
        for claim in claims.iter_mut().filter_map(Option::take) {
            let before = claim.before();
            let page = claim.page();
            if kept[..kept_len].contains(&page) {
                // Locked memory: the frame stays, and so do its bytes.
                region.resident.insert(page);
                resident -= 1;
                self.release(region, claim, before);
                continue;
            }
            self.release(region, claim, Word::EMPTY);
            if before.state() == State::Stored || before.is_clean() {
                self.free_slot(before);
            }
        }
        self.budget.give_back(resident);
        (page, pinned)
    }

    /// Frees the block that starts at `address`; its length in bytes. While
    /// pages of it are pinned their memory stays, and the address space is not
    /// handed out again.
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
            if discarded == Ok(true) && !region.has_pins_in(run.first, end) {
                blocks.finish_free(run.first);
                self.note_freed(run.pages * PAGE_SIZE);
                return Ok(());
            }
            // Pinned by a thread that came before the block was given back.
            blocks.cancel_finish(run.first);
            discarded?;
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

//! What every verb does with one page: end a claim, wait for one, give a slot back.

use ghostmem_os::error::EINVAL;
use ghostmem_os::{OsError, PAGE_SIZE, futex};
use ghostmem_policy::writes;
use ghostmem_store::Place;
use ghostmem_store::tier::{ColdTier, TierId, TierSlot};
use ghostmem_table::{Claim, PageState, Word};

use crate::parts::cold::Cold;
use crate::parts::engine::Engine;
use crate::parts::region::Region;
use crate::parts::token::WAIT;
/// Looks at a claimed word before going to sleep on it: about the time a
/// restore takes, which is far less than a sleep and a wake.
const SPINS: u32 = 200;

/// A word without its copy, with what is left of its being write hot; `compares`: comparing
/// pages with their copies is worth its while.
pub(crate) fn bare(word: Word, compares: bool) -> Word {
    let (hot, kept) = (word.is_write_hot(), word.is_kept());
    let stays = writes::stays_write_hot_without_copy(hot, kept, compares);
    word.without_copy().with_write_hot(stays)
}

impl Engine {
    /// The pages that `len` bytes at `address` touch, in their region.
    pub(crate) fn pages_of(
        &self,
        call: &'static str,
        address: usize,
        len: usize,
    ) -> Result<(&Region, usize, usize), OsError> {
        let (region, first) = self.locate(address).ok_or(OsError::new(call, EINVAL))?;
        let offset = address - region.base();
        let end = offset
            .checked_add(len)
            .ok_or(OsError::new(call, EINVAL))?
            .div_ceil(PAGE_SIZE);
        if end > region.pages() {
            return Err(OsError::new(call, EINVAL));
        }
        Ok((region, first, end))
    }

    /// Ends a claim and wakes whoever slept on it.
    pub(crate) fn release(&self, region: &Region, claim: Claim, word: Word) {
        let page = claim.page();
        if region.table.release(claim, word).0 {
            futex::wake_all(region.table.futex(page));
        }
    }

    /// Frees the slot, or the place in a file, that a word names.
    pub(crate) fn free_slot(&self, word: Word) {
        if word.state() == PageState::Resident && word.has_copy() {
            self.copies.sub(1);
        }
        match Place::from_bits(word.payload()) {
            Some(Place::Store(slot)) => self.store.remove(slot),
            Some(Place::Cold(tier, slot)) => self.remove_cold(tier, slot),
            None => {}
        }
    }

    /// Waits, for a while, until a claimed or dropping page moves on.
    pub(crate) fn wait_for(&self, region: &Region, page: usize, seen: Word) {
        let mut seen = seen;
        for _ in 0..SPINS {
            core::hint::spin_loop();
            seen = region.table.load(page);
            if !matches!(seen.state(), PageState::Claimed | PageState::Dropping) {
                return;
            }
        }
        if let Some(marked) = region.table.announce_wait(page, seen) {
            futex::wait(region.table.futex(page), marked.low_half(), WAIT);
        }
    }

    /// Gives up a place in a tier.
    #[inline(never)]
    pub(crate) fn remove_cold(&self, tier: TierId, slot: TierSlot) {
        if let Some(tier) = self.tier(tier) {
            tier.remove(slot);
        }
    }

    /// The tier that page words call so.
    pub(crate) fn tier(&self, tier: TierId) -> Option<&Cold> {
        self.cold.as_ref()?.named(tier)
    }
}

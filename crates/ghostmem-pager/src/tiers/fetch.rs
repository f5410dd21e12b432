//! Restoring pages from the file tier.
//!
//! Runs in fault handlers, the page claimed, with the buffers of the lease: one
//! read for one page, as few as there are runs of neighbours in the file for
//! readahead. Faults on different pages share nothing here.
//!
//! A page that cannot be read is reported in one line, after the program's own
//! handler was asked whether to read it once more. It is never replaced by
//! other bytes.

use core::fmt::Write;

use ghostmem_codec::{self as codec};
use ghostmem_fault::{RUN_PAGES, Scratch};
use ghostmem_os::PAGE_SIZE;
use ghostmem_os::message::Line;
use ghostmem_policy::Past;
use ghostmem_store::Place;
use ghostmem_store::tier::{ColdTier, TierError, TierId, TierSlot};
use ghostmem_table::{Claim, PageState};

use crate::parts::cold::ColdTiers;
use crate::parts::engine::Engine;
use crate::parts::lost::{LostDecision, LostPage};
use crate::parts::metrics::Counter;
use crate::parts::region::Region;

impl Engine {
    /// Brings the bytes of a page in the file into place `place` of the buffer:
    /// how many they are packed. `None` when they cannot be had, which has been
    /// said then.
    #[inline(never)]
    pub(crate) fn fetch(
        &self,
        region: &Region,
        page: usize,
        (tier, slot): (TierId, TierSlot),
        place: usize,
        scratch: &mut Scratch,
    ) -> Option<usize> {
        let tier = self.tier(tier)?;
        let owner = region.id(page).get();
        let io = scratch.io.0.as_flattened_mut();
        let mut tries = 0;
        loop {
            tries += 1;
            let cause = match tier.read(slot, owner, io, &mut scratch.packed) {
                Ok((id, len)) => {
                    let packed = &scratch.packed[..len];
                    if codec::decode(id, packed, &mut scratch.run[place]).is_ok() {
                        self.metrics.add(Counter::spilled_reads, 1);
                        return Some(len);
                    }
                    tier.undecodable(slot)
                }
                Err(cause) => cause,
            };
            self.metrics.add(Counter::spilled_read_errors, 1);
            let lost = LostPage {
                address: region.base() + page * PAGE_SIZE,
                region: region.index,
                page,
                cause,
                tries,
            };
            let decision = self.config.on_lost.map(|handler| handler(&lost));
            if decision != Some(LostDecision::Retry) {
                let mut line = Line::new();
                // Cut off where it is too long.
                let _written = write!(line, "{lost}");
                line.print();
                return None;
            }
        }
    }

    /// Brings the bytes of the pages of a run that are in the file into their
    /// places of the buffer: bits of the steps that are there, and of those ahead
    /// of the first whose bytes could not be read. Does nothing where a run has
    /// one such page.
    #[inline(never)]
    pub(crate) fn fetch_run(
        &self,
        region: &Region,
        claims: &[Option<Claim>],
        place: impl Fn(usize) -> usize,
        scratch: &mut Scratch,
    ) -> (u64, u64) {
        let Some(cold) = &self.cold else {
            return (0, 0);
        };
        let mut pages = [(TierSlot::from_number(0), 0); RUN_PAGES];
        let mut steps = [0_u8; RUN_PAGES];
        let mut count = 0;
        for (step, claim) in claims.iter().enumerate() {
            if let Some(claim) = claim
                && let Some(slot) = cold.slot_of_claimed(claim)
            {
                pages[count] = (slot, region.id(claim.page()).get());
                steps[count] = step as u8;
                count += 1;
            }
        }
        // A page that was touched is read alone, for its message.
        if count == 0 || (count == 1 && steps[0] == 0) {
            return (0, 0);
        }
        let Scratch { run, io, .. } = scratch;
        let (mut fetched, mut failed) = (0_u64, 0_u64);
        let mut take = |index: usize, read: Result<(u8, &[u8]), TierError>| {
            let step = usize::from(steps[index]);
            let ok = read
                .is_ok_and(|(id, packed)| codec::decode(id, packed, &mut run[place(step)]).is_ok());
            // The page that was touched is read again alone, for its message.
            match (ok, step) {
                (true, _) => fetched |= 1 << step,
                (false, 0) => {}
                (false, _) => failed |= 1 << step,
            }
        };
        cold.tier
            .read_run(&pages[..count], io.0.as_flattened_mut(), &mut take);
        let read = u64::from(fetched.count_ones());
        self.metrics.add(Counter::spilled_reads, read);
        let errors = u64::from(failed.count_ones());
        self.metrics.add(Counter::spilled_read_errors, errors);
        (fetched, failed)
    }

    /// Releases the claims of the steps whose bits are set, their pages as they
    /// were; how many it was.
    pub(crate) fn let_go_of(
        &self,
        region: &Region,
        claims: &mut [Option<Claim>],
        steps: u64,
    ) -> usize {
        if steps == 0 {
            return 0;
        }
        for (step, claim) in claims.iter_mut().enumerate() {
            if steps >> step & 1 == 1
                && let Some(claim) = claim.take()
            {
                let before = claim.before();
                self.release(region, claim, before);
            }
        }
        steps.count_ones() as usize
    }

    /// Whether a page that was read from the file, `bytes` packed, is to have its
    /// next copy in memory: it came back sooner than what leaves for the file now
    /// is expected to. Otherwise what was cold once would be read from the disk
    /// for ever, until it is written. Not while the store has no room to give.
    pub(crate) fn belongs_in_memory(&self, past: Past, bytes: usize, now: u16) -> bool {
        self.cold.as_ref().is_some_and(|cold| {
            past.dispensable(bytes, self.clock(), now) < cold.rank()
                && cold.has_room(self.store.held_bytes())
        })
    }
}

impl ColdTiers {
    /// Where in the tier a claimed page is, if it is there.
    fn slot_of_claimed(&self, claim: &Claim) -> Option<TierSlot> {
        let before = claim.before();
        match Place::from_bits(before.payload()) {
            Some(Place::Cold(tier, slot)) if before.state() == PageState::Stored => {
                self.named(tier).map(|_| slot)
            }
            _ => None,
        }
    }
}

//! Which pages leave: those the hand meets that have no credit, gathered until a batch is
//! worth its round of interrupts.

use core::sync::atomic::Ordering;

use ghostmem_fault::Scratch;
use ghostmem_policy::Heat;
use ghostmem_table::{State, Word};

use crate::evict::pack::Victim;
use crate::parts::engine::Engine;
use crate::parts::hand::{BATCH_PAGES, LOOKS_PER_PAGE};
use crate::parts::region::Region;

/// Most dirty pages in one batch: their frames come free only when the last of
/// them is compressed.
const DIRTY_PAGES_MAX: usize = 128;

/// The last of those looks ignore credit when no page has been found before.
const FORCED_LOOKS: usize = 256;

/// The same for a batch that a faulting thread evicts: it waits a third of a
/// millisecond for them.
const DIRECT_DIRTY_PAGES_MAX: usize = 64;

/// Dirty pages are spared from this credit on. Below it, the chance that they
/// are written again before the hand is back does not pay for the interrupts of
/// lifting their write protection.
const DIRTY_CREDIT_MIN: u8 = 16;

impl Engine {
    /// Evicts up to about `wanted` cold pages; how many it was. Lock-free,
    /// runs in fault handlers and in the background.
    pub(crate) fn reclaim(&self, wanted: usize, scratch: &mut Scratch) -> usize {
        self.reclaim_up_to(wanted, DIRTY_PAGES_MAX, scratch)
    }

    /// As [`Engine::reclaim`], for a faulting thread that found no frame: it
    /// takes many pages as long as that costs no more than dropping them, and
    /// few that must be compressed first.
    pub(crate) fn reclaim_directly(&self, scratch: &mut Scratch) -> usize {
        let wanted = (self.budget.limit() / 16).clamp(1, BATCH_PAGES as i64);
        self.reclaim_up_to(wanted as usize, DIRECT_DIRTY_PAGES_MAX, scratch)
    }

    fn reclaim_up_to(&self, wanted: usize, dirty_most: usize, scratch: &mut Scratch) -> usize {
        if self.privileged() != 0 {
            return 0;
        }
        let wanted = wanted.clamp(1, BATCH_PAGES);
        let mut looks = wanted * LOOKS_PER_PAGE + FORCED_LOOKS;
        let mut victims = [Victim {
            page: 0,
            word: Word::EMPTY,
        }; BATCH_PAGES];
        // Victims of one region, gathered over as many windows as it takes:
        // spared pages must not make the batch small, as each batch costs a
        // round of interrupts.
        let (mut from_region, mut count, mut dirty) = (None, 0, 0);
        let mut dirty_lead = 0;
        let mut freed = 0;
        let mut wraps = 0;
        let regions = self.region_count();
        while freed + count < wanted && dirty < dirty_most && looks > 0 && wraps <= regions {
            let Some((region, start, end)) = self.next_window(wanted - freed - count) else {
                break;
            };
            let same = from_region.is_some_and(|before: &Region| core::ptr::eq(before, region));
            if count > 0 && !same {
                freed += self.evict_gathered(from_region, &mut victims[..count], scratch);
                count = 0;
            }
            from_region = Some(region);
            if start == end {
                wraps += 1;
                continue;
            }
            let with_dirty = self.takes_dirty();
            let mut from = start;
            while let Some(page) = region.resident.next(from).filter(|&page| page < end) {
                from = page + 1;
                looks = looks.saturating_sub(1);
                // So many pages in a row with credit: take what comes, or the
                // caller would wait for all of it to run out.
                let force = freed + count == 0 && looks < FORCED_LOOKS;
                let word = region.table.load(page);
                dirty_lead += if word.is_clean() { -1 } else { 1 };
                if !(word.is_clean() || with_dirty || force) {
                    continue;
                }
                if let Some(victim) = self.judge(region, page, word, force) {
                    victims[count] = victim;
                    count += 1;
                    dirty += usize::from(!victim.word.is_clean());
                    if count == BATCH_PAGES {
                        break;
                    }
                }
            }
        }
        self.dirty_lead.fetch_add(dirty_lead, Ordering::Relaxed);
        freed + self.evict_gathered(from_region, &mut victims[..count], scratch)
    }

    /// Evicts the victims gathered from one region.
    fn evict_gathered(
        &self,
        region: Option<&Region>,
        victims: &mut [Victim],
        scratch: &mut Scratch,
    ) -> usize {
        let Some(region) = region else { return 0 };
        // The hand may have wrapped within the region.
        if !victims.is_sorted_by_key(|victim| victim.page) {
            victims.sort_unstable_by_key(|victim| victim.page);
        }
        self.evict_batch(region, victims, scratch)
    }

    /// Whether the hand takes a page; one it spares loses a credit. `force`:
    /// whatever its credit.
    fn judge(&self, region: &Region, page: usize, word: Word, force: bool) -> Option<Victim> {
        if word.state() != State::Resident || word.is_pinned() {
            return None;
        }
        let heat = Heat::from_bits(word.heat());
        // A dirty page that is spared between two that are not gets write
        // protected with them, and its next store costs more than a restore.
        let spare = word.is_clean() || heat.credit() >= DIRTY_CREDIT_MIN;
        match heat.pass() {
            Some(spared) if spare && !force && !self.backend.splits_mappings() => {
                // Somebody else changed the word: spared all the same.
                let spared = word.with_heat(spared.to_bits());
                let _raced = region.table.amend(page, word, spared);
                None
            }
            _ => Some(Victim { page, word }),
        }
    }

    /// Evicts the resident pages of a range now, whatever their credit; how
    /// many it was.
    pub(crate) fn evict_pages(
        &self,
        region: &Region,
        start: usize,
        end: usize,
        scratch: &mut Scratch,
    ) -> usize {
        let mut victims = [Victim {
            page: 0,
            word: Word::EMPTY,
        }; BATCH_PAGES];
        let (mut count, mut freed, mut from) = (0, 0, start);
        while let Some(page) = region.resident.next(from).filter(|&page| page < end) {
            from = page + 1;
            let word = region.table.load(page);
            if word.state() == State::Resident && !word.is_pinned() {
                victims[count] = Victim { page, word };
                count += 1;
                if count == BATCH_PAGES {
                    freed += self.evict_batch(region, &victims, scratch);
                    count = 0;
                }
            }
        }
        freed + self.evict_batch(region, &victims[..count], scratch)
    }
}

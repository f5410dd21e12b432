//! Which pages leave: those the hand meets that have no credit, collected until a batch is
//! worth its round of interrupts.

use core::sync::atomic::Ordering;

use ghostmem_fault::Scratch;
use ghostmem_policy::Heat;
use ghostmem_policy::costs::Evictor;
use ghostmem_policy::hand::{EVICT_BATCH_PAGES, Judgement, Look, Walk};
use ghostmem_table::{PageState, Word};

use crate::evict::pack::Victim;
use crate::parts::engine::Engine;
use crate::parts::region::Region;

impl Engine {
    /// Evicts up to about `wanted` cold pages; how many it was. Lock-free,
    /// runs in fault handlers and in the background.
    pub(crate) fn reclaim(&self, wanted: usize, by: Evictor, scratch: &mut Scratch) -> usize {
        self.reclaim_by(Walk::new(wanted), by, scratch)
    }

    /// As [`Engine::reclaim`], for a faulting thread that found no frame.
    pub(crate) fn reclaim_directly(&self, scratch: &mut Scratch) -> usize {
        let walk = Walk::direct(self.budget.limit());
        self.reclaim_by(walk, Evictor::Faulting, scratch)
    }

    fn reclaim_by(&self, walk: Walk, by: Evictor, scratch: &mut Scratch) -> usize {
        if self.token_holder() != 0 {
            return 0;
        }
        let mut walk = walk
            .ignoring_credit(self.backend.splits_mappings())
            .sparing_dirty_from(self.costs.of(by).spares_from());
        let mut victims = [Victim::NONE; EVICT_BATCH_PAGES];
        // Written pages passed since the last victim.
        let mut between = 0;
        // Victims of one region, collected over as many windows as it takes:
        // spared pages must not make the batch small, as each batch costs a
        // round of interrupts.
        let (mut from_region, mut count) = (None, 0);
        let mut freed = 0;
        let regions = self.region_count();
        while let Some(wanted) = walk.wants(regions) {
            let Some((region, window)) = self.next_window(wanted) else {
                break;
            };
            let same = from_region.is_some_and(|before: &Region| core::ptr::eq(before, region));
            if count > 0 && !same {
                let gone = self.evict_collected(from_region, &mut victims[..count], by, scratch);
                walk.missed(count.saturating_sub(gone));
                freed += gone;
                (count, between) = (0, 0);
            }
            from_region = Some(region);
            if window.is_empty() {
                walk.end_of_region();
                continue;
            }
            let takes_dirty = self.takes_dirty();
            let mut from = window.start;
            while let Some(page) = region.resident.next(from).filter(|&page| page < window.end) {
                from = page + 1;
                let word = region.table.load(page);
                let look = walk.look(word.is_clean(), takes_dirty);
                if judge(region, page, word, look) {
                    walk.take(word.is_clean());
                    victims[count] = Victim {
                        page,
                        word,
                        between,
                    };
                    (count, between) = (count + 1, 0);
                    if count == EVICT_BATCH_PAGES {
                        break;
                    }
                } else {
                    between += u32::from(!word.is_clean());
                }
            }
        }
        self.dirty_lead
            .fetch_add(walk.dirty_lead(), Ordering::Relaxed);
        freed + self.evict_collected(from_region, &mut victims[..count], by, scratch)
    }

    /// Evicts the victims collected from one region.
    fn evict_collected(
        &self,
        region: Option<&Region>,
        victims: &mut [Victim],
        by: Evictor,
        scratch: &mut Scratch,
    ) -> usize {
        let Some(region) = region else { return 0 };
        // The hand may have wrapped within the region.
        if !victims.is_sorted_by_key(|victim| victim.page) {
            victims.sort_unstable_by_key(|victim| victim.page);
        }
        self.evict_batch(region, victims, by, scratch)
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
        let mut victims = [Victim::NONE; EVICT_BATCH_PAGES];
        let by = Evictor::Faulting;
        let (mut count, mut freed, mut from) = (0, 0, start);
        while let Some(page) = region.resident.next(from).filter(|&page| page < end) {
            from = page + 1;
            let word = region.table.load(page);
            if word.state() == PageState::Resident && !word.is_pinned() {
                victims[count] = Victim {
                    page,
                    word,
                    between: 0,
                };
                count += 1;
                if count == EVICT_BATCH_PAGES {
                    freed += self.evict_batch(region, &victims, by, scratch);
                    count = 0;
                }
            }
        }
        freed + self.evict_batch(region, &victims[..count], by, scratch)
    }
}

/// Whether the hand takes a page; one it spares loses a credit.
#[inline]
fn judge(region: &Region, page: usize, word: Word, look: Look) -> bool {
    if word.state() != PageState::Resident || word.is_pinned() {
        return false;
    }
    match look.judge(Heat::from_bits(word.heat())) {
        Judgement::Take => true,
        Judgement::Spare(heat) => {
            // Somebody else changed the word: spared all the same.
            let _raced = region
                .table
                .amend(page, word, word.with_heat(heat.to_bits()));
            false
        }
        Judgement::Leave => false,
    }
}

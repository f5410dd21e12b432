//! Memory that others in the same place may give back, asked for by taking it.
//!
//! Processes that do not know each other share a group by what is left in it: short of
//! the reserve, each gives back its part ([`ghostmem_policy::bound`]). One that grows first
//! may have all of it, and one that comes later is refused its allocations, while the first
//! has pages to evict. So who is to be refused takes a little of the reserve, in a balloon;
//! the others give back; and so on, until there is what was asked for, or nobody gives.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_os::map::ZeroArray;
use ghostmem_os::{PAGE_SIZE, clock, futex};

use crate::parts::bound::ProcessBound;
use crate::parts::engine::Engine;

/// Others are asked only where they take so much: shells and the like give nothing back.
const OTHERS_LEAST: u64 = 16 << 20;

/// Most that is claimed, bytes: a balloon is backed with pages, and they are zeroed.
const CLAIM_MOST: usize = 256 << 20;

/// Time between two looks: others look as often where little is left.
const PAUSE: Duration = Duration::from_millis(2);

/// Looks without anything given back, and looks in all, after which a claim ends.
const VAIN_LOOKS: u32 = 50;
const LOOKS: u32 = 500;

const WORDS: usize = PAGE_SIZE / size_of::<AtomicU64>();

impl Engine {
    /// Whether others may give back `missing` bytes.
    pub(super) fn may_claim(&self, missing: usize) -> bool {
        let may = |bound: &ProcessBound| bound.may_claim(clock::now_ns(), OTHERS_LEAST);
        missing <= CLAIM_MOST && self.bound.as_ref().is_some_and(may)
    }

    /// Waits until others gave back what is missing to have `spare_bytes` admitted, if they
    /// do: a tenth of a second while they do not, a second at most. The caller owns no page,
    /// and is in the gate.
    pub(super) fn claim(&self, spare_bytes: usize) {
        let Some(bound) = &self.bound else { return };
        let Some(_claiming) = bound.try_claim() else {
            return;
        };
        let missing = |ballooned: usize| {
            let limit = self.memory_limit().unwrap_or(usize::MAX);
            let needed = self.needed_bytes().saturating_add(spare_bytes);
            needed.saturating_sub(limit.saturating_add(ballooned))
        };
        let Ok(balloon) =
            ZeroArray::<AtomicU64>::new(missing(0).min(CLAIM_MOST) / PAGE_SIZE * WORDS + WORDS)
        else {
            return;
        };
        let nobody = AtomicU64::new(0);
        let mut pages = balloon.iter().step_by(WORDS);
        let (mut ballooned, mut vain) = (0, 0);
        for _ in 0..LOOKS {
            self.look_again(0);
            let missing = missing(ballooned);
            if missing == 0 {
                return;
            }
            let more = bound.spare_bytes().min(missing as u64) as usize / PAGE_SIZE;
            for word in pages.by_ref().take(more) {
                word.store(1, Ordering::Relaxed);
                ballooned += PAGE_SIZE;
            }
            vain = if more == 0 { vain + 1 } else { 0 };
            if vain == VAIN_LOOKS {
                break;
            }
            futex::wait(&nobody, 0, PAUSE);
        }
        bound.note_ungiven(clock::now_ns());
    }
}

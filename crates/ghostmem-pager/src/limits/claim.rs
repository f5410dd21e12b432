//! Memory that others in the same place may give back, asked for by taking it.
//!
//! Processes that do not know each other share a group by what is left in it: short of
//! the reserve, each gives back its part ([`ghostmem_policy::bound`]). One that grows first
//! may have all of it, and one that comes later is refused its allocations, while the first
//! has pages to evict. So who is to be refused takes a little of the reserve, in a balloon;
//! the others give back; and so on, until there is what was asked for, or nobody gives.
//!
//! The balloon grows by a part of what is spare ([`claim_step_bytes`]), by a measurement
//! made after the last such step, and never below three quarters of the reserve: neither
//! several that claim nor one that grows beside them meet the kernel's limit.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_os::map::ZeroArray;
use ghostmem_os::{PAGE_SIZE, clock, futex};
use ghostmem_policy::bound::claim_step_bytes;

use crate::parts::engine::Engine;

/// Others are asked only where they take so much: shells and the like give nothing back.
const OTHERS_LEAST: u64 = 16 << 20;

/// Most that is claimed, bytes.
const CLAIM_MOST: usize = 256 << 20;

/// Where less is spare, others are waited for: they look as often where little is left.
const SPARE_LEAST: u64 = 1 << 20;
const PAUSE: Duration = Duration::from_millis(2);

/// Times that one claim waits: who forks waits as long.
const PAUSES: u32 = 50;

/// Looks of one claim: each takes a step.
const LOOKS: u32 = 2000;

const WORDS: usize = PAGE_SIZE / size_of::<AtomicU64>();

/// What came of a claim.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claimed {
    /// Most that the balloon held, bytes.
    pub(super) held_bytes: usize,
    /// What was missing beside it, bytes.
    pub(super) missing_bytes: usize,
}

impl Engine {
    /// Whether others may give back `missing` bytes.
    pub(super) fn may_claim(&self, missing: usize) -> bool {
        let Some(bound) = &self.bound else {
            return false;
        };
        self.config.memory_limit_bytes.is_none()
            && missing <= CLAIM_MOST
            && bound.binds_beside_others(OTHERS_LEAST)
            && bound.claims.are_hopeful(clock::now_ns())
    }

    /// Waits for others to give back what is missing to have `spare_bytes` admitted, a tenth
    /// of a second at most; `None` while another thread does. The caller owns no page, and
    /// is in the gate.
    pub(super) fn claim(&self, spare_bytes: usize) -> Option<Claimed> {
        let bound = self.bound.as_ref()?;
        let claiming = bound.claims.try_begin()?;
        let balloon = ZeroArray::<AtomicU64>::new(CLAIM_MOST / PAGE_SIZE * WORDS).ok()?;
        let mut pages = balloon.iter().step_by(WORDS);
        let nobody = AtomicU64::new(0);
        let mut claimed = Claimed {
            held_bytes: 0,
            missing_bytes: self.missing_bytes(spare_bytes),
        };
        let mut pauses = 0;
        let (_, mut seen) = bound.spare_bytes();
        for _ in 0..LOOKS {
            self.look_again(0);
            let (mut spare, measured) = bound.spare_bytes();
            if measured == seen {
                // Another thread looks, or nobody can see.
                spare = 0;
            } else {
                seen = measured;
                let missing = self.missing_bytes(spare_bytes);
                claimed.missing_bytes = missing.saturating_sub(claimed.held_bytes);
                if claimed.missing_bytes == 0 {
                    break;
                }
            }
            let step = claim_step_bytes(spare, claimed.missing_bytes as u64) as usize;
            for word in pages.by_ref().take(step.div_ceil(PAGE_SIZE)) {
                word.store(1, Ordering::Relaxed);
                claimed.held_bytes += PAGE_SIZE;
            }
            if spare < SPARE_LEAST {
                pauses += 1;
                futex::wait(&nobody, 0, PAUSE);
                if pauses == PAUSES {
                    break;
                }
            }
        }
        drop(balloon);
        // Who is admitted next is by what is there now.
        self.look_again(0);
        drop(claiming);
        Some(claimed)
    }
}

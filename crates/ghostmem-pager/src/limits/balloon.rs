//! Memory that others in the same supply may give back, asked for by taking it.
//!
//! Processes that do not know each other share a group by what is left in it: short of
//! the reserve, each gives back its part ([`ghostmem_policy::bound`]). One that grows first
//! may have all of it, and one that comes later is refused its allocations, while the first
//! has pages to evict. So who is to be refused takes a little of the reserve, in a balloon;
//! the others give back; and so on, until there is what was asked for, or nobody gives.
//!
//! The balloon grows by a part of what is spare ([`balloon_step_bytes`]), by a measurement
//! made after the last such step, and never below three quarters of the reserve: neither
//! several with one nor one that grows beside them meet the kernel's limit.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_os::map::ZeroArray;
use ghostmem_os::{PAGE_SIZE, clock, futex};
use ghostmem_policy::bound::balloon_step_bytes;

use crate::parts::engine::Engine;

/// Others are asked only where they take so much: shells and the like give nothing back.
const OTHERS_LEAST: u64 = 16 << 20;

/// Most that a balloon takes, bytes.
const BALLOON_MOST: usize = 256 << 20;

/// Where less is spare, others are waited for: they look as often where little is left.
const SPARE_LEAST: u64 = 1 << 20;
const PAUSE: Duration = Duration::from_millis(2);

/// Times that one who inflates waits: who forks waits as long.
const PAUSES: u32 = 50;

/// Looks of one who inflates: each takes a step.
const LOOKS: u32 = 2000;

const WORDS: usize = PAGE_SIZE / size_of::<AtomicU64>();

/// What came of a balloon.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inflated {
    /// Most that the balloon held, bytes.
    pub(super) held_bytes: usize,
    /// What was missing beside it, bytes.
    pub(super) missing_bytes: usize,
}

impl Engine {
    /// Whether others may give back `missing` bytes.
    pub(super) fn may_inflate(&self, missing: usize) -> bool {
        let Some(bound) = &self.bound else {
            return false;
        };
        self.config.memory_limit_bytes.is_none()
            && missing <= BALLOON_MOST
            && bound.binds_beside_others(OTHERS_LEAST)
            && bound.balloons.are_hopeful(clock::now_ns())
    }

    /// Waits for others to give back what is missing to have `spare_bytes` admitted, a tenth
    /// of a second at most; `None` while another thread does. The caller owns no page, and
    /// is in the gate.
    pub(super) fn inflate(&self, spare_bytes: usize) -> Option<Inflated> {
        let bound = self.bound.as_ref()?;
        let inflating = bound.balloons.try_begin()?;
        let balloon = ZeroArray::<AtomicU64>::new(BALLOON_MOST / PAGE_SIZE * WORDS).ok()?;
        let mut pages = balloon.iter().step_by(WORDS);
        let nobody = AtomicU64::new(0);
        let mut inflated = Inflated {
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
                inflated.missing_bytes = missing.saturating_sub(inflated.held_bytes);
                if inflated.missing_bytes == 0 {
                    break;
                }
            }
            let step = balloon_step_bytes(spare, inflated.missing_bytes as u64) as usize;
            for word in pages.by_ref().take(step.div_ceil(PAGE_SIZE)) {
                word.store(1, Ordering::Relaxed);
                inflated.held_bytes += PAGE_SIZE;
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
        drop(inflating);
        Some(inflated)
    }
}

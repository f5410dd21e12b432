//! The resident limit of a program that is to be slowed down by a share of its time: the
//! background thread looks at what faults took, and sets the limit by it.
//!
//! The law is [`ghostmem_policy::slowdown`]'s. Time in faults is summed over all threads as
//! each fault ends. The program's own time is what the kernel says that the process computed
//! for (getrusage(2), user time), less what this thread did. User time of the engine's other
//! threads, and of fault handlers, is in it still, so the share that is told is a little
//! lower than it is. Time that the kernel takes for the program's system calls is not its
//! own by this: a server that does little else is slowed down less than it might be.
//!
//! A lower limit is met here, by the thread that set it, before a fault finds no frame.

use core::sync::atomic::Ordering;
use core::time::Duration;

use ghostmem_os::clock;
use ghostmem_policy::hand;
use ghostmem_policy::slowdown::{Seen, Slowdown};

use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::slowdown::Slowed;
use crate::tiers::split::MEASURE_NS;

/// Between two looks, while the program runs.
const LOOK: Duration = Duration::from_millis(50);

/// Between two looks of a program that does nothing. Its first faults wake the thread where
/// frames are short.
const SLEEPS: Duration = Duration::from_millis(250);

/// Between two looks at least, where faults wake the thread.
const LOOK_LEAST_NS: u64 = 20_000_000;

/// What the background thread remembers of it.
#[derive(Debug, Default)]
pub(super) struct SlowdownLooks {
    law: Option<Slowdown>,
    looked_ns: u64,
    sleeps: bool,
}

impl SlowdownLooks {
    /// How long until the next look.
    pub(super) const fn nap(&self) -> Duration {
        if self.sleeps { SLEEPS } else { LOOK }
    }
}

impl Engine {
    /// A look at what faults took, if one is due.
    pub(super) fn look_at_slowdown(&self, looks: &mut SlowdownLooks) {
        let Some(slowed) = &self.slowdown else {
            return;
        };
        let now_ns = clock::now_ns();
        if looks.law.is_some() && now_ns.saturating_sub(looks.looked_ns) < LOOK_LEAST_NS {
            return;
        }
        looks.looked_ns = now_ns;
        slowed.note_engine();
        let Some(own_ns) = slowed.own_ns() else {
            return;
        };
        let limit = self.budget.limit();
        let ceiling_pages = slowed.most_pages();
        let seen = Seen {
            faults_ns: slowed.faults_ns(self.metrics.sum(Counter::fault_ns)),
            own_ns,
            resident_pages: self.budget.used(),
            spare_pages: hand::high_watermark(hand::low_watermark(limit)),
            floor_pages: Slowed::floor_pages(self.pinned_pages.load(Ordering::Relaxed)),
            ceiling_pages,
        };
        let Some(law) = &mut looks.law else {
            looks.law = Some(Slowdown::new(slowed.share_ppm(), &seen));
            return;
        };
        let pages = law.look(&seen);
        looks.sleeps = pages.is_none();
        if let Some(pages) = pages {
            slowed.set_limit_pages(pages);
            self.apply_slowdown(slowed);
        }
    }

    /// Sets the resident limit by what the share leaves.
    fn apply_slowdown(&self, slowed: &Slowed) {
        match &self.bound {
            // What is left of the bound may be less.
            Some(bound) => {
                let most = self.budget.limit().min(self.slowed_pages());
                self.budget.set_limit(most);
                self.look_again(bound.interval_ns(MEASURE_NS));
            }
            None => self
                .budget
                .set_limit(slowed.most_pages().min(self.slowed_pages())),
        }
        slowed.note_limit(self.budget.limit());
    }
}

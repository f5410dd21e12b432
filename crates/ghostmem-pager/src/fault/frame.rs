//! Getting a frame: free, evicted for it, or beyond the limit.
//!
//! Frames beyond the limit are counted as `overdrafts`, and bounded, in both cases:
//!
//! * **One instruction needs more pages than there are.** Its thread has the token.
//! * **Nothing can be evicted**: the program locked its pages (mlock), or the store is
//!   full. Rather than hang, a thread takes a frame beyond the limit after
//!   [`BARREN_ROUNDS`] rounds of reclaim that freed nothing, until the heap is over its
//!   limit by an eighth of it (at least [`INSTRUCTION_PAGES`]). Then it waits for somebody
//!   to free memory, and when that does not happen either, the process is stopped with a
//!   message.
//!
//! Async-signal-safe throughout.

use core::fmt::Write;
use core::sync::atomic::Ordering;
use core::time::Duration;

use ghostmem_fault::{AccessKind, Fault, Scratch, Verdict, die};
use ghostmem_os::PAGE_SIZE;
use ghostmem_os::error::ENOMEM;
use ghostmem_os::message::Line;
use ghostmem_os::tree::KEPT_NS;
use ghostmem_policy::hand::EVICT_BATCH_PAGES;

use crate::parts::bound::ProcessBound;
use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::threads::PAGES_PER_INSTRUCTION;
use crate::parts::token::WAIT;

/// What one instruction may need beyond the limit, twice over: pages it has may
/// be taken from it before it has the token.
const INSTRUCTION_PAGES: i64 = 2 * PAGES_PER_INSTRUCTION as i64;

/// Rounds of reclaim without a page freed, before a thread exceeds the limit.
const BARREN_ROUNDS: u32 = 200;

/// Waits of [`WAIT`] each for memory to be freed, before giving up.
const BARREN_WAITS: u32 = 1500;

impl Engine {
    /// Takes a frame for the thread with the token, whatever the limit says;
    /// `false` when it has had more than any instruction needs.
    pub(crate) fn overdraw_for_token(&self) -> bool {
        self.overdraw(INSTRUCTION_PAGES)
    }

    /// What a fault does after `rounds` rounds of reclaim that freed nothing:
    /// goes on with a frame beyond the limit, or tries again later.
    pub(crate) fn after_barren(&self, rounds: u32) -> Result<(), Verdict> {
        let wait = |most| Err(Verdict::Wait { barren: true, most });
        if rounds <= BARREN_ROUNDS {
            return wait(Duration::ZERO);
        }
        // A bound on the process is never passed.
        let most = INSTRUCTION_PAGES.max(self.budget.limit() / 8);
        let fits = self
            .bound
            .as_ref()
            .is_none_or(|bound| bound.has_room_for(most));
        if fits && self.overdraw(most) {
            return Ok(());
        }
        if rounds > BARREN_ROUNDS + BARREN_WAITS {
            if let Some(bound) = self.bound.as_ref().filter(|_| !fits) {
                if bound.begin_to_refuse() {
                    say_full(bound);
                }
                return Err(Verdict::Refused);
            }
            die(
                "no page can be evicted: memory is locked (mlock), or the store is full",
                ENOMEM,
            );
        }
        wait(WAIT)
    }

    fn overdraw(&self, most: i64) -> bool {
        let got = self.budget.overdraw(most);
        self.metrics.add(Counter::overdrafts, u64::from(got));
        got
    }

    /// Gets one frame, evicting if there is none; `Err`: the fault is to wait
    /// for one, which it does without buffers. A `new` page has no bytes yet.
    pub(crate) fn take_frame(
        &self,
        fault: &Fault,
        refault: bool,
        new: bool,
        scratch: &mut Scratch,
    ) -> Result<(), Verdict> {
        // Without the program counter, a thread that merely works on more
        // pages than the limit looks stuck: ask only where it can be.
        let tiny = self.budget.limit() <= 2 * i64::from(PAGES_PER_INSTRUCTION);
        let suspect = fault.instant != 0 || (tiny && refault);
        // A fault that has waited was counted the first time.
        if fault.waits.count == 0 {
            // Asked first: `is_stuck` makes this fault the thread's last.
            let moved_on = self.threads.moved_on(fault.thread, fault.instant);
            if suspect && self.threads.is_stuck(fault, refault) {
                self.grant_token(fault.thread);
            } else if moved_on && self.token.load(Ordering::Relaxed) == fault.thread {
                self.end_token(fault.thread);
            }
        }
        loop {
            let token_holder = self.token_holder();
            if token_holder == fault.thread {
                // Nobody evicts while this thread collects what its
                // instruction needs.
                if self.overdraw_for_token() {
                    return Ok(());
                }
                // No instruction needs so many: it was not stuck.
                self.end_token(fault.thread);
                continue;
            }
            if token_holder != 0 {
                return Err(Verdict::Wait {
                    barren: false,
                    most: WAIT,
                });
            }
            if self.is_full(new) {
                self.make_room(EVICT_BATCH_PAGES * PAGE_SIZE, EVICT_BATCH_PAGES);
                self.wake_demoter();
                self.look();
                if self.is_full(new) {
                    // Others waited for this one too.
                    if self.bound.as_ref().is_some_and(ProcessBound::is_refusing) {
                        return Err(Verdict::Refused);
                    }
                    return self.after_barren(fault.waits.barren + 1);
                }
            }
            if self
                .bound
                .as_ref()
                .is_some_and(ProcessBound::may_be_lowered)
            {
                self.look_again(KEPT_NS);
            }
            if self.budget.take_up_to(1) == 1 {
                return Ok(());
            }
            self.want_more();
            if self.look() && self.budget.take_up_to(1) == 1 {
                return Ok(());
            }
            self.wake_worker();
            if fault.waits.barren == 0 && fault.access != AccessKind::Read {
                self.wait_for_demoter();
            }
            self.metrics.add(Counter::direct_reclaims, 1);
            let freed = self.reclaim_directly(scratch);
            self.help_compacting();
            if freed == 0 {
                return self.after_barren(fault.waits.barren + 1);
            }
        }
    }
}

/// Says that the bound on the process holds no page more, and that nothing was freed for
/// a while: the touch is refused.
fn say_full(bound: &ProcessBound) {
    let mut line = Line::new();
    // Cut off where it is too long.
    let _written = write!(
        line,
        "memory of {} MiB is full and no page can leave for the one touched: allow more, or \
         give cold pages a file",
        bound.said_bytes() >> 20
    );
    line.print();
}

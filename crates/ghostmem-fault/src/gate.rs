//! Who is changing page states right now, and how to wait until nobody is.
//!
//! Everything that owns page transitions (a fault handler, a reclaim batch, a
//! discard) is *inside* the gate while it does. [`TransitionGate::synchronize`] waits
//! until all who were inside at the call have left; [`TransitionGate::freeze`] also
//! keeps others out, which is what fork(2) needs: the child must not inherit
//! a page that some other thread was moving.
//!
//! Two sets of counters are used in turn (as in sleepable RCU), so that a
//! steady stream of newcomers cannot starve a waiter. Each processor has counters of
//! its own, both sets on one cache line: faults of different processors share none.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_os::lock::Lock;
use ghostmem_os::shards::{SHARDS_MAX, shards};
use ghostmem_os::{futex, thread};

/// Who is inside on one processor, counted in two sets.
#[repr(align(128))]
struct Counters([AtomicU64; 2]);

/// The gate; one for the process.
pub struct TransitionGate {
    phase: AtomicU64,
    /// Only the first [`shards`] are used, and exist.
    inside: [Counters; SHARDS_MAX],
    /// [`thread::key`] of the thread that froze the gate, or 0.
    frozen_by: AtomicU64,
    /// The kernel's id of that thread, known from before the gate is frozen.
    frozen_by_id: AtomicU32,
    waiting: Lock<()>,
}

/// Proof of being inside; leaving is dropping it.
#[must_use]
pub struct Inside<'a> {
    counter: &'a AtomicU64,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Release);
    }
}

impl TransitionGate {
    /// An open gate with nobody inside.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            phase: AtomicU64::new(0),
            inside: [const { Counters([const { AtomicU64::new(0) }; 2]) }; SHARDS_MAX],
            frozen_by: AtomicU64::new(0),
            frozen_by_id: AtomicU32::new(0),
            waiting: Lock::new(()),
        }
    }

    /// Goes inside; waits while another thread keeps the gate frozen.
    /// Async-signal-safe.
    pub fn enter(&self) -> Inside<'_> {
        loop {
            if let Some(inside) = self.try_enter() {
                return inside;
            }
            self.wait_while_frozen();
        }
    }

    /// Goes inside, unless another thread keeps the gate frozen.
    /// Async-signal-safe.
    #[must_use]
    pub fn try_enter(&self) -> Option<Inside<'_>> {
        let counter = self.counter();
        // SeqCst pairs with the store in `freeze`: either it sees us
        // counted, or we see it frozen.
        counter.fetch_add(1, Ordering::SeqCst);
        if self.keeps_out() == 0 {
            return Some(Inside { counter });
        }
        counter.fetch_sub(1, Ordering::Release);
        None
    }

    /// Where those count themselves who go inside now on this processor.
    fn counter(&self) -> &AtomicU64 {
        let phase = self.phase.load(Ordering::Acquire) & 1;
        &self.inside[thread::shard(shards())].0[phase as usize]
    }

    /// Waits, for a while at least, as long as another thread keeps the gate
    /// frozen. Not to be called from inside. Async-signal-safe.
    pub fn wait_while_frozen(&self) {
        let frozen_by = self.keeps_out();
        if frozen_by != 0 {
            futex::wait(&self.frozen_by, frozen_by as u32, Duration::from_millis(10));
        }
    }

    /// Who keeps the calling thread out, or 0.
    fn keeps_out(&self) -> u64 {
        let frozen_by = self.frozen_by.load(Ordering::SeqCst);
        if frozen_by == thread::key() as u64 {
            return 0;
        }
        frozen_by
    }

    /// Goes inside for the thread with the kernel's id `id`, which waits until the
    /// caller is done; `None`, after a moment, while another thread than that
    /// keeps the gate frozen. Also says whether it is that thread which does.
    #[cfg(not(windows))]
    pub(crate) fn enter_for(&self, id: u32) -> Option<(Inside<'_>, bool)> {
        /// Short: the message of the thread that froze the gate may be the next.
        const MOMENT: Duration = Duration::from_micros(100);
        let counter = self.counter();
        // As in `enter`.
        counter.fetch_add(1, Ordering::SeqCst);
        let inside = Inside { counter };
        let frozen_by = self.frozen_by.load(Ordering::SeqCst);
        if frozen_by == 0 {
            return Some((inside, false));
        }
        if self.frozen_by_id.load(Ordering::SeqCst) == id {
            return Some((inside, true));
        }
        drop(inside);
        futex::wait(&self.frozen_by, frozen_by as u32, MOMENT);
        None
    }

    /// Waits until everyone who was inside has left. Must not be called from
    /// inside.
    pub fn synchronize(&self) {
        let _turn = self.waiting.lock();
        self.drain();
    }

    fn drain(&self) {
        // Twice: a thread may have read the old phase and count itself there
        // only after the first look.
        for _ in 0..2 {
            let old = self.phase.fetch_add(1, Ordering::SeqCst) & 1;
            for counters in &self.inside[..shards()] {
                let mut tries = 0;
                while counters.0[old as usize].load(Ordering::SeqCst) != 0 {
                    futex::pause(tries);
                    tries = tries.saturating_add(1);
                }
            }
        }
    }

    /// Keeps every other thread out until [`TransitionGate::thaw`], and waits until
    /// those inside have left. The calling thread can still go in. In a child
    /// forked while the gate is frozen, the gate is as it is in the parent:
    /// nobody inside, no waiter half-way.
    pub fn freeze(&self) {
        // Kept until `thaw`: one thread at a time, and a fork must not copy somebody
        // else's turn.
        self.waiting.take_for_fork();
        // First: this thread's stack may be absent as soon as the gate is frozen, and
        // is served then by whoever can tell it from others.
        self.frozen_by_id.store(thread::tid(), Ordering::SeqCst);
        self.frozen_by.store(thread::key() as u64, Ordering::SeqCst);
        self.drain();
    }

    /// In a forked child, whose gate is frozen by the calling thread: forgets
    /// threads that were about to find it frozen when the process was copied.
    #[cfg(not(windows))]
    pub(crate) fn forget_others_after_fork(&self) {
        for counter in self.inside[..shards()].iter().flat_map(|shard| &shard.0) {
            // A page that is not written is not copied for the child.
            if counter.load(Ordering::SeqCst) != 0 {
                counter.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Opens a gate again that the calling thread froze.
    pub fn thaw(&self) {
        self.frozen_by.store(0, Ordering::SeqCst);
        futex::wake_all(&self.frozen_by);
        self.waiting.release_after_fork();
    }
}

impl Default for TransitionGate {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn synchronize_waits_for_those_inside_and_for_no_one_else() {
        let gate = TransitionGate::new();
        let left = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let inside = gate.enter();
            let waiter = scope.spawn(|| {
                gate.synchronize();
                assert!(
                    left.load(Ordering::SeqCst),
                    "returned while a thread was inside"
                );
            });
            std::thread::sleep(Duration::from_millis(20));
            // Newcomers are not held up by the waiter.
            drop(gate.enter());
            left.store(true, Ordering::SeqCst);
            drop(inside);
            waiter.join().unwrap();
        });
    }

    #[test]
    fn a_wait_is_for_those_inside_on_every_shard_in_either_set() {
        for (shard, set) in (0..shards()).flat_map(|shard| [(shard, 0), (shard, 1)]) {
            let gate = TransitionGate::new();
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let counter = &gate.inside[shard].0[set];
                counter.fetch_add(1, Ordering::SeqCst);
                let inside = Inside { counter };
                scope.spawn(|| {
                    gate.synchronize();
                    ended.store(true, Ordering::SeqCst);
                });
                // Whichever set is current, both are waited for.
                while gate.phase.load(Ordering::SeqCst) < 1 + set as u64 {
                    std::thread::yield_now();
                }
                for _ in 0..100 {
                    std::thread::yield_now();
                }
                assert!(!ended.load(Ordering::SeqCst), "shard {shard}, set {set}");
                drop(inside);
            });
        }
    }

    #[cfg(not(windows))]
    #[test]
    fn a_frozen_gate_never_keeps_out_who_works_for_the_thread_that_froze_it() {
        let gate = TransitionGate::new();
        let (id, over) = (thread::tid(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    assert!(gate.enter_for(id).is_some(), "its fault goes on for ever");
                }
            });
            for _ in 0..20_000 {
                gate.freeze();
                gate.thaw();
            }
            over.store(true, Ordering::SeqCst);
        });
    }

    #[cfg(not(windows))]
    #[test]
    fn a_frozen_gate_admits_whoever_works_for_the_thread_that_froze_it() {
        let gate = TransitionGate::new();
        let (me, other) = (thread::tid(), thread::tid() + 1);
        assert!(gate.enter_for(me).is_some_and(|(_, frozen)| !frozen));
        gate.freeze();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(gate.enter_for(me).is_some_and(|(_, frozen)| frozen));
                assert!(gate.enter_for(other).is_none());
            });
        });
        gate.thaw();
        assert!(gate.enter_for(other).is_some_and(|(_, frozen)| !frozen));
        // All have left.
        gate.synchronize();
    }

    #[test]
    fn a_frozen_gate_admits_only_the_thread_that_froze_it() {
        let gate = TransitionGate::new();
        let thawed = AtomicBool::new(false);
        gate.freeze();
        drop(gate.enter());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let refused = gate.try_enter().is_none();
                assert!(refused || thawed.load(Ordering::SeqCst));
                drop(gate.enter());
                assert!(thawed.load(Ordering::SeqCst), "went in while frozen");
            });
            std::thread::sleep(Duration::from_millis(20));
            thawed.store(true, Ordering::SeqCst);
            gate.thaw();
        });
    }
}

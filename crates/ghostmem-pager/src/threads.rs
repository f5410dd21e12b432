//! What the engine remembers of each faulting thread: its run of faults, and
//! whether it gets anywhere.
//!
//! A fixed table indexed by a hash of the thread: two threads that collide
//! disturb each other's guesses, never correctness.

use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_fault::Fault;
use ghostmem_policy::{Plan, Stream};

const THREADS: usize = 64;

/// One instruction touches at most this many pages (an AVX-512 gather of 16
/// elements, each across a page boundary, and the instruction itself).
pub(crate) const PAGES_PER_INSTRUCTION: u32 = 34;

/// Refaults in a row by one thread, without the program counter to tell one
/// instruction from the next, after which it counts as stuck (monitor
/// backend). Only asked for limits so small that one instruction can need all
/// of it, and of faults on so few pages.
const BLIND_FAULTS: u32 = 4096;

#[repr(align(64))]
struct Slot {
    thread: AtomicU64,
    stream: AtomicU64,
    instant: AtomicU64,
    repeats: AtomicU64,
    /// Pages of those repeats, a bit for each hash, where the instant is not
    /// known.
    pages: AtomicU64,
    stale: AtomicU64,
}

/// What [`ThreadTable::active_since`] saw last.
pub(crate) struct Watch([u64; THREADS]);

impl Watch {
    pub(crate) const fn new() -> Self {
        Self([0; THREADS])
    }
}

pub(crate) struct ThreadTable {
    slots: [Slot; THREADS],
}

impl ThreadTable {
    pub(crate) const fn new() -> Self {
        Self {
            slots: [const {
                Slot {
                    thread: AtomicU64::new(0),
                    stream: AtomicU64::new(0),
                    instant: AtomicU64::new(0),
                    repeats: AtomicU64::new(0),
                    pages: AtomicU64::new(0),
                    stale: AtomicU64::new(0),
                }
            }; THREADS],
        }
    }

    fn slot(&self, thread: u64) -> &Slot {
        let hash = (thread >> 6).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        let slot = &self.slots[hash as usize % THREADS];
        if slot.thread.load(Ordering::Relaxed) != thread {
            slot.thread.store(thread, Ordering::Relaxed);
            slot.stream.store(0, Ordering::Relaxed);
            slot.repeats.store(0, Ordering::Relaxed);
            slot.pages.store(0, Ordering::Relaxed);
            slot.instant.store(0, Ordering::Relaxed);
            slot.stale.store(0, Ordering::Relaxed);
        }
        slot
    }

    /// How many threads have faulted since the last call with this `watch`.
    pub(crate) fn active_since(&self, watch: &mut Watch) -> usize {
        let changed = |(slot, seen): (&Slot, &mut u64)| {
            // Where the instant is not known, the run of faults moves.
            let instant = slot.instant.load(Ordering::Relaxed);
            let now = instant ^ slot.stream.load(Ordering::Relaxed).rotate_left(32);
            core::mem::replace(seen, now) != now
        };
        let slots = self.slots.iter().zip(&mut watch.0);
        slots.filter_map(|pair| changed(pair).then_some(())).count()
    }

    /// The readahead plan for a fault on `page`, a number unique in the heap.
    pub(crate) fn plan(&self, thread: u64, page: u64) -> Plan {
        let slot = self.slot(thread);
        let (plan, next) = Stream::from_bits(slot.stream.load(Ordering::Relaxed)).fault(page);
        slot.stream.store(next.to_bits(), Ordering::Relaxed);
        plan
    }

    /// Only the first `restored` pages of a plan were put in place.
    pub(crate) fn cut_short(&self, thread: u64, plan: Plan, page: u64, restored: u32) {
        let slot = self.slot(thread);
        let stream = Stream::from_bits(slot.stream.load(Ordering::Relaxed));
        slot.stream.store(
            stream.cut_short(plan, page, restored).to_bits(),
            Ordering::Relaxed,
        );
    }

    /// Counts a restoring fault; `true` when the thread has faulted more often
    /// at one instruction than any instruction can need: others take its
    /// pages away faster than it can use them.
    ///
    /// Without the program counter, refaults in a row are all there is to go by,
    /// and that they fall on few pages: one instruction has no more of them.
    pub(crate) fn is_stuck(&self, fault: &Fault, refault: bool) -> bool {
        let slot = self.slot(fault.thread);
        let instant = fault.instant;
        let same = if instant == 0 {
            let page = u64::from(fault.region) << 32 | fault.page as u64;
            let bit = 1_u64 << (page.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58);
            let pages = slot.pages.load(Ordering::Relaxed) | bit;
            let few = refault && pages.count_ones() <= PAGES_PER_INSTRUCTION;
            // A hash stands for one page or more: too many of them are too
            // many pages.
            slot.pages
                .store(if few { pages } else { 0 }, Ordering::Relaxed);
            few
        } else {
            slot.instant.swap(instant, Ordering::Relaxed) == instant
        };
        if !same {
            slot.repeats.store(0, Ordering::Relaxed);
            return false;
        }
        let repeats = slot.repeats.fetch_add(1, Ordering::Relaxed) + 1;
        let bound = if instant == 0 {
            BLIND_FAULTS
        } else {
            2 * PAGES_PER_INSTRUCTION
        };
        repeats > u64::from(bound)
    }

    /// The thread's last fault was at another instruction.
    pub(crate) fn moved_on(&self, thread: u64, instant: u64) -> bool {
        instant == 0 || self.slot(thread).instant.load(Ordering::Relaxed) != instant
    }

    /// Counts a fault that found its page resident; `true` for the second one
    /// in a row on one page: the mapping itself must be looked at.
    pub(crate) fn is_stale_again(&self, thread: u64, page: u64) -> bool {
        self.slot(thread).stale.swap(page + 1, Ordering::Relaxed) == page + 1
    }
}

//! Keeping the store dense: how much the background thread compacts, and when.
//!
//! Rewriting leaves holes in slabs. What a turn moves follows from how far the
//! free space is above its target; how soon the next turn may come follows
//! from how long this one took, so that tidying has a bounded share of the
//! background thread's time however fast the program writes:
//!
//! ```text
//!   free space of the store       rest after a turn      share of the time
//!   up to 1 % of live bytes       200 ms                 next to none
//!   above                         3 times the turn       a quarter at most
//!   above 2 %                     as long as the turn    a half at most
//!   above 3 %                     a third of the turn    three quarters
//!   the turn won nothing          19 times the turn      a twentieth at most
//!   and nothing happened since    until something does   none
//! ```
//! A turn has won something when the free space fell by a fair part of what it
//! moved. Moving alone proves nothing: the part-filled slabs of a small store
//! can be moved round for ever.
//! It is asked between two batches of reclaim too: a program that writes
//! without pause never lets the background thread come to rest.

use core::time::Duration;

use ghostmem_os::clock;
use ghostmem_store::{Owner, Slot, StoreStats};
use ghostmem_table::State;

use crate::parts::engine::Engine;
use crate::parts::region::place_of;

/// Between two turns when there is no need for them: they sort the slabs and
/// return empty ones.
const REST: Duration = Duration::from_millis(200);

/// Between two looks at the store's counters.
const LOOK: Duration = Duration::from_millis(1);

/// Rest after a turn that won nothing, at least.
const FRUITLESS: Duration = Duration::from_millis(20);

/// Empty slabs kept ready for the next pages, at most: bytes, and as a part of
/// the live slots.
const SPARE_BYTES: u64 = 1 << 20;
const SPARE_SHARE: u64 = 256;

/// Free space that is worth a turn, as a part of the live slots: what the
/// store's own trigger is.
const NEED_SHARE: u64 = 100;

/// Free space that is pressing, likewise: rewriting outruns the turns.
const PRESSING_SHARE: u64 = 50;

/// Free space that is urgent, likewise: with headers, rounding and page words
/// more than this breaks the promise of 6 %.
const URGENT_SHARE: u64 = 33;

/// Stores smaller than this are left to the background thread: their classes'
/// part-filled slabs alone are more than that share, whoever tidies.
const HELP_BYTES_MIN: u64 = 16 << 20;

/// What a turn aims for, likewise.
const TARGET_SHARE: u64 = 200;

/// Slots moved in one turn: few enough that the slabs they go to, and the ones
/// they leave until these are returned, are no overhead to speak of; enough to
/// be worth the look at every slab that each turn begins with.
const TURN_SLOTS_MIN: u64 = 256;
const TURN_SLOTS_MAX: u64 = 1024;

/// In a large store, as a part of the slots.
const TURN_SHARE: u64 = 256;

/// A turn was worth it if it won one byte in this many that it moved: half of
/// what the store asks of each slab it empties.
const WIN_SHARE: u64 = 16;

/// Slots that the program must have filled or given back since a turn that won
/// nothing before the next one can do better.
const TRAFFIC_MIN: u64 = 64;

/// What the last turn was like; the background thread's own.
pub(crate) struct Pace {
    /// When it ended.
    turned_ns: u64,
    /// Processor time it took: a thread that was interrupted must not rest for
    /// that.
    took: Duration,
    /// It won something: there may be more.
    behind: bool,
    /// The program's own traffic with the store by then.
    traffic: u64,
    /// The last look at the counters.
    looked_ns: u64,
}

impl Pace {
    pub(crate) fn new() -> Self {
        let now = clock::now_ns();
        Self {
            turned_ns: now,
            took: Duration::ZERO,
            behind: false,
            traffic: 0,
            looked_ns: now,
        }
    }

    /// How long the background thread may sleep as far as the store minds;
    /// `None`: for as long as nothing happens.
    pub(crate) fn nap(&self) -> Option<Duration> {
        self.behind.then(|| (self.took * 3).max(LOOK))
    }

    /// How long after the last turn the next one may begin; `None`: not before
    /// the program has used the store.
    fn rest(&self, store: &StoreStats) -> Option<Duration> {
        if !self.behind && traffic(store).saturating_sub(self.traffic) < TRAFFIC_MIN {
            return None;
        }
        let (free, live) = (free_bytes(store), store.slot_bytes);
        let rest = if free <= live / NEED_SHARE {
            REST
        } else if !self.behind {
            (self.took * 19).max(FRUITLESS)
        } else if free <= live / PRESSING_SHARE {
            self.took * 3
        } else if free <= live / URGENT_SHARE {
            self.took
        } else {
            self.took / 3
        };
        Some(rest)
    }
}

impl Engine {
    /// Tidies the store if it is time and there is need; cheap to ask.
    pub(crate) fn tidy_if_needed(&self, pace: &mut Pace) {
        let since = |then: u64, now: u64| Duration::from_nanos(now.saturating_sub(then));
        let now = clock::now_ns();
        if since(pace.looked_ns, now) < LOOK {
            return;
        }
        pace.looked_ns = now;
        let store = self.store.stats();
        let due = pace
            .rest(&store)
            .is_some_and(|rest| since(pace.turned_ns, now) >= rest);
        if !due {
            return;
        }
        let spare = SPARE_BYTES.min(store.slot_bytes / SPARE_SHARE);
        let start = clock::thread_ns();
        let moved = self.tidy_store(slots_to_move(&store) as usize, spare as usize);
        let took = since(start, clock::thread_ns());
        let after = self.store.stats();
        let won = free_bytes(&store).saturating_sub(free_bytes(&after));
        // What the program did meanwhile may hide what the turn won.
        let hidden = traffic(&after).saturating_sub(traffic(&store)) >= TRAFFIC_MIN;
        let fair = won.saturating_mul(WIN_SHARE) >= moved as u64 * mean_bytes(&store);
        *pace = Pace {
            turned_ns: clock::now_ns(),
            took,
            behind: moved > 0 && (fair || hidden),
            traffic: traffic(&after),
            looked_ns: now,
        };
    }

    /// Moves up to about `slots` slots out of sparse slabs and returns empty
    /// ones, but for `spare_bytes` of them; how many it moved.
    pub(crate) fn tidy_store(&self, slots: usize, spare_bytes: usize) -> usize {
        let inside = ghostmem_fault::gate().enter();
        let moved = self.tidy_from_inside(slots, spare_bytes);
        drop(inside);
        moved
    }

    /// A faulting thread that had to evict for itself moves a few slots as well
    /// when that is urgent: the background thread, which should have, gets no
    /// processor. The caller is inside the gate.
    pub(crate) fn help_tidying(&self) {
        // One load; where each fault evicts, the figures would cost as much.
        if self.store.held_bytes() < HELP_BYTES_MIN {
            return;
        }
        let store = self.store.stats();
        if self.config.background && free_bytes(&store) > store.slot_bytes / URGENT_SHARE {
            self.tidy_some();
        }
    }

    /// Moves a few slots, by a bounded look however large the store is: for a
    /// thread in a fault. The caller is inside the gate.
    pub(crate) fn tidy_some(&self) {
        self.store
            .compact_some(TURN_SLOTS_MIN as usize, &mut |owner, slot| {
                self.relocate(owner, slot)
            });
    }

    /// As [`Engine::tidy_store`], inside the gate.
    pub(crate) fn tidy_from_inside(&self, slots: usize, spare_bytes: usize) -> usize {
        let moved = self
            .store
            .compact(slots, &mut |owner, slot| self.relocate(owner, slot));
        self.store.trim(spare_bytes);
        moved
    }

    /// Moves one slot elsewhere, if its page still owns it and nobody is busy
    /// with the page.
    fn relocate(&self, owner: Owner, slot: Slot) -> bool {
        let (index, page) = place_of(owner);
        let Some(region) = self.region(index) else {
            return false;
        };
        if page >= region.pages() {
            return false;
        }
        let word = region.table.load(page);
        let owns =
            word.state() == State::Stored || (word.state() == State::Resident && word.is_clean());
        if !owns || word.payload() != slot.bits() {
            return false;
        }
        let Ok(claim) = region.table.claim(page, word) else {
            return false;
        };
        let Some(moved) = self.store.copy(slot) else {
            self.release(region, claim, word);
            return false;
        };
        self.store.remove(slot);
        self.release(region, claim, word.with_payload(moved.bits()));
        true
    }
}

/// Slots filled and given back so far, those that compaction moved aside.
fn traffic(store: &StoreStats) -> u64 {
    let moves = store.relocations.saturating_mul(2);
    store
        .inserts
        .saturating_add(store.removes)
        .saturating_sub(moves)
}

/// Bytes of the slots in use, on average.
fn mean_bytes(store: &StoreStats) -> u64 {
    store.slot_bytes.checked_div(store.live_slots).unwrap_or(0)
}

/// Bytes in slabs that serve a class and hold nothing.
fn free_bytes(store: &StoreStats) -> u64 {
    store
        .held_bytes
        .saturating_sub(store.slot_bytes)
        .saturating_sub(store.spare_bytes)
}

/// Slots to move so that the free space comes down to its target.
fn slots_to_move(store: &StoreStats) -> u64 {
    let excess = free_bytes(store).saturating_sub(store.slot_bytes / TARGET_SHARE);
    // Winning a page's worth of memory means moving about as much out of it.
    let wanted = excess.checked_div(mean_bytes(store)).unwrap_or(0);
    let most = TURN_SLOTS_MAX.max(store.live_slots / TURN_SHARE);
    wanted.clamp(TURN_SLOTS_MIN, most)
}

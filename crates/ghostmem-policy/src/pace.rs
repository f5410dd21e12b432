//! How much of the store is compacted, and when.
//!
//! Rewriting leaves holes in slabs. What a turn moves follows from how far the
//! free space is above its target; how soon the next turn may come follows
//! from how long this one took, so that compacting has a bounded share of the
//! background thread's time however fast the program writes:
//!
//! ```text
//!   free space of the store       rest after a turn      share of the time
//!   up to 1 % of live bytes       200 ms                 next to none
//!   above                         3 times the turn       a quarter at most
//!   above 2 %                     as long as the turn    a half at most
//!   above 3 %                     a third of the turn    three quarters
//!   the turn won nothing          19 times the turn      a twentieth at most
//!   but 1 % more is free since    as above
//!   and nothing happened since    until something does   none
//! ```
//! A turn has won something when the free space fell by a fair part of what it
//! moved. Moving alone proves nothing: the part-filled slabs of a small store
//! can be moved round for ever.
//! It is asked between two batches of reclaim too: a program that writes
//! without pause never lets the background thread come to rest.

use core::time::Duration;

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
/// What a turn aims for, likewise.
const TARGET_SHARE: u64 = 200;
/// Slots moved in one turn, at least: enough to be worth the look at every slab
/// that each turn begins with.
pub const TURN_SLOTS_MIN: u64 = 256;
/// And at most, in a store that is not large: few enough that the slabs they go to,
/// and the ones they leave until these are returned, are no overhead to speak of.
const TURN_SLOTS_MAX: u64 = 512;
/// In a large store, as a part of the slots.
const TURN_SHARE: u64 = 256;
/// A turn was worth it if it won one byte in this many that it moved: half of
/// what the store asks of each slab it empties.
const WIN_SHARE: u64 = 16;
/// Slots that the program must have filled or given back since a turn that won
/// nothing before the next one can do better.
const TRAFFIC_MIN: u64 = 64;

/// What a store holds at one moment, as far as compaction goes by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreFigures {
    /// Memory it holds, bytes.
    pub held_bytes: u64,
    /// Of this, bytes of slabs that serve no class.
    pub spare_bytes: u64,
    /// Bytes of the slots in use.
    pub slot_bytes: u64,
    /// Slots in use.
    pub live_slots: u64,
    /// Slots filled and given back since the start, moved ones included.
    pub changes: u64,
    /// Slots that compaction moved since the start.
    pub relocations: u64,
}

impl StoreFigures {
    /// Bytes in slabs that serve a class and hold nothing.
    #[must_use]
    pub const fn free_bytes(&self) -> u64 {
        self.held_bytes
            .saturating_sub(self.slot_bytes)
            .saturating_sub(self.spare_bytes)
    }

    /// Whether so much is free that rewriting outruns the turns.
    #[must_use]
    pub const fn is_pressing(&self) -> bool {
        self.free_bytes() > self.slot_bytes / PRESSING_SHARE
    }

    /// Whether so much is free that a faulting thread helps.
    #[must_use]
    pub const fn is_urgent(&self) -> bool {
        self.free_bytes() > self.slot_bytes / URGENT_SHARE
    }

    /// Bytes of empty slabs to keep for the next pages.
    #[must_use]
    pub fn spare_target_bytes(&self) -> u64 {
        SPARE_BYTES.min(self.slot_bytes / SPARE_SHARE)
    }

    /// Slots to move so that the free space comes down to its target.
    #[must_use]
    pub fn slots_to_move(&self) -> u64 {
        let excess = self
            .free_bytes()
            .saturating_sub(self.slot_bytes / TARGET_SHARE);
        // Winning a page's worth of memory means moving about as much out of it.
        let wanted = excess.checked_div(self.mean_bytes()).unwrap_or(0);
        let most = TURN_SLOTS_MAX.max(self.live_slots / TURN_SHARE);
        wanted.clamp(TURN_SLOTS_MIN, most)
    }

    /// Bytes of a slot in use, on average.
    #[must_use]
    pub fn mean_bytes(&self) -> u64 {
        self.slot_bytes.checked_div(self.live_slots).unwrap_or(0)
    }

    /// Slots that the program filled and gave back since the start: a moved slot was
    /// filled in one place and given back in another.
    const fn traffic(&self) -> u64 {
        self.changes
            .saturating_sub(self.relocations.saturating_mul(2))
    }
}

/// What the last turn was like.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// When it ended.
    turned_ns: u64,
    /// Processor time it took: a thread that was interrupted must not rest for
    /// that.
    took: Duration,
    /// It won something: there may be more.
    behind: bool,
    /// How soon the next one may begin, by what it left.
    next: Duration,
    /// Free space that it left, bytes.
    left_bytes: u64,
    /// The program's own traffic with the store by then.
    traffic: u64,
    /// The last look at the counters.
    looked_ns: u64,
}

impl Pace {
    /// No turn so far, at the time `now_ns`.
    #[must_use]
    pub const fn new(now_ns: u64) -> Self {
        Self {
            turned_ns: now_ns,
            took: Duration::ZERO,
            behind: false,
            next: REST,
            left_bytes: 0,
            traffic: 0,
            looked_ns: now_ns,
        }
    }

    /// How long the background thread may sleep as far as the store minds;
    /// `None`: for as long as nothing happens.
    #[must_use]
    pub fn nap(&self) -> Option<Duration> {
        self.behind.then(|| self.next.max(LOOK))
    }

    /// Whether it is time to look at the store's figures; counts as a look.
    pub fn may_look(&mut self, now_ns: u64) -> bool {
        let may = now_ns.saturating_sub(self.looked_ns) >= LOOK.as_nanos() as u64;
        if may {
            self.looked_ns = now_ns;
        }
        may
    }

    /// Whether a turn is due, by the figures of now.
    #[must_use]
    pub fn is_due(&self, now_ns: u64, store: &StoreFigures) -> bool {
        let since = Duration::from_nanos(now_ns.saturating_sub(self.turned_ns));
        self.rest(store).is_some_and(|rest| since >= rest)
    }

    /// How long after the last turn the next one may begin; `None`: not before
    /// the program has used the store.
    fn rest(&self, store: &StoreFigures) -> Option<Duration> {
        if !self.behind && store.traffic().saturating_sub(self.traffic) < TRAFFIC_MIN {
            return None;
        }
        let (free, live) = (store.free_bytes(), store.slot_bytes);
        // What became free since then is no part of what could not be won.
        let grown = free > self.left_bytes.saturating_add(live / NEED_SHARE);
        let rest = if free <= live / NEED_SHARE {
            REST
        } else if !self.behind && !grown {
            (self.took * 19).max(FRUITLESS)
        } else if !store.is_pressing() {
            self.took * 3
        } else if !store.is_urgent() {
            self.took
        } else {
            self.took / 3
        };
        Some(rest)
    }

    /// A turn took so long and moved so many slots; figures before and after it.
    pub fn turned(
        &mut self,
        now_ns: u64,
        took: Duration,
        moved: u64,
        (before, after): (&StoreFigures, &StoreFigures),
    ) {
        let won = before.free_bytes().saturating_sub(after.free_bytes());
        // What the program did meanwhile may hide what the turn won.
        let hidden = after.traffic().saturating_sub(before.traffic()) >= TRAFFIC_MIN;
        let fair = won.saturating_mul(WIN_SHARE) >= moved.saturating_mul(before.mean_bytes());
        self.behind = moved > 0 && (fair || hidden);
        self.turned_ns = now_ns;
        self.looked_ns = now_ns;
        self.took = took;
        self.traffic = after.traffic();
        self.left_bytes = after.free_bytes();
        self.next = self.rest(after).unwrap_or(REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// A store of 1000 slots of 1000 bytes, of whose memory `free` bytes are free.
    fn store(free: u64, changes: u64) -> StoreFigures {
        StoreFigures {
            held_bytes: 1_000_000 + free,
            slot_bytes: 1_000_000,
            live_slots: 1000,
            changes,
            ..StoreFigures::default()
        }
    }

    /// A pace whose last turn ended at 0, took 1 ms, and won something or not.
    fn after_turn(won: bool) -> Pace {
        let mut pace = Pace::new(0);
        let before = store(100_000, 1000);
        let after = store(if won { 50_000 } else { 100_000 }, 1000);
        pace.turned(0, Duration::from_millis(1), 300, (&before, &after));
        assert_eq!(pace.behind, won);
        pace
    }

    #[test]
    fn the_more_is_free_the_sooner_the_next_turn() {
        let pace = after_turn(true);
        for (free, rest_ns) in [
            (9_000, 200 * MS),
            (15_000, 3 * MS),
            (25_000, MS),
            (50_000, MS / 3 + 1),
        ] {
            let store = store(free, 1000);
            assert!(!pace.is_due(rest_ns - 2, &store), "{free} bytes free");
            assert!(pace.is_due(rest_ns, &store), "{free} bytes free");
        }
    }

    #[test]
    fn the_nap_after_a_turn_is_the_rest_that_what_it_left_asks_for() {
        for (free, took_ms, nap_ms) in [
            (9_000, 1, 200),
            (15_000, 3, 9),
            (25_000, 3, 3),
            (50_000, 3, 1),
        ] {
            let mut pace = Pace::new(0);
            let (before, after) = (store(100_000, 1000), store(free, 1000));
            pace.turned(0, Duration::from_millis(took_ms), 300, (&before, &after));
            assert_eq!(
                pace.nap(),
                Some(Duration::from_millis(nap_ms)),
                "{free} bytes free"
            );
        }
        assert_eq!(after_turn(false).nap(), None);
    }

    #[test]
    fn a_turn_that_won_nothing_is_repeated_only_when_the_program_did_something() {
        let pace = after_turn(false);
        assert_eq!(pace.nap(), None);
        assert!(!pace.is_due(1000 * MS, &store(100_000, 1000 + TRAFFIC_MIN - 1)));
        let busy = store(100_000, 1000 + TRAFFIC_MIN);
        assert!(!pace.is_due(19 * MS, &busy));
        assert!(pace.is_due(20 * MS, &busy));
    }

    #[test]
    fn what_became_free_since_a_turn_that_won_nothing_is_worth_another() {
        let pace = after_turn(false);
        let grown = |free| store(free, 1000 + TRAFFIC_MIN);
        assert!(!pace.is_due(19 * MS, &grown(110_000)));
        assert!(pace.is_due(MS, &grown(110_001)));
    }

    #[test]
    fn what_compaction_moves_is_no_traffic_of_the_programs() {
        let moved = StoreFigures {
            changes: 1000 + 600,
            relocations: 300,
            ..store(100_000, 0)
        };
        assert_eq!(moved.traffic(), store(100_000, 1000).traffic());
        // Traffic meanwhile may have hidden what a turn won.
        let mut pace = Pace::new(0);
        let (before, after) = (store(100_000, 1000), store(100_000, 1000 + TRAFFIC_MIN));
        pace.turned(0, Duration::from_millis(1), 300, (&before, &after));
        assert!(pace.behind);
    }

    #[test]
    fn a_turn_moves_what_is_too_much_and_neither_crumbs_nor_everything() {
        assert_eq!(store(0, 0).slots_to_move(), TURN_SLOTS_MIN);
        assert_eq!(store(405_000, 0).slots_to_move(), 400);
        assert_eq!(store(9_000_000, 0).slots_to_move(), TURN_SLOTS_MAX);
        let large = StoreFigures {
            live_slots: 1_000_000,
            slot_bytes: 1_000_000_000,
            held_bytes: 3_000_000_000,
            ..StoreFigures::default()
        };
        assert_eq!(large.slots_to_move(), 1_000_000 / TURN_SHARE);
        assert_eq!(StoreFigures::default().slots_to_move(), TURN_SLOTS_MIN);
    }

    #[test]
    fn looks_are_a_millisecond_apart() {
        let mut pace = Pace::new(0);
        assert!(!pace.may_look(MS - 1));
        assert!(pace.may_look(MS));
        assert!(!pace.may_look(MS + 1));
    }
}

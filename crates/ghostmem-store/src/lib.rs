//! Where cold pages live: the RAM store for compressed pages.
//!
//! [`SlabStore`] keeps payloads of 1 to 4096 bytes in size-class slabs and
//! names them by [`Slot`] handles, never by pointers, so that compaction can
//! move them. It knows nothing of pages, codecs or tiers: an [`Owner`] is 40
//! bits it carries back, a codec number four. Where packed pages go that it has no
//! room for, and what such a place keeps to, is [`tier`]'s to say.
//!
//! # Layout
//! ```text
//!  arena (address space)      slab 0      slab 1      slab 2
//!                          ┌───────────┬───────────┬───────────┬─ ─
//!                          │h▒▒▒│h▒▒▒│ │h▒│h▒│h▒│ │▒▒▒▒▒▒▒▒▒▒▒│
//!                          └───────────┴───────────┴───────────┴─ ─
//!  row of slab 1, one cache line                     raw: headers elsewhere
//!  ┌───────┬────────┬──────┬─────────┬───────┬───────┬───────┬───────┐
//!  │ state │ backed │ next │ raw row │ bitmap of taken slots, 4 × 64 │
//!  └───────┴────────┴──────┴─────────┴───────┴───────┴───────┴───────┘
//!
//!  lists     class 0 ─► slab ─► slab      partly filled, fullest first
//!            class 1 ─► slab              after `trim` and `compact`
//!              ...
//!            spare   ─► slab ─► slab      empty, memory behind them
//!            unbacked─► slab              empty, given back to the kernel
//! ```
//! A slab is 64 KiB of *addresses*; only the pages that its slots reached are
//! backed and counted as held. That makes many tight classes affordable (`class.rs`
//! builds the table): an insert-only store wastes half a page per class, not
//! half a slab. The counting assumes 4 KiB pages: the arena must not be given
//! transparent huge pages.
//!
//! # Invariants
//! * [`SlabStore::insert`], [`info`](SlabStore::info),
//!   [`read`](SlabStore::read), [`remove`](SlabStore::remove) and
//!   [`copy`](SlabStore::copy) are lock-free and async-signal-safe: no heap,
//!   no lock, no system call, under 1 KiB of stack. They run in fault handlers
//!   on any number of threads.
//! * [`SlabStore::trim`] and [`SlabStore::compact`] are for background
//!   threads; one works at a time, a second returns at once. Nobody waits for
//!   them.
//! * Whoever got a slot owns it alone until it is removed. Publishing it to
//!   other threads (in a page word, with release ordering) is the caller's
//!   part, as is to remove it exactly once, after its last read.
//! * A fork while a background call is under way leaves the child's copy of
//!   the store with that call unfinished for ever: it works, but is neither
//!   trimmed nor compacted. Fork handlers keep the two apart.
//! * The bytes held never exceed the byte limit by an insert; a limit set
//!   below what is held refuses new memory until enough has been given back.
#![forbid(unsafe_code)]

mod arrays;
mod class;
mod compact;
#[cfg(feature = "conformance")]
pub mod conformance;
mod handle;
mod list;
mod maintain;
mod memory;
mod slabs;
mod state;
mod stats;
pub mod tier;

use core::sync::atomic::Ordering::Relaxed;

use ghostmem_os::OsError;

use crate::arrays::Arrays;
use crate::memory::Memory;
use crate::slabs::{Prefer, Slabs, SlotRef};
use crate::state::Global;

pub use handle::{Owner, Place, Slot, SlotInfo, TierId, TierSlot};
pub use stats::StoreStats;

/// Most payload bytes of a slot: a whole page, stored as it is.
pub const MAX_SLOT_BYTES: usize = ghostmem_os::PAGE_SIZE;

/// A store of compressed pages in RAM.
#[derive(Debug)]
pub struct SlabStore {
    slabs: Slabs<Arrays>,
}

impl SlabStore {
    /// A store with address space for `capacity_bytes` of slabs and a little
    /// more (every class can have a slab of its own besides); nothing is
    /// backed by memory until it is used.
    ///
    /// A payload takes `1/16` of a slab (4 KiB) of address space when it is a
    /// whole page and less when it is smaller, never under `1/256`: a store
    /// with 4 KiB of capacity for each page it may ever hold cannot run out
    /// of addresses.
    ///
    /// # Errors
    /// The kernel's refusal to reserve the address space.
    pub fn new(capacity_bytes: usize) -> Result<Self, OsError> {
        Ok(Self {
            slabs: Slabs {
                mem: Arrays::new(capacity_bytes)?,
            },
        })
    }

    /// Stores a copy of `data`, `1..=4096` bytes, and returns its slot.
    ///
    /// `None` when the address space or the byte limit is exhausted and no
    /// free slot, empty or spare slab can serve, or when the length is out of
    /// range. The caller may then give slots back, let the background
    /// [`trim`](Self::trim) and [`compact`](Self::compact), or use another
    /// tier.
    #[must_use]
    pub fn insert(&self, owner: Owner, codec: u8, data: &[u8]) -> Option<Slot> {
        if data.is_empty() || data.len() > MAX_SLOT_BYTES {
            return None;
        }
        let info = SlotInfo {
            owner,
            len: data.len(),
            codec,
        };
        let at = self
            .slabs
            .allocate(class::class_for(data.len()), Prefer::Spare)?;
        self.slabs.mem.write(at, data);
        Some(self.publish(at, info))
    }

    /// What the header of a slot says. The caller owns the slot.
    ///
    /// # Panics
    /// When the handle was not made by this store.
    #[must_use]
    pub fn info(&self, slot: Slot) -> SlotInfo {
        SlotInfo::from_header(self.slabs.mem.header(slot.parts()))
    }

    /// Copies the payload of a slot into the front of `out`; the rest of `out`
    /// is left as it is. The caller owns the slot.
    ///
    /// # Panics
    /// When the handle was not made by this store.
    pub fn read(&self, slot: Slot, out: &mut [u8; MAX_SLOT_BYTES]) -> SlotInfo {
        let at = slot.parts();
        let info = SlotInfo::from_header(self.slabs.mem.header(at));
        self.slabs.mem.read(at, &mut out[..info.len]);
        info
    }

    /// Starts to bring a slot's bytes into the cache: worth calling as soon as
    /// a slot is known that is about to be read. Changes nothing.
    pub fn prefetch(&self, slot: Slot) {
        self.slabs.mem.prefetch(slot.parts());
    }

    /// Gives a slot back. The caller owns it, does so exactly once, and does
    /// not use the handle again.
    ///
    /// # Panics
    /// When the handle was not made by this store; in debug builds, when the
    /// slot is not in use.
    pub fn remove(&self, slot: Slot) {
        let at = slot.parts();
        let info = SlotInfo::from_header(self.slabs.mem.header(at));
        let taken = self.slabs.release(at.slab, at.index);
        debug_assert!(taken, "a slot is removed once");
        if taken {
            self.slabs.mem.count_remove(at, info.len);
        }
    }

    /// Stores the content of a slot once more, under the same owner and codec,
    /// preferably in a slab that is already dense and never in one that
    /// compaction is emptying. The caller owns the slot and then both.
    ///
    /// `None` when the store is full.
    ///
    /// # Panics
    /// When the handle was not made by this store.
    #[must_use]
    pub fn copy(&self, slot: Slot) -> Option<Slot> {
        let from = slot.parts();
        let info = SlotInfo::from_header(self.slabs.mem.header(from));
        let to = self
            .slabs
            .allocate(class::class_for(info.len), Prefer::Unbacked)?;
        self.slabs.mem.copy(from, to, info.len);
        Some(self.publish(to, info))
    }

    /// Sets how many bytes of slab memory the store may hold; `usize::MAX` for
    /// no limit. Inserts that would need more return `None`; nothing that is
    /// held already is given up.
    pub fn set_byte_limit(&self, bytes: usize) {
        self.slabs
            .mem
            .global(Global::Limit)
            .store(bytes as u64, Relaxed);
    }

    fn publish(&self, at: SlotRef, info: SlotInfo) -> Slot {
        self.slabs.mem.set_header(at, info.to_header());
        self.slabs.mem.count_insert(at, info.len);
        Slot::new(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store of about `pages` half-page payloads of which two in three were
    /// given back; the slots of the others, by owner.
    fn sparse(pages: usize) -> (SlabStore, Vec<Option<Slot>>) {
        let store = SlabStore::new(pages * MAX_SLOT_BYTES).unwrap();
        let data = [1; MAX_SLOT_BYTES];
        let insert = |owner| store.insert(Owner::new(owner as u64), 0, &data[..2000]);
        let mut slots: Vec<Option<Slot>> = (0..pages).map(insert).collect();
        for slot in slots.iter_mut().enumerate().filter(|(i, _)| i % 3 != 0) {
            store.remove(slot.1.take().unwrap());
        }
        (store, slots)
    }

    /// One bounded compaction: slots moved, and rows looked at meanwhile.
    fn compact_some(store: &SlabStore, slots: &mut [Option<Slot>]) -> (usize, u64) {
        let before = slabs::LOOKS.get();
        let moved = store.compact_some(256, &mut |owner, slot| {
            let place = &mut slots[owner.get() as usize];
            assert_eq!(*place, Some(slot));
            *place = store.copy(slot);
            store.remove(slot);
            place.is_some()
        });
        (moved, slabs::LOOKS.get() - before)
    }

    #[test]
    fn a_bounded_compaction_looks_at_as_many_rows_in_a_large_store_as_in_a_small_one() {
        for pages in [20_000, 160_000] {
            let (store, mut slots) = sparse(pages);
            let (free, live) = (store.held_bytes(), store.stats().slot_bytes);
            assert!(free > 2 * live, "{free} {live}");
            for _ in 0..4 {
                let (moved, rows) = compact_some(&store, &mut slots);
                assert!(moved >= 200, "{moved} of {pages}");
                // The census, a pass for each level of fullness, three to drain,
                // and what each slot takes to be moved.
                let most = (1 + 16 + 3) * 2 * 256 + 8 * moved as u64;
                assert!(rows <= most, "{rows} rows of {}", store.slabs.bump());
            }
        }
    }

    #[test]
    fn bounded_compactions_give_back_what_is_free_and_lose_nothing() {
        let (store, mut slots) = sparse(20_000);
        let mut fruitless = 0;
        while fruitless < 20 {
            let (moved, _) = compact_some(&store, &mut slots);
            fruitless = if moved == 0 { fruitless + 1 } else { 0 };
        }
        let stats = store.stats();
        assert_eq!(stats.live_slots, 20_000_u64.div_ceil(3));
        assert!(
            stats.held_bytes <= stats.slot_bytes + stats.slot_bytes / 20,
            "{stats:?}"
        );
        let backed = store.slabs.mem.arena_backed_bytes() as u64;
        assert!(backed <= stats.held_bytes, "{backed} {stats:?}");
        for (owner, slot) in slots
            .iter()
            .enumerate()
            .filter_map(|(i, s)| Some((i, (*s)?)))
        {
            let mut out = [0; MAX_SLOT_BYTES];
            assert_eq!(store.read(slot, &mut out).owner.get(), owner as u64);
            assert_eq!(out[..2000], [1; 2000]);
            store.remove(slot);
        }
        store.trim(0);
        assert_eq!(store.slabs.mem.arena_backed_bytes(), 0);
    }

    #[test]
    fn processors_take_slots_of_slabs_of_their_own_where_a_class_has_several() {
        let (store, mut slots) = sparse(20_000);
        let class = class::class_for(2000);
        let last = [(); 3].map(|()| core::sync::atomic::AtomicU64::new(0));
        let mut taken: Vec<Vec<u32>> = vec![Vec::new(); last.len()];
        for round in 0..200 {
            let processor = round % last.len();
            let last = Some((&last[processor], processor));
            let at = store.slabs.allocate_by(class, Prefer::Spare, last).unwrap();
            taken[processor].push(at.slab);
            assert_eq!(at.class, class);
            let info = SlotInfo {
                owner: Owner::new(round as u64),
                len: 2000,
                codec: 0,
            };
            store.slabs.mem.write(at, &[2; 2000]);
            slots.push(Some(store.publish(at, info)));
        }
        for slabs in &mut taken {
            // One after the other, each until it is full.
            slabs.dedup();
            assert!((2..10).contains(&slabs.len()), "{slabs:?}");
        }
        let all: std::collections::BTreeSet<u32> = taken.iter().flatten().copied().collect();
        let sum: usize = taken.iter().map(Vec::len).sum();
        // They begin apart, and may meet where one of them moves on.
        assert!(all.len() + last.len() >= sum, "{taken:?}");
        let first: std::collections::BTreeSet<u32> = taken.iter().map(|slabs| slabs[0]).collect();
        assert_eq!(first.len(), last.len());
        slots
            .into_iter()
            .flatten()
            .for_each(|slot| store.remove(slot));
        assert_eq!(store.stats().live_slots, 0);
    }

    #[test]
    fn held_bytes_are_never_less_than_what_the_kernel_backs() {
        let store = SlabStore::new(16 << 20).unwrap();
        let data = [1; MAX_SLOT_BYTES];
        let slots: Vec<Slot> = (0..2000)
            .map(|i| store.insert(Owner::new(i as u64), 0, &data[..1 + i * 2 % 4096]))
            .map(Option::unwrap)
            .collect();
        let backed = store.slabs.mem.arena_backed_bytes() as u64;
        let held = store.held_bytes();
        assert!(
            backed <= held && held <= backed + backed / 50,
            "{backed} {held}"
        );
        for slot in slots {
            store.remove(slot);
        }
        store.trim(0);
        assert_eq!(store.slabs.mem.arena_backed_bytes(), 0);
    }
}

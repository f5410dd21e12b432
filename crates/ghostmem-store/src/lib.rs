//! Where cold pages live: the RAM store for compressed pages.
//!
//! [`SlabStore`] keeps payloads of 1 to 4096 bytes in size-class slabs and
//! names them by [`Slot`] handles, never by pointers, so that compaction can
//! move them. It knows nothing of pages, codecs or tiers: an [`Owner`] is 40
//! bits it carries back, a codec number four.
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
//!            cold    ─► slab              empty, given back to the kernel
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
mod handle;
mod list;
mod maintain;
mod memory;
mod slabs;
mod state;
mod stats;

use core::sync::atomic::Ordering::Relaxed;

use ghostmem_os::OsError;

use crate::arrays::Arrays;
use crate::memory::Memory;
use crate::slabs::{Claim, Prefer, Slabs};
use crate::state::Global;

pub use handle::{Owner, Place, Slot, SlotInfo};
pub use stats::StoreStats;

/// Most payload bytes of a slot: a whole page, stored as it is.
pub const MAX_SLOT_BYTES: usize = 4096;

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
        let claim = self
            .slabs
            .allocate(class::class_for(data.len()), Prefer::Spare)?;
        self.slabs.mem.write(claim, data);
        Some(self.publish(claim, info))
    }

    /// What the header of a slot says. The caller owns the slot.
    ///
    /// # Panics
    /// When the handle was not made by this store.
    #[must_use]
    pub fn info(&self, slot: Slot) -> SlotInfo {
        SlotInfo::from_header(self.slabs.mem.header(slot.claim()))
    }

    /// Copies the payload of a slot into the front of `out`; the rest of `out`
    /// is left as it is. The caller owns the slot.
    ///
    /// # Panics
    /// When the handle was not made by this store.
    pub fn read(&self, slot: Slot, out: &mut [u8; MAX_SLOT_BYTES]) -> SlotInfo {
        let claim = slot.claim();
        let info = SlotInfo::from_header(self.slabs.mem.header(claim));
        self.slabs.mem.read(claim, &mut out[..info.len]);
        info
    }

    /// Starts to bring a slot's bytes into the cache: worth calling as soon as
    /// a slot is known that is about to be read. Changes nothing.
    pub fn prefetch(&self, slot: Slot) {
        self.slabs.mem.prefetch(slot.claim());
    }

    /// Gives a slot back. The caller owns it, does so exactly once, and does
    /// not use the handle again.
    ///
    /// # Panics
    /// When the handle was not made by this store; in debug builds, when the
    /// slot is not in use.
    pub fn remove(&self, slot: Slot) {
        let claim = slot.claim();
        let info = SlotInfo::from_header(self.slabs.mem.header(claim));
        let taken = self.slabs.release(claim.slab, claim.index);
        debug_assert!(taken, "a slot is removed once");
        if taken {
            self.slabs.mem.count_remove(claim, info.len);
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
        let from = slot.claim();
        let info = SlotInfo::from_header(self.slabs.mem.header(from));
        let to = self
            .slabs
            .allocate(class::class_for(info.len), Prefer::Cold)?;
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

    fn publish(&self, claim: Claim, info: SlotInfo) -> Slot {
        self.slabs.mem.set_header(claim, info.to_header());
        self.slabs.mem.count_insert(claim, info.len);
        Slot::new(claim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

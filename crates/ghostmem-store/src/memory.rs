//! What the slab protocol runs on: 64-bit atomic words in rows.
//!
//! The protocol ([`crate::slabs`], [`crate::list`], [`crate::maintain`]) is
//! written against these traits so that the model checker can run the very
//! same code on its own atomics and a store of two slabs.

use core::sync::atomic::Ordering;

use crate::class::Geometry;
use crate::state::Global;

/// A 64-bit atomic word.
pub(crate) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    /// Strong compare-and-swap; failure loads with `Acquire`.
    fn swap_if(&self, current: u64, new: u64, order: Ordering) -> Result<u64, u64>;
    fn fetch_or(&self, bits: u64, order: Ordering) -> u64;
    fn fetch_and(&self, bits: u64, order: Ordering) -> u64;
    fn fetch_add(&self, amount: u64, order: Ordering) -> u64;
    fn fetch_sub(&self, amount: u64, order: Ordering) -> u64;
}

/// The words of a store and the shape of its classes.
pub(crate) trait Memory {
    type Word: Word;

    /// A slab's row, see [`crate::state::row`].
    fn slab(&self, slab: u32) -> &[Self::Word; 8];
    /// A list's row, see [`crate::state::list`]: the classes first, then the
    /// spare and the unbacked list.
    fn list(&self, list: usize) -> &[Self::Word; 8];
    fn global(&self, name: Global) -> &Self::Word;
    /// Slabs there is address space for.
    fn slab_count(&self) -> u32;
    fn class_count(&self) -> usize;
    fn geometry(&self, class: u8) -> Geometry;
    /// Does what a slab needs before it may serve `class`; `false` refuses.
    fn prepare(&self, slab: u32, class: u8) -> bool;
    /// Gives whole slabs (first, count), owned by the caller, back to the
    /// kernel. Whether that worked.
    fn decommit(&self, runs: &[(u32, u32)]) -> bool;
    /// The word in which the calling thread's processor keeps the slab of `class` that it
    /// took a slot of last (a link, see [`crate::list`]), and how many listed slabs it
    /// passes over to find one that other processors do not use. `None`: it keeps none.
    fn last_slab(&self, class: u8) -> Option<(&Self::Word, usize)> {
        let _all = class;
        None
    }
    /// Lets other threads run while one of them is about to make room.
    fn relax(&self) {
        core::hint::spin_loop();
    }
}

impl Word for core::sync::atomic::AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn swap_if(&self, current: u64, new: u64, order: Ordering) -> Result<u64, u64> {
        self.compare_exchange(current, new, order, Ordering::Acquire)
    }

    fn fetch_or(&self, bits: u64, order: Ordering) -> u64 {
        self.fetch_or(bits, order)
    }

    fn fetch_and(&self, bits: u64, order: Ordering) -> u64 {
        self.fetch_and(bits, order)
    }

    fn fetch_add(&self, amount: u64, order: Ordering) -> u64 {
        self.fetch_add(amount, order)
    }

    fn fetch_sub(&self, amount: u64, order: Ordering) -> u64 {
        self.fetch_sub(amount, order)
    }
}

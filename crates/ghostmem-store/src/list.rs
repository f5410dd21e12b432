//! Lock-free stacks of slabs, linked through the slabs' rows.
//!
//! One stack for each class (its partly filled slabs), one of spare slabs
//! (empty, backed by memory) and one of unbacked ones (empty, not backed). A slab
//! is on at most one stack, so one link word each is enough. The head carries
//! a 32-bit tag that every change raises: a thread would have to sleep through
//! exactly 2^32 changes of one stack between its load and its swap to be
//! fooled.

use core::sync::atomic::Ordering;

use crate::memory::{Memory, Word};
use crate::slabs::Slabs;
use crate::state::{list, row};

/// A loaded head.
#[derive(Clone, Copy)]
pub(crate) struct Head(u64);

impl Head {
    /// The top slab.
    pub(crate) const fn slab(self) -> Option<u32> {
        unlink(self.0 & 0xFFFF_FFFF)
    }

    /// The head after a change to `link`.
    const fn successor(self, link: u64) -> u64 {
        ((self.0 >> 32).wrapping_add(1) << 32) | link
    }
}

pub(crate) const fn unlink(link: u64) -> Option<u32> {
    if link == 0 {
        None
    } else {
        Some((link - 1) as u32)
    }
}

pub(crate) const fn link_to(slab: Option<u32>) -> u64 {
    match slab {
        None => 0,
        Some(slab) => slab as u64 + 1,
    }
}

impl<M: Memory> Slabs<M> {
    /// The list of spare slabs.
    pub(crate) fn spare_list(&self) -> usize {
        self.mem.class_count()
    }

    /// The list of unbacked slabs.
    pub(crate) fn unbacked_list(&self) -> usize {
        self.spare_list() + 1
    }

    pub(crate) fn top(&self, list: usize) -> Head {
        Head(self.mem.list(list)[list::HEAD].load(Ordering::Acquire))
    }

    /// Pushes a slab the caller may link: one that it owns, or whose `list`
    /// flag it set.
    pub(crate) fn push(&self, list: usize, slab: u32) {
        let head = &self.mem.list(list)[list::HEAD];
        let mut seen = self.top(list);
        loop {
            self.set_next(slab, seen.slab());
            let new = seen.successor(link_to(Some(slab)));
            // Release: whoever pops the slab sees its link and its state.
            match head.swap_if(seen.0, new, Ordering::AcqRel) {
                Ok(_) => return,
                Err(now) => seen = Head(now),
            }
        }
    }

    /// Pops the slab that `seen` had on top, if the list has not changed.
    pub(crate) fn pop_seen(&self, list: usize, seen: Head) -> bool {
        let Some(slab) = seen.slab() else {
            return false;
        };
        // Possibly stale, but then the tag has moved and the swap fails.
        let new = seen.successor(link_to(self.next(slab)));
        self.mem.list(list)[list::HEAD]
            .swap_if(seen.0, new, Ordering::AcqRel)
            .is_ok()
    }

    pub(crate) fn pop(&self, list: usize) -> Option<u32> {
        loop {
            let seen = self.top(list);
            let slab = seen.slab()?;
            if self.pop_seen(list, seen) {
                return Some(slab);
            }
        }
    }

    /// Takes the whole list; its slabs stay linked through [`Slabs::next`].
    pub(crate) fn detach(&self, list: usize) -> Option<u32> {
        let head = &self.mem.list(list)[list::HEAD];
        let mut seen = self.top(list);
        loop {
            let first = seen.slab()?;
            match head.swap_if(seen.0, seen.successor(0), Ordering::AcqRel) {
                Ok(_) => return Some(first),
                Err(now) => seen = Head(now),
            }
        }
    }

    pub(crate) fn next(&self, slab: u32) -> Option<u32> {
        unlink(self.mem.slab(slab)[row::NEXT].load(Ordering::Relaxed))
    }

    pub(crate) fn set_next(&self, slab: u32, next: Option<u32>) {
        self.mem.slab(slab)[row::NEXT].store(link_to(next), Ordering::Relaxed);
    }
}

//! Which blocks live, at the cost of no locked instruction where a block is
//! allocated and freed by the thread that owns its mimalloc page.
//!
//! Two bitmaps say it together: a block lives where they differ.
//!
//! ```text
//!             own   others
//!   free       0      0
//!   live       1      0       allocated by the owner of its mimalloc page
//!   free       1      1       freed by anybody else
//!   live       0      1       allocated by the owner once more
//!   free       0      0       and freed by it
//! ```
//! *own* is changed only by the thread that owns the mimalloc page, with a plain
//! load and store: a word covers 1 KiB and a mimalloc page at least 64, so no
//! two pages share a word. *others* is changed by everybody else, by
//! compare-and-swap, and before it ever is for one of 64 KiB of blocks, their byte
//! *mixed* becomes 1: while that is 0, nobody has to look at *others*, which would
//! be a second miss of the processor's caches. Pages change hands through mimalloc's atomics, a release
//! by the old owner and an acquire by the new, which carry these words along.
//!
//! **What it promises.** A block that was freed cannot be freed again, whichever
//! threads do it one after the other. Of two threads that free one block *at
//! the same instant*, one of them the owner of its page, both may succeed, as
//! neither waits for the other's store. The bitmaps then say that the block
//! lives, which [`LiveBits::begin`] refuses when mimalloc hands it out next. Two
//! threads of which neither is the owner cannot both succeed.
//!
//! It must never use a stronger instruction where the page is the thread's own:
//! that is what it is for. `gm_life_of` and `gm_turn` in `csrc/shim.c` are the
//! owner's part of it once more.

use crate::sync::{AtomicU8, AtomicU64, Ordering};

/// The words of both bitmaps for 64 neighbouring places.
#[derive(Clone, Copy)]
pub(crate) struct LiveBits<'a> {
    pub(crate) own: &'a AtomicU64,
    pub(crate) others: &'a AtomicU64,
    /// Not 0 once a bit of `others` was ever set here or nearby.
    pub(crate) mixed: &'a AtomicU8,
}

impl LiveBits<'_> {
    /// Whether a block lives at `bit`.
    #[inline]
    pub(crate) fn is_live(&self, bit: u64) -> bool {
        (self.own.load(Ordering::Relaxed) ^ self.others_bits()) & bit != 0
    }

    /// What `others` says, without reading it where it never was written. Whoever
    /// was told of a block by those who wrote for it sees that they did.
    #[inline]
    fn others_bits(&self) -> u64 {
        match self.mixed.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.others.load(Ordering::Relaxed),
        }
    }

    /// A block comes to life at `bit`; `false` if one lives there already.
    /// `owner`: the calling thread owns the block's mimalloc page.
    #[inline]
    pub(crate) fn begin(&self, bit: u64, owner: bool) -> bool {
        self.flip(bit, owner, false)
    }

    /// The block at `bit` is freed; `false` if none lives there. `owner` as for
    /// [`LiveBits::begin`].
    #[inline]
    pub(crate) fn end(&self, bit: u64, owner: bool) -> bool {
        self.flip(bit, owner, true)
    }

    #[inline]
    fn flip(&self, bit: u64, owner: bool, from_live: bool) -> bool {
        if !owner {
            return self.flip_for_others(bit, from_live);
        }
        let own = self.own.load(Ordering::Relaxed);
        let live = (own ^ self.others_bits()) & bit != 0;
        if live == from_live {
            self.own.store(own ^ bit, Ordering::Relaxed);
        }
        live == from_live
    }

    fn flip_for_others(&self, bit: u64, from_live: bool) -> bool {
        // Relaxed is enough: whoever may flip next learns of the block through
        // mimalloc, whose atomics order this before that.
        if self.mixed.load(Ordering::Relaxed) == 0 {
            self.mixed.store(1, Ordering::Relaxed);
        }
        let mut others = self.others.load(Ordering::Relaxed);
        loop {
            let live = (self.own.load(Ordering::Relaxed) ^ others) & bit != 0;
            if live != from_live {
                return false;
            }
            match self.others.compare_exchange_weak(
                others,
                others ^ bit,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => others = now,
            }
        }
    }
}

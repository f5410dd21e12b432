//! The state word of a slab, and the row of words it lives in.
//!
//! ```text
//!  63                 28  27   26 24 23     16 15                0
//! ┌──────────────────────┬────┬─────┬─────────┬───────────────────┐
//! │ 0                    │list│phase│  class  │ used: slots taken │
//! └──────────────────────┴────┴─────┴─────────┴───────────────────┘
//!
//!            activate                 mark                 all moved
//!   Unbacked ──────────► Active ◄───────────► Draining ───────────────┐
//!    ▲                   ▲  │ unlisted when                           │
//!    │ given back        │  │ found empty                             │
//!    │ to the kernel     │  ▼                                         │
//!   Held ◄──────────── Spare ◄────────────────────────────────────────┘
//! ```
//!
//! `used` counts *tickets*. A slot is taken by first raising `used` (allowed
//! only in phase Active, in the right class, below the class's slot count) and
//! then setting a bit of the bitmap; it is given back by clearing the bit
//! first and lowering `used` afterwards. At every instant therefore
//! `set bits <= used <= slots`, so whoever holds a ticket finds a clear bit,
//! and `used == 0` proves that nobody is between the two steps: a slab seen
//! empty can change class or leave by one compare-and-swap, whatever happened
//! to it before. That is why the word needs no version.
//!
//! `list` says that the slab is (or is about to be) on a list of partly
//! filled slabs; it is set in the same swap that makes room and cleared in the
//! one that finds none, so `Active && used < slots` implies it.

/// What a slab is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Holds nothing and no memory; on the unbacked list, or never used.
    Unbacked,
    /// Holds nothing but memory; on the spare list.
    Spare,
    /// Serves one class.
    Active,
    /// Serves one class but takes nothing in: compaction empties it.
    Draining,
    /// Owned by the maintenance thread, on no list.
    Held,
}

/// A decoded copy of a state word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabState(pub(crate) u64);

const CLASS_SHIFT: u32 = 16;
const PHASE_SHIFT: u32 = 24;
const LISTED: u64 = 1 << 27;

impl SlabState {
    pub(crate) const fn new(phase: Phase, class: u8, used: u32, listed: bool) -> Self {
        let listed = if listed { LISTED } else { 0 };
        Self(used as u64 | (class as u64) << CLASS_SHIFT | (phase as u64) << PHASE_SHIFT | listed)
    }

    /// Slots taken or being taken or given back.
    pub(crate) const fn used(self) -> u32 {
        (self.0 & 0xFFFF) as u32
    }

    pub(crate) const fn class(self) -> u8 {
        (self.0 >> CLASS_SHIFT) as u8
    }

    pub(crate) const fn listed(self) -> bool {
        self.0 & LISTED != 0
    }

    pub(crate) const fn phase(self) -> Phase {
        match (self.0 >> PHASE_SHIFT) & 7 {
            0 => Phase::Unbacked,
            1 => Phase::Spare,
            2 => Phase::Active,
            3 => Phase::Draining,
            _ => Phase::Held,
        }
    }

    pub(crate) const fn is(self, phase: Phase) -> bool {
        self.phase() as u8 == phase as u8
    }

    pub(crate) const fn with_used(self, used: u32) -> Self {
        Self(self.0 & !0xFFFF | used as u64)
    }

    pub(crate) const fn with_listed(self, listed: bool) -> Self {
        if listed {
            Self(self.0 | LISTED)
        } else {
            Self(self.0 & !LISTED)
        }
    }

    pub(crate) const fn with_phase(self, phase: Phase) -> Self {
        Self(self.0 & !(7 << PHASE_SHIFT) | (phase as u64) << PHASE_SHIFT)
    }
}

/// Words of a slab's row: one cache line, all an operation touches besides
/// the payload and the class.
pub(crate) mod row {
    /// The [`SlabState`](super::SlabState) word.
    pub(crate) const STATE: usize = 0;
    /// Which pages are backed by memory, bit 0 the first.
    pub(crate) const BACKED: usize = 1;
    /// Next slab on the same list, index + 1; 0 ends it.
    pub(crate) const NEXT: usize = 2;
    /// Which row of raw headers is this slab's, + 1; 0 is none yet.
    pub(crate) const RAW_ROW: usize = 3;
    /// Four words of taken slots.
    pub(crate) const BITMAP: usize = 4;
}

/// Words of a list's row, a cache line that only its changes touch.
pub(crate) mod list {
    /// Top slab, index + 1, in the low half; a tag that every push and pop
    /// raises in the high half.
    pub(crate) const HEAD: usize = 0;
}

/// Single words of the whole store, all changed rarely.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Global {
    /// Bytes of backed slab pages.
    Held,
    /// What `Held` must not exceed.
    Limit,
    /// Bytes of backed pages of spare slabs.
    SpareBytes,
    /// Slabs ever used: those at and above this index are untouched.
    Bump,
    /// Active slabs with no slot taken (signed, may dip below zero while an
    /// update is under way).
    Empties,
    /// Slabs that changed class while listed since the lists were last
    /// rebuilt: they may sit on another class's list.
    Misplaced,
    /// Turns of background work begun and ended: odd while one is under way.
    Turn,
    /// Slots moved by compaction.
    Relocations,
    /// Rows of raw headers given out.
    RawRows,
    /// Where the next bounded look for sparse slabs begins; grows for ever.
    Cursor,
}

/// Number of [`Global`] words.
pub(crate) const GLOBALS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_disturb_each_other() {
        for phase in [
            Phase::Unbacked,
            Phase::Spare,
            Phase::Active,
            Phase::Draining,
            Phase::Held,
        ] {
            for (class, used, listed) in [(0, 0, false), (255, 256, true), (7, 65_535, false)] {
                let state = SlabState::new(phase, class, used, listed);
                assert_eq!(state.phase(), phase);
                assert_eq!((state.class(), state.used()), (class, used));
                assert_eq!(state.listed(), listed);
                let other = state
                    .with_used(3)
                    .with_phase(Phase::Held)
                    .with_listed(!listed);
                assert_eq!(other, SlabState::new(Phase::Held, class, 3, !listed));
            }
        }
        assert_eq!(
            SlabState(0).phase(),
            Phase::Unbacked,
            "fresh memory is an unbacked slab"
        );
    }
}

//! Layout of the page word.
//!
//! ```text
//!  63                              24 23                     8 7 6 5 4 3 2   0
//! ┌──────────────────────────────────┬─────────────────────────┬─┬─┬─┬─┬─┬─────┐
//! │ payload: slot, pattern or nonce  │          heat           │I│H│P│C│W│state│
//! └──────────────────────────────────┴─────────────────────────┴─┴─┴─┴─┴─┴─────┘
//!   W somebody waits    C resident: keeps a copy, the payload is its slot
//!   P pinned            H hot for writing     I last seen incompressible
//!                       C stored: marked by who moves it to another tier
//!
//!  of a resident page   C, not H   clean: write-protected, the copy has its bytes
//!                       C and H    kept: writable, the copy may have other bytes
//! ```
//!
//! All zero is `Empty`: a fresh table needs no initialisation.

/// Where a page is. The numbers are those in the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PageState {
    /// Nothing was ever stored here, or it was discarded: reads as zero.
    Empty = 0,
    /// Mapped; the program touches it freely.
    Resident = 1,
    /// Write-protected, being compressed; a touch cancels.
    Evicting = 2,
    /// Committed: the mapping is being taken away; a touch waits.
    Dropping = 3,
    /// Compressed; the payload is its slot.
    Stored = 4,
    /// One 32-bit value all over; the payload is the value.
    Filled = 5,
    /// One thread is changing it; a touch waits.
    Claimed = 6,
    /// Its bytes could not be brought back; a touch stops the process.
    Lost = 7,
}

impl PageState {
    const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            0 => Self::Empty,
            1 => Self::Resident,
            2 => Self::Evicting,
            3 => Self::Dropping,
            4 => Self::Stored,
            5 => Self::Filled,
            6 => Self::Claimed,
            _ => Self::Lost,
        }
    }
}

/// Largest payload.
pub const PAYLOAD_MAX: u64 = (1 << 40) - 1;

const WAITERS: u64 = 1 << 3;
const CLEAN: u64 = 1 << 4;
const PINNED: u64 = 1 << 5;
const WRITE_HOT: u64 = 1 << 6;
const INCOMPRESSIBLE: u64 = 1 << 7;
const HEAT_SHIFT: u32 = 8;
const PAYLOAD_SHIFT: u32 = 24;

/// A snapshot of a page's word. Changing it changes nothing but the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Word(pub(crate) u64);

macro_rules! flag {
    ($(#[$doc:meta])* $get:ident, $with:ident, $bit:ident) => {
        $(#[$doc])*
        #[must_use]
        pub const fn $get(self) -> bool {
            self.0 & $bit != 0
        }
        $(#[$doc])*
        #[must_use]
        pub const fn $with(self, on: bool) -> Self {
            Self(if on { self.0 | $bit } else { self.0 & !$bit })
        }
    };
}

impl Word {
    /// The word of a page that was never touched.
    pub const EMPTY: Self = Self(0);

    /// The state.
    #[must_use]
    pub const fn state(self) -> PageState {
        PageState::from_bits(self.0)
    }

    /// The same word in another state.
    #[must_use]
    pub const fn with_state(self, state: PageState) -> Self {
        Self((self.0 & !7) | state as u64)
    }

    flag!(
        /// Somebody sleeps on the word.
        has_waiters, with_waiters, WAITERS);
    /// Of a resident page: the payload is a slot that belongs to it. Whether the slot
    /// has the page's bytes depends: see [`Word::is_clean`] and [`Word::is_kept`].
    #[must_use]
    pub const fn has_copy(self) -> bool {
        self.0 & CLEAN != 0
    }

    /// Resident and unchanged since it was restored: write-protected, and
    /// the payload is the slot that still holds its bytes.
    #[must_use]
    pub const fn is_clean(self) -> bool {
        self.0 & (CLEAN | WRITE_HOT) == CLEAN
    }

    /// The same word, clean; or without a copy, whatever it had.
    #[must_use]
    pub const fn with_clean(self, on: bool) -> Self {
        let without = self.0 & !CLEAN;
        Self(if on {
            without & !WRITE_HOT | CLEAN
        } else {
            without
        })
    }

    /// Resident, writable, and the payload is the slot that held its bytes when it
    /// was restored. Whether it does still, nobody knows before the page is protected
    /// and compared: to everyone else the page is a dirty one that owns a slot.
    #[must_use]
    pub const fn is_kept(self) -> bool {
        self.0 & (CLEAN | WRITE_HOT) == CLEAN | WRITE_HOT
    }

    /// The same word, kept: it is hot for writing, too.
    #[must_use]
    pub const fn with_kept(self) -> Self {
        Self(self.0 | CLEAN | WRITE_HOT)
    }

    /// The same word of a resident page, without its copy.
    #[must_use]
    pub const fn without_copy(self) -> Self {
        self.with_clean(false).with_payload(0)
    }

    flag!(
        /// Of a *stored* page, in the same bit: its bytes are what they were
        /// when the mark was set. Whoever moves pages to another tier sets it
        /// when it copies the bytes, and points the page to its new place only
        /// while the mark is there. Restoring the page takes it off and
        /// evicting it does not bring it back, so that it proves what the slot
        /// alone cannot: a slot may be given back and come again with other
        /// bytes of the same page (ABA). Moving a page from slot to slot keeps
        /// it. One thread at a time marks pages of a table.
        is_marked, with_marked, CLEAN);
    flag!(
        /// Must not be evicted.
        is_pinned, with_pinned, PINNED);
    flag!(
        /// Was written soon after a read restored it: worth restoring
        /// writable at once.
        is_write_hot, with_write_hot, WRITE_HOT);
    flag!(
        /// Did not shrink when it was last compressed.
        is_incompressible, with_incompressible, INCOMPRESSIBLE);

    /// What the replacement policy keeps of the page; the table gives it no
    /// meaning.
    #[must_use]
    pub const fn heat(self) -> u16 {
        (self.0 >> HEAT_SHIFT) as u16
    }

    /// The same word with other bits of the policy.
    #[must_use]
    pub const fn with_heat(self, heat: u16) -> Self {
        let cleared = self.0 & !((u16::MAX as u64) << HEAT_SHIFT);
        Self(cleared | ((heat as u64) << HEAT_SHIFT))
    }

    /// The slot or pattern.
    #[must_use]
    pub const fn payload(self) -> u64 {
        self.0 >> PAYLOAD_SHIFT
    }

    /// The same word with another payload.
    ///
    /// # Panics
    /// When it does not fit in 40 bits.
    #[must_use]
    pub const fn with_payload(self, payload: u64) -> Self {
        assert!(payload <= PAYLOAD_MAX, "payload of a page word has 40 bits");
        Self((self.0 & ((1 << PAYLOAD_SHIFT) - 1)) | (payload << PAYLOAD_SHIFT))
    }

    /// Low half, for a futex.
    #[must_use]
    pub const fn low_half(self) -> u32 {
        self.0 as u32
    }
}

impl core::fmt::Debug for Word {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.state())?;
        for (on, name) in [
            (self.has_waiters(), "waiters"),
            (self.is_clean(), "clean"),
            (self.is_kept(), "kept"),
            (self.is_pinned(), "pinned"),
            (self.is_write_hot(), "write-hot"),
            (self.is_incompressible(), "incompressible"),
        ] {
            if on {
                write!(f, " {name}")?;
            }
        }
        write!(f, " heat={:#x} payload={:#x}", self.heat(), self.payload())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let word = Word::EMPTY
            .with_state(PageState::Lost)
            .with_heat(u16::MAX)
            .with_payload(PAYLOAD_MAX)
            .with_waiters(true)
            .with_clean(true)
            .with_pinned(true)
            .with_write_hot(true)
            .with_incompressible(true);
        assert_eq!(word.0, u64::MAX);
        let bare = word.with_heat(3).with_payload(5).with_clean(false);
        assert_eq!(
            (bare.state(), bare.heat(), bare.payload()),
            (PageState::Lost, 3, 5)
        );
        assert!(bare.is_pinned() && bare.has_waiters() && !bare.is_clean());
    }

    #[test]
    fn every_state_survives_the_round_trip() {
        for bits in 0..8 {
            let state = PageState::from_bits(bits);
            assert_eq!(Word::EMPTY.with_state(state).state(), state);
        }
    }
}

//! Layout of the page word.
//!
//! ```text
//!  63                              24 23       15 14  12 11   8 7 6 5 4 3 2   0
//! ┌──────────────────────────────────┬───────────┬──────┬──────┬─┬─┬─┬─┬─┬─────┐
//! │ payload: slot, pattern or nonce  │   epoch   │level │credit│I│H│P│C│W│state│
//! └──────────────────────────────────┴───────────┴──────┴──────┴─┴─┴─┴─┴─┴─────┘
//!   W somebody waits    C resident and clean: payload is its slot
//!   P pinned            H hot for writing     I last seen incompressible
//! ```
//!
//! All zero is `Empty`: a fresh table needs no initialisation.

/// Where a page is. The numbers are those in the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing was ever stored here, or it was discarded: reads as zero.
    Empty = 0,
    /// Mapped; the program touches it freely.
    Resident = 1,
    /// Write-protected, being compressed; a touch cancels.
    Evicting = 2,
    /// Sealed: the mapping is being taken away; a touch waits.
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

impl State {
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

/// Largest value of [`Word::credit`].
pub const CREDIT_MAX: u8 = 15;
/// Largest value of [`Word::level`].
pub const LEVEL_MAX: u8 = 7;
/// Epochs are counted modulo `EPOCH_MASK + 1`.
pub const EPOCH_MASK: u16 = 0x1FF;
/// Largest payload.
pub const PAYLOAD_MAX: u64 = (1 << 40) - 1;

const WAITERS: u64 = 1 << 3;
const CLEAN: u64 = 1 << 4;
const PINNED: u64 = 1 << 5;
const WRITE_HOT: u64 = 1 << 6;
const INCOMPRESSIBLE: u64 = 1 << 7;
const CREDIT_SHIFT: u32 = 8;
const LEVEL_SHIFT: u32 = 12;
const EPOCH_SHIFT: u32 = 15;
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
    pub const fn state(self) -> State {
        State::from_bits(self.0)
    }

    /// The same word in another state.
    #[must_use]
    pub const fn with_state(self, state: State) -> Self {
        Self((self.0 & !7) | state as u64)
    }

    flag!(
        /// Somebody sleeps on the word.
        has_waiters, with_waiters, WAITERS);
    flag!(
        /// Resident and unchanged since it was restored: write-protected, and
        /// the payload is the slot that still holds its bytes.
        is_clean, with_clean, CLEAN);
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

    /// How many more passes of the clock hand the page survives.
    #[must_use]
    pub const fn credit(self) -> u8 {
        ((self.0 >> CREDIT_SHIFT) & CREDIT_MAX as u64) as u8
    }

    /// The same word with another credit (clamped).
    #[must_use]
    pub const fn with_credit(self, credit: u8) -> Self {
        let credit = if credit > CREDIT_MAX {
            CREDIT_MAX
        } else {
            credit
        };
        let cleared = self.0 & !((CREDIT_MAX as u64) << CREDIT_SHIFT);
        Self(cleared | ((credit as u64) << CREDIT_SHIFT))
    }

    /// How hot the page proved to be over its past lives.
    #[must_use]
    pub const fn level(self) -> u8 {
        ((self.0 >> LEVEL_SHIFT) & LEVEL_MAX as u64) as u8
    }

    /// The same word with another level (clamped).
    #[must_use]
    pub const fn with_level(self, level: u8) -> Self {
        let level = if level > LEVEL_MAX { LEVEL_MAX } else { level };
        let cleared = self.0 & !((LEVEL_MAX as u64) << LEVEL_SHIFT);
        Self(cleared | ((level as u64) << LEVEL_SHIFT))
    }

    /// When the page was evicted, on the reclaimer's clock.
    #[must_use]
    pub const fn epoch(self) -> u16 {
        ((self.0 >> EPOCH_SHIFT) & EPOCH_MASK as u64) as u16
    }

    /// The same word with another epoch (modulo).
    #[must_use]
    pub const fn with_epoch(self, epoch: u16) -> Self {
        let cleared = self.0 & !((EPOCH_MASK as u64) << EPOCH_SHIFT);
        Self(cleared | (((epoch & EPOCH_MASK) as u64) << EPOCH_SHIFT))
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
            (self.is_pinned(), "pinned"),
            (self.is_write_hot(), "write-hot"),
            (self.is_incompressible(), "incompressible"),
        ] {
            if on {
                write!(f, " {name}")?;
            }
        }
        write!(
            f,
            " credit={} level={} epoch={} payload={:#x}",
            self.credit(),
            self.level(),
            self.epoch(),
            self.payload()
        )
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn fields_do_not_overlap() {
        let word = Word::EMPTY
            .with_state(State::Lost)
            .with_credit(15)
            .with_level(7)
            .with_epoch(0x1FF)
            .with_payload(PAYLOAD_MAX)
            .with_waiters(true)
            .with_clean(true)
            .with_pinned(true)
            .with_write_hot(true)
            .with_incompressible(true);
        assert_eq!(word.0, u64::MAX);
        let bare = word
            .with_credit(0)
            .with_payload(5)
            .with_epoch(3)
            .with_clean(false);
        assert_eq!(
            (
                bare.state(),
                bare.credit(),
                bare.level(),
                bare.epoch(),
                bare.payload()
            ),
            (State::Lost, 0, 7, 3, 5)
        );
        assert!(bare.is_pinned() && bare.has_waiters() && !bare.is_clean());
    }

    #[test]
    fn every_state_survives_the_round_trip() {
        for bits in 0..8 {
            let state = State::from_bits(bits);
            assert_eq!(Word::EMPTY.with_state(state).state(), state);
        }
    }
}

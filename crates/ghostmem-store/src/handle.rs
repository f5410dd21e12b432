//! What callers hold: owners, slot handles, and the header word that ties a
//! slot to its owner.
//!
//! ```text
//!  63     57 56   53 52       40 39                                    0
//! ┌─────────┬───────┬───────────┬───────────────────────────────────────┐
//! │ pattern │ codec │  length   │ owner                                 │
//! └─────────┴───────┴───────────┴───────────────────────────────────────┘
//! ```

use crate::MAX_SLOT_BYTES;
use crate::class::{self, CLASSES, SLOTS_MAX};
use crate::slabs::SlotRef;

/// Bits of an owner and of a slot handle.
const ID_BITS: u32 = 40;
const ID_MASK: u64 = (1 << ID_BITS) - 1;
const LEN_MASK: u64 = (1 << 13) - 1;

/// Most slabs whose handles fit: 1 TiB of slots.
pub(crate) const SLABS_MAX: usize = 1 << 24;

const _: () = assert!(SLOTS_MAX <= 256, "an index has eight bits");
const _: () = assert!(
    CLASSES <= Place::FIRST_CLASS as usize,
    "the last classes are other tiers'"
);

/// Set in every header: memory that was never a header rarely passes for one.
const PATTERN: u64 = 0b101_0110;

/// The page that owns a slot: 40 bits whose meaning is the caller's.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Owner(u64);

impl Owner {
    /// An owner from a number below 2^40; higher bits are dropped.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        debug_assert!(id <= ID_MASK, "an owner has 40 bits");
        Self(id & ID_MASK)
    }

    /// The number given to [`Owner::new`].
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A slot of the store: fits in 40 bits and is never 0, so that 0 can mean
/// "none" in a page word.
///
/// ```text
///  39        16 15    8 7     0
/// ┌────────────┬───────┬───────┐
/// │ slab       │ class │ index │  + 1
/// └────────────┴───────┴───────┘
/// ```
/// The class is the slab's, which cannot change while one of its slots is in
/// use. Carrying it saves a restore the look at the slab's row, a line that is
/// seldom in the cache. Classes from 252 on are no slabs': see [`Place`].
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Slot(u64);

impl Slot {
    /// The slot whose [`Slot::bits`] these are; `None` for 0, for numbers of
    /// more than 40 bits and for places in another tier.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match Place::from_bits(bits) {
            Some(Place::Store(slot)) => Some(slot),
            _ => None,
        }
    }

    /// The handle as a number in `1..2^40`.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Bytes of memory that the slot takes, header and waste included: at most
    /// a page and a header. Read off the handle, which may be stale.
    #[must_use]
    pub fn room_bytes(self) -> usize {
        class::geometry(self.parts().class).slot_bytes as usize
    }

    pub(crate) const fn new(at: SlotRef) -> Self {
        let place = (at.slab as u64) << 16 | (at.class as u64) << 8 | at.index as u64;
        Self(place + 1)
    }

    pub(crate) const fn parts(self) -> SlotRef {
        let place = self.0 - 1;
        SlotRef {
            slab: (place >> 16) as u32,
            index: (place & 0xFF) as u32,
            class: (place >> 8) as u8,
        }
    }
}

/// One of the tiers that a heap has beside the store.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash)]
pub struct TierId(u8);

impl TierId {
    /// Tiers that a page word can name.
    pub const COUNT: u8 = 4;

    /// The tier with a number below [`TierId::COUNT`].
    ///
    /// # Panics
    /// When the number is not.
    #[must_use]
    pub const fn new(number: u8) -> Self {
        assert!(number < Self::COUNT, "no tier has that number");
        Self(number)
    }

    /// The number given to [`TierId::new`].
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// A page's place in a tier.
#[derive(Copy, Clone, PartialEq, Eq, Debug, Hash)]
pub struct TierSlot(u32);

impl TierSlot {
    /// Numbers are below this: in the last tier all ones would be 2^40.
    pub const END: u32 = u32::MAX;

    /// The slot with a number below [`TierSlot::END`].
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        Self(number)
    }

    /// The number given to [`TierSlot::from_number`].
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// Where a stored page is, in the 40 bits of a page word: in a slot of the
/// store, or in one of a tier, which is 32 bits to us.
///
/// ```text
///  39                16 15    8 7          0
/// ┌────────────────────┬───────┬────────────┐
/// │ number, upper bits │ class │ lower bits │  + 1
/// └────────────────────┴───────┴────────────┘
///                       255 - tier
/// ```
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the store.
    Store(Slot),
    /// In a tier.
    Cold(TierId, TierSlot),
}

impl Place {
    /// The class of tier 0: that of others is as much less as their number.
    const LAST_CLASS: u64 = 0xFF;
    /// The first class that is no slab's.
    const FIRST_CLASS: u64 = Self::LAST_CLASS + 1 - TierId::COUNT as u64;

    /// The place whose [`Place::bits`] these are; `None` for 0 and for numbers
    /// of more than 40 bits.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits == 0 || bits > ID_MASK {
            return None;
        }
        let place = bits - 1;
        let class = place >> 8 & 0xFF;
        if class >= Self::FIRST_CLASS {
            let number = place >> 16 << 8 | place & 0xFF;
            let tier = TierId((Self::LAST_CLASS - class) as u8);
            return Some(Self::Cold(tier, TierSlot(number as u32)));
        }
        Some(Self::Store(Slot(bits)))
    }

    /// The place as a number in `1..2^40`.
    ///
    /// # Panics
    /// When the number of a tier's slot is too large.
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::Store(slot) => slot.bits(),
            Self::Cold(tier, slot) => {
                assert!(slot.0 < TierSlot::END, "one number too many");
                let number = slot.0 as u64;
                let class = Self::LAST_CLASS - tier.0 as u64;
                (number >> 8 << 16 | class << 8 | number & 0xFF) + 1
            }
        }
    }
}

/// What the header of a slot says.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct SlotInfo {
    /// The page that owns the slot.
    pub owner: Owner,
    /// Payload bytes, `1..=4096`.
    pub len: usize,
    /// How the payload is encoded, `0..=15`; the store does not look at it.
    pub codec: u8,
}

impl SlotInfo {
    pub(crate) const fn to_header(self) -> u64 {
        self.owner.0
            | (self.len as u64 & LEN_MASK) << ID_BITS
            | (self.codec as u64 & 15) << 53
            | PATTERN << 57
    }

    /// Decodes a header, whatever is in it; the length never exceeds
    /// [`MAX_SLOT_BYTES`].
    pub(crate) const fn from_header(word: u64) -> Self {
        let len = ((word >> ID_BITS) & LEN_MASK) as usize;
        Self {
            owner: Owner(word & ID_MASK),
            len: if len > MAX_SLOT_BYTES {
                MAX_SLOT_BYTES
            } else {
                len
            },
            codec: ((word >> 53) & 15) as u8,
        }
    }

    /// Decodes a word that may never have been a header; `None` when it
    /// cannot be one. A stale header passes.
    pub(crate) const fn from_doubtful(word: u64) -> Option<Self> {
        let len = (word >> ID_BITS) & LEN_MASK;
        if word >> 57 == PATTERN && len >= 1 && len <= MAX_SLOT_BYTES as u64 {
            Some(Self::from_header(word))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_every_field() {
        for owner in [0, 1, ID_MASK] {
            for len in [1, 77, 4096] {
                for codec in 0..=15 {
                    let info = SlotInfo {
                        owner: Owner::new(owner),
                        len,
                        codec,
                    };
                    assert_eq!(SlotInfo::from_header(info.to_header()), info);
                    assert_eq!(SlotInfo::from_doubtful(info.to_header()), Some(info));
                }
            }
        }
    }

    #[test]
    fn words_that_are_no_header_are_seen() {
        assert_eq!(SlotInfo::from_doubtful(0), None);
        assert_eq!(SlotInfo::from_doubtful(u64::MAX), None);
        assert_eq!(SlotInfo::from_doubtful(PATTERN << 57), None, "no length");
        assert!(SlotInfo::from_header(u64::MAX).len <= MAX_SLOT_BYTES);
    }

    #[test]
    fn handles_are_never_zero_and_fit_forty_bits() {
        let first = SlotRef {
            slab: 0,
            index: 0,
            class: 0,
        };
        let last = SlotRef {
            slab: SLABS_MAX as u32 - 1,
            index: SLOTS_MAX as u32 - 1,
            class: CLASSES as u8 - 1,
        };
        assert_eq!(Slot::new(first).bits(), 1);
        for at in [first, last] {
            let slot = Slot::new(at);
            assert_eq!(Slot::from_bits(slot.bits()), Some(slot));
            assert_eq!(slot.parts(), at);
        }
        assert_eq!(Slot::from_bits(0), None);
        assert_eq!(Slot::from_bits(1 << 40), None);
    }

    #[test]
    fn places_in_tiers_are_told_from_slots_and_from_each_other() {
        let mut seen = std::collections::HashSet::new();
        for tier in (0..TierId::COUNT).map(TierId::new) {
            for number in [0, 1, 0xFF, 0x100, 0xFF00, 0x1234_5678, TierSlot::END - 1] {
                let place = Place::Cold(tier, TierSlot::from_number(number));
                assert!(place.bits() > 0 && place.bits() <= ID_MASK);
                assert!(seen.insert(place.bits()), "{place:?}");
                assert_eq!(Place::from_bits(place.bits()), Some(place));
                assert_eq!(Slot::from_bits(place.bits()), None);
            }
        }
        let slot = Slot::new(SlotRef {
            slab: 0xFF_FFFF,
            index: 0xFF,
            class: CLASSES as u8 - 1,
        });
        assert_eq!(Place::from_bits(slot.bits()), Some(Place::Store(slot)));
        assert_eq!(Place::from_bits(0), None);
        assert_eq!(Place::from_bits(1 << 40), None);
    }
}

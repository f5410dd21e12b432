//! How memory is shared out between resident pages, compressed pages and copies.
//!
//! ```text
//!   share of the store                       memory limit
//!   share + 1/16  faults that store wait     limit            never passed for copies
//!   share         what the store may hold    limit - margin   copies are given up here
//!   share - 1/32  moving to the file begins  half a margin    below: copies are kept again
//!   share - 1/16  moving to the file ends
//! ```

/// What the store may hold, bytes, while a file takes what is beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreShare(u64);

impl StoreShare {
    /// The share: `fixed_bytes` where it was set; else what `memory_bytes` leaves
    /// beside the resident limit and the tables; else as much as may be resident.
    #[must_use]
    pub fn new(
        fixed_bytes: Option<u64>,
        memory_bytes: Option<u64>,
        resident_limit_bytes: u64,
        table_bytes: u64,
    ) -> Self {
        Self(match (fixed_bytes, memory_bytes) {
            (Some(bytes), _) => bytes,
            (None, Some(memory)) => {
                let left = memory.saturating_sub(resident_limit_bytes.saturating_add(table_bytes));
                // Room for being behind, and some of it in any case.
                (left - left / 16).max(memory / 32)
            }
            (None, None) => resident_limit_bytes,
        })
    }

    /// A share of so many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The share, bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Moving to the file begins above so many bytes.
    #[must_use]
    pub const fn begin_bytes(self) -> u64 {
        self.0 - self.0 / 32
    }

    /// Moving to the file ends below so many bytes.
    #[must_use]
    pub const fn end_bytes(self) -> u64 {
        self.0 - self.0 / 16
    }

    /// Above so many bytes whatever makes the store grow has to wait. At least two
    /// batches of `batch_bytes` above the share: one is written while the next grows.
    #[must_use]
    pub fn behind_bytes(self, batch_bytes: u64) -> u64 {
        self.0.saturating_add((self.0 / 16).max(2 * batch_bytes))
    }
}

/// What a memory limit says about kept copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copies {
    /// There is room: restores keep them.
    Keep,
    /// Neither more nor fewer.
    Leave,
    /// So many bytes of them have to go.
    GiveUp(usize),
}

/// The margin below a memory limit, as a part of it: room for what is evicted between
/// two looks, and for free slots.
const MARGIN_SHARE: usize = 32;
/// The margin at most, likewise: small limits need most of theirs.
const MARGIN_MOST_SHARE: usize = 8;
/// Free slots that a tidy store has for its live ones, as a part.
const FREE_SHARE: usize = 32;

/// Bytes below a memory limit at which copies are given up; `batch_bytes` is what one
/// batch of evictions stores at most.
#[must_use]
pub fn copies_margin_bytes(limit_bytes: usize, batch_bytes: usize) -> usize {
    (limit_bytes / MARGIN_SHARE)
        .max(batch_bytes)
        .min(limit_bytes / MARGIN_MOST_SHARE)
}

/// Compares live slots with what a memory limit leaves beside `fixed_bytes`, which is
/// the resident limit and all tables.
#[must_use]
pub fn copies(
    limit_bytes: usize,
    batch_bytes: usize,
    fixed_bytes: usize,
    slot_bytes: usize,
) -> Copies {
    let margin = copies_margin_bytes(limit_bytes, batch_bytes);
    let most = limit_bytes - margin;
    let wanted = fixed_bytes.saturating_add(slot_bytes + slot_bytes / FREE_SHARE);
    if wanted > most {
        Copies::GiveUp(wanted - most)
    } else if wanted + margin / 2 <= most {
        Copies::Keep
    } else {
        Copies::Leave
    }
}

/// What a bound says about kept copies of `copied_bytes` where they may take `most_bytes`,
/// and resident pages have what the store leaves. With `least`, no more than the fewest
/// pages are resident: no copy is worth one of those.
#[must_use]
pub const fn copies_beside(most_bytes: usize, copied_bytes: usize, least: bool) -> Copies {
    let most = if least { 0 } else { most_bytes };
    if copied_bytes > most {
        Copies::GiveUp(copied_bytes - most)
    } else if copied_bytes <= most / 8 * 7 && !least {
        Copies::Keep
    } else {
        Copies::Leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_share_is_what_was_set_or_what_is_left_or_as_much_as_is_resident() {
        let share = |fixed, memory| StoreShare::new(fixed, memory, 8 * MIB, 2 * MIB).bytes();
        assert_eq!(share(Some(5), Some(100 * MIB)), 5);
        assert_eq!(share(None, Some(26 * MIB)), 15 * MIB);
        // Too little left: a thirty-second of the memory all the same.
        assert_eq!(share(None, Some(9 * MIB)), 9 * MIB / 32);
        assert_eq!(share(None, None), 8 * MIB);
    }

    #[test]
    fn moving_ends_before_it_begins_and_begins_before_anybody_waits() {
        for bytes in [0, 1, 31, 1000, MIB, 1 << 40] {
            let share = StoreShare::from_bytes(bytes);
            assert!(share.end_bytes() <= share.begin_bytes());
            assert!(share.begin_bytes() <= share.bytes());
            assert!(share.behind_bytes(MIB) >= share.bytes() + 2 * MIB);
        }
    }

    #[test]
    fn copies_go_above_the_margin_and_come_back_below_half_of_it() {
        let limit = 64 << 20;
        let batch = 1 << 20;
        let margin = copies_margin_bytes(limit, batch);
        assert_eq!(margin, 2 << 20);
        let fixed = limit / 2;
        let said = |slots: usize| copies(limit, batch, fixed, slots);
        // Live slots and their share of free ones fill what is left to the byte.
        let full = (limit - margin - fixed) / 33 * 32;
        assert_eq!(
            said(full + 64),
            Copies::GiveUp(66 - (limit - margin - fixed) % 33)
        );
        assert_eq!(said(full - margin / 4), Copies::Leave);
        assert_eq!(said(full - margin), Copies::Keep);
    }

    #[test]
    fn copies_beside_pages_have_their_share_and_none_of_the_last_pages() {
        let said = |mib: usize| copies_beside(8 << 20, mib << 20, false);
        assert_eq!(said(9), Copies::GiveUp(1 << 20));
        assert_eq!((said(8), said(7)), (Copies::Leave, Copies::Keep));
        assert_eq!(copies_beside(8 << 20, 5, true), Copies::GiveUp(5));
        assert_eq!(copies_beside(8 << 20, 0, true), Copies::Leave);
    }

    #[test]
    fn a_small_limit_has_a_small_margin() {
        assert_eq!(copies_margin_bytes(4 << 20, 1 << 20), 512 << 10);
        assert_eq!(copies_margin_bytes(1 << 30, 1 << 20), 32 << 20);
    }
}

//! Size classes: how a slab is cut into slots.
//!
//! A slab is [`SLAB_BYTES`] of *address space*. A class uses its first `pages`
//! pages, cut into `slots` equal slots, and never touches the rest, so the
//! rest is never backed by memory. That freedom makes almost any slot size
//! possible without waste: the table picks, for every size, the number of
//! pages that leaves the smallest tail (mostly below 0.1 %).
//!
//! ```text
//!   slab, 64 KiB of addresses                        class of 1376-byte slots
//!   ┌──────────┬──────────┬─ ─ ─┬──────────┬┬───────────────────────────────┐
//!   │ slot 0   │ slot 1   │     │ slot n-1 ││ never touched, never backed   │
//!   └──────────┴──────────┴─ ─ ─┴──────────┴┴───────────────────────────────┘
//!    8 B header + payload, in every class but the raw one  ◄ tail: n * size
//!                                                            to a page end
//! ```
//!
//! The last class is the *raw* one: 16 slots of exactly one page each, whose
//! headers live outside the slab.

/// Address space of one slab, bytes. Large enough that tails vanish, small
/// enough that a slab empties often and is cheap to empty by compaction.
pub(crate) const SLAB_BYTES: usize = 64 << 10;

pub(crate) use ghostmem_os::PAGE_SIZE;

/// Pages in a slab: the bits of its backed mask.
pub(crate) const SLAB_PAGES: usize = SLAB_BYTES / PAGE_SIZE;

/// Most slots a slab may have: four bitmap words, eight bits of a handle.
pub(crate) const SLOTS_MAX: usize = 256;

/// Bytes of the header in front of a slot's payload.
pub(crate) const HEADER_BYTES: usize = 8;

/// Smallest slot, bytes, header included.
const SLOT_BYTES_MIN: usize = 32;

/// Smallest distance between two classes, bytes; above 1 KiB it grows to 1/64
/// of the size. More classes round less, but each may keep a part-filled slab.
const STEP_BYTES_MIN: usize = 16;

/// How a slab of one class is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Bytes from one slot to the next, a multiple of 8.
    pub(crate) slot_bytes: u32,
    /// Slots in a slab, `1..=SLOTS_MAX`.
    pub(crate) slots: u32,
}

impl Geometry {
    /// The mask of pages slot `index` lies on, bit 0 being the slab's first.
    pub(crate) const fn page_mask(self, index: u32) -> u64 {
        let start = (index * self.slot_bytes) as usize;
        let first = start / PAGE_SIZE;
        let last = (start + self.slot_bytes as usize - 1) / PAGE_SIZE;
        (u64::MAX << first) & (u64::MAX >> (63 - last))
    }
}

/// The cut with the least memory per slot among those whose slots hold at
/// least `bytes`.
const fn best_cut(bytes: usize) -> Geometry {
    let mut best_pages = 0;
    let mut best_slots = 1;
    let mut pages = 1;
    while pages <= SLAB_PAGES {
        let fit = pages * PAGE_SIZE / bytes;
        let slots = if fit > SLOTS_MAX { SLOTS_MAX } else { fit };
        // At equal cost the larger slab wins: fewer descriptors.
        if slots > 0 && (best_pages == 0 || pages * best_slots <= best_pages * slots) {
            best_pages = pages;
            best_slots = slots;
        }
        pages += 1;
    }
    Geometry {
        slot_bytes: ((best_pages * PAGE_SIZE / best_slots) & !7) as u32,
        slots: best_slots as u32,
    }
}

const fn next_size(slot_bytes: usize) -> usize {
    let step = (slot_bytes / 64) & !7;
    slot_bytes
        + if step > STEP_BYTES_MIN {
            step
        } else {
            STEP_BYTES_MIN
        }
}

const fn count_classes() -> usize {
    let mut bytes = SLOT_BYTES_MIN;
    let mut count = 1;
    while bytes < PAGE_SIZE {
        let cut = best_cut(bytes);
        if cut.slot_bytes as usize >= PAGE_SIZE {
            break;
        }
        count += 1;
        bytes = next_size(cut.slot_bytes as usize);
    }
    count
}

/// Number of classes, the raw one included.
pub(crate) const CLASSES: usize = count_classes();

/// The class of whole pages: exactly 16 slots in a slab, headers elsewhere.
pub(crate) const RAW_CLASS: u8 = (CLASSES - 1) as u8;

const _: () = assert!(CLASSES <= 254, "a class number must fit eight bits");

const fn build() -> [Geometry; CLASSES] {
    let raw = Geometry {
        slot_bytes: PAGE_SIZE as u32,
        slots: SLAB_PAGES as u32,
    };
    let mut table = [raw; CLASSES];
    let mut bytes = SLOT_BYTES_MIN;
    let mut class = 0;
    while class < CLASSES - 1 {
        table[class] = best_cut(bytes);
        bytes = next_size(table[class].slot_bytes as usize);
        class += 1;
    }
    table
}

static TABLE: [Geometry; CLASSES] = build();

/// The class for every payload length, by eighths of it rounded up.
static BY_LENGTH: [u8; PAGE_SIZE / 8 + 1] = {
    let table = build();
    let mut by_length = [RAW_CLASS; PAGE_SIZE / 8 + 1];
    let mut eighths = 0;
    let mut class = 0;
    while eighths < by_length.len() {
        while class < CLASSES - 1 && (table[class].slot_bytes as usize) < eighths * 8 + HEADER_BYTES
        {
            class += 1;
        }
        by_length[eighths] = class as u8;
        eighths += 1;
    }
    by_length
};

/// The geometry of a class; that of the raw class for numbers never given out.
pub(crate) fn geometry(class: u8) -> Geometry {
    TABLE[(class as usize).min(CLASSES - 1)]
}

/// The class whose slots fit a payload of `len` bytes most tightly
/// (`len <= 4096`).
pub(crate) fn class_for(len: usize) -> u8 {
    BY_LENGTH[len.div_ceil(8).min(PAGE_SIZE / 8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a payload of `len` bytes may fill of a slot of this class.
    fn room(class: u8) -> usize {
        let bytes = geometry(class).slot_bytes as usize;
        if class == RAW_CLASS {
            bytes
        } else {
            bytes - HEADER_BYTES
        }
    }

    #[test]
    fn every_length_gets_the_tightest_class_that_holds_it() {
        for len in 1..=PAGE_SIZE {
            let class = class_for(len);
            assert!(room(class) >= len, "{len} in class {class}");
            assert!(class == 0 || room(class - 1) < len, "{len} is not tight");
        }
    }

    #[test]
    fn slots_ascend_stay_in_the_slab_and_leave_almost_no_tail() {
        let mut before = 0;
        for (class, cut) in TABLE.iter().enumerate() {
            assert!(cut.slot_bytes > before && cut.slot_bytes.is_multiple_of(8));
            before = cut.slot_bytes;
            assert!(cut.slots as usize <= SLOTS_MAX);
            let used = (cut.slots * cut.slot_bytes) as usize;
            assert!(used <= SLAB_BYTES);
            let tail = used.next_multiple_of(PAGE_SIZE) - used;
            assert!(
                tail * 100 <= used * 2,
                "class {class} {cut:?} wastes {tail}"
            );
        }
    }

    #[test]
    fn page_masks_cover_exactly_the_slot() {
        for cut in TABLE {
            for index in 0..cut.slots {
                let (start, end) = (index * cut.slot_bytes, (index + 1) * cut.slot_bytes);
                let expected = (0..SLAB_PAGES as u32)
                    .filter(|page| start < (page + 1) * 4096 && end > page * 4096)
                    .fold(0, |mask, page| mask | 1 << page);
                assert_eq!(cut.page_mask(index), expected);
            }
        }
    }
}

//! What a heap will take of memory once everything handed out has been written.
//!
//! Memory that nobody has written yet counts with the compression seen so far, as a
//! memory limit is on memory and not on address space. Pages that fit in free frames
//! need no slot. What a file has room for leaves memory but for its table entries.

/// What one page costs beside its bytes.
#[derive(Debug, Clone, Copy)]
pub struct PageCosts {
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Tables for a page: its word, its bits, its share of the block tree.
    pub table_bytes: usize,
    /// Memory for a page's worth of packed bytes in the file.
    pub file_entry_bytes: usize,
}

/// A heap's figures at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Holdings {
    /// Bytes handed out, written or not.
    pub handed_out_bytes: usize,
    /// Of those that are not written, what was reserved first and opened later.
    pub opened_bytes: usize,
    /// How many to one that is hoped to shrink, as most of it is never written; 0 stands
    /// for 1.
    pub opened_ratio: usize,
    /// Bytes of pages that are mapped.
    pub resident_bytes: usize,
    /// Of those, what can be packed when room is needed.
    pub squeezable_bytes: usize,
    /// Bytes that may be mapped beside them.
    pub frames_free_bytes: usize,
    /// Unpacked bytes of the pages in store and file, copies of resident pages
    /// included.
    pub stored_bytes: usize,
    /// Unpacked bytes of those copies.
    pub copied_bytes: usize,
    /// Packed bytes of the pages in store and file.
    pub packed_bytes: usize,
    /// Memory that the store holds.
    pub store_held_bytes: usize,
    /// Memory that the tables hold.
    pub table_bytes: usize,
    /// Packed bytes that the file takes beside what it has.
    pub file_room_bytes: usize,
    /// Enough pages were packed to take their ratio for the data's.
    pub ratio_is_known: bool,
    /// How many to one pages are packed as long as it is not known; 0 stands for 1.
    pub ratio_hoped_for: usize,
}

impl Holdings {
    /// Bytes handed out that no page holds yet.
    #[must_use]
    pub const fn untouched_bytes(&self) -> usize {
        // A page that is resident and keeps a copy was written once.
        let twice = self.resident_bytes.saturating_add(self.stored_bytes);
        let written = twice.saturating_sub(self.copied_bytes);
        self.handed_out_bytes.saturating_sub(written)
    }

    /// Bytes that resident pages, store and tables take once everything handed out
    /// has been written.
    #[must_use]
    pub fn needed_bytes(&self, costs: PageCosts) -> usize {
        let untouched = self.untouched_bytes();
        let pages = |bytes: usize| bytes / costs.page_bytes.max(1);
        let tables = self.table_bytes + pages(untouched) * costs.table_bytes;
        let beyond = untouched.saturating_sub(self.frames_free_bytes);
        let squeezed = self.squeezable_bytes.min(self.resident_bytes);
        let opened = self.opened_bytes.min(beyond);
        let leaving = (beyond - opened).saturating_add(squeezed);
        let hoped = self.packed(opened).min(opened / self.opened_ratio.max(1));
        let packed = self.store_held_bytes.saturating_add(self.packed(leaving));
        let packed = packed.saturating_add(hoped);
        let demoted = packed.min(self.file_room_bytes);
        let entries = pages(demoted) * costs.file_entry_bytes;
        let resident = self.resident_bytes - squeezed;
        [entries, tables, resident, untouched - beyond]
            .iter()
            .fold(packed - demoted, |sum, &part| sum.saturating_add(part))
    }

    /// `bytes` at the ratio seen so far, or hoped for before any was seen.
    fn packed(&self, bytes: usize) -> usize {
        if !self.ratio_is_known || self.stored_bytes == 0 {
            return bytes / self.ratio_hoped_for.max(1);
        }
        let packed = bytes as u128 * self.packed_bytes as u128 / self.stored_bytes as u128;
        usize::try_from(packed).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COSTS: PageCosts = PageCosts {
        page_bytes: 4096,
        table_bytes: 10,
        file_entry_bytes: 40,
    };
    const MIB: usize = 1 << 20;

    #[test]
    fn what_fits_in_free_frames_counts_as_it_is() {
        let heap = Holdings {
            handed_out_bytes: 8 * MIB,
            frames_free_bytes: 8 * MIB,
            ..Holdings::default()
        };
        assert_eq!(heap.needed_bytes(COSTS), 8 * MIB + 2048 * 10);
    }

    #[test]
    fn beyond_the_frames_the_ratio_seen_counts_and_one_to_one_before() {
        let heap = Holdings {
            handed_out_bytes: 40 * MIB,
            resident_bytes: 8 * MIB,
            stored_bytes: 16 * MIB,
            packed_bytes: 4 * MIB,
            store_held_bytes: 4 * MIB,
            ..Holdings::default()
        };
        assert_eq!(heap.untouched_bytes(), 16 * MIB);
        let tables = 4096 * 10;
        assert_eq!(heap.needed_bytes(COSTS), (8 + 4 + 16) * MIB + tables);
        let known = Holdings {
            ratio_is_known: true,
            ..heap
        };
        assert_eq!(known.needed_bytes(COSTS), (8 + 4 + 4) * MIB + tables);
    }

    #[test]
    fn a_page_and_its_copy_were_written_once() {
        let heap = Holdings {
            handed_out_bytes: 20 * MIB,
            resident_bytes: 8 * MIB,
            stored_bytes: 12 * MIB,
            copied_bytes: 6 * MIB,
            ..Holdings::default()
        };
        assert_eq!(heap.untouched_bytes(), 6 * MIB);
    }

    /// Java opens 84 MiB at once to have two fifths of its heap free.
    #[test]
    fn what_was_opened_and_is_not_written_is_hoped_for() {
        let heap = Holdings {
            handed_out_bytes: 264 * MIB,
            resident_bytes: 30 * MIB,
            squeezable_bytes: 30 * MIB,
            stored_bytes: 150 * MIB,
            packed_bytes: 60 * MIB,
            store_held_bytes: 60 * MIB,
            ratio_is_known: true,
            ratio_hoped_for: 4,
            opened_ratio: 16,
            ..Holdings::default()
        };
        let needed = |opened_mib: usize| {
            let opened_bytes = opened_mib * MIB;
            let heap = Holdings {
                opened_bytes,
                ..heap
            };
            (heap.needed_bytes(COSTS) - heap.untouched_bytes() / 4096 * 10) >> 10
        };
        assert_eq!(needed(0), (60 << 10) + (114 << 10) * 2 / 5);
        let beside = (30 << 10) * 2 / 5;
        assert_eq!(needed(84), (60 << 10) + beside + (84 << 10) / 16);
        assert_eq!(needed(1 << 20), needed(84), "no more than is not written");
        // What shrinks better than was hoped shrinks so here, too.
        let better = Holdings {
            packed_bytes: 5 * MIB,
            opened_bytes: 84 * MIB,
            ..heap
        };
        let without = Holdings {
            opened_bytes: 0,
            ..better
        };
        assert!(
            better
                .needed_bytes(COSTS)
                .abs_diff(without.needed_bytes(COSTS))
                < 2
        );
    }

    #[test]
    fn what_the_file_takes_costs_entries_only() {
        let heap = Holdings {
            handed_out_bytes: 40 * MIB,
            resident_bytes: 8 * MIB,
            stored_bytes: 32 * MIB,
            packed_bytes: 16 * MIB,
            store_held_bytes: 16 * MIB,
            ratio_is_known: true,
            file_room_bytes: 12 * MIB,
            ..Holdings::default()
        };
        assert_eq!(heap.needed_bytes(COSTS), (8 + 4) * MIB + 12 * 256 * 40);
        let endless = Holdings {
            file_room_bytes: usize::MAX,
            ..heap
        };
        assert_eq!(endless.needed_bytes(COSTS), 8 * MIB + 16 * 256 * 40);
    }

    #[test]
    fn nothing_overflows_whatever_is_handed_out() {
        let heap = Holdings {
            handed_out_bytes: usize::MAX,
            resident_bytes: MIB,
            stored_bytes: MIB,
            packed_bytes: MIB,
            store_held_bytes: MIB,
            ratio_is_known: true,
            ..Holdings::default()
        };
        assert!(heap.needed_bytes(COSTS) >= usize::MAX - MIB);
    }

    #[test]
    fn under_a_bound_resident_pages_count_as_packed_and_hope_stands_for_the_ratio() {
        let mut heap = Holdings {
            handed_out_bytes: 40 * MIB,
            resident_bytes: 8 * MIB,
            squeezable_bytes: 7 * MIB,
            ratio_hoped_for: 4,
            ..Holdings::default()
        };
        // A page that stays, and a quarter of the 7 and of the 32 that are not written.
        let tables = 32 * MIB / 4096 * COSTS.table_bytes;
        assert_eq!(heap.needed_bytes(COSTS), MIB + 39 * MIB / 4 + tables);
        // Seen: two to one.
        heap.ratio_is_known = true;
        heap.stored_bytes = 4 * MIB;
        heap.packed_bytes = 2 * MIB;
        heap.store_held_bytes = 2 * MIB;
        let tables = 28 * MIB / 4096 * COSTS.table_bytes;
        assert_eq!(
            heap.needed_bytes(COSTS),
            MIB + 2 * MIB + 35 * MIB / 2 + tables
        );
        // No more than is resident can leave.
        heap.squeezable_bytes = usize::MAX;
        assert_eq!(heap.needed_bytes(COSTS), 2 * MIB + 36 * MIB / 2 + tables);
    }
}

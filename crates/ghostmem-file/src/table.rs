//! What is known of segments and records, in memory that grows as it is used.
//!
//! ```text
//!  row of a segment: eight words, one cache line
//!  ┌──────┬────────────┬──────┬──────┬────────┬──────┬───────┐
//!  │ live │ generation │ file │ next │ blocks │ born │ flags │
//!  └──────┴────────────┴──────┴──────┴────────┴──────┴───────┘
//!  live     bit 63 held │ records (31) │ bytes (32)
//!  entry    bit 63 in use │ codec, 8 bits at 32 │ length - 1, 12 at 20 │ offset, 20
//! ```
//! Any thread changes `live` (by [`Table::release`]) and `next` of a segment whose
//! last record goes; everything else is the background thread's. Readers see what
//! it wrote because slots are handed over with release ordering by whoever
//! publishes them.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use ghostmem_os::OsError;
use ghostmem_os::bytes::ByteArena;
use ghostmem_os::map::ZeroArray;
use ghostmem_store::tier::TierSlot;

/// Bytes of the file that a segment takes at most.
pub const SEGMENT_BYTES: usize = 1 << 20;
/// Records in a segment at most.
pub(crate) const RECORDS: usize = 1 << RECORD_BITS;
const RECORD_BITS: u32 = 10;
/// Segments at most: the number of all ones names none.
pub(crate) const SEGMENTS_MAX: u32 = (1 << (32 - RECORD_BITS)) - 1;
/// Bytes of the entries of one segment.
pub(crate) const ENTRY_ROW_BYTES: usize = RECORDS * 8;

const OFFSET_BITS: u32 = 20;
const LEN_BITS: u32 = 12;
const IN_USE: u64 = 1 << 63;

const RECORD: u64 = 1 << 32;
/// In `live`: the segment is being filled or emptied and stays even without a
/// record.
const HELD: u64 = 1 << 63;

/// A slot's number as the file's: a segment and a record in it.
pub(crate) trait SlotNumber: Sized {
    fn new(segment: u32, index: u32) -> Self;
    fn segment(self) -> u32;
    fn index(self) -> u32;
}

impl SlotNumber for TierSlot {
    fn new(segment: u32, index: u32) -> Self {
        Self::from_number(segment << RECORD_BITS | index)
    }

    fn segment(self) -> u32 {
        self.number() >> RECORD_BITS
    }

    fn index(self) -> u32 {
        self.number() & (RECORDS as u32 - 1)
    }
}

/// Where a record is and what it must be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) slot: TierSlot,
    /// The filling of its segment, see [`crate::seal::Generation`].
    pub(crate) generation: u64,
    /// Place of its file in the table of files.
    pub(crate) file: usize,
    /// Its first byte in the segment.
    pub(crate) start: usize,
    /// Packed bytes.
    pub(crate) len: usize,
    pub(crate) codec: u8,
}

impl Record {
    /// Its first byte in the file.
    pub(crate) fn offset(&self) -> u64 {
        segment_offset(self.slot.segment()) + self.start as u64
    }
}

/// First byte of a segment in its file.
pub(crate) const fn segment_offset(segment: u32) -> u64 {
    segment as u64 * SEGMENT_BYTES as u64
}

/// What the background thread notes of a segment beside what readers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentState {
    /// No record, in some list or never used.
    Free,
    /// Being filled.
    Open,
    /// Filled; it may be cleaned.
    Closed,
    /// Filled, and cleaning it makes no sense: it could not be read.
    Damaged,
    /// No record, but a child may still read what is there.
    Frozen,
}

#[derive(Debug)]
pub(crate) struct Table {
    rows: ZeroArray<[AtomicU64; 8]>,
    entries: ByteArena,
    /// Segments whose last record has gone: the first one's number, then by `next`;
    /// 0 ends.
    emptied: AtomicU32,
}

mod word {
    pub(super) const LIVE: usize = 0;
    pub(super) const GENERATION: usize = 1;
    pub(super) const FILE: usize = 2;
    pub(super) const NEXT: usize = 3;
    pub(super) const BLOCKS: usize = 4;
    pub(super) const BORN: usize = 5;
    pub(super) const STATE: usize = 6;
}

impl Table {
    /// Tables for up to `segments` segments, or as many as there is address space
    /// for.
    pub(crate) fn new(segments: u32) -> Result<Self, OsError> {
        let mut segments = segments.min(SEGMENTS_MAX) as usize;
        loop {
            let rows = ZeroArray::new(segments);
            let entries = ByteArena::new(segments * ENTRY_ROW_BYTES);
            match (rows, entries) {
                (Ok(rows), Ok(entries)) => {
                    return Ok(Self {
                        rows,
                        entries,
                        emptied: AtomicU32::new(0),
                    });
                }
                (Err(error), _) | (_, Err(error)) if segments < 64 => return Err(error),
                _ => segments /= 2,
            }
        }
    }

    /// Segments there are, number 0 among them, which is never used.
    pub(crate) fn segments(&self) -> u32 {
        self.rows.len() as u32
    }

    fn row(&self, segment: u32) -> &[AtomicU64; 8] {
        &self.rows[segment as usize]
    }

    fn get(&self, segment: u32, word: usize) -> u64 {
        self.row(segment)[word].load(Relaxed)
    }

    fn set(&self, segment: u32, word: usize, value: u64) {
        self.row(segment)[word].store(value, Relaxed);
    }

    /// What a slot names; `None` when no record has it.
    pub(crate) fn find(&self, slot: TierSlot) -> Option<Record> {
        let segment = slot.segment();
        if segment >= self.segments() {
            return None;
        }
        let entry = self.entries.read_word(Self::entry_at(slot));
        if entry & IN_USE == 0 {
            return None;
        }
        Some(Record {
            slot,
            generation: self.get(segment, word::GENERATION),
            file: self.get(segment, word::FILE) as usize,
            start: (entry & ((1 << OFFSET_BITS) - 1)) as usize,
            len: (entry >> OFFSET_BITS & ((1 << LEN_BITS) - 1)) as usize + 1,
            codec: (entry >> (OFFSET_BITS + LEN_BITS)) as u8,
        })
    }

    fn entry_at(slot: TierSlot) -> usize {
        slot.segment() as usize * ENTRY_ROW_BYTES + slot.index() as usize * 8
    }

    /// Notes a record that takes `stored` bytes of a segment being filled.
    pub(crate) fn insert(
        &self,
        slot: TierSlot,
        start: usize,
        len: usize,
        codec: u8,
        stored: usize,
    ) {
        let entry = IN_USE
            | u64::from(codec) << (OFFSET_BITS + LEN_BITS)
            | (len as u64 - 1) << OFFSET_BITS
            | start as u64;
        self.entries.write_word(Self::entry_at(slot), entry);
        self.row(slot.segment())[word::LIVE].fetch_add(RECORD + stored as u64, Relaxed);
    }

    /// Takes a record of `stored` bytes out; its segment is put among the emptied
    /// when it was the last.
    pub(crate) fn remove(&self, slot: TierSlot, stored: usize) {
        self.entries.write_word(Self::entry_at(slot), 0);
        self.release(slot.segment(), RECORD + stored as u64);
    }

    /// Ends the time a segment is kept whatever its records.
    pub(crate) fn let_go(&self, segment: u32) {
        self.release(segment, HELD);
    }

    fn release(&self, segment: u32, what: u64) {
        let row = self.row(segment);
        if row[word::LIVE].fetch_sub(what, AcqRel) != what {
            return;
        }
        // Only the one that took the last away comes here, and the segment is not
        // filled again before the background thread has taken it off the list.
        let mut first = self.emptied.load(Relaxed);
        loop {
            row[word::NEXT].store(u64::from(first), Relaxed);
            match self
                .emptied
                .compare_exchange_weak(first, segment, Release, Relaxed)
            {
                Ok(_) => return,
                Err(now) => first = now,
            }
        }
    }

    /// Takes the whole list of emptied segments: its first, 0 for none.
    pub(crate) fn take_emptied(&self) -> u32 {
        if self.emptied.load(Relaxed) == 0 {
            return 0;
        }
        self.emptied.swap(0, Acquire)
    }

    pub(crate) fn next(&self, segment: u32) -> u32 {
        self.get(segment, word::NEXT) as u32
    }

    pub(crate) fn set_next(&self, segment: u32, next: u32) {
        self.set(segment, word::NEXT, u64::from(next));
    }

    /// Makes an empty segment one that is being filled.
    pub(crate) fn open(&self, segment: u32, generation: u64, file: usize, born: u64) {
        self.set(segment, word::GENERATION, generation);
        self.set(segment, word::FILE, file as u64);
        self.set(segment, word::BORN, born);
        self.set_state(segment, SegmentState::Open);
        self.row(segment)[word::LIVE].store(HELD, Release);
    }

    pub(crate) fn state(&self, segment: u32) -> SegmentState {
        match self.get(segment, word::STATE) {
            0 => SegmentState::Free,
            1 => SegmentState::Open,
            2 => SegmentState::Closed,
            3 => SegmentState::Damaged,
            _ => SegmentState::Frozen,
        }
    }

    pub(crate) fn set_state(&self, segment: u32, state: SegmentState) {
        self.set(segment, word::STATE, state as u64);
    }

    pub(crate) fn generation(&self, segment: u32) -> u64 {
        self.get(segment, word::GENERATION)
    }

    pub(crate) fn file(&self, segment: u32) -> usize {
        self.get(segment, word::FILE) as usize
    }

    pub(crate) fn born(&self, segment: u32) -> u64 {
        self.get(segment, word::BORN)
    }

    /// Bytes of blocks that a segment has in its file.
    pub(crate) fn blocks(&self, segment: u32) -> usize {
        self.get(segment, word::BLOCKS) as usize
    }

    pub(crate) fn set_blocks(&self, segment: u32, bytes: usize) {
        self.set(segment, word::BLOCKS, bytes as u64);
    }

    /// Records alive in a segment, and their bytes in the file.
    pub(crate) fn live(&self, segment: u32) -> (usize, usize) {
        let live = self.get(segment, word::LIVE) & !HELD;
        ((live >> 32) as usize, live as u32 as usize)
    }

    /// Gives the memory of an empty segment's entries back. They are all zero
    /// either way.
    pub(crate) fn forget_entries(&self, segment: u32) {
        let row = (segment as usize * ENTRY_ROW_BYTES, ENTRY_ROW_BYTES);
        let _kept = self.entries.decommit(&[row]);
    }
}

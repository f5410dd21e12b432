//! The store's memory: everything the slab protocol and the payload copies
//! work on, straight from the kernel and materialised as it is written.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use ghostmem_os::bytes::ByteArena;
use ghostmem_os::map::ZeroArray;
use ghostmem_os::shards::{LINE_BYTES, shards};
use ghostmem_os::{OsError, thread};

use crate::class::{self, CLASSES, Geometry, HEADER_BYTES, RAW_CLASS, SLAB_BYTES, SLAB_PAGES};
use crate::handle::SLABS_MAX;
use crate::memory::{Memory, Word};
use crate::slabs::SlotRef;
use crate::state::{GLOBALS, Global, row};

/// Global words on lines of their own: two of 64 bytes, which processors move at once.
#[derive(Debug)]
#[repr(align(128))]
struct Globals([AtomicU64; GLOBALS]);

/// Words of a tally, one cache line of counters.
pub(crate) mod tally {
    /// Slots ever filled.
    pub(crate) const INSERTS: usize = 0;
    /// Slots ever given back.
    pub(crate) const REMOVES: usize = 1;
    /// Payload bytes alive.
    pub(crate) const DATA_BYTES: usize = 2;
    /// Bytes of the slots alive.
    pub(crate) const SLOT_BYTES: usize = 3;
    /// Slots of the raw class alive.
    pub(crate) const RAW_SLOTS: usize = 4;
}

/// The lists: one for every class, spare slabs, unbacked slabs.
pub(crate) const LISTS: usize = CLASSES + 2;

/// Number of tallies: one page of them.
const TALLIES: usize = 64;

/// Listed slabs that a processor passes over at most.
const APART: usize = 8;

/// For each class the slab that a processor used last, in whole lines.
pub(crate) type LastSlabs = [AtomicU64; CLASSES.next_multiple_of(LINE_BYTES / 8)];

/// Bytes copied at a time from slot to slot.
const COPY_BYTES: usize = 512;

#[derive(Debug)]
pub(crate) struct Arrays {
    arena: ByteArena,
    slabs: ZeroArray<[AtomicU64; 8]>,
    lists: ZeroArray<[AtomicU64; 8]>,
    tallies: ZeroArray<[AtomicU64; 8]>,
    /// Headers of raw slots. A slab gets a row of it the first time it serves
    /// the raw class, for good, so that rows are as dense as raw slabs.
    raw_headers: ZeroArray<[AtomicU64; SLAB_PAGES]>,
    /// A row for each processor.
    last: ZeroArray<LastSlabs>,
    globals: Globals,
}

impl Arrays {
    pub(crate) fn new(capacity_bytes: usize) -> Result<Self, OsError> {
        // One slab more for every class, which may each have one half filled.
        let slabs = capacity_bytes
            .div_ceil(SLAB_BYTES)
            .saturating_add(CLASSES)
            .min(SLABS_MAX);
        let arrays = Self {
            arena: ByteArena::new(slabs * SLAB_BYTES)?,
            slabs: ZeroArray::new(slabs)?,
            lists: ZeroArray::new(LISTS)?,
            tallies: ZeroArray::new(TALLIES)?,
            raw_headers: ZeroArray::new(slabs)?,
            last: ZeroArray::new(shards())?,
            globals: Globals([const { AtomicU64::new(0) }; GLOBALS]),
        };
        arrays.global(Global::Limit).store(u64::MAX, Relaxed);
        Ok(arrays)
    }

    /// Byte offset of a slot in the arena.
    fn offset(at: SlotRef) -> usize {
        let slot_bytes = class::geometry(at.class).slot_bytes as usize;
        at.slab as usize * SLAB_BYTES + at.index as usize * slot_bytes
    }

    /// Where the payload of a slot starts, and how much it can hold.
    fn payload(at: SlotRef) -> (usize, usize) {
        let slot_bytes = class::geometry(at.class).slot_bytes as usize;
        let start = Self::offset(at);
        if at.class == RAW_CLASS {
            (start, slot_bytes)
        } else {
            (start + HEADER_BYTES, slot_bytes - HEADER_BYTES)
        }
    }

    fn raw_header(&self, at: SlotRef) -> Option<&AtomicU64> {
        let row = self.slabs[at.slab as usize][row::RAW_ROW].load(Acquire);
        self.raw_headers
            .get(row.checked_sub(1)? as usize)?
            .get(at.index as usize)
    }

    /// Reads the header of a slot; 0 where none can be.
    pub(crate) fn header(&self, at: SlotRef) -> u64 {
        if at.index >= class::geometry(at.class).slots {
            return 0;
        }
        if at.class == RAW_CLASS {
            return self.raw_header(at).map_or(0, |word| word.load(Relaxed));
        }
        self.arena.read_word(Self::offset(at))
    }

    /// Writes the header of a slot the caller owns.
    pub(crate) fn set_header(&self, at: SlotRef, header: u64) {
        if at.class != RAW_CLASS {
            self.arena.write_word(Self::offset(at), header);
        } else if let Some(word) = self.raw_header(at) {
            word.store(header, Relaxed);
        }
    }

    /// Starts to bring a slot's bytes into the cache.
    pub(crate) fn prefetch(&self, at: SlotRef) {
        let slot_bytes = class::geometry(at.class).slot_bytes as usize;
        self.arena.prefetch(Self::offset(at), slot_bytes);
    }

    /// Fills `out`, or as much of it as the slot can hold, from the payload.
    pub(crate) fn read(&self, at: SlotRef, out: &mut [u8]) {
        let (start, room) = Self::payload(at);
        let len = out.len().min(room);
        self.arena.read(start, &mut out[..len]);
    }

    /// Writes the payload of a slot the caller owns.
    pub(crate) fn write(&self, at: SlotRef, data: &[u8]) {
        let (start, room) = Self::payload(at);
        debug_assert!(data.len() <= room, "the class was chosen to fit");
        self.arena.write(start, &data[..data.len().min(room)]);
    }

    /// Copies `len` payload bytes between two slots the caller owns, with
    /// little stack.
    pub(crate) fn copy(&self, from: SlotRef, to: SlotRef, len: usize) {
        let mut buffer = [0_u8; COPY_BYTES];
        let (source, room) = Self::payload(from);
        let (target, room_there) = Self::payload(to);
        let len = len.min(room).min(room_there);
        let mut done = 0;
        while done < len {
            let part = &mut buffer[..COPY_BYTES.min(len - done)];
            self.arena.read(source + done, part);
            self.arena.write(target + done, part);
            done += part.len();
        }
    }

    /// Counts a slot filled with `len` bytes.
    pub(crate) fn count_insert(&self, at: SlotRef, len: usize) {
        let tally = self.tally_of(at.slab);
        tally[tally::INSERTS].fetch_add(1, Relaxed);
        tally[tally::DATA_BYTES].fetch_add(len as u64, Relaxed);
        let slot_bytes = u64::from(class::geometry(at.class).slot_bytes);
        tally[tally::SLOT_BYTES].fetch_add(slot_bytes, Relaxed);
        if at.class == RAW_CLASS {
            tally[tally::RAW_SLOTS].fetch_add(1, Relaxed);
        }
    }

    /// Counts a slot with `len` bytes given back.
    pub(crate) fn count_remove(&self, at: SlotRef, len: usize) {
        let tally = self.tally_of(at.slab);
        tally[tally::REMOVES].fetch_add(1, Relaxed);
        tally[tally::DATA_BYTES].fetch_sub(len as u64, Relaxed);
        let slot_bytes = u64::from(class::geometry(at.class).slot_bytes);
        tally[tally::SLOT_BYTES].fetch_sub(slot_bytes, Relaxed);
        if at.class == RAW_CLASS {
            tally[tally::RAW_SLOTS].fetch_sub(1, Relaxed);
        }
    }

    /// All tallies; a figure is the (wrapping) sum over them.
    pub(crate) fn tallies(&self) -> &[[AtomicU64; 8]] {
        &self.tallies
    }

    /// The tally a slab counts in: threads that work on different slabs
    /// seldom meet in one.
    fn tally_of(&self, slab: u32) -> &[AtomicU64; 8] {
        &self.tallies[slab as usize % TALLIES]
    }

    /// Bytes the kernel backs with memory now; linear, for tests.
    #[cfg(test)]
    pub(crate) fn arena_backed_bytes(&self) -> usize {
        self.arena.backed_bytes()
    }
}

impl Memory for Arrays {
    type Word = AtomicU64;

    fn slab(&self, slab: u32) -> &[AtomicU64; 8] {
        &self.slabs[slab as usize]
    }

    fn list(&self, list: usize) -> &[AtomicU64; 8] {
        &self.lists[list]
    }

    fn global(&self, name: Global) -> &AtomicU64 {
        &self.globals.0[name as usize]
    }

    fn last_slab(&self, class: u8) -> Option<(&AtomicU64, usize)> {
        let processor = thread::shard(self.last.len());
        let last = self.last[processor].get(usize::from(class))?;
        Some((last, processor % APART))
    }

    fn slab_count(&self) -> u32 {
        self.slabs.len() as u32
    }

    fn class_count(&self) -> usize {
        CLASSES
    }

    fn geometry(&self, class: u8) -> Geometry {
        class::geometry(class)
    }

    fn prepare(&self, slab: u32, class: u8) -> bool {
        let word = &self.slabs[slab as usize][row::RAW_ROW];
        if class != RAW_CLASS || word.load(Acquire) != 0 {
            return true;
        }
        let row = self.global(Global::RawRows).fetch_add(1, AcqRel);
        // Two threads may both bring a row to one slab, and one row is then
        // lost. Should that ever use them all up, the slab just stays out of
        // the raw class.
        if row >= self.raw_headers.len() as u64 {
            self.global(Global::RawRows).fetch_sub(1, AcqRel);
            return false;
        }
        let _ = word.swap_if(0, row + 1, AcqRel);
        true
    }

    fn decommit(&self, runs: &[(u32, u32)]) -> bool {
        const BATCH: usize = 32;
        runs.chunks(BATCH).all(|chunk| {
            let mut ranges = [(0, 0); BATCH];
            for (range, &(first, count)) in ranges.iter_mut().zip(chunk) {
                *range = (first as usize * SLAB_BYTES, count as usize * SLAB_BYTES);
            }
            self.arena.decommit(&ranges[..chunk.len()]).is_ok()
        })
    }
}

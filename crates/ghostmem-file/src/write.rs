//! Writing batches: the background thread's half.
//!
//! ```text
//!   free ──► open ──► closed ──► emptied ──► free, its blocks kept ("warm")
//!             │  append, flush      ▲              or given back
//!             └─ write failed ──────┘
//! ```
//! A record is sealed into the staging buffer and gets its slot; the buffer is
//! written with one call at the batch's end, or where a segment ends. Nothing is
//! handed out before it is written. After a failed write the segment is not
//! written to again, so that no nonce is used twice; the batch is tried once more
//! in another segment before the error is passed on.

use ghostmem_os::buffer::Buffer;
use ghostmem_os::file::{BLOCK_BYTES, File};
use ghostmem_os::{OsError, lineage, random};
use ghostmem_store::MAX_SLOT_BYTES;
use ghostmem_store::tier::{Packed, TierSlot, WriteError};

use crate::files::FILES_TO_WRITE;
use crate::seal::{Generation, KEYS, OWNER_BYTES};
use crate::segments::{List, ROOM_BYTES_MIN};
use crate::table::{RECORDS, Record, SEGMENT_BYTES, SegmentState, SlotNumber, segment_offset};
use crate::tier::FileTier;

/// Bytes under the limit that only cleaning may use: for its next spare segment.
const CLEANING_RESERVE_BYTES: u64 = SEGMENT_BYTES as u64;
/// The staging buffer and the one that segments are cleaned in.
pub(crate) const BUFFER_BYTES: usize = 2 * SEGMENT_BYTES;
/// Keys that only cleaning may take.
const KEYS_TO_CLEAN: usize = KEYS / 4;
/// Forks whose children may still read at once, before newer ones are counted as
/// one that never ends.
pub(crate) const WATCHES_MAX: usize = 16;

/// Which records are written together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Written for the first time.
    Fresh,
    /// Moved by cleaning: they have lived for a while, and probably will.
    Moved,
}

/// A segment being filled.
#[derive(Debug, Clone, Copy)]
struct Open {
    segment: u32,
    /// Bytes it may take, whole blocks.
    room: usize,
    /// Bytes on the disk, whole blocks.
    written: usize,
    /// Bytes in the staging buffer.
    staged: usize,
    /// Records so far.
    records: usize,
}

/// What only the background thread needs, behind one lock that nobody waits for.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) staging: Buffer,
    /// Absent only while a segment is being cleaned.
    pub(crate) victim: Option<Buffer>,
    open: [Option<Open>; 2],
    /// The process's own file; a child has none until it writes.
    pub(crate) own: Option<usize>,
    /// The tier's name is this process's to remove.
    pub(crate) removes_name: bool,
    /// Length the own file was grown to.
    pub(crate) grown_bytes: u64,
    /// The segment that only cleaning may fill, its blocks reserved.
    pub(crate) spare: Option<u32>,
    /// Segments without records: with blocks, and without.
    pub(crate) warm: List,
    pub(crate) unbacked: List,
    /// Segments without records that a child may still read.
    pub(crate) frozen: List,
    /// The first segment never used.
    pub(crate) unused: u32,
    /// Segments a write failed in: not used again while there are others.
    pub(crate) bad: List,
    /// The key that new segments are sealed with.
    pub(crate) key: Option<usize>,
    /// The next filling under that key, and where there must be a new one.
    filling: u64,
    fillings_max: u64,
    /// Segments alive by key.
    pub(crate) key_users: [u32; KEYS],
    /// Segments alive by file.
    pub(crate) file_users: [u32; crate::files::FILES_MAX],
    /// The segment that cleaning could not empty just now, 0 for none.
    pub(crate) passed_over: u32,
    /// The last batch found no room: cleaning makes what it can.
    pub(crate) is_full: bool,
    /// The last batch found no number for a segment, or no place for a file.
    pub(crate) is_out_of_numbers: bool,
    /// Holes cannot be punched: the last try failed.
    pub(crate) has_no_holes: bool,
    /// A segment is being cleaned, for which the last key and file are kept.
    pub(crate) is_cleaning: bool,
    /// Forks so far.
    pub(crate) forks: u64,
    /// Forks whose children may still read this process's file.
    pub(crate) watches: [Option<(u64, File)>; WATCHES_MAX],
    /// What tells each ancestor that this process still reads its file, by place.
    pub(crate) tethers: [Option<File>; crate::files::FILES_MAX],
    /// The end of the pipe for the fork under way.
    pub(crate) fork_held: Option<File>,
}

impl Writer {
    pub(crate) fn new(nonce_bits: u32) -> Result<Self, OsError> {
        Ok(Self {
            staging: Buffer::new(SEGMENT_BYTES)?,
            victim: Some(Buffer::new(SEGMENT_BYTES)?),
            open: [None; 2],
            own: None,
            removes_name: true,
            grown_bytes: 0,
            spare: None,
            warm: List::default(),
            unbacked: List::default(),
            frozen: List::default(),
            unused: 1,
            bad: List::default(),
            key: None,
            filling: 0,
            fillings_max: 1 << nonce_bits,
            key_users: [0; KEYS],
            file_users: [0; crate::files::FILES_MAX],
            passed_over: 0,
            is_full: false,
            is_out_of_numbers: false,
            has_no_holes: false,
            is_cleaning: false,
            forks: 0,
            watches: [None; WATCHES_MAX],
            tethers: [None; crate::files::FILES_MAX],
            fork_held: None,
        })
    }

    /// Has no file of its own any more: a child's beginning.
    pub(crate) fn become_child(&mut self) {
        self.own = None;
        self.removes_name = false;
        self.grown_bytes = 0;
    }
}

impl FileTier {
    /// See [`ColdTier::write`](ghostmem_store::tier::ColdTier::write).
    ///
    /// # Errors
    /// Why not; then no page was written, and no slot is filled.
    pub fn write(
        &self,
        pages: &[Packed<'_>],
        slots: &mut [Option<TierSlot>],
    ) -> Result<(), WriteError> {
        let fits = |page: &Packed<'_>| (1..=MAX_SLOT_BYTES).contains(&page.bytes.len());
        if slots.len() < pages.len() || !pages.iter().all(fits) {
            return Err(WriteError::BadPage);
        }
        if lineage::is_stranger() {
            return Err(WriteError::Stranger);
        }
        let w = &mut *self.writer.lock();
        self.collect(w);
        let slots = &mut slots[..pages.len()];
        let mut result = self.write_batch(w, pages, slots);
        if let Err(WriteError::Io { .. }) = result {
            self.collect(w);
            result = self.write_batch(w, pages, slots);
        }
        w.is_full = matches!(
            result,
            Err(WriteError::NoSpace { .. } | WriteError::LimitReached)
        );
        w.is_out_of_numbers = matches!(result, Err(WriteError::Full));
        match result {
            Ok(()) => self.counters.pages_written.add(pages.len()),
            Err(_) => {
                self.counters.write_errors.add(1);
                self.collect(w);
            }
        }
        result
    }

    fn write_batch(
        &self,
        w: &mut Writer,
        pages: &[Packed<'_>],
        slots: &mut [Option<TierSlot>],
    ) -> Result<(), WriteError> {
        for (page, slot) in pages.iter().zip(slots.iter_mut()) {
            match self.append(w, Stream::Fresh, page) {
                Ok(given) => *slot = Some(given),
                Err(error) => return self.undo(slots, error),
            }
        }
        match self.flush(w, Stream::Fresh) {
            Ok(()) => Ok(()),
            Err(error) => self.undo(slots, error),
        }
    }

    fn undo(&self, slots: &mut [Option<TierSlot>], error: WriteError) -> Result<(), WriteError> {
        for slot in slots.iter_mut().filter_map(Option::take) {
            self.remove(slot);
        }
        Err(error)
    }

    /// Seals a page into the staging buffer. On an error the stream's staged records
    /// are not written, and the caller removes them.
    pub(crate) fn append(
        &self,
        w: &mut Writer,
        stream: Stream,
        page: &Packed<'_>,
    ) -> Result<TierSlot, WriteError> {
        let stored = page.bytes.len() + self.seals.overhead();
        let is_full = |open: &Open| {
            open.records == RECORDS || open.written + open.staged + stored > open.room
        };
        if w.open[stream as usize].as_ref().is_some_and(is_full) {
            self.flush(w, stream)?;
            self.finish_and_trim(w, stream);
        }
        let mut open = match w.open[stream as usize] {
            Some(open) => open,
            None => self.begin(w, stream)?,
        };
        let start = open.written + open.staged;
        let record = Record {
            slot: TierSlot::new(open.segment, open.records as u32),
            generation: self.table.generation(open.segment),
            file: self.table.file(open.segment),
            start,
            len: page.bytes.len(),
            codec: page.codec,
        };
        let bytes = &mut w.staging[open.staged..open.staged + stored];
        bytes[..OWNER_BYTES].copy_from_slice(&page.owner.to_le_bytes()[..OWNER_BYTES]);
        bytes[OWNER_BYTES..][..page.bytes.len()].copy_from_slice(page.bytes);
        let sealed = self.seals.seal(&record, bytes);
        // The number is used up either way.
        open.records += 1;
        open.staged += stored;
        w.open[stream as usize] = Some(open);
        if !sealed {
            self.abandon(w, stream, false);
            return Err(WriteError::NoKey);
        }
        self.table
            .insert(record.slot, start, record.len, record.codec, stored);
        self.counters.live_bytes.add(record.len);
        self.counters.slots.add(1);
        Ok(record.slot)
    }

    /// Writes what is staged. On an error the segment is given up with the records
    /// that were staged, which the caller removes.
    pub(crate) fn flush(&self, w: &mut Writer, stream: Stream) -> Result<(), WriteError> {
        let Some(mut open) = w.open[stream as usize].filter(|open| open.staged > 0) else {
            return Ok(());
        };
        let len = open.staged.next_multiple_of(BLOCK_BYTES);
        let padding = &mut w.staging[open.staged..len];
        if self.seals.is_encrypting() && random::fill(padding).is_ok() {
        } else {
            padding.fill(0);
        }
        let end = open.written + len;
        let grows = end.saturating_sub(self.table.blocks(open.segment));
        let reserve = match stream {
            Stream::Fresh => CLEANING_RESERVE_BYTES,
            Stream::Moved => 0,
        };
        let most = self.limit_bytes - reserve.min(self.limit_bytes);
        if grows > 0 && self.counters.file_bytes.get() + grows as u64 > most {
            self.abandon(w, stream, false);
            return Err(WriteError::LimitReached);
        }
        let file = self.table.file(open.segment);
        let offset = segment_offset(open.segment) + open.written as u64;
        let written = self.files.write(file, &w.staging[..len], offset);
        if let Err(error) = written {
            let error = match error.errno {
                libc::ENOSPC | libc::EDQUOT | libc::EFBIG => {
                    WriteError::NoSpace { errno: error.errno }
                }
                errno => WriteError::Io { errno },
            };
            let is_bad = matches!(error, WriteError::Io { .. });
            if grows > 0 || !is_bad {
                self.forget_blocks(w, open.segment, open.written, end, is_bad);
            }
            self.abandon(w, stream, is_bad);
            return Err(error);
        }
        self.counters.bytes_written.add(len);
        if grows > 0 {
            self.counters.file_bytes.add(grows);
            self.table.set_blocks(open.segment, end);
        }
        open.written = end;
        open.staged = 0;
        w.open[stream as usize] = Some(open);
        if open.room - end < BLOCK_BYTES || open.records == RECORDS {
            self.finish_and_trim(w, stream);
        }
        Ok(())
    }

    /// Begins a segment.
    fn begin(&self, w: &mut Writer, stream: Stream) -> Result<Open, WriteError> {
        let own = self.own_file(w)?;
        let key = self.key(w)?;
        if stream == Stream::Fresh {
            self.keep_spare(w);
        }
        let segment = self.take_segment(w, stream).ok_or(WriteError::Full)?;
        let generation = Generation::new(w.filling, key);
        w.filling += 1;
        w.key_users[key] += 1;
        w.file_users[own] += 1;
        // Where the file must not be as long, writing it says so.
        let _as_long = self.grow(w, own, segment);
        self.table.open(segment, generation.bits(), own, w.forks);
        let blocks = self.table.blocks(segment);
        let open = Open {
            segment,
            // What is moved goes where blocks are, and nowhere else: the disk may
            // have no other. Crumbs are not worth it.
            room: if stream == Stream::Moved && blocks >= ROOM_BYTES_MIN {
                blocks
            } else {
                SEGMENT_BYTES
            },
            written: 0,
            staged: 0,
            records: 0,
        };
        w.open[stream as usize] = Some(open);
        Ok(open)
    }

    /// Ends the filling of a stream's segment.
    fn finish(&self, w: &mut Writer, stream: Stream) {
        let Some(open) = w.open[stream as usize].take() else {
            return;
        };
        debug_assert_eq!(open.staged, 0, "what is staged is written first");
        self.table.set_state(open.segment, SegmentState::Closed);
        self.table.let_go(open.segment);
    }

    /// The same, and what it takes of the disk beyond what it needs goes back.
    fn finish_and_trim(&self, w: &mut Writer, stream: Stream) {
        if let Some(open) = w.open[stream as usize] {
            self.trim(w, open.segment, open.written);
        }
        self.finish(w, stream);
    }

    /// Gives a stream's segment up, with what is staged in it.
    fn abandon(&self, w: &mut Writer, stream: Stream, is_bad: bool) {
        let Some(open) = w.open[stream as usize].take() else {
            return;
        };
        let state = if is_bad {
            SegmentState::Damaged
        } else {
            SegmentState::Closed
        };
        self.table.set_state(open.segment, state);
        self.table.let_go(open.segment);
    }

    /// Ends both streams' segments: nothing is staged between calls.
    pub(crate) fn finish_all(&self, w: &mut Writer) {
        self.finish(w, Stream::Fresh);
        self.finish(w, Stream::Moved);
    }

    /// The process's own file; a child makes one when it first writes.
    fn own_file(&self, w: &mut Writer) -> Result<usize, WriteError> {
        if let Some(own) = w.own {
            return Ok(own);
        }
        let failed = |error: OsError| match error.errno {
            libc::ENOSPC | libc::EDQUOT => WriteError::NoSpace { errno: error.errno },
            errno => WriteError::Io { errno },
        };
        if !w.is_cleaning && self.files.count() >= FILES_TO_WRITE {
            return Err(WriteError::Full);
        }
        if ghostmem_os::doorway::is_confined() {
            // The program's filter may end whoever opens a file.
            return Err(WriteError::Io { errno: libc::EPERM });
        }
        let (file, direct) = self.location.open_unnamed().map_err(failed)?;
        let Some(own) = self.files.add(file, direct) else {
            file.close();
            return Err(WriteError::Full);
        };
        self.counters.file_bytes.set(BLOCK_BYTES as u64);
        w.own = Some(own);
        Ok(own)
    }

    /// The place of a key that has a filling left.
    fn key(&self, w: &mut Writer) -> Result<usize, WriteError> {
        if !self.seals.is_encrypting() {
            return Ok(0);
        }
        // The last keys are for cleaning, which frees others.
        let is_free = |&key: &usize| w.key_users[key] == 0 && w.key != Some(key);
        if !w.is_cleaning && (0..KEYS).filter(is_free).count() < KEYS_TO_CLEAN {
            return Err(WriteError::NoKey);
        }
        if let Some(key) = w.key.filter(|_| w.filling < w.fillings_max) {
            return Ok(key);
        }
        self.retire_key(w);
        let place = w.key_users.iter().position(|&users| users == 0);
        let place = place.ok_or(WriteError::NoKey)?;
        if !self.seals.renew(place) {
            return Err(WriteError::NoKey);
        }
        self.counters.keys.add(1);
        w.key = Some(place);
        w.filling = 0;
        Ok(place)
    }

    /// Seals nothing with the present key any more.
    pub(crate) fn retire_key(&self, w: &mut Writer) {
        if let Some(key) = w.key.take()
            && w.key_users[key] == 0
        {
            self.seals.drop_key(key);
        }
    }
}

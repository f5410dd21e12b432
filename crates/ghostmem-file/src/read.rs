//! Bringing records back: one, or a run of neighbours.
//!
//! Runs in fault handlers, on any number of threads, beside a write: no lock, no
//! allocation, no panic, nothing but pread(2) and arithmetic. The caller has its page
//! claimed, so that its records stay.

use ghostmem_os::file::BLOCK_BYTES;

use crate::PAYLOAD_BYTES_MAX;
use crate::error::{ReadCause, ReadError};
use crate::seal::OVERHEAD_MAX;
use crate::slot::FileSlot;
use crate::table::Record;
use crate::tier::FileTier;

/// Bytes of buffer that reading any record needs: with both ends rounded to blocks,
/// and one block more to find an aligned place in it.
pub const WORK_BYTES: usize =
    (PAYLOAD_BYTES_MAX + OVERHEAD_MAX).next_multiple_of(BLOCK_BYTES) + 2 * BLOCK_BYTES;

/// Records sorted at a time.
const RUN: usize = 64;
/// Bytes between two records that are read along rather than left out: less than a
/// read of its own costs.
const GAP_BYTES: u64 = 32 << 10;

/// What a run's pages are handed to: index, and codec and packed bytes.
pub type EachRead<'a> = dyn FnMut(usize, Result<(u8, &[u8]), ReadError>) + 'a;

impl FileTier {
    /// Reads a page: its packed bytes into the front of `out`; the codec and how many
    /// bytes they are. The caller owns the slot.
    ///
    /// `work` is at least [`WORK_BYTES`] of the caller's, what is in it is
    /// overwritten.
    ///
    /// # Errors
    /// Why the file does not give the page back.
    pub fn read(
        &self,
        slot: FileSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; PAYLOAD_BYTES_MAX],
    ) -> Result<(u8, usize), ReadError> {
        let record = self.find(slot)?;
        let result = self
            .read_record(&record, owner, aligned(work))
            .map(|packed| {
                out[..packed.len()].copy_from_slice(packed);
                (record.codec, packed.len())
            })
            .map_err(|cause| self.read_error(record.offset(), cause));
        self.count(result.is_ok());
        result
    }

    /// Reads several pages, those that are neighbours in the file together: `each` is
    /// called once for every one of `pages`, with its index, its codec and its packed
    /// bytes, in an order of the file's choice. One page's error is no other's. The
    /// caller owns the slots.
    ///
    /// `work` is at least [`WORK_BYTES`]; the longer it is, the more is read at once.
    pub fn read_run(&self, pages: &[(FileSlot, u64)], work: &mut [u8], each: &mut EachRead<'_>) {
        let work = aligned(work);
        for (chunk_index, chunk) in pages.chunks(RUN).enumerate() {
            let first = chunk_index * RUN;
            let mut order = [0_u8; RUN];
            let order = &mut order[..chunk.len()];
            for (at, place) in order.iter_mut().enumerate() {
                *place = at as u8;
            }
            // Slots are numbered in the order of the file.
            order.sort_unstable_by_key(|&at| chunk[usize::from(at)].0.number());
            let mut rest = &*order;
            while !rest.is_empty() {
                let taken = self.read_neighbours(chunk, rest, work, &mut |at, read| {
                    each(first + at, read);
                });
                rest = &rest[taken..];
            }
        }
    }

    /// Reads as many of the first records of `order` as lie together and fit; how
    /// many.
    fn read_neighbours(
        &self,
        pages: &[(FileSlot, u64)],
        order: &[u8],
        work: &mut [u8],
        each: &mut EachRead<'_>,
    ) -> usize {
        let overhead = self.seals.overhead() as u64;
        let end_of = |record: &Record| record.offset() + record.len as u64 + overhead;
        let first = usize::from(order[0]);
        let record = match self.find(pages[first].0) {
            Ok(record) => record,
            Err(error) => {
                self.count(false);
                each(first, Err(error));
                return 1;
            }
        };
        let start = record.offset() & !(BLOCK_BYTES as u64 - 1);
        let mut end = end_of(&record);
        let mut taken = 1;
        for &at in &order[1..] {
            let Some(next) = self.table.find(pages[usize::from(at)].0) else {
                break;
            };
            let fits = end_of(&next).next_multiple_of(BLOCK_BYTES as u64) - start;
            if next.file != record.file
                || next.slot.segment() != record.slot.segment()
                || next.offset() < end
                || next.offset() > end + GAP_BYTES
                || fits > work.len() as u64
            {
                break;
            }
            end = end_of(&next);
            taken += 1;
        }
        let (got, failed) = match self.fetch(record.file, start, end, work) {
            Ok(got) => (got, None),
            Err(cause) => (0, Some(cause)),
        };
        if failed.is_some() && taken > 1 {
            // One bad block is not to take its neighbours with it.
            for &at in &order[..taken] {
                self.read_neighbours(pages, &[at], work, each);
            }
            return taken;
        }
        for &at in &order[..taken] {
            let (slot, owner) = pages[usize::from(at)];
            let read = self.find(slot).and_then(|record| {
                let result = match failed {
                    Some(cause) => Err(cause),
                    None => self.open_record(&record, owner, start, got, work),
                };
                result
                    .map(|packed| (record.codec, packed))
                    .map_err(|cause| self.read_error(record.offset(), cause))
            });
            self.count(read.is_ok());
            each(usize::from(at), read);
        }
        taken
    }

    /// The error of a page whose packed bytes are as they were written, but mean
    /// nothing to its codec. Counts it.
    pub fn undecodable(&self, slot: FileSlot) -> ReadError {
        self.counters.read_errors.add(1);
        let offset = self.table.find(slot).map_or(0, |record| record.offset());
        self.read_error(offset, ReadCause::Undecodable)
    }

    fn read_record<'a>(
        &self,
        record: &Record,
        owner: u64,
        work: &'a mut [u8],
    ) -> Result<&'a [u8], ReadCause> {
        let stored = (record.len + self.seals.overhead()) as u64;
        let start = record.offset() & !(BLOCK_BYTES as u64 - 1);
        let got = self.fetch(record.file, start, record.offset() + stored, work)?;
        self.open_record(record, owner, start, got, work)
    }

    /// Reads `start..end` of a file to the front of `work`, in whole blocks; how many
    /// bytes there were.
    fn fetch(
        &self,
        file: usize,
        start: u64,
        end: u64,
        work: &mut [u8],
    ) -> Result<usize, ReadCause> {
        let len = (end - start).next_multiple_of(BLOCK_BYTES as u64) as usize;
        let work = work.get_mut(..len).ok_or(ReadCause::NoBuffer)?;
        self.files
            .read(file, work, start)
            .map_err(|error| ReadCause::Io { errno: error.errno })
    }

    /// Opens a record of which the file's bytes from `start` on are in `work`, `got`
    /// of them.
    pub(crate) fn open_record<'a>(
        &self,
        record: &Record,
        owner: u64,
        start: u64,
        got: usize,
        work: &'a mut [u8],
    ) -> Result<&'a [u8], ReadCause> {
        let (found, packed) = self.open_any(record, start, got, work)?;
        if found != owner {
            return Err(ReadCause::WrongOwner);
        }
        Ok(packed)
    }

    /// As [`FileTier::open_record`], whoever's it is.
    pub(crate) fn open_any<'a>(
        &self,
        record: &Record,
        start: u64,
        got: usize,
        work: &'a mut [u8],
    ) -> Result<(u64, &'a [u8]), ReadCause> {
        let from = (record.offset() - start) as usize;
        let stored = record.len + self.seals.overhead();
        let missing = ReadCause::Short {
            got_bytes: got.saturating_sub(from).min(stored),
            wanted_bytes: stored,
        };
        if got < from + stored {
            return Err(missing);
        }
        let bytes = work.get_mut(from..from + stored).ok_or(missing)?;
        self.seals.open(record, bytes)
    }

    fn find(&self, slot: FileSlot) -> Result<Record, ReadError> {
        self.table
            .find(slot)
            .ok_or_else(|| self.read_error(0, ReadCause::NoRecord))
    }

    fn read_error(&self, offset: u64, cause: ReadCause) -> ReadError {
        ReadError {
            file: self.place.title,
            offset,
            cause,
        }
    }

    fn count(&self, read: bool) {
        if read {
            self.counters.pages_read.add(1);
        } else {
            self.counters.read_errors.add(1);
        }
    }

    /// Gives a page's place up. The caller owns the slot, does so exactly once, and
    /// does not use it again. Async-signal-safe.
    pub fn remove(&self, slot: FileSlot) {
        let Some(record) = self.table.find(slot) else {
            debug_assert!(false, "a slot is removed once");
            return;
        };
        self.counters.live_bytes.sub(record.len);
        self.counters.slots.sub(1);
        self.table.remove(slot, record.len + self.seals.overhead());
    }
}

/// The part of a buffer that begins on a block's boundary, as direct I/O wants it.
fn aligned(work: &mut [u8]) -> &mut [u8] {
    let skip = work.as_ptr().addr().next_multiple_of(BLOCK_BYTES) - work.as_ptr().addr();
    work.get_mut(skip..).unwrap_or_default()
}

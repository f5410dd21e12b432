//! Bringing records back: one, or a run of neighbours.
//!
//! Runs in fault handlers, on any number of threads, beside a write: no lock, no
//! allocation, no panic, nothing but pread(2) and arithmetic. The caller has its page
//! claimed, so that its records stay.

use ghostmem_os::file::BLOCK_BYTES;
use ghostmem_store::MAX_SLOT_BYTES;
use ghostmem_store::tier::{EachRead, TierCause, TierError, TierSlot};

use crate::seal::OVERHEAD_MAX;
use crate::table::{Record, SlotNumber};
use crate::tier::FileTier;

/// Bytes of buffer that reading any record needs: with both ends rounded to blocks,
/// and one block more to find an aligned place in it.
pub const WORK_BYTES: usize =
    (MAX_SLOT_BYTES + OVERHEAD_MAX).next_multiple_of(BLOCK_BYTES) + 2 * BLOCK_BYTES;

/// Records sorted at a time.
const RUN: usize = 64;
/// Bytes between two records that are read along rather than left out: less than a
/// read of its own costs.
const GAP_BYTES: u64 = 32 << 10;

impl FileTier {
    /// See [`ColdTier::read`](ghostmem_store::tier::ColdTier::read); `work` is at least
    /// [`WORK_BYTES`].
    ///
    /// # Errors
    /// Why the file does not give the page back.
    pub fn read(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Result<(u8, usize), TierError> {
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

    /// See [`ColdTier::read_run`](ghostmem_store::tier::ColdTier::read_run); `work` is at
    /// least [`WORK_BYTES`].
    pub fn read_run(&self, pages: &[(TierSlot, u64)], work: &mut [u8], each: &mut EachRead<'_>) {
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
        pages: &[(TierSlot, u64)],
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

    /// See [`ColdTier::undecodable`](ghostmem_store::tier::ColdTier::undecodable).
    pub fn undecodable(&self, slot: TierSlot) -> TierError {
        self.counters.read_errors.add(1);
        match self.table.find(slot) {
            Some(record) => self.read_error(record.offset(), TierCause::Undecodable),
            None => TierError::of(self.location.title, TierCause::Undecodable),
        }
    }

    fn read_record<'a>(
        &self,
        record: &Record,
        owner: u64,
        work: &'a mut [u8],
    ) -> Result<&'a [u8], TierCause> {
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
    ) -> Result<usize, TierCause> {
        let len = (end - start).next_multiple_of(BLOCK_BYTES as u64) as usize;
        let work = work.get_mut(..len).ok_or(TierCause::NoBuffer)?;
        self.files
            .read(file, work, start)
            .map_err(|error| TierCause::Io { errno: error.errno })
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
    ) -> Result<&'a [u8], TierCause> {
        let (found, packed) = self.open_any(record, start, got, work)?;
        if found != owner {
            return Err(TierCause::WrongOwner);
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
    ) -> Result<(u64, &'a [u8]), TierCause> {
        let from = (record.offset() - start) as usize;
        let stored = record.len + self.seals.overhead();
        let missing = TierCause::Short {
            got_bytes: got.saturating_sub(from).min(stored),
            wanted_bytes: stored,
        };
        if got < from + stored {
            return Err(missing);
        }
        let bytes = work.get_mut(from..from + stored).ok_or(missing)?;
        self.seals.open(record, bytes)
    }

    fn find(&self, slot: TierSlot) -> Result<Record, TierError> {
        self.table
            .find(slot)
            .ok_or(TierError::of(self.location.title, TierCause::NoRecord))
    }

    const fn read_error(&self, offset: u64, cause: TierCause) -> TierError {
        TierError::at(self.location.title, offset, cause)
    }

    fn count(&self, read: bool) {
        if read {
            self.counters.pages_read.add(1);
        } else {
            self.counters.read_errors.add(1);
        }
    }

    /// See [`ColdTier::remove`](ghostmem_store::tier::ColdTier::remove).
    pub fn remove(&self, slot: TierSlot) {
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

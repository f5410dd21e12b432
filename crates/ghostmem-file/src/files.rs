//! The files a tier has open: its own, and those of its ancestors that it still
//! reads.
//!
//! Direct I/O where the file system has it. On a virtual disk (ext4, `cargo bench -p
//! ghostmem-file --bench file`), against the page cache with every page dropped
//! after use: writing 1.1 instead of 3.0 us a page, random reads by four threads 22
//! instead of 126 us a page, and 1 % of reads beside a writer took longer than 0.6
//! instead of 3.6 ms. A single random read takes what the device takes either way: 80
//! us, the same for 4 KiB as for 16 KiB. That is also why there is no io_uring here:
//! a fault waits for one read, readahead's neighbours are one read, and a call costs
//! 0.1 us of those 80; in a fault handler a ring would need a lock, or one for each
//! thread.
//!
//! A place in the table is one atomic number, so that readers need no lock; a place
//! is emptied only when no live record lies in its file, and then nobody reads it.

use core::fmt::Debug;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use ghostmem_os::OsError;
use ghostmem_os::file::{BLOCK_BYTES, File};

use crate::faults::{Faults, Injected};

/// Files that can be open at once: one's own and those of the generations before.
pub(crate) const FILES_MAX: usize = 64;
/// The same for a process that is to write new pages. The other places are for those
/// that only bring an ancestor's pages into a file of their own, for which they need
/// one: with every place taken nothing could be moved, nor a place be had, any more.
pub(crate) const FILES_TO_WRITE: usize = 48;

/// No file.
const NONE: i32 = -1;

#[derive(Debug)]
pub(crate) struct Files {
    places: [AtomicI32; FILES_MAX],
    /// Direct I/O is on for a file.
    direct: [AtomicBool; FILES_MAX],
    faults: Option<&'static dyn Faults>,
}

impl Files {
    pub(crate) const fn new(faults: Option<&'static dyn Faults>) -> Self {
        Self {
            places: [const { AtomicI32::new(NONE) }; FILES_MAX],
            direct: [const { AtomicBool::new(false) }; FILES_MAX],
            faults,
        }
    }

    /// Puts a file into an empty place; `None` when all are taken.
    pub(crate) fn add(&self, file: File, direct: bool) -> Option<usize> {
        let place = (0..FILES_MAX).find(|&place| !self.has(place))?;
        self.direct[place].store(direct, Ordering::Relaxed);
        self.places[place].store(file.number(), Ordering::Release);
        Some(place)
    }

    /// Files open now.
    pub(crate) fn count(&self) -> usize {
        (0..FILES_MAX).filter(|&place| self.has(place)).count()
    }

    pub(crate) fn has(&self, place: usize) -> bool {
        self.places[place].load(Ordering::Relaxed) != NONE
    }

    pub(crate) fn get(&self, place: usize) -> File {
        File::from_number(self.places[place % FILES_MAX].load(Ordering::Acquire))
    }

    pub(crate) fn is_direct(&self, place: usize) -> bool {
        self.direct[place % FILES_MAX].load(Ordering::Relaxed)
    }

    pub(crate) fn close(&self, place: usize) {
        File::from_number(self.places[place].swap(NONE, Ordering::AcqRel)).close();
    }

    /// Reads `out.len()` bytes, or up to the end of the file, and keeps none of it in
    /// the page cache. Async-signal-safe.
    pub(crate) fn read(&self, place: usize, out: &mut [u8], offset: u64) -> Result<usize, OsError> {
        let file = self.get(place);
        let injected = self.faults.map(|faults| faults.read(offset, out.len()));
        if let Some(Injected::Errno(errno)) = injected {
            return Err(OsError::new("pread", errno));
        }
        let len = file.read_at(out, offset)?;
        if !self.is_direct(place) {
            file.drop_cache(block_start(offset), span(offset, len as u64));
        }
        match injected {
            Some(Injected::Flip(at, bits)) if len > 0 => out[at % len] ^= bits,
            Some(Injected::Short(short, _)) => return Ok(short.min(len)),
            _ => {}
        }
        Ok(len)
    }

    /// Writes all of `data`, which is whole blocks, down to the device's cache.
    pub(crate) fn write(&self, place: usize, data: &[u8], offset: u64) -> Result<(), OsError> {
        let file = self.get(place);
        match self.faults.map(|faults| faults.write(offset, data.len())) {
            None | Some(Injected::Nothing) => {}
            Some(Injected::Errno(errno)) => return Err(OsError::new("pwrite", errno)),
            Some(Injected::Short(len, errno)) => {
                let len = len.min(data.len()) & !(BLOCK_BYTES - 1);
                file.write_at(&data[..len], offset)?;
                return Err(OsError::new("pwrite", errno));
            }
            Some(Injected::Lost) => return Ok(()),
            Some(Injected::Flip(at, bits)) => {
                file.write_at(data, offset)?;
                let at = offset + (at % data.len()) as u64;
                let mut block = [0; 1];
                return file.set_direct(false).and_then(|()| {
                    file.read_at(&mut block, at)?;
                    file.write_at(&[block[0] ^ bits], at)?;
                    self.direct[place].store(false, Ordering::Relaxed);
                    Ok(())
                });
            }
        }
        file.write_at(data, offset)?;
        if !self.is_direct(place) {
            let len = data.len() as u64;
            match file.sync_range(offset, len) {
                Err(error) if error.errno != libc::ENOSYS && error.errno != libc::EOPNOTSUPP => {
                    return Err(error);
                }
                _ => file.drop_cache(offset, len),
            }
        }
        Ok(())
    }

    /// Gives blocks back.
    pub(crate) fn punch(&self, place: usize, offset: u64, len: u64) -> Result<(), OsError> {
        if let Some(Injected::Errno(errno)) = self.faults.map(|faults| faults.punch(offset, len)) {
            return Err(OsError::new("fallocate(PUNCH_HOLE)", errno));
        }
        self.get(place).punch(offset, len)
    }

    /// Gets blocks for a range that nothing is written to yet.
    pub(crate) fn reserve(&self, place: usize, offset: u64, len: u64) -> Result<(), OsError> {
        let injected = self.faults.map(|faults| faults.reserve(offset, len));
        if let Some(Injected::Errno(errno)) = injected {
            return Err(OsError::new("fallocate", errno));
        }
        self.get(place).reserve(offset, len)
    }
}

const fn block_start(offset: u64) -> u64 {
    offset & !(BLOCK_BYTES as u64 - 1)
}

/// Length of the whole blocks that `len` bytes at `offset` lie in.
pub(crate) const fn span(offset: u64, len: u64) -> u64 {
    (offset + len).next_multiple_of(BLOCK_BYTES as u64) - block_start(offset)
}

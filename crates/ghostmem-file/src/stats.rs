//! What a tier counts. Reading it takes no lock.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ghostmem_store::tier::TierStats;

use crate::table::ENTRY_ROW_BYTES;
use crate::tier::FileTier;
use crate::write::BUFFER_BYTES;

#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Line(AtomicU64);

impl Line {
    pub(crate) fn add(&self, amount: usize) {
        self.0.fetch_add(amount as u64, Relaxed);
    }

    pub(crate) fn sub(&self, amount: usize) {
        self.0.fetch_sub(amount as u64, Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
}

/// The counters, each with a cache line of its own: faults on different
/// processors count at once.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) live_bytes: Line,
    pub(crate) slots: Line,
    pub(crate) file_bytes: Line,
    pub(crate) frozen_bytes: Line,
    /// Segments with memory behind their entries.
    pub(crate) rows: Line,
    pub(crate) pages_written: Line,
    pub(crate) bytes_written: Line,
    pub(crate) pages_moved: Line,
    pub(crate) pages_read: Line,
    pub(crate) read_errors: Line,
    pub(crate) write_errors: Line,
    pub(crate) keys: Line,
}

impl Counters {
    pub(crate) fn file_bytes_add(&self, bytes: usize) {
        self.file_bytes.add(bytes);
    }
}

impl FileTier {
    /// What there is and what has happened.
    #[must_use]
    pub fn stats(&self) -> TierStats {
        let c = &self.counters;
        TierStats {
            live_bytes: c.live_bytes.get(),
            slots: c.slots.get(),
            file_bytes: c.file_bytes.get(),
            frozen_bytes: c.frozen_bytes.get(),
            limit_bytes: self.limit_bytes,
            metadata_bytes: c.rows.get() * (ENTRY_ROW_BYTES as u64 + 64) + BUFFER_BYTES as u64,
            pages_written: c.pages_written.get(),
            bytes_written: c.bytes_written.get(),
            pages_moved: c.pages_moved.get(),
            pages_read: c.pages_read.get(),
            read_errors: c.read_errors.get(),
            write_errors: c.write_errors.get(),
            keys: c.keys.get(),
        }
    }

    /// Memory that tables and buffers take, bytes.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        self.stats().metadata_bytes
    }
}

//! What the last look found, as others read it: each one load, or a comparison of two.

use core::sync::atomic::Ordering;

use ghostmem_os::PAGE_SIZE;
use ghostmem_policy::bound::Strain;

use super::{ProcessBound, size};

impl ProcessBound {
    /// What the process may take in all by the last look, bytes.
    pub(crate) fn bytes(&self) -> usize {
        size(self.allowed.bytes.load(Ordering::Relaxed))
    }

    /// What stays free below it: what evictions store before their frames come free.
    pub(crate) fn headroom_bytes(&self) -> usize {
        size(self.allowed.headroom_bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn most_pages(&self) -> i64 {
        self.most_pages.load(Ordering::Relaxed)
    }

    pub(crate) fn set_most_pages(&self, pages: i64) {
        self.most_pages.store(pages, Ordering::Relaxed);
    }

    pub(crate) fn other_bytes(&self) -> usize {
        self.other_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn reach_pages(&self) -> i64 {
        self.reach_pages.load(Ordering::Relaxed)
    }

    /// Whether the bound was far away at the last look: an eighth of it was left.
    pub(crate) fn is_far(&self) -> bool {
        let room = self.room_bytes.load(Ordering::Relaxed);
        room > 0 && room.unsigned_abs() >= self.allowed.bytes.load(Ordering::Relaxed) / 8
    }

    /// Whether so many pages more may be resident, whatever the resident limit says.
    pub(crate) fn has_room_for(&self, pages: i64) -> bool {
        let room = self.room_bytes.load(Ordering::Relaxed);
        self.strain() == Strain::None && room >= pages.saturating_mul(PAGE_SIZE as i64)
    }

    pub(crate) fn clock_pages(&self) -> i64 {
        self.clock_pages.load(Ordering::Relaxed)
    }

    pub(crate) fn strain(&self) -> Strain {
        Strain::from_bits(self.strain.load(Ordering::Relaxed))
    }

    /// What a process that is starved may still take, by which measurement, bytes.
    pub(crate) fn spare_bytes(&self) -> (u64, u64) {
        self.supplies.spare_bytes()
    }
}

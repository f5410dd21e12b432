//! How many frames a heap may hold.

use core::sync::atomic::{AtomicI64, Ordering};

/// Frames in use against a limit. A frame is taken before a page is put in
/// place and given back after its mapping is gone, so the number of mapped
/// pages never exceeds what was taken.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: AtomicI64,
    used: AtomicI64,
}

impl Budget {
    pub(crate) const fn new(limit_pages: i64) -> Self {
        Self {
            limit: AtomicI64::new(limit_pages),
            used: AtomicI64::new(0),
        }
    }

    pub(crate) fn limit(&self) -> i64 {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn set_limit(&self, pages: i64) {
        self.limit.store(pages, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Frames still free; negative after a limit was lowered.
    pub(crate) fn free(&self) -> i64 {
        self.limit() - self.used()
    }

    /// Takes up to `wanted` frames; how many it got.
    pub(crate) fn take_up_to(&self, wanted: i64) -> i64 {
        let limit = self.limit();
        let mut used = self.used();
        loop {
            let got = wanted.min(limit - used);
            if got <= 0 {
                return 0;
            }
            match self.used.compare_exchange_weak(
                used,
                used + got,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return got,
                Err(now) => used = now,
            }
        }
    }

    /// Takes one frame unless that would exceed the limit by more than `most`:
    /// the way out when nothing can be evicted and a thread must go on.
    pub(crate) fn overdraw(&self, most: i64) -> bool {
        let end = self.limit().saturating_add(most);
        let mut used = self.used();
        while used < end {
            match self.used.compare_exchange_weak(
                used,
                used + 1,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => used = now,
            }
        }
        false
    }

    pub(crate) fn give_back(&self, frames: i64) {
        if frames != 0 {
            self.used.fetch_sub(frames, Ordering::AcqRel);
        }
    }
}

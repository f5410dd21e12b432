//! Where in the bitmap of retired blocks there are some that were put off: one range
//! of its words, in one atomic, so that nobody takes an end without its beginning.

use core::ops::Range;

use crate::sync::{AtomicU64, Ordering};

/// The range's end is above its first word; an end of 0 is no range.
const END_SHIFT: u32 = 32;

pub(crate) struct PutOff(AtomicU64);

impl PutOff {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether anything was put off; one load.
    #[inline]
    pub(crate) fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    /// Adds words, of which there are less than 2^32. Async-signal-safe.
    pub(crate) fn add(&self, words: Range<usize>) {
        if words.is_empty() {
            return;
        }
        let mut now = self.0.load(Ordering::SeqCst);
        loop {
            let range = match range_of(now) {
                range if range.is_empty() => words.clone(),
                range => range.start.min(words.start)..range.end.max(words.end),
            };
            let new = (range.end as u64) << END_SHIFT | range.start as u64;
            match self
                .0
                .compare_exchange_weak(now, new, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => return,
                Err(seen) => now = seen,
            }
        }
    }

    /// Takes the range: what was added to it is the caller's to look for.
    pub(crate) fn take(&self) -> Range<usize> {
        range_of(self.0.swap(0, Ordering::SeqCst))
    }
}

const fn range_of(packed: u64) -> Range<usize> {
    (packed & ((1 << END_SHIFT) - 1)) as usize..(packed >> END_SHIFT) as usize
}

//! Memory that was reserved first and opened later, and is not written yet.
//!
//! Who reserves and opens in large pieces (Java, V8, Go) opens more than it writes: Java
//! keeps two fifths of its heap free, and ends where it is refused that. So an admission
//! counts next to nothing of such memory before it is written. How much of it is not written yet is an estimate, and
//! rather too small: whatever page is written for the first time, and whatever is closed or
//! freed, is taken for a part of it.

use core::sync::atomic::{AtomicU64, Ordering};

/// Pages that were opened and not written, and the pages that were written when that was so,
/// in one word.
#[derive(Debug)]
pub(crate) struct Unwritten(AtomicU64);

const fn both(opened: u64, written: u64) -> u64 {
    let most = u32::MAX as u64;
    let opened = if opened < most { opened } else { most };
    let written = if written < most { written } else { most };
    opened << 32 | written
}

const fn left_of(word: u64, written: u64) -> u64 {
    let since = written.saturating_sub(word & u32::MAX as u64);
    (word >> 32).saturating_sub(since)
}

impl Unwritten {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Notes that so many pages were opened, of a heap in which `written` are by now.
    pub(crate) fn note(&self, pages: usize, written: u64) {
        self.change(written, |left| left.saturating_add(pages as u64));
    }

    /// Notes that so many pages were closed or freed.
    pub(crate) fn note_closed(&self, pages: usize, written: u64) {
        self.change(written, |left| left.saturating_sub(pages as u64));
    }

    /// Whether some may be left.
    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) >> 32 != 0
    }

    /// Pages that are opened and not written, where `written` are in all.
    pub(crate) fn left(&self, written: u64) -> u64 {
        left_of(self.0.load(Ordering::Relaxed), written)
    }

    fn change(&self, written: u64, change: impl Fn(u64) -> u64) {
        let next = |word: u64| Some(both(change(left_of(word, written)), written));
        let _always = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_closed_or_freed_is_no_more_to_be_hoped_for() {
        let opened = Unwritten::new();
        assert!(!opened.any() && opened.left(500) == 0);
        opened.note(100, 500);
        assert!(opened.any());
        assert_eq!((opened.left(500), opened.left(530)), (100, 70));
        assert_eq!(opened.left(480), 100, "others gave back");
        assert_eq!(opened.left(700), 0);
        // What was written before another piece is opened stays so.
        opened.note(50, 540);
        assert_eq!((opened.left(540), opened.left(480)), (110, 110));
        opened.note_closed(30, 550);
        assert_eq!(opened.left(550), 70);
        opened.note_closed(usize::MAX, 550);
        assert!(!opened.any());
        opened.note(usize::MAX, u64::MAX);
        assert_eq!(opened.left(0), u64::from(u32::MAX));
    }
}

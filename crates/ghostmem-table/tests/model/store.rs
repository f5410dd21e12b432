//! Slots that know when they are misused.
//!
//! Handing a slot from the one who frees it to the one who takes it is
//! ordered, as in any allocator. Its *content* is relaxed: a reader sees the
//! right bytes only if the page word carried them over.

use std::sync::Mutex;

use loom::sync::atomic::{AtomicU64, Ordering};

/// Few, so that a freed slot comes back at once: the worst case for whoever
/// confuses two lives of one slot.
const SLOTS: usize = 3;
const FREE: u64 = 0;
const TAKEN: u64 = 1;
/// What a freed slot holds; no page ever does.
const SCRAP: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Store {
    owner: [AtomicU64; SLOTS],
    content: [AtomicU64; SLOTS],
    /// Which slots are taken, in the order things really happen.
    taken: Mutex<[bool; SLOTS]>,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            owner: std::array::from_fn(|_| AtomicU64::new(FREE)),
            content: std::array::from_fn(|_| AtomicU64::new(SCRAP)),
            taken: Mutex::new([false; SLOTS]),
        }
    }

    fn book<R>(&self, f: impl FnOnce(&mut [bool; SLOTS]) -> R) -> R {
        f(&mut self
            .taken
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Takes the lowest free slot for `content`.
    pub(crate) fn put(&self, content: u64) -> u64 {
        let slot = self.book(|taken| {
            let free = taken.iter().position(|taken| !taken);
            let slot = free.expect("the model leaks slots");
            taken[slot] = true;
            slot
        });
        self.owner[slot].swap(TAKEN, Ordering::AcqRel);
        self.content[slot].store(content, Ordering::Relaxed);
        slot as u64
    }

    pub(crate) fn get(&self, slot: u64) -> u64 {
        let slot = slot as usize;
        assert!(self.book(|taken| taken[slot]), "slot used after free");
        let content = self.content[slot].load(Ordering::Relaxed);
        assert_ne!(content, SCRAP, "slot read before its bytes arrived");
        content
    }

    pub(crate) fn free(&self, slot: u64) {
        let slot = slot as usize;
        assert!(self.book(|taken| taken[slot]), "slot freed twice");
        self.content[slot].store(SCRAP, Ordering::Relaxed);
        self.owner[slot].swap(FREE, Ordering::AcqRel);
        self.book(|taken| taken[slot] = false);
    }

    /// The slots in use.
    pub(crate) fn in_use(&self) -> Vec<u64> {
        self.book(|taken| (0..SLOTS as u64).filter(|&s| taken[s as usize]).collect())
    }
}

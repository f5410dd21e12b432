//! Ordinary memory standing in for ghost memory.
#![allow(dead_code, unreachable_pub)]

use std::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_small::Space;

/// Drops discarded pages as a ghost region would, and counts.
#[derive(Default)]
pub struct Plain {
    pub calls: AtomicUsize,
    pub bytes: AtomicUsize,
    /// Lowest and highest address seen.
    pub low: AtomicUsize,
    pub high: AtomicUsize,
}

impl Plain {
    pub fn new() -> Self {
        Self {
            low: AtomicUsize::new(usize::MAX),
            ..Self::default()
        }
    }
}

impl Space for Plain {
    fn discard(&self, address: usize, bytes: usize) {
        assert!(address.is_multiple_of(4096) && bytes.is_multiple_of(4096));
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.low.fetch_min(address, Ordering::Relaxed);
        self.high.fetch_max(address + bytes, Ordering::Relaxed);
        #[cfg(not(windows))]
        {
            // SAFETY: the heap says that nobody needs these pages' contents.
            let rc = unsafe { libc::madvise(address as *mut _, bytes, libc::MADV_DONTNEED) };
            assert_eq!(rc, 0);
        }
        // On Windows they stay: nobody counts on zeros, and writing those would
        // commit all of the arena.
    }
}

/// A small random generator; the tests print their seeds.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// A block that knows what it contains.
pub struct Block {
    pub at: std::ptr::NonNull<u8>,
    pub size: usize,
    pub mark: u8,
}

// SAFETY: a block is plain memory that only its owner touches.
unsafe impl Send for Block {}

impl Block {
    pub fn fill(at: std::ptr::NonNull<u8>, size: usize, mark: u8) -> Self {
        // SAFETY: the heap handed out `size` bytes there.
        unsafe { at.as_ptr().write_bytes(mark, size) };
        Self { at, size, mark }
    }

    pub fn check(&self) {
        // SAFETY: the block is alive and was filled with `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.size) };
        assert!(
            bytes.iter().all(|&b| b == self.mark),
            "contents changed under a live block"
        );
    }
}

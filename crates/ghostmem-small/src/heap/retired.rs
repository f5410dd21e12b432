//! Retired blocks: freed by the program, and not yet mimalloc's.
//!
//! A block is retired while the [`Space`] holds memory of it, which `let_go` ends, or
//! where it is freed on a thread that may be in the middle of mimalloc: then it is
//! *put off* until the next call that may enter the gate.

use core::ops::Range;
use core::ptr;
use core::sync::atomic::{Ordering, fence};

use super::{Core, GRAIN, SIZE_MAX, Space};
use crate::ffi::{self, Table};

impl<S: Space> Core<S> {
    /// Frees a block that is no longer live as soon as nothing holds it. Call
    /// inside the gate.
    pub(super) fn retire(&self, address: usize) {
        self.settle(self.mark_retired(address));
    }

    /// Says that a block that is no longer live is mimalloc's to free; its grain.
    fn mark_retired(&self, address: usize) -> usize {
        self.retired_count.fetch_add(1, Ordering::SeqCst);
        let grain = (address - self.table.base) / GRAIN;
        self.retired[grain / 64].fetch_or(1 << (grain % 64), Ordering::SeqCst);
        grain
    }

    /// Leaves a block that is no longer live to the next call that may enter the
    /// gate: this thread may be in the middle of mimalloc.
    pub(super) fn put_off(&self, address: usize) {
        let _grain = self.mark_retired(address);
        self.put_off_range(address, address + 1);
    }

    pub(super) fn put_off_range(&self, start: usize, end: usize) {
        self.put_off.add(self.words_reaching(start, end));
    }

    /// Frees what was put off. Call inside the gate.
    #[inline]
    pub(super) fn settle_put_off(&self) {
        if self.put_off.is_any() {
            self.settle_words(self.put_off.take());
        }
    }

    /// Settles the retired blocks that may reach into a range. Call inside the
    /// gate.
    pub(super) fn settle_in(&self, start: usize, end: usize) {
        self.settle_words(self.words_reaching(start, end));
    }

    /// The words of the bitmap for blocks that may reach into a range.
    fn words_reaching(&self, start: usize, end: usize) -> Range<usize> {
        let Table {
            base,
            start: first,
            bytes,
            ..
        } = self.table;
        let start = start.saturating_sub(SIZE_MAX).max(first) - base;
        let end = end.min(first + bytes).saturating_sub(base);
        start / GRAIN / 64..end.div_ceil(GRAIN * 64)
    }

    fn settle_words(&self, words: Range<usize>) {
        for word in words {
            let mut bits = self.retired[word].load(Ordering::SeqCst);
            while bits != 0 {
                self.settle(word * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// Gives a retired block to mimalloc if nothing holds it. Whoever takes its
    /// bit off is the one that may. Call inside the gate.
    fn settle(&self, grain: usize) {
        let (word, bit) = (&self.retired[grain / 64], 1_u64 << (grain % 64));
        let address = self.table.base + grain * GRAIN;
        let block = ptr::with_exposed_provenance_mut::<core::ffi::c_void>(address);
        while word.fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
            // SAFETY: retired, and ours alone now: mimalloc has it as a block
            // in use, of which this reads the page header.
            let bytes = unsafe { ffi::mi_usable_size(block) };
            if !self.space.is_held(address, bytes) {
                self.retired_count.fetch_sub(1, Ordering::SeqCst);
                // SAFETY: as above; its owner freed it, and nothing else uses
                // it.
                unsafe { ffi::mi_free(block) };
                return;
            }
            word.fetch_or(bit, Ordering::SeqCst);
            // Pairs with the one in `let_go`.
            fence(Ordering::SeqCst);
            if self.space.is_held(address, bytes) {
                return;
            }
        }
    }
}

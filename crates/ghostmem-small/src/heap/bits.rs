//! Where in the bitmaps a block's bit is.

use core::ptr::NonNull;

use super::{Core, GRAIN, MIXED_BYTES, Space};
use crate::live::LiveBits;

impl<S: Space> Core<S> {
    #[inline]
    pub(super) fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.table.start) < self.table.bytes
    }

    /// The bitmap words and the bit of an address where a block can start.
    #[inline]
    pub(super) fn places_of(&self, address: usize) -> Option<(LiveBits<'_>, u64)> {
        if !self.contains(address) || !address.is_multiple_of(GRAIN) {
            return None;
        }
        let offset = address - self.table.base;
        let grain = offset / GRAIN;
        let places = LiveBits {
            own: &self.own[grain / 64],
            others: &self.others[grain / 64],
            mixed: &self.mixed[offset / MIXED_BYTES],
        };
        Some((places, 1 << (grain % 64)))
    }

    /// Notes that a block lives that mimalloc just handed out. `owner`: this
    /// thread owns its page.
    #[inline]
    pub(super) fn begin(&self, block: NonNull<u8>, owner: bool) {
        match self.places_of(block.as_ptr() as usize) {
            Some((places, bit)) if places.begin(bit, owner) => {}
            _ => corrupt(),
        }
    }
}

/// mimalloc handed out a block that lives, or memory that is not ours: its
/// free list, which runs through freed blocks, was overwritten, or two threads
/// freed the block at the same instant.
#[cold]
pub(super) fn corrupt() -> ! {
    const MESSAGE: &[u8] = b"ghostmem: a freed small block was written to (use after free), \
        or freed twice at once; the free list is destroyed, stopping\n";
    ghostmem_os::stop::complain(MESSAGE);
    std::process::abort()
}

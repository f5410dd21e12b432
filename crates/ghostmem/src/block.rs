//! Blocks whose owner frees them without telling a layout, as C does.
//!
//! [`Heap::allocate_block`] and [`Heap::deallocate_block`] belong together: the
//! first counts every byte the block has, the second finds that number again.
//! Mixing them with [`Heap::allocate`] and [`Heap::deallocate`] is safe but
//! makes `Stats::allocated_bytes`, and what a memory limit goes by, wrong by the
//! difference.

use core::alloc::Layout;
use core::ptr::NonNull;

use ghostmem_os::PAGE_SIZE;

use crate::{Error, Heap};

impl Heap {
    /// Allocates memory that [`Heap::deallocate_block`] frees. The slice covers
    /// every byte the block has, at least `layout.size()` and at least one;
    /// with `zeroed`, the first `layout.size()` bytes are zero, else they are
    /// unspecified.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate_block(&self, layout: Layout, zeroed: bool) -> Result<NonNull<[u8]>, Error> {
        let size = layout.size().max(1);
        let layout = Layout::from_size_align(size, layout.align())
            .map_err(|_| Error::OutOfMemory { bytes: size })?;
        let block = self.allocate_with(layout, zeroed)?.cast::<u8>();
        let bytes = match self.small_if_made() {
            Some(small) if small.contains(block.as_ptr().addr()) => {
                let bytes = small.usable_size(block).unwrap_or(size);
                // What the block has beyond what was asked for counts too.
                self.engine().take_back(size.wrapping_sub(bytes));
                bytes
            }
            _ => self.block_bytes(block).unwrap_or(size),
        };
        Ok(NonNull::slice_from_raw_parts(block, bytes))
    }

    /// Frees a block of [`Heap::allocate_block`]; how many bytes it had. A
    /// block freed twice, the middle of a block, and a pointer from elsewhere
    /// are refused and change nothing.
    ///
    /// # Safety
    /// Nobody may use the block any more.
    ///
    /// # Errors
    /// [`Error::NotAllocated`].
    pub unsafe fn deallocate_block(&self, block: NonNull<u8>) -> Result<usize, Error> {
        let address = block.as_ptr().addr();
        let wrong = || Error::NotAllocated { address };
        if let Some(small) = self.small_if_made()
            && small.contains(address)
        {
            let bytes = small.usable_size(block).ok_or_else(wrong)?;
            // SAFETY: the caller's promise: the block is no longer used.
            unsafe { small.deallocate(block) }.map_err(|_| wrong())?;
            self.engine().take_back(bytes);
            return Ok(bytes);
        }
        self.engine().free(address).map_err(|_| wrong())
    }

    /// Bytes of the live block that starts at `block`; `None` when none does.
    #[must_use]
    pub fn block_bytes(&self, block: NonNull<u8>) -> Option<usize> {
        let address = block.as_ptr().addr();
        if let Some(small) = self.small_if_made()
            && small.contains(address)
        {
            return small.usable_size(block);
        }
        let (first, bytes) = self.engine().block_of(address)?;
        (first == address).then_some(bytes)
    }

    /// Makes a block of pages of [`Heap::allocate_block`] at least `size`
    /// bytes long where it is; `false`, and nothing has changed, when it is a
    /// small object or has no room for that. What it loses is forgotten.
    ///
    /// # Safety
    /// Nobody may use bytes that the block loses, nor free or resize it
    /// meanwhile.
    #[must_use]
    pub unsafe fn resize_in_place(&self, block: NonNull<u8>, size: usize) -> bool {
        let pages = size.max(1).div_ceil(PAGE_SIZE);
        self.engine().resize(block.as_ptr().addr(), pages)
    }

    /// The live block of pages around an address: where it starts, and its
    /// length in bytes. `None` for small objects and for what is not this
    /// heap's.
    #[must_use]
    pub fn pages_around(&self, address: usize) -> Option<(usize, usize)> {
        self.engine().block_of(address)
    }

    /// The ranges of address space this heap's memory lies in: first address
    /// and length in bytes. Grows when the heap needs another region.
    pub fn spans(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.engine().spans()
    }
}

//! Blocks that change their size: where they are if their room allows it, else
//! moved.

use core::alloc::Layout;
use core::ptr::NonNull;

use ghostmem_os::PAGE_SIZE;
use ghostmem_os::map::ADDRESS_SPACE_BYTES;
use ghostmem_small::SIZE_MAX;

use crate::{Error, Heap};

/// A moving block's old pages are forgotten after so many bytes were copied: they
/// need not leave for the new ones then.
const PIECE: usize = 64 * PAGE_SIZE;

/// A small object of so few bytes stays however little of it is used.
const SMALLEST: usize = 32;

/// Bytes that a block has, and what kind it is.
#[derive(Clone, Copy)]
enum Held {
    Small(usize),
    Pages(usize),
}

impl Held {
    fn bytes(self) -> usize {
        let (Self::Small(bytes) | Self::Pages(bytes)) = self;
        bytes
    }
}

impl Heap {
    /// Makes a block as long as `new` says, aligned as it says; its contents are kept
    /// up to the smaller of both sizes, what it gains is unspecified. The block may
    /// move; then what the old one held has to come back into memory to be copied.
    ///
    /// A size of zero, of either layout, stands for no block, as in
    /// [`Heap::allocate`].
    ///
    /// # Safety
    /// The block was allocated by this heap with the layout `old`, and nobody uses
    /// it meanwhile, nor, after success, the old pointer.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::NotAllocated`]; the block is as it was.
    pub unsafe fn reallocate(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, Error> {
        // SAFETY: the caller's promise.
        unsafe { self.reallocate_with(block, old, new, false) }
    }

    /// As [`Heap::reallocate`]; with `zeroed`, the bytes it gains are zero.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn reallocate_with(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
        zeroed: bool,
    ) -> Result<NonNull<[u8]>, Error> {
        if old.size() == 0 {
            return self.allocate_with(new, zeroed);
        }
        let held = self.held(block)?;
        if new.size() >= ADDRESS_SPACE_BYTES {
            return Err(Error::OutOfMemory { bytes: new.size() });
        }
        let here = block.as_ptr().addr().is_multiple_of(new.align());
        if here && new.size() > 0 && self.resize(block, held, old.size(), new.size())? {
            let dirty_end = held.bytes().min(new.size());
            if zeroed && old.size() < dirty_end {
                // SAFETY: the block is at least `dirty_end` bytes long, by which the
                // bytes that it gained further on begin, which are zero.
                let gained = unsafe { block.as_ptr().add(old.size()) };
                // SAFETY: as above; nobody uses the block, by the caller's promise.
                unsafe { gained.write_bytes(0, dirty_end - old.size()) };
            }
            return Ok(NonNull::slice_from_raw_parts(block, new.size()));
        }
        let moved = match self.allocate_with(new, zeroed) {
            // One that only gets shorter is long enough where it is.
            Err(_) if here && new.size() <= old.size() && new.size() > 0 => {
                self.count_change(held, old.size(), new.size())?;
                return Ok(NonNull::slice_from_raw_parts(block, new.size()));
            }
            moved => moved?,
        };
        let bytes = old.size().min(new.size());
        // SAFETY: both live, by the caller's promise and as just allocated.
        unsafe { self.copy(block, held, moved.cast(), bytes) };
        // SAFETY: the caller's promise; its contents were copied.
        unsafe { self.deallocate(block, old) }?;
        Ok(moved)
    }

    /// What a live block has.
    fn held(&self, block: NonNull<u8>) -> Result<Held, Error> {
        let address = block.as_ptr().addr();
        let bytes = self.block_bytes(block);
        let bytes = bytes.ok_or(Error::NotAllocated { address })?;
        Ok(if self.is_among_small(address) {
            Held::Small(bytes)
        } else {
            Held::Pages(bytes)
        })
    }

    /// Makes a block `new` bytes long where it is, if it has room for that and does
    /// not hold much more than that.
    fn resize(
        &self,
        block: NonNull<u8>,
        held: Held,
        old: usize,
        new: usize,
    ) -> Result<bool, Error> {
        match held {
            Held::Small(bytes) if new <= bytes && (new >= bytes / 2 || bytes <= SMALLEST) => {
                self.count_change(held, old, new).map(|()| true)
            }
            Held::Small(_) => Ok(false),
            Held::Pages(bytes) => {
                let pages = new.div_ceil(PAGE_SIZE);
                // What could be a small object becomes one, unless it needs as many
                // pages as it has.
                Ok(pages * PAGE_SIZE == bytes
                    || new > SIZE_MAX && self.engine().resize(block.as_ptr().addr(), pages))
            }
        }
    }

    /// Counts that a small object is `new` bytes long from now on.
    fn count_change(&self, held: Held, old: usize, new: usize) -> Result<(), Error> {
        if let Held::Small(_) = held {
            if new > old {
                let refused = self.or_after_trim(|| self.engine().count_foreign(new - old));
                refused.map_err(|_| Error::OutOfMemory { bytes: new })?;
            } else {
                self.engine().uncount_foreign(old - new);
            }
        }
        Ok(())
    }

    /// Copies a block that moves.
    ///
    /// # Safety
    /// `from` is a block that holds `held`, `bytes` of it are valid and given up with
    /// this, and `to` is another of at least so many.
    unsafe fn copy(&self, from: NonNull<u8>, held: Held, to: NonNull<u8>, bytes: usize) {
        for at in (0..bytes).step_by(PIECE) {
            let piece = PIECE.min(bytes - at);
            // SAFETY: within the block, by the caller's promise.
            let source = unsafe { from.as_ptr().add(at) };
            // SAFETY: as above, of the other block.
            let target = unsafe { to.as_ptr().add(at) };
            // SAFETY: as above; two blocks do not overlap.
            unsafe { target.copy_from_nonoverlapping(source, piece) };
            if let Held::Pages(_) = held {
                // What is not forgotten now is when the block is freed.
                let _kept = self.engine().discard(source.addr(), piece);
            }
        }
    }
}

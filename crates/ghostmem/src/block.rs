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
#[cfg(not(windows))]
use ghostmem_os::error::{EAGAIN, EINVAL, EIO};
#[cfg(not(windows))]
use ghostmem_os::room::Room;
use ghostmem_pager::Hole;
use ghostmem_small::{SmallError, SmallHeap};

use crate::heap::{Discards, parts};
use crate::{Error, Heap};

/// A heap's small objects, for a malloc that counts them by itself, many at a time,
/// and tells by [`Heap::count_small`]. See [`Heap::small_objects`].
#[derive(Debug)]
pub struct SmallObjects(pub(crate) SmallHeap<Discards>);

impl SmallObjects {
    /// A block of at least `size` bytes, aligned to `align` and to 16; the slice
    /// covers every byte it has. With `zeroed`, the first `size` bytes are zero.
    /// `None` above 32 KiB or an alignment of 4096, and where there is no room.
    #[must_use]
    #[inline]
    pub fn allocate(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<[u8]>> {
        self.0.allocate_block(size, align, zeroed)
    }

    /// As [`SmallObjects::allocate`], aligned to 16 and not zeroed, where that is
    /// quickly done; `None` says no more than that it is not.
    #[must_use]
    #[inline]
    pub fn allocate_quick(&self, size: usize) -> Option<NonNull<[u8]>> {
        self.0.allocate_quick(size)
    }

    /// Frees a block; how many bytes it had. `None`, with nothing done, for an
    /// address where none of these can be.
    ///
    /// # Errors
    /// [`Error::NotAllocated`], with nothing done, where one could be and none lives.
    ///
    /// # Safety
    /// If `block` is one, nobody may use it any more.
    #[inline]
    pub unsafe fn free(&self, block: NonNull<u8>) -> Option<Result<usize, Error>> {
        // SAFETY: the caller's promise.
        match unsafe { self.0.deallocate_block(block) } {
            Ok(bytes) => Some(Ok(bytes)),
            Err(SmallError::NotLive { address }) => Some(Err(Error::NotAllocated { address })),
            Err(_) => None,
        }
    }

    /// Bytes of the block that lives at `block`; `None` where none does.
    #[must_use]
    #[inline]
    pub fn bytes_of(&self, block: NonNull<u8>) -> Option<usize> {
        self.0.usable_size(block)
    }
}

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
        if let Some(block) = self.allocate_quick(layout, zeroed) {
            return Ok(block);
        }
        let block = self.allocate_with(layout, zeroed)?.cast::<u8>();
        let bytes = match self.small_if_made() {
            Some(small) if small.contains(block.as_ptr().addr()) => {
                let bytes = small.usable_size(block).unwrap_or(size);
                // What the block has beyond what was asked for counts too.
                self.engine().uncount_foreign(size.wrapping_sub(bytes));
                bytes
            }
            _ => self.block_bytes(block).unwrap_or(size),
        };
        Ok(NonNull::slice_from_raw_parts(block, bytes))
    }

    /// A small object where no limit is to be asked: counted once.
    #[inline]
    fn allocate_quick(&self, layout: Layout, zeroed: bool) -> Option<NonNull<[u8]>> {
        let small = self
            .small_objects_if_made()
            .filter(|_| !self.engine().has_memory_limit())?;
        let block = small.allocate(layout.size(), layout.align(), zeroed)?;
        self.engine().note_foreign(block.len());
        Some(block)
    }

    /// This heap's small objects, for a caller that counts them by itself, and asks for
    /// each where [`Heap::count_small`] says so. `None` while there are none yet, and in a
    /// heap with a limit of its own on all it holds, which has to be asked for each.
    #[must_use]
    #[inline]
    pub fn small_objects(&self) -> Option<&SmallObjects> {
        self.small_objects_if_made()
            .filter(|_| !self.engine().has_heap_limit())
    }

    /// Frees a small object; `None` for an address where there are none.
    ///
    /// # Safety
    /// As [`Heap::deallocate_block`].
    #[inline]
    unsafe fn free_small(&self, block: NonNull<u8>) -> Option<Result<usize, Error>> {
        let small = self.small_objects_if_made()?;
        // SAFETY: the caller's promise.
        unsafe { small.free(block) }
    }

    /// Counts bytes that [`SmallObjects::allocate`] handed out, less those that
    /// [`SmallObjects::free`] took back. Whether the heap has to be asked for each further
    /// one, by [`Heap::allocate_block`], until this says otherwise: the bound on memory is
    /// close, and may refuse it. `asked`: it has to be so far.
    #[must_use]
    pub fn count_small(&self, bytes: isize, asked: bool) -> bool {
        self.engine()
            .note_foreign_and_ask(bytes.cast_unsigned(), asked)
    }

    /// Whether an address lies where this heap's small objects are. Lock-free.
    #[must_use]
    #[inline]
    pub fn is_among_small(&self, address: usize) -> bool {
        self.small_if_made()
            .is_some_and(|small| small.contains(address))
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
        // SAFETY: the caller's promise.
        if let Some(freed) = unsafe { self.free_small(block) } {
            return freed.inspect(|&bytes| self.engine().uncount_foreign(bytes));
        }
        self.engine()
            .free(address)
            .map_err(|_| Error::NotAllocated { address })
    }

    /// Bytes of the live block that starts at `block`; `None` when none does.
    #[must_use]
    #[inline]
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

    /// Gives free memory back that small objects still have: what this thread
    /// freed, and what is free anywhere. Costs a walk over the thread's pages.
    pub fn trim(&self) {
        if let Some(small) = self.small_if_made() {
            small.trim();
        }
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

    /// Takes pages of a block away from the program, as munmap(2) does with
    /// [`Hole::Unmapped`] and a mapping without access does with [`Hole::Closed`]:
    /// their contents are gone, and a touch of them is the program's own fault, until
    /// [`Heap::fill_holes`] or until the block is freed. Pinned pages stay.
    ///
    /// # Safety
    /// Nobody may refer to the bytes.
    ///
    /// # Errors
    /// [`Error::NotGhost`].
    pub unsafe fn make_holes<T>(&self, range: *mut [T], hole: Hole) -> Result<(), Error> {
        let (address, len) = parts(range.cast_const());
        self.engine()
            .make_holes(address, len, hole)
            .map_err(|_| Error::NotGhost { address })
    }

    /// Gives the holes of a range back to their blocks, as zero pages.
    ///
    /// # Errors
    /// [`Error::NotGhost`].
    pub fn fill_holes<T>(&self, range: *const [T]) -> Result<(), Error> {
        let (address, len) = parts(range);
        self.engine()
            .fill_holes(address, len)
            .map_err(|_| Error::NotGhost { address })
    }

    /// Whether there ever was a hole in a block. A load for each region.
    #[must_use]
    pub fn has_holes(&self) -> bool {
        self.engine().has_holes()
    }

    /// Bytes of blocks that are closed ([`Hole::Closed`]). A load for each region.
    #[must_use]
    pub fn closed_bytes(&self) -> usize {
        self.engine().closed_bytes()
    }

    /// Whether some page of a range is unmapped, or part of no block. Lock-free.
    #[must_use]
    pub fn has_unmapped<T>(&self, range: *const [T]) -> bool {
        let (address, len) = parts(range);
        self.engine().has_unmapped(address, len)
    }

    /// Whether an allocation may be refused for a limit on memory.
    #[must_use]
    pub fn has_memory_limit(&self) -> bool {
        self.engine().has_memory_limit()
    }

    /// Whether a bound on the process holds `bytes` more of memory that is not the heap's;
    /// `true` where there is none.
    #[must_use]
    pub fn holds_ordinary(&self, bytes: usize) -> bool {
        let asked = self.or_after_trim(|| self.engine().admit_ordinary(bytes));
        asked.is_ok()
    }

    /// Whether there is address space for a block of `bytes`: an allocation that is refused
    /// all the same was refused by the limit on memory.
    #[must_use]
    pub fn has_place(&self, bytes: usize) -> bool {
        let Ok(block) = self.reserve_block(bytes) else {
            return false;
        };
        // SAFETY: reserved just now, and known to nobody.
        unsafe { self.deallocate_block(block) }.is_ok()
    }

    /// As [`Heap::fill_holes`], if the memory limit holds the pages.
    ///
    /// # Errors
    /// [`Error::NotGhost`]; [`Error::OutOfMemory`], with nothing done.
    pub fn open_holes<T>(&self, range: *const [T]) -> Result<(), Error> {
        let (address, len) = parts(range);
        let opened = self.or_after_trim(|| self.engine().open_holes(address, len));
        opened.map_err(|error| match error.errno {
            ghostmem_os::error::ENOMEM => Error::OutOfMemory { bytes: len },
            _ => Error::NotGhost { address },
        })
    }

    /// Makes holes ([`Hole::Closed`]) of those pages of a range that hold nothing; how
    /// many bytes of it stay, as their pages hold something.
    ///
    /// # Errors
    /// [`Error::NotGhost`].
    pub fn close_empty<T>(&self, range: *const [T]) -> Result<usize, Error> {
        let (address, len) = parts(range);
        self.engine()
            .close_empty(address, len)
            .map_err(|_| Error::NotGhost { address })
    }

    /// Allocates a block of `bytes`, whole pages, all of it holes ([`Hole::Closed`]); its
    /// address. Holes are not counted as allocated, and no limit is asked.
    /// [`Heap::deallocate_block`] frees it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], where there is no address space.
    pub fn reserve_block(&self, bytes: usize) -> Result<NonNull<u8>, Error> {
        let none = Error::OutOfMemory { bytes };
        let pages = bytes.div_ceil(PAGE_SIZE).max(1);
        let address = ghostmem_pager::Engine::reserve(self.engine(), pages, 1).map_err(|_| none)?;
        let none = Error::OutOfMemory { bytes };
        NonNull::new(core::ptr::with_exposed_provenance_mut(address)).ok_or(none)
    }

    /// Whether a bound on the process may come to hold `bytes` that a program asks for
    /// without a reservation (`MAP_NORESERVE`): [`Heap::promise_block`] is for those.
    /// `false` where there is no bound.
    #[must_use]
    pub fn may_promise(&self, bytes: usize) -> bool {
        self.engine().may_promise(bytes)
    }

    /// Allocates a block of `bytes`, whole pages of zeros, that a bound on the process need
    /// not hold: a touch is refused where it does not. Where they do not fit by the
    /// forecast they count as [`Heap::open_holes`] counts them, if that fits, little until
    /// they are written. [`Heap::deallocate_block`] frees it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], where there is no address space or no mapping left.
    pub fn promise_block(&self, bytes: usize) -> Result<NonNull<u8>, Error> {
        let pages = bytes.div_ceil(PAGE_SIZE).max(1);
        let whole = || ghostmem_pager::Engine::allocate(self.engine(), pages, 1);
        if let Ok(address) = self.or_quietly_after_trim(whole) {
            let block = core::ptr::with_exposed_provenance_mut(address);
            return NonNull::new(block).ok_or(Error::OutOfMemory { bytes });
        }
        let block = self.reserve_block(bytes)?;
        let (engine, address) = (self.engine(), block.as_ptr().expose_provenance());
        let opened = engine.open_holes(address, bytes);
        // Promised all the same: who writes more than fits is told by the touch.
        let opened = opened.or_else(|_| engine.fill_holes(address, bytes));
        opened.map(|()| block).map_err(|_| {
            let _nobody_has_it = engine.free(address);
            Error::OutOfMemory { bytes }
        })
    }

    /// Gives the pages of a range to another mapping, which the caller puts in their
    /// place: whatever they held is gone, they are not ghost memory any more, and nothing
    /// acts on their addresses until [`Heap::retake`], or until their block is freed.
    ///
    /// # Safety
    /// Nobody may refer to the bytes.
    ///
    /// # Errors
    /// [`Error::NotGhost`], also where pages are pinned, with nothing done.
    pub unsafe fn give_away<T>(&self, range: *mut [T]) -> Result<(), Error> {
        let (address, len) = parts(range.cast_const());
        self.engine()
            .give_away(address, len)
            .map_err(|_| Error::NotGhost { address })
    }

    /// Has fresh memory take the place of pages of a range, from its start on, with what
    /// they hold: a good part of a megabyte at most, or more of pages that never held
    /// anything. How many bytes it was. They are as after [`Heap::give_away`], and as many
    /// of the fresh memory have moved. A thread that touches them meanwhile waits: no store
    /// is lost. But a touch of pages that never held anything may be refused in that moment,
    /// as one of a hole: `ghostmem run` tries it again.
    ///
    /// # Safety
    /// `fresh` is whole pages of a private anonymous mapping, as long as the range, open for
    /// loads and stores, and the caller's alone; what madvise(2) was told of them it was told
    /// of all. Nobody has a reference into the range.
    ///
    /// # Errors
    /// [`Error::NotGhost`], also where the first page is pinned or a hole;
    /// [`Error::PageLost`]; [`Error::OutOfMemory`], where the system refuses. Nothing has
    /// changed.
    #[cfg(not(windows))]
    pub unsafe fn hand_over<T>(
        &self,
        range: *const [T],
        fresh: NonNull<u8>,
    ) -> Result<usize, Error> {
        let (address, len) = parts(range);
        // SAFETY: the caller's promise.
        let room = unsafe { Room::new(fresh.as_ptr() as usize, len) };
        let handed = self.engine().hand_over(address, room);
        handed.map_err(|error| match error.errno {
            EINVAL | EAGAIN => Error::NotGhost { address },
            EIO => Error::PageLost { address },
            _ => Error::OutOfMemory { bytes: len },
        })
    }

    /// Takes what of a range was given away back: holes ([`Hole::Closed`]), whatever lay
    /// there.
    ///
    /// # Safety
    /// Nobody may refer to the bytes.
    ///
    /// # Errors
    /// [`Error::NotGhost`]; [`Error::OutOfMemory`], where the system refuses.
    pub unsafe fn retake<T>(&self, range: *mut [T]) -> Result<(), Error> {
        let (address, len) = parts(range.cast_const());
        self.engine()
            .retake(address, len)
            .map_err(|_| Error::OutOfMemory { bytes: len })
    }

    /// Whether the page at an address was given away, and how many bytes from there on, of
    /// `len` at most, are like it; `None` for what lies in no region of this heap's.
    /// Lock-free.
    #[must_use]
    pub fn away_run(&self, address: usize, len: usize) -> Option<(bool, usize)> {
        self.engine().away_run(address, len)
    }

    /// What hole the page at an address is, if one, and how many bytes from there on, of
    /// `len` at most, are like it; `None` for what is not this heap's. Lock-free.
    #[must_use]
    pub fn hole_run(&self, address: usize, len: usize) -> Option<(Option<Hole>, usize)> {
        self.engine().hole_run(address, len)
    }

    /// The next pages from an address on, of `len` bytes at most, that hold anything:
    /// first address and bytes. Lock-free; what changes meanwhile is seen or not.
    #[must_use]
    pub fn next_contents(&self, address: usize, len: usize) -> Option<(usize, usize)> {
        self.engine().next_contents(address, len)
    }

    /// Why a touch of an address would be refused; `None` where it would not, and for
    /// what is not this heap's. Lock-free, async-signal-safe.
    #[must_use]
    pub fn hole_at(&self, address: usize) -> Option<Hole> {
        self.engine().hole_at(address)
    }

    /// The ranges of address space this heap's memory lies in: first address
    /// and length in bytes. Grows when the heap needs another region. That of small
    /// objects is there at once, with all that they may ever need.
    pub fn spans(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let small = self.small_if_made().map(SmallHeap::span);
        self.engine().spans().chain(small)
    }
}

//! [`SmallHeap`]: a mimalloc heap on one arena, with a bitmap of what lives.

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};

use ghostmem_os::lock::Lock;
use ghostmem_os::map::{MapArc, ZeroArray};

use crate::arena::{Arena, ArenaEntry, Classes};
use crate::error::SmallError;
use crate::ffi::{self, Table};
use crate::fork_gate;
use crate::put_off::PutOff;
use crate::seam;

mod bits;
mod growth;
mod retired;
mod space;

use bits::corrupt;
use growth::{open_heaps, words_for};
pub use space::Space;
use space::discard_in;

/// The largest request served, bytes.
pub const SIZE_MAX: usize = 32 << 10;

/// The largest alignment served, bytes.
pub const ALIGN_MAX: usize = 4096;

/// The smallest distance between two blocks, and their least alignment.
pub(crate) const GRAIN: usize = 16;

/// The largest request the quickest path takes: mimalloc's `MI_SMALL_SIZE_MAX`.
const QUICK_MAX: usize = 1024;

/// Bytes of blocks that one byte of `mixed` speaks of.
const MIXED_BYTES: usize = 64 << 10;

/// Small objects on one [`Arena`], which grows when it is full.
///
/// Any thread may allocate, and any free what another allocated; the fast
/// paths share nothing between threads. A thread may end with blocks alive:
/// others free them and reuse the room.
///
/// **Two bitmaps** with one bit each for every 16 bytes of arena say where a
/// block lives: where they differ (see `live.rs`). Each takes 1/128 (0.8 %) of
/// the memory it is written for, ordinary memory, never touched where the arena
/// is not; the second is written, and read, only where blocks are freed by threads
/// that did not allocate them, or after the thread gave their page up, which a byte
/// for every 64 KiB says. A pointer where
/// no block lives never reaches mimalloc. A third bitmap says which freed blocks
/// are *retired*: held by the [`Space`] when they were freed, and still
/// mimalloc's to free.
///
/// **Freeing writes into the block** (mimalloc's free list runs through free
/// blocks): freeing a block whose page is evicted brings the page back.
///
/// **Dropping** destroys all blocks at once without touching them, tells the
/// [`Space`] nothing more, and drops the arena (see there for what the holder
/// must do before; [`SmallHeap::close`] keeps the arena for that).
pub struct SmallHeap<S: Space> {
    // Declared, and so dropped, before the arena.
    core: Core<S>,
    arena: Arena,
}

/// All of a heap but its arena. Dropping it destroys the mimalloc heap.
struct Core<S: Space> {
    /// Where what follows is, for the quick paths.
    table: Table,
    /// Changed by the owner of a block's mimalloc page.
    own: ZeroArray<AtomicU64>,
    /// Changed by everybody else.
    others: ZeroArray<AtomicU64>,
    /// Where `others` was ever changed, a byte for every [`MIXED_BYTES`].
    mixed: ZeroArray<AtomicU8>,
    /// Freed, but held: touched only where such blocks are.
    retired: ZeroArray<AtomicU64>,
    retired_count: AtomicUsize,
    /// Where retired blocks were put off, see [`Core::put_off`].
    put_off: PutOff,
    space: MapArc<S>,
    entry: &'static ArenaEntry,
    /// Steps of the arena in use, each with mimalloc heaps.
    steps: AtomicUsize,
    /// One thread at a time adds one; `true` when there are no more to be had.
    growth: Lock<bool>,
    /// The process the heap was made in, see [`fork_gate::epoch`].
    epoch: usize,
}

// SAFETY: mimalloc v3 heaps may be used from any thread; every thread gets its
// own part (theap). The other fields are Send.
unsafe impl<S: Space> Send for Core<S> {}
// SAFETY: as above; all methods that take `&self` may run at the same time.
unsafe impl<S: Space> Sync for Core<S> {}

impl<S: Space> SmallHeap<S> {
    /// A heap on `arena`, whose ghost range must be readable and writable
    /// from now on; `space` hears of ranges no longer needed.
    ///
    /// # Errors
    /// The kernel's refusal, or [`SmallError::NoHeap`] /
    /// [`SmallError::UnsupportedMimalloc`]; the arena goes back to the pool.
    pub fn new(arena: Arena, space: S) -> Result<Self, SmallError> {
        if !ffi::gm_arenas_allowed() {
            return Err(SmallError::NoHeap);
        }
        let (own, others, retired, reach) = words_for(&arena)?;
        seam::step()?;
        let mixed = ZeroArray::new(reach / MIXED_BYTES)?;
        let space = MapArc::new(space)?;
        seam::step()?;
        let inside = fork_gate::enter();
        let entry = arena.entry();
        let [whole, between] = open_heaps(&arena, 0)?;
        let context = MapArc::as_ptr(&space).cast::<()>();
        // SAFETY: `discard_in::<S>` takes a pointer to an `S`, which the core
        // keeps until it detached; `S` is Sync.
        unsafe { entry.attach(context, discard_in::<S>) };
        drop(inside);
        let (start, _) = arena.ghost_range();
        let table = Table {
            heap: AtomicPtr::new(whole),
            base: arena.base(),
            start,
            bytes: arena.base() + reach - start,
            own: own.as_ptr(),
            others: others.as_ptr(),
            mixed: mixed.as_ptr(),
            between: AtomicPtr::new(between),
        };
        let core = Core {
            table,
            own,
            others,
            mixed,
            retired,
            retired_count: AtomicUsize::new(0),
            put_off: PutOff::new(),
            space,
            entry,
            steps: AtomicUsize::new(1),
            growth: Lock::new(false),
            epoch: fork_gate::epoch(),
        };
        Ok(Self { core, arena })
    }

    /// A block of at least `size` bytes (zero counts as one), aligned to
    /// `align` and to 16 bytes at least; all `size` bytes zero if `zeroed`.
    ///
    /// `None` when the arena is full and can not grow, or for what this crate does not serve:
    /// more than [`SIZE_MAX`] bytes, an alignment above [`ALIGN_MAX`] or not
    /// a power of two.
    ///
    /// # Panics
    /// Never; a free list that a write to a freed block destroyed stops the
    /// process.
    #[must_use]
    #[inline]
    pub fn allocate(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<u8>> {
        self.allocate_block(size, align, zeroed).map(NonNull::cast)
    }

    /// As [`SmallHeap::allocate`], with every byte of the block that may be
    /// used; the first `size` of them are zero if `zeroed`.
    #[must_use]
    #[inline]
    pub fn allocate_block(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<[u8]>> {
        if align <= GRAIN
            && align.is_power_of_two()
            && !zeroed
            && let Some(block) = self.allocate_quick(size)
        {
            return Some(block);
        }
        self.allocate_slowly(size, align, zeroed)
    }

    /// As [`SmallHeap::allocate_block`] with an alignment of 16, where that is quickly
    /// done; `None` says no more than that it is not.
    #[must_use]
    #[inline]
    pub fn allocate_quick(&self, size: usize) -> Option<NonNull<[u8]>> {
        if size > QUICK_MAX {
            return None;
        }
        // SAFETY: the heap and the table's arrays live; the size is between 16 and
        // QUICK_MAX.
        let found = unsafe { ffi::gm_allocate_quick(&self.core.table, size.max(GRAIN)) };
        if found.bytes == 0 {
            return None;
        }
        let block = NonNull::new(found.block.cast::<u8>())?;
        Some(NonNull::slice_from_raw_parts(block, found.bytes))
    }

    #[inline(never)]
    fn allocate_slowly(&self, size: usize, align: usize, zeroed: bool) -> Option<NonNull<[u8]>> {
        if size > SIZE_MAX || align > ALIGN_MAX || !align.is_power_of_two() {
            return None;
        }
        // A block is never smaller than its alignment: mimalloc would take
        // one of `size + align` and point into it.
        let size = size.max(align).max(GRAIN);
        if align <= GRAIN {
            // SAFETY: the heap and the table's arrays live; the size is between 16
            // and SIZE_MAX.
            let found = unsafe { ffi::gm_allocate_other(&self.core.table, size, zeroed) };
            if let Some(block) = NonNull::new(found.block.cast::<u8>()) {
                if found.bytes == 0 {
                    corrupt();
                }
                return Some(NonNull::slice_from_raw_parts(block, found.bytes));
            }
        }
        let inside = fork_gate::try_enter()?;
        self.core.settle_put_off();
        let block = self.allocate_generally(size, align, zeroed)?;
        if self.core.places_of(block.as_ptr() as usize).is_none() {
            corrupt();
        }
        // SAFETY: a block in use of mimalloc's, which lies in our arena.
        let info = unsafe { ffi::gm_block_info(block.as_ptr().cast()) };
        // Taking the block may have given up its page, which was the last
        // thing this thread did with it.
        self.core.begin(block, info.is_own());
        drop(inside);
        Some(NonNull::slice_from_raw_parts(block, info.bytes()))
    }

    /// How many steps of the arena are in use.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.core.steps.load(Ordering::Acquire)
    }

    /// All addresses that can be this heap's: the first and their number. Where no
    /// block can be they are nobody else's.
    #[must_use]
    pub fn span(&self) -> (usize, usize) {
        (self.core.table.start, self.core.table.bytes)
    }

    /// Frees a block. One that the [`Space`] holds is freed for the program; its
    /// room is nobody's until it is [let go](SmallHeap::let_go).
    ///
    /// # Errors
    /// [`SmallError::Foreign`] or [`SmallError::NotLive`]; nothing happened
    /// then.
    ///
    /// # Safety
    /// If `block` is live, nobody uses it any more. A second free of a block is
    /// refused, unless two threads free it at the same instant, one of which
    /// allocated it: then both may succeed, and the process may be stopped when
    /// its room is handed out again.
    #[inline]
    pub unsafe fn deallocate(&self, block: NonNull<u8>) -> Result<(), SmallError> {
        // SAFETY: the caller's promise.
        unsafe { self.deallocate_block(block) }.map(drop)
    }

    /// As [`SmallHeap::deallocate`]: how many bytes of the block could be used.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Safety
    /// As there.
    #[inline]
    pub unsafe fn deallocate_block(&self, block: NonNull<u8>) -> Result<usize, SmallError> {
        if !self.core.space.holds_any() {
            let block = block.as_ptr().cast();
            // SAFETY: the table's arrays live; if a live block starts there, it is
            // no longer used, by the caller's promise, and its page, if that is
            // this thread's, cannot go or change hands meanwhile. Should it be
            // another's, only its header is read, as below.
            let bytes = unsafe { ffi::gm_free_quick(&self.core.table, block) };
            if bytes != 0 {
                return Ok(bytes);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.deallocate_slowly(block) }
    }

    /// As [`SmallHeap::deallocate_block`], whoever's page it is.
    ///
    /// # Safety
    /// As there.
    #[inline(never)]
    unsafe fn deallocate_slowly(&self, block: NonNull<u8>) -> Result<usize, SmallError> {
        let address = block.as_ptr() as usize;
        if !self.contains(address) {
            return Err(SmallError::Foreign { address });
        }
        let wrong = SmallError::NotLive { address };
        let (places, bit) = self.core.places_of(address).ok_or(wrong)?;
        if !places.is_live(bit) {
            return Err(wrong);
        }
        // A fork must not find the block half freed.
        let inside = fork_gate::try_enter();
        // SAFETY: a live block of mimalloc's. Should another thread free it
        // now, its page header, which is all this reads, still exists, or is
        // not found any more.
        let info = unsafe { ffi::gm_block_info(block.as_ptr().cast()) };
        // As the interrupted code, if there is any, may be in the middle of a
        // change to the owner's word, that word is left alone.
        let own = inside.is_some() && info.is_own();
        if info.page.is_null() || !places.end(bit, own) {
            return Err(wrong);
        }
        if inside.is_none() {
            self.core.put_off(address);
            return Ok(info.bytes());
        }
        self.core.settle_put_off();
        if self.core.space.holds_any() {
            self.core.retire(address);
        } else {
            // SAFETY: the block lived, so mimalloc handed this pointer out and
            // it was not freed since; ending its life made this call the only
            // free, by the caller's promise. The page is its page, which cannot
            // go or change hands to or from this thread meanwhile.
            unsafe { ffi::gm_free(info.page, info.is_own(), block.as_ptr().cast()) };
        }
        Ok(info.bytes())
    }

    /// The [`Space`] no longer holds these bytes: blocks there that were freed
    /// meanwhile give up their room, unless others of their bytes are held.
    pub fn let_go(&self, address: usize, bytes: usize) {
        // Pairs with the one in `settle`: either who frees sees that the bytes
        // are let go, or we see the block.
        fence(Ordering::SeqCst);
        if self.core.retired_count.load(Ordering::SeqCst) > 0 {
            let Some(_inside) = fork_gate::try_enter() else {
                self.core
                    .put_off_range(address, address.saturating_add(bytes));
                return;
            };
            self.core.settle_in(address, address.saturating_add(bytes));
        }
    }

    /// How many bytes of a live block may be used, at least what was asked;
    /// `None` if no live block starts there.
    #[must_use]
    #[inline]
    pub fn usable_size(&self, block: NonNull<u8>) -> Option<usize> {
        // SAFETY: the table's arrays live, and of mimalloc's only the header of a
        // live block's page is read, as below.
        let bytes = unsafe { ffi::gm_size_quick(&self.core.table, block.as_ptr().cast()) };
        if bytes != 0 {
            return Some(bytes);
        }
        self.usable_size_slowly(block)
    }

    /// As [`SmallHeap::usable_size`], for every block.
    #[inline(never)]
    fn usable_size_slowly(&self, block: NonNull<u8>) -> Option<usize> {
        if !self.is_live(block) {
            return None;
        }
        // SAFETY: a live block of mimalloc's. Should another thread free it
        // now, its page header, which is all this reads, still exists, or is
        // not found any more.
        let info = unsafe { ffi::gm_block_info(block.as_ptr().cast()) };
        (!info.page.is_null()).then(|| info.bytes())
    }

    /// Whether the address lies in the ghost range.
    #[must_use]
    #[inline]
    pub fn contains(&self, address: usize) -> bool {
        self.core.contains(address)
    }

    /// Whether a live block starts at this pointer.
    #[must_use]
    #[inline]
    pub fn is_live(&self, block: NonNull<u8>) -> bool {
        self.core
            .places_of(block.as_ptr() as usize)
            .is_some_and(|(places, bit)| places.is_live(bit))
    }

    /// Gives back now what is free, instead of when mimalloc gets to it: this
    /// thread's empty pages of this heap, then all free memory of any arena
    /// in the process. Reaches the [`Space`] through `discard`.
    pub fn trim(&self) {
        let _inside = fork_gate::enter();
        let mut trimmed = false;
        for heap in (0..self.steps()).flat_map(|step| self.core.entry.heaps(step)) {
            // SAFETY: the heap lives.
            trimmed |= unsafe { ffi::gm_trim(heap) };
        }
        if !trimmed {
            ffi::gm_trim_arenas();
        }
    }

    /// What hears of discarded ranges.
    #[must_use]
    pub fn space(&self) -> &S {
        &self.core.space
    }

    /// The address space the heap lives in.
    #[must_use]
    pub const fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Ordinary memory behind the bitmaps, bytes (mincore(2); for
    /// reports, it walks them).
    #[must_use]
    pub fn bitmap_bytes(&self) -> usize {
        let bitmaps = [&self.core.own, &self.core.others, &self.core.retired];
        let bitmaps: usize = bitmaps.map(|bitmap| bitmap.backed_bytes()).iter().sum();
        bitmaps + self.core.mixed.backed_bytes()
    }

    /// Destroys the heap and all its blocks, and keeps the arena: the holder
    /// first ends whatever the ghost range is, then drops it.
    #[must_use]
    pub fn close(self) -> Arena {
        let Self { core, arena } = self;
        drop(core);
        arena
    }

    /// Whether the calling thread owns the mimalloc page of a live block. For
    /// tests.
    #[doc(hidden)]
    #[must_use]
    pub fn is_page_own(&self, block: NonNull<u8>) -> bool {
        self.is_live(block) && {
            // SAFETY: a live block of mimalloc's, which its owner keeps.
            unsafe { ffi::gm_block_info(block.as_ptr().cast()) }.is_own()
        }
    }

    /// Whether mimalloc's per-thread state of this heap lies outside the
    /// arena, and threads leave our heaps before they leave mimalloc. For
    /// tests: true, or this crate's assumptions are broken.
    #[doc(hidden)]
    #[must_use]
    pub fn assumptions_hold(&self) -> bool {
        let table = &self.core.table;
        let current = |classes| table.current(classes).load(Ordering::Relaxed);
        let [whole, between] = Classes::ALL.map(current);
        let (base, bytes) = (table.base, self.arena.len());
        // SAFETY: the heap lives.
        let outside = unsafe { ffi::gm_theap_is_outside(whole, base, bytes) };
        // SAFETY: as above; the thread may have allocated nothing there.
        let none_inside = unsafe { ffi::gm_no_theap_inside(between, base, bytes) };
        outside && none_inside && ffi::gm_leaves_first()
    }
}

impl<S: Space> Drop for Core<S> {
    fn drop(&mut self) {
        let inside = fork_gate::enter();
        // In a child of fork the threads that have a part in this heap do not
        // exist, and mimalloc would wait for them: leave it (see fork_gate::child).
        if self.epoch == fork_gate::epoch() {
            let _teardown = fork_gate::teardown(&inside);
            let entry = self.entry;
            for heap in (0..*self.steps.get_mut()).flat_map(|step| entry.heaps(step)) {
                // SAFETY: `&mut self`: no call on this heap is under way, and none
                // follows. Its blocks are dead by the contract of `allocate`'s
                // caller, who owned the heap. Threads that end now wait for the
                // teardown lock.
                unsafe { ffi::mi_heap_destroy(heap) };
            }
        }
        self.entry.detach();
    }
}

impl<S: Space> fmt::Debug for SmallHeap<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmallHeap")
            .field("arena", &self.arena)
            .finish_non_exhaustive()
    }
}

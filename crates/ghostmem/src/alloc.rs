//! Ghost memory for collections ([`Allocator`]) and for whole programs
//! ([`GhostAlloc`]).

use core::alloc::{GlobalAlloc, Layout};
use core::fmt::Write as _;
use core::ptr::{self, NonNull};
use std::alloc::System;
use std::sync::atomic::{AtomicBool, Ordering};

use allocator_api2::alloc::{AllocError, Allocator};
use ghostmem_os::message::Line;

use crate::{Error, Heap, MemorySize};

// SAFETY: blocks stay valid and in place until they are freed or the last
// handle of the heap is gone; clones are the same allocator.
unsafe impl Allocator for Heap {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        Self::allocate(self, layout).map_err(|_| AllocError)
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        Self::allocate_zeroed(self, layout).map_err(|_| AllocError)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise is the one asked for.
        let freed = unsafe { Self::deallocate(self, block, layout) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.reallocate(block, old, new) }.map_err(|_| AllocError)
    }

    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: as above.
        unsafe { self.reallocate_with(block, old, new, true) }.map_err(|_| AllocError)
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: as above.
        unsafe { self.reallocate(block, old, new) }.map_err(|_| AllocError)
    }
}

/// A global allocator on [`Heap::global`]: a whole program on ghost memory.
///
/// Allocations made before the heap exists, or that it cannot serve, come from
/// the system allocator; frees go where the block came from. The engine itself
/// never allocates from it.
///
/// System calls that the program makes with ghost buffers fail with `EFAULT`
/// on absent pages unless the heap's backend is `monitor`; this allocator
/// keeps blocks below `ghost_from` bytes in ordinary memory, so that the
/// buffers of the standard library are.
///
/// What the process may take is the one number that matters: `GHOSTMEM_MEMORY` of the
/// environment, else what [`GhostAlloc::with_memory`] says, else what the machine and the
/// control groups leave it. Where the heap cannot be made, a line on the standard error
/// stream says so once, and all memory is the system's.
///
/// ```
/// use ghostmem::{GhostAlloc, Heap};
///
/// #[global_allocator]
/// static ALLOCATOR: GhostAlloc = GhostAlloc::with_memory(256 << 20);
///
/// let words: Vec<u64> = (0..1000).collect();
/// let heap = Heap::global()?;
/// assert!(heap.is_ghost(words.as_ptr()));
/// assert_eq!(heap.stats().process_bound_bytes, 256 << 20);
/// # Ok::<(), ghostmem::Error>(())
/// ```
#[derive(Debug)]
pub struct GhostAlloc {
    ghost_from: usize,
    memory: MemorySize,
}

impl GhostAlloc {
    /// Every allocation of at least one byte is ghost memory.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            ghost_from: 1,
            memory: MemorySize::Auto,
        }
    }

    /// Every allocation of at least one byte is ghost memory, and the process takes at
    /// most `bytes` of the machine, see [`HeapBuilder::memory`]. `GHOSTMEM_MEMORY` and
    /// `GHOSTMEM_LIMIT` of the environment may say otherwise.
    ///
    /// [`HeapBuilder::memory`]: crate::HeapBuilder::memory
    #[must_use]
    pub const fn with_memory(bytes: usize) -> Self {
        Self {
            ghost_from: 1,
            memory: MemorySize::Bytes(bytes),
        }
    }

    /// Allocations of at least `bytes` are ghost memory, smaller ones the
    /// system's.
    #[must_use]
    pub const fn from_size(bytes: usize) -> Self {
        Self::new().ghost_from(bytes)
    }

    /// The same with a size of its own:
    /// `GhostAlloc::with_memory(64 << 20).ghost_from(4096)`.
    #[must_use]
    pub const fn ghost_from(mut self, bytes: usize) -> Self {
        self.ghost_from = bytes;
        self
    }

    fn heap(&self, layout: Layout) -> Option<&'static Heap> {
        if layout.size() < self.ghost_from {
            return None;
        }
        let heap = Heap::global_or(self.memory);
        heap.inspect_err(say_without).ok()
    }
}

/// Says once that all memory is the system's.
#[cold]
fn say_without(error: &Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    // What the heap's own making allocates cannot be on it, and a variable that cannot be
    // read was reported as it was read.
    let is_known = matches!(error, Error::Reentered | Error::Environment { .. });
    if !is_known && !SAID.swap(true, Ordering::Relaxed) {
        let mut line = Line::new();
        // Cut off where it is too long.
        let _written = write!(line, "{error}: the program goes on without ghost memory");
        line.print();
    }
}

impl Default for GhostAlloc {
    fn default() -> Self {
        Self::new()
    }
}

/// The global heap, if the address is its own. Never builds it.
fn owner_of(block: *mut u8) -> Option<&'static Heap> {
    Heap::global_if_built().filter(|heap| heap.is_ghost(block))
}

// SAFETY: blocks come from the heap or the system allocator and are freed
// where they came from; neither moves them, and no method unwinds.
unsafe impl GlobalAlloc for GhostAlloc {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.heap(layout).map(|heap| heap.allocate(layout)) {
            Some(Ok(block)) => block.as_ptr().cast(),
            // SAFETY: the caller's promise (a size above zero).
            Some(Err(_)) | None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.heap(layout).map(|heap| heap.allocate_zeroed(layout)) {
            Some(Ok(block)) => block.as_ptr().cast(),
            // SAFETY: as in `alloc`.
            Some(Err(_)) | None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let (Some(heap), Some(block)) = (owner_of(block), NonNull::new(block)) {
            // SAFETY: the caller's promise.
            let freed = unsafe { heap.deallocate(block, layout) };
            debug_assert!(freed.is_ok());
        } else {
            // SAFETY: not the heap's, so the system's.
            unsafe { System.dealloc(block, layout) }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, layout.align()) else {
            return ptr::null_mut();
        };
        match (owner_of(block), NonNull::new(block)) {
            (Some(heap), Some(live)) if size >= self.ghost_from => {
                // SAFETY: the caller's promise.
                if let Ok(moved) = unsafe { heap.reallocate(live, layout, new) } {
                    return moved.as_ptr().cast();
                }
            }
            (None, _) if self.heap(new).is_none() => {
                // SAFETY: the system's, the caller's promise.
                return unsafe { System.realloc(block, layout, size) };
            }
            _ => {}
        }
        // From one to the other, or what the heap has no room for.
        // SAFETY: the caller's promise (a size above zero).
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both blocks have that many bytes; they are two.
            unsafe { moved.copy_from_nonoverlapping(block, size.min(layout.size())) };
            // SAFETY: the caller's promise.
            unsafe { self.dealloc(block, layout) };
        }
        moved
    }
}

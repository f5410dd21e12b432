//! Allocate and deallocate, of GhostMem and of the system, behind one safe
//! trait.
//!
//! Unsafe room: each block remembers where it came from and goes back there,
//! once, on drop.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;

use ghostmem::Heap;

use crate::buffer::{Buffer, PAGE_SIZE};

/// A block of memory, given back on drop.
///
/// # Safety
/// `base` must return the address of memory that this value owns: writable,
/// `size` bytes long, which is at least 8, and 8-byte aligned.
pub(crate) unsafe trait Block {
    /// First byte.
    fn base(&self) -> NonNull<u8>;

    /// Bytes of the block.
    fn size(&self) -> usize;

    /// Writes a word at the beginning of the block.
    fn touch(&mut self, value: u64) {
        // SAFETY: what implementing this trait promises.
        unsafe { self.base().cast::<u64>().as_ptr().write_volatile(value) };
    }

    /// Address of the `index`th 4-byte element.
    fn element(&self, index: usize) -> NonNull<i32> {
        assert!(index < self.size() / 4, "past the end of the block");
        // SAFETY: within the block, checked above.
        unsafe { self.base().cast::<i32>().add(index) }
    }

    /// Writes the `index`th 4-byte element.
    fn set(&mut self, index: usize, value: i32) {
        // SAFETY: writable, aligned and owned, by what implementing promises.
        unsafe { self.element(index).as_ptr().write_volatile(value) };
    }

    /// Reads the `index`th 4-byte element.
    fn get(&self, index: usize) -> i32 {
        // SAFETY: readable, aligned and owned, by what implementing promises.
        unsafe { self.element(index).as_ptr().read_volatile() }
    }
}

/// A source of blocks of one layout, shared by threads.
pub(crate) trait Blocks: Sync {
    /// What it hands out.
    type Block<'a>: Block + Send
    where
        Self: 'a;

    /// Allocates a block; `None` when there is no memory.
    fn take(&self) -> Option<Self::Block<'_>>;
}

fn check_layout(layout: Layout) {
    assert!(layout.size() >= 8 && layout.align() >= 8, "block too small");
}

/// Blocks of a GhostMem heap.
#[derive(Debug)]
pub(crate) struct GhostBlocks<'h> {
    heap: &'h Heap,
    layout: Layout,
}

impl<'h> GhostBlocks<'h> {
    /// Blocks of `layout` (at least 8 bytes, 8-byte aligned) from `heap`.
    pub(crate) fn new(heap: &'h Heap, layout: Layout) -> Self {
        check_layout(layout);
        Self { heap, layout }
    }
}

impl Blocks for GhostBlocks<'_> {
    type Block<'a>
        = GhostBlock<'a>
    where
        Self: 'a;

    fn take(&self) -> Option<GhostBlock<'_>> {
        GhostBlock::new(self.heap, self.layout).ok()
    }
}

/// One block of a GhostMem heap.
#[derive(Debug)]
pub(crate) struct GhostBlock<'a> {
    heap: &'a Heap,
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the block is owned by this value, and a heap takes blocks back from
// any thread.
unsafe impl Send for GhostBlock<'_> {}

impl<'a> GhostBlock<'a> {
    /// Allocates `layout` from `heap`.
    pub(crate) fn new(heap: &'a Heap, layout: Layout) -> Result<Self, ghostmem::Error> {
        check_layout(layout);
        let base = heap.allocate(layout)?.cast();
        Ok(Self { heap, base, layout })
    }

    /// The first `pages` pages of the block, which is page-aligned and at least
    /// that long, as memory under test.
    ///
    /// # Panics
    /// When the block is smaller or not aligned.
    pub(crate) fn buffer(&self, pages: u32) -> Buffer<'_> {
        assert!(
            self.layout.size() / PAGE_SIZE >= pages as usize,
            "block too small"
        );
        // SAFETY: large enough (checked above), aligned (checked there), owned
        // by this block, and accessed through its buffers only.
        unsafe { Buffer::new(self.base, pages) }
    }

    /// Makes the whole block zero, at no cost in memory.
    pub(crate) fn forget(&mut self) -> Result<(), ghostmem::Error> {
        let range = NonNull::slice_from_raw_parts(self.base, self.layout.size());
        // SAFETY: the block is borrowed for changing, so no buffer of it is
        // alive, and nothing else refers to its bytes.
        unsafe { self.heap.discard(range.as_ptr()) }
    }
}

// SAFETY: the heap returned `base` for a layout that `check_layout` passed, and
// this value is the only owner until it is dropped.
unsafe impl Block for GhostBlock<'_> {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn size(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for GhostBlock<'_> {
    fn drop(&mut self) {
        // SAFETY: the block came from this heap with this layout and is given
        // back once.
        if let Err(err) = unsafe { self.heap.deallocate(self.base, self.layout) } {
            eprintln!("deallocate: {err}");
        }
    }
}

/// Blocks of the system's allocator.
#[derive(Debug)]
pub(crate) struct SystemBlocks(Layout);

impl SystemBlocks {
    /// Blocks of `layout` (at least 8 bytes, 8-byte aligned).
    pub(crate) fn new(layout: Layout) -> Self {
        check_layout(layout);
        Self(layout)
    }
}

impl Blocks for SystemBlocks {
    type Block<'a> = SystemBlock;

    fn take(&self) -> Option<SystemBlock> {
        // SAFETY: the layout is not empty (checked when `self` was made).
        let base = unsafe { System.alloc(self.0) };
        NonNull::new(base).map(|base| SystemBlock(base, self.0))
    }
}

/// One block of the system's allocator.
#[derive(Debug)]
pub(crate) struct SystemBlock(NonNull<u8>, Layout);

// SAFETY: the block is owned by this value, and the system takes blocks back
// from any thread.
unsafe impl Send for SystemBlock {}

// SAFETY: the system returned this address for a layout that `check_layout`
// passed, and this value is the only owner until it is dropped.
unsafe impl Block for SystemBlock {
    fn base(&self) -> NonNull<u8> {
        self.0
    }

    fn size(&self) -> usize {
        self.1.size()
    }
}

impl Drop for SystemBlock {
    fn drop(&mut self) {
        // SAFETY: the block came from this allocator with this layout and is
        // given back once.
        unsafe { System.dealloc(self.0.as_ptr(), self.1) };
    }
}

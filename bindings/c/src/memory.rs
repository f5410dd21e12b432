//! Blocks: allocate, free, resize.

use core::alloc::Layout;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use ghostmem::{Error, Heap};

use crate::heap::{GhostmemHeap, heap_of, no_heap};
use crate::status::{GhostmemStatus, invalid, status_of};

/// What malloc(3) promises for every size.
const ALIGN: usize = 16;

/// Larger blocks are made of pages, and may change their length in place.
const SMALL_MAX: usize = 32 << 10;

/// A block, or null with the reason told.
fn block(heap: &Heap, size: usize, align: usize, zeroed: bool) -> *mut c_void {
    if !align.is_power_of_two() {
        let _status = invalid("the alignment is not a power of two");
        return ptr::null_mut();
    }
    let Ok(layout) = Layout::from_size_align(size, align.max(ALIGN)) else {
        let _status = status_of(Err(Error::OutOfMemory { bytes: size }));
        return ptr::null_mut();
    };
    match heap.allocate_block(layout, zeroed) {
        Ok(block) => block.as_ptr().cast(),
        Err(error) => {
            let _status = status_of(Err(error));
            ptr::null_mut()
        }
    }
}

/// Allocates `size` bytes (0 counts as 1), aligned to 16. What they hold is
/// unspecified. Null when there is no memory.
///
/// # Safety
/// `heap` is null (refused) or lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_allocate(heap: *mut GhostmemHeap, size: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { ghostmem_allocate_aligned(heap, ALIGN, size) }
}

/// As `ghostmem_allocate`, all `size` bytes zero.
///
/// # Safety
/// `heap` is null (refused) or lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_allocate_zeroed(
    heap: *mut GhostmemHeap,
    size: usize,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { ghostmem_allocate_zeroed_aligned(heap, ALIGN, size) }
}

/// As `ghostmem_allocate`, aligned to `align`, a power of two; less than 16
/// counts as 16.
///
/// # Safety
/// `heap` is null (refused) or lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_allocate_aligned(
    heap: *mut GhostmemHeap,
    align: usize,
    size: usize,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let Some(heap) = (unsafe { heap_of(heap) }) else {
        let _status = no_heap();
        return ptr::null_mut();
    };
    block(heap, size, align, false)
}

/// As `ghostmem_allocate_aligned`, all `size` bytes zero.
///
/// # Safety
/// `heap` is null (refused) or lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_allocate_zeroed_aligned(
    heap: *mut GhostmemHeap,
    align: usize,
    size: usize,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let Some(heap) = (unsafe { heap_of(heap) }) else {
        let _status = no_heap();
        return ptr::null_mut();
    };
    block(heap, size, align, true)
}

/// Resizes a block as realloc(3) does: it may move, and keeps as many bytes as
/// both sizes have. A null `block` is an allocation. Null when refused; the
/// block is as it was then. A block that moves is aligned to 16.
///
/// # Safety
/// `heap` is null (refused) or lives; if `block` is a live block of it, nobody
/// uses the old pointer after success.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_reallocate(
    heap: *mut GhostmemHeap,
    block: *mut c_void,
    size: usize,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let Some(owner) = (unsafe { heap_of(heap) }) else {
        let _status = no_heap();
        return ptr::null_mut();
    };
    let Some(old) = NonNull::new(block.cast::<u8>()) else {
        return self::block(owner, size, ALIGN, false);
    };
    let Some(held) = owner.block_bytes(old) else {
        let address = old.as_ptr().addr();
        let _status = status_of(Err(Error::NotAllocated { address }));
        return ptr::null_mut();
    };
    // Giving back less than half is not worth a copy.
    if size <= held && size >= held / 2 {
        return block;
    }
    // What could be a small object becomes one.
    // SAFETY: the caller's promise: nobody uses what the block loses.
    if size > SMALL_MAX && unsafe { owner.resize_in_place(old, size) } {
        return block;
    }
    let new = self::block(owner, size, ALIGN, false);
    if new.is_null() {
        return new;
    }
    // SAFETY: both blocks live, hold at least this many bytes, and the new one
    // overlaps nothing.
    unsafe { ptr::copy_nonoverlapping(old.as_ptr(), new.cast::<u8>(), held.min(size)) };
    // SAFETY: the caller's promise: the old pointer is given up.
    let freed = unsafe { owner.deallocate_block(old) };
    let _status = status_of(freed.map(drop));
    new
}

/// Frees a block. Null is ignored. A block freed twice, the middle of a block
/// and a pointer from elsewhere are refused and change nothing.
///
/// # Safety
/// `heap` is null (refused) or lives; nobody uses the block any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_deallocate(
    heap: *mut GhostmemHeap,
    block: *mut c_void,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    let Some(heap) = (unsafe { heap_of(heap) }) else {
        return no_heap();
    };
    let Some(block) = NonNull::new(block.cast::<u8>()) else {
        return GhostmemStatus::Ok;
    };
    // SAFETY: the caller's promise.
    let freed = unsafe { heap.deallocate_block(block) };
    status_of(freed.map(drop))
}

/// Bytes of the live block that starts at `block`, at least those asked for; 0
/// when none does.
///
/// # Safety
/// `heap` is null or lives. `block` may be any address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_block_bytes(
    heap: *const GhostmemHeap,
    block: *const c_void,
) -> usize {
    // SAFETY: the caller's promise.
    let heap = unsafe { heap_of(heap) };
    heap.zip(NonNull::new(block.cast_mut().cast::<u8>()))
        .and_then(|(heap, block)| heap.block_bytes(block))
        .unwrap_or(0)
}

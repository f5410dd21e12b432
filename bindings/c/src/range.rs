//! What a program may ask of ranges: hold them, bring them in, send them out,
//! forget them.
//!
//! A range is any part of ghost memory; the pages it touches are meant.

use core::ffi::c_void;
use core::ptr;

use ghostmem::{Error, Heap, Pinned};

use crate::heap::{GhostmemHeap, heap_of, no_heap};
use crate::status::{GhostmemStatus, invalid, status_of};

/// Pages held resident, until `ghostmem_unpin`.
#[derive(Debug)]
pub struct GhostmemPinned {
    _pinned: Pinned,
}

/// Runs `act` on a live heap and a range.
///
/// # Safety
/// `heap` is null (refused) or lives.
unsafe fn on_range<R>(
    heap: *const GhostmemHeap,
    start: *const c_void,
    bytes: usize,
    act: impl FnOnce(&Heap, *const [u8]) -> Result<R, Error>,
) -> Result<R, GhostmemStatus> {
    // SAFETY: the caller's promise.
    let Some(heap) = (unsafe { heap_of(heap) }) else {
        return Err(no_heap());
    };
    let range = ptr::slice_from_raw_parts(start.cast::<u8>(), bytes);
    act(heap, range).map_err(|error| status_of(Err(error)))
}

/// Writes a count where the caller wants it.
///
/// # Safety
/// `out` is null or points to a place for a size.
unsafe fn tell(out: *mut usize, result: Result<usize, GhostmemStatus>) -> GhostmemStatus {
    match result {
        Ok(count) => {
            if !out.is_null() {
                // SAFETY: not null, and the caller's promise.
                unsafe { out.write(count) };
            }
            GhostmemStatus::Ok
        }
        Err(status) => status,
    }
}

/// Brings the pages of a range in and keeps them resident: for system calls,
/// asynchronous and direct I/O, devices. On success `*out` is what
/// `ghostmem_unpin` takes; otherwise null. Pins count, up to 2^32 - 1 on one
/// page, and all but 5 pages of the limit can be pinned.
///
/// # Safety
/// `heap` is null (refused) or lives; `out` is null (refused) or points to a
/// place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_pin(
    heap: *mut GhostmemHeap,
    start: *const c_void,
    bytes: usize,
    out: *mut *mut GhostmemPinned,
) -> GhostmemStatus {
    if out.is_null() {
        return invalid("there is no place for the pin: out is null");
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { out.write(ptr::null_mut()) };
    // SAFETY: the caller's promise.
    match unsafe { on_range(heap, start, bytes, Heap::pin) } {
        Ok(pinned) => {
            let handle = Box::into_raw(Box::new(GhostmemPinned { _pinned: pinned }));
            // SAFETY: as above.
            unsafe { out.write(handle) };
            GhostmemStatus::Ok
        }
        Err(status) => status,
    }
}

/// Lets the pages of a pin go. Null is ignored.
///
/// # Safety
/// `pinned` is null or came from `ghostmem_pin`, and is unpinned once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_unpin(pinned: *mut GhostmemPinned) {
    if !pinned.is_null() {
        // SAFETY: made by Box::into_raw in `ghostmem_pin`, and the caller's
        // promise.
        drop(unsafe { Box::from_raw(pinned) });
    }
}

/// Brings the pages of a range in before they are touched, as far as half the
/// resident limit reaches. `*pages_out`, if not null: how many came in.
///
/// # Safety
/// `heap` is null (refused) or lives; `pages_out` is null or a place for a
/// size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_prefetch(
    heap: *mut GhostmemHeap,
    start: *const c_void,
    bytes: usize,
    pages_out: *mut usize,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    let result = unsafe { on_range(heap, start, bytes, Heap::prefetch) };
    // SAFETY: the caller's promise.
    unsafe { tell(pages_out, result) }
}

/// Evicts the pages of a range now. `*pages_out`, if not null: how many left.
///
/// # Safety
/// `heap` is null (refused) or lives; `pages_out` is null or a place for a
/// size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_evict(
    heap: *mut GhostmemHeap,
    start: *const c_void,
    bytes: usize,
    pages_out: *mut usize,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    let result = unsafe { on_range(heap, start, bytes, Heap::evict) };
    // SAFETY: the caller's promise.
    unsafe { tell(pages_out, result) }
}

/// Evicts the page that reclaim would take next. `*pages_out`, if not null: 1,
/// or 0 when none can leave.
///
/// # Safety
/// `heap` is null (refused) or lives; `pages_out` is null or a place for a
/// size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_evict_coldest(
    heap: *mut GhostmemHeap,
    pages_out: *mut usize,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    let Some(heap) = (unsafe { heap_of(heap) }) else {
        return no_heap();
    };
    let result = heap
        .evict_coldest()
        .map(usize::from)
        .map_err(|error| status_of(Err(error)));
    // SAFETY: the caller's promise.
    unsafe { tell(pages_out, result) }
}

/// Makes the pages of a range the next to leave.
///
/// # Safety
/// `heap` is null (refused) or lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_cold(
    heap: *mut GhostmemHeap,
    start: *const c_void,
    bytes: usize,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    match unsafe { on_range(heap, start, bytes, Heap::make_cold) } {
        Ok(()) => GhostmemStatus::Ok,
        Err(status) => status,
    }
}

/// Forgets the contents of the whole pages inside a range: they read as zero
/// afterwards and cost nothing. Pinned pages are left alone.
///
/// # Safety
/// `heap` is null (refused) or lives; nobody relies on the contents.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_discard(
    heap: *mut GhostmemHeap,
    start: *mut c_void,
    bytes: usize,
) -> GhostmemStatus {
    let forget = |heap: &Heap, range: *const [u8]| {
        // SAFETY: the caller's promise.
        unsafe { heap.discard(range.cast_mut()) }
    };
    // SAFETY: the caller's promise.
    match unsafe { on_range(heap, start, bytes, forget) } {
        Ok(()) => GhostmemStatus::Ok,
        Err(status) => status,
    }
}

/// Whether an address lies in the heap's ghost memory. Lock-free.
///
/// # Safety
/// `heap` is null or lives. `address` may be any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_is_ghost(
    heap: *const GhostmemHeap,
    address: *const c_void,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { heap_of(heap) }.is_some_and(|heap| heap.is_ghost(address))
}

/// Whether the page at an address is resident now; false, too, when it is not
/// the heap's. Lock-free.
///
/// # Safety
/// `heap` is null or lives. `address` may be any.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_is_resident(
    heap: *const GhostmemHeap,
    address: *const c_void,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { heap_of(heap) }.is_some_and(|heap| heap.is_resident(address) == Some(true))
}

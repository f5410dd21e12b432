//! Heaps: making, ending, limits.

use ghostmem::{Backend, Heap};

use crate::config::{GhostmemBackend, GhostmemConfig};
use crate::default_heap;
use crate::status::{GhostmemStatus, invalid, status_of};

/// Ghost memory with a resident limit of its own. Only ever used through a
/// pointer.
#[derive(Debug)]
pub struct GhostmemHeap {
    pub(crate) heap: Heap,
}

/// The heap behind a pointer from C.
///
/// # Safety
/// `heap` is null or a heap that lives as long as the result is used.
pub(crate) unsafe fn heap_of<'a>(heap: *const GhostmemHeap) -> Option<&'a Heap> {
    // SAFETY: the caller's promise.
    unsafe { heap.as_ref() }.map(|handle| &handle.heap)
}

pub(crate) fn no_heap() -> GhostmemStatus {
    invalid("the heap is null")
}

/// Makes a heap. `config` may be null for the defaults. On success `*out` is
/// the heap, which the caller ends with `ghostmem_heap_destroy`; otherwise
/// `*out` is null.
///
/// # Safety
/// `config` is null or points to a whole structure; `out` is null (refused) or
/// points to a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_heap_create(
    config: *const GhostmemConfig,
    out: *mut *mut GhostmemHeap,
) -> GhostmemStatus {
    if out.is_null() {
        return invalid("there is no place for the heap: out is null");
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { out.write(core::ptr::null_mut()) };
    // SAFETY: the caller's promise.
    let config = match unsafe { GhostmemConfig::read(config) } {
        Ok(config) => config,
        Err(status) => return status,
    };
    let builder = match config.builder() {
        Ok(builder) => builder,
        Err(status) => return status,
    };
    match builder.build() {
        Ok(heap) => {
            let handle = Box::into_raw(Box::new(GhostmemHeap { heap }));
            // SAFETY: as above.
            unsafe { out.write(handle) };
            GhostmemStatus::Ok
        }
        Err(error) => status_of(Err(error)),
    }
}

/// Ends a heap and all of its memory, whether freed or not; ranges that are
/// still pinned keep it alive until they are unpinned. Null is ignored, the
/// default heap is refused.
///
/// # Safety
/// `heap` is null or came from `ghostmem_heap_create`, is destroyed once, and
/// neither it nor its memory is used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_heap_destroy(heap: *mut GhostmemHeap) -> GhostmemStatus {
    if heap.is_null() {
        return GhostmemStatus::Ok;
    }
    if default_heap::is_default(heap) {
        return invalid("the default heap lives as long as the process: it cannot be destroyed");
    }
    // SAFETY: made by Box::into_raw in `ghostmem_heap_create`, and the caller's
    // promise.
    drop(unsafe { Box::from_raw(heap) });
    GhostmemStatus::Ok
}

/// Changes the resident limit, bytes. Pages above a lowered limit leave in the
/// background, or as the heap is used.
///
/// # Safety
/// `heap` is null (refused) or lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_heap_set_resident_limit(
    heap: *mut GhostmemHeap,
    bytes: usize,
) -> GhostmemStatus {
    // SAFETY: the caller's promise.
    let Some(heap) = (unsafe { heap_of(heap) }) else {
        return no_heap();
    };
    status_of(heap.set_resident_limit(bytes))
}

/// The fault backend in use, never `GHOSTMEM_BACKEND_AUTO` but for null.
///
/// # Safety
/// `heap` is null or lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ghostmem_heap_backend(heap: *const GhostmemHeap) -> GhostmemBackend {
    // SAFETY: the caller's promise.
    match unsafe { heap_of(heap) }.map(Heap::backend) {
        Some(Backend::Inline) => GhostmemBackend::Inline,
        Some(Backend::Monitor) => GhostmemBackend::Monitor,
        Some(Backend::Guard) => GhostmemBackend::Guard,
        Some(Backend::GuardMprotect) => GhostmemBackend::GuardMprotect,
        Some(Backend::Veh) => GhostmemBackend::Veh,
        _ => GhostmemBackend::Auto,
    }
}

/// Puts the fault handlers back in front after the program installed its own
/// for SIGBUS or SIGSEGV; those get every fault that is not GhostMem's.
#[unsafe(no_mangle)]
pub extern "C" fn ghostmem_rearm() -> GhostmemStatus {
    status_of(Heap::rearm())
}

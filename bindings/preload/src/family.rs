//! The malloc family, as the program and its libraries see it.
//!
//! A block belongs to the heap its address lies in, so blocks from before our
//! start-up, and small ones under `--small=off`, go back to libc. Errors set
//! errno where the standard asks for it and nothing else touches it.
//!
//! Nothing here may use Rust's own allocator on the ghost path, or panic.

use core::ffi::{c_int, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use ghostmem_os::error::set_errno;
use ghostmem_os::map::ADDRESS_SPACE_BYTES;
use ghostmem_os::{PAGE_SIZE, machine};

use crate::thread::EngineScope;
use crate::{ghost, ordinary, own_limits, raw, thread};

/// What malloc's alignment is on x86-64.
const ALIGN: usize = 16;
/// Blocks from this many bytes on have pages of their own and may change their
/// length where they are.
const IN_PLACE_FROM: usize = 64 << 10;

/// A block or null, errno untouched.
fn allocate(size: usize, align: usize, zeroed: bool) -> *mut c_void {
    if let Some(block) = ghost::allocate_small(size, align, zeroed) {
        return block;
    }
    if is_hopeless(size.max(align)) {
        return ptr::null_mut();
    }
    let thread = thread::current();
    if ghost::wants(thread, size) {
        let block = ghost::allocate(thread, size, align, zeroed);
        if block.is_null() {
            return allocate_without(size, align, zeroed);
        }
        block
    } else {
        ordinary::allocate(size, align, zeroed)
    }
}

/// Whether no address space holds a block of this size or alignment. Such a request makes
/// no heap, and nobody looks for what limits it.
fn is_hopeless(bytes: usize) -> bool {
    bytes >= ADDRESS_SPACE_BYTES
}

/// Ordinary memory in place of ghost memory, where the limits on address space and data
/// leave no room for a region but for the block, and no bound on all memory was asked
/// for. What those limits leave no room for is said once.
#[cold]
fn allocate_without(size: usize, align: usize, zeroed: bool) -> *mut c_void {
    let Some(heap) = ghost::heap() else {
        return ptr::null_mut();
    };
    let asked = crate::start::settings().is_none_or(|settings| {
        settings
            .memory_limit
            .max(settings.memory_each)
            .max(settings.memory)
            > 0
    });
    // A bound has no room for the block, or the program's own limit: the regions have.
    let bounded =
        own_limits::refuses(heap, size) || heap.has_memory_limit() && heap.has_place(size);
    let _inside = EngineScope::new(thread::current());
    let errno = ghostmem_os::error::errno();
    let limited = !bounded && machine::address_space_left().is_some();
    set_errno(errno);
    if !limited {
        return ptr::null_mut();
    }
    let block = match asked {
        true => ptr::null_mut(),
        false => ordinary::allocate(size, align, zeroed),
    };
    // What is more than they allow in all, they would refuse in any case.
    let limits = [machine::address_space_limit(), machine::data_limit()];
    let most = limits.into_iter().flatten().min();
    if most.is_some_and(|most| (size as u64) < most) {
        say_no_room(block.is_null());
    }
    set_errno(errno);
    block
}

/// Says, once each, that the limits on address space and data leave no room for ghost memory,
/// or for the block at all.
fn say_no_room(at_all: bool) {
    static SAID: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];
    if SAID[usize::from(at_all)].swap(true, Ordering::Relaxed) {
        return;
    }
    raw::say(match at_all {
        true => {
            b"ghostmem: the limits on address space and data (ulimit -v, -d) leave no room for \
              more memory beside the engine's tables: an allocation is refused\n"
        }
        false => {
            b"ghostmem: the limits on address space and data (ulimit -v, -d) leave no room for \
              more ghost memory: ordinary memory is used, which --limit does not bound\n"
        }
    });
}

/// A block, or null and ENOMEM.
#[inline(never)]
fn allocate_or_complain(size: usize, align: usize, zeroed: bool) -> *mut c_void {
    let block = allocate(size, align, zeroed);
    if block.is_null() {
        set_errno(libc::ENOMEM);
    }
    block
}

/// malloc(3).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn malloc(size: usize) -> *mut c_void {
    match ghost::allocate_quick(size) {
        Some(block) => block,
        None => allocate_or_complain(size, ALIGN, false),
    }
}

/// calloc(3).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    let Some(bytes) = count.checked_mul(size) else {
        set_errno(libc::ENOMEM);
        return ptr::null_mut();
    };
    allocate_or_complain(bytes, ALIGN, true)
}

/// free(3).
///
/// # Safety
/// As the standard has it: null, or a live block that nobody uses any more.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn free(block: *mut c_void) {
    let Some(block) = NonNull::new(block) else {
        return;
    };
    // SAFETY: the caller's promise.
    if !unsafe { ghost::free_small(block.cast()) } {
        // SAFETY: the caller's promise.
        unsafe { free_any(block) };
    }
}

/// Frees what is no small object.
///
/// # Safety
/// As [`free`].
#[inline(never)]
unsafe fn free_any(block: NonNull<c_void>) {
    if let Some(heap) = ghost::owner_of_block(block.as_ptr() as usize) {
        // SAFETY: the caller's promise.
        unsafe { ghost::free(thread::current(), heap, block.cast()) };
    } else {
        // SAFETY: the caller's promise; not ghost memory, so libc's.
        unsafe { ordinary::free(block.as_ptr()) };
    }
}

/// The old name of free(3) that some libraries still look for.
///
/// # Safety
/// As [`free`].
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the same contract.
    unsafe { free(block) };
}

/// Whether a block stays where it is: it is large enough and not more than half of
/// it would be wasted.
fn fits(size: usize, usable: usize) -> bool {
    size <= usable && (size >= usable / 2 || usable <= 2 * ALIGN)
}

/// realloc(3), with glibc's answer to a size of 0: the block is freed.
///
/// # Safety
/// As the standard has it.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    let Some(old) = NonNull::new(block) else {
        return malloc(size);
    };
    if size == 0 {
        // SAFETY: the caller's promise.
        unsafe { free(block) };
        return ptr::null_mut();
    }
    if is_hopeless(size) {
        set_errno(libc::ENOMEM);
        return ptr::null_mut();
    }
    if let Some(usable) = ghost::bytes_of_small(old.cast())
        && fits(size, usable)
    {
        return block;
    }
    let owner = ghost::owner_of_block(block as usize);
    let usable = match owner {
        Some(heap) => {
            let usable = heap.block_bytes(old.cast());
            usable.unwrap_or_else(|| {
                crate::raw::abort(b"ghostmem: realloc() of a pointer that is no live block\n")
            })
        }
        None if !ghost::wants(thread::current(), size) => {
            // SAFETY: libc's block, the caller's promise.
            return unsafe { ordinary::reallocate(block, size) };
        }
        // SAFETY: libc's live block.
        None => unsafe { ordinary::usable_size(block) },
    };
    if owner.is_some() && fits(size, usable) {
        return block;
    }
    if let Some(heap) = owner
        && size > IN_PLACE_FROM
        && usable > IN_PLACE_FROM
    {
        // SAFETY: what is cut off is no longer used, by the caller's promise.
        if unsafe { ghost::resize(thread::current(), heap, old.cast(), size) } {
            return block;
        }
    }
    let goes = if owner.is_some() { usable } else { 0 };
    let new = own_limits::in_place_of(goes, || malloc(size));
    if !new.is_null() {
        crate::raw::copy(new as usize, block as usize, usable.min(size));
        // SAFETY: the caller's promise; its contents were copied.
        unsafe { free(block) };
    }
    new
}

/// reallocarray(3).
///
/// # Safety
/// As [`realloc`].
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn reallocarray(
    block: *mut c_void,
    count: usize,
    size: usize,
) -> *mut c_void {
    let Some(bytes) = count.checked_mul(size) else {
        set_errno(libc::ENOMEM);
        return ptr::null_mut();
    };
    // SAFETY: the caller's promise.
    unsafe { realloc(block, bytes) }
}

/// posix_memalign(3): the error is the result. errno is left alone where the call succeeds or the
/// alignment is none, and is glibc's where memory is short.
///
/// # Safety
/// `out` must be valid for writing a pointer.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn posix_memalign(
    out: *mut *mut c_void,
    align: usize,
    size: usize,
) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<usize>()) {
        return libc::EINVAL;
    }
    let block = allocate_or_complain(size, align.max(ALIGN), false);
    if block.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the caller's promise.
    unsafe { *out = block };
    0
}

/// aligned_alloc(3).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    memalign(align, size)
}

/// memalign(3). glibc rounds an alignment up to a power of two.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    let Some(align) = align.max(ALIGN).checked_next_power_of_two() else {
        set_errno(libc::EINVAL);
        return ptr::null_mut();
    };
    allocate_or_complain(size, align, false)
}

/// valloc(3).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn valloc(size: usize) -> *mut c_void {
    memalign(PAGE_SIZE, size)
}

/// pvalloc(3): whole pages.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let Some(size) = size.max(1).checked_next_multiple_of(PAGE_SIZE) else {
        set_errno(libc::ENOMEM);
        return ptr::null_mut();
    };
    memalign(PAGE_SIZE, size)
}

/// malloc_usable_size(3).
///
/// # Safety
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    let Some(live) = NonNull::new(block) else {
        return 0;
    };
    if let Some(bytes) = ghost::bytes_of_small(live.cast()) {
        return bytes;
    }
    match ghost::owner_of_block(block as usize) {
        Some(heap) => heap.block_bytes(live.cast()).unwrap_or(0),
        // SAFETY: the caller's promise; not ghost memory, so libc's.
        None => unsafe { ordinary::usable_size(block) },
    }
}

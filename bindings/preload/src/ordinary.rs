//! The ordinary allocator: glibc's own, by the names it keeps for those who
//! replace `malloc`.
//!
//! These need no look-up and work before any constructor has run, so memory
//! asked for before our start-up simply comes from there, and goes back there.
//! Functions that [`crate::entries`] redirects are called past that. Where a child cannot
//! enter libc's malloc, [`crate::pool`] serves.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use core::ffi::{CStr, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::raw::own;
use crate::refused_fork::InLibc;
use crate::{ghost, names, pool, raw, thread};

mod libc_names {
    use core::ffi::c_void;
    unsafe extern "C" {
        pub(super) fn __libc_malloc(size: usize) -> *mut c_void;
        pub(super) fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
        pub(super) fn __libc_realloc(block: *mut c_void, size: usize) -> *mut c_void;
        pub(super) fn __libc_memalign(align: usize, size: usize) -> *mut c_void;
        pub(super) fn __libc_free(block: *mut c_void);
    }
}
use libc_names::{__libc_calloc, __libc_free, __libc_malloc, __libc_memalign, __libc_realloc};

pub(crate) fn allocate(size: usize, align: usize, zeroed: bool) -> *mut c_void {
    names::settle();
    if pool::is_in_use() {
        return pool::allocate(size, align);
    }
    let _there = InLibc::new();
    if align <= 16 && zeroed {
        // SAFETY: no preconditions.
        return unsafe { __libc_calloc(1, size) };
    }
    if align <= 16 {
        // SAFETY: no preconditions.
        return unsafe { __libc_malloc(size) };
    }
    // SAFETY: no preconditions; glibc checks the alignment.
    let block = unsafe { __libc_memalign(align, size) };
    if zeroed && !block.is_null() {
        // SAFETY: a fresh block of `size` bytes.
        unsafe { block.cast::<u8>().write_bytes(0, size) };
    }
    block
}

type Free = unsafe extern "C" fn(*mut c_void);
type Reallocate = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
type UsableSize = unsafe extern "C" fn(*mut c_void) -> usize;

/// Where libc's functions are called; 0: by their names.
static FREE: AtomicUsize = AtomicUsize::new(0);
static REALLOCATE: AtomicUsize = AtomicUsize::new(0);
static USABLE_SIZE: AtomicUsize = AtomicUsize::new(0);

/// Where libc's free is.
pub(crate) fn libc_free() -> usize {
    names::address(c"__libc_free")
}

/// Where libc's realloc is.
pub(crate) fn libc_realloc() -> usize {
    names::address(c"__libc_realloc")
}

/// Calls libc's free at this address from now on.
pub(crate) fn free_by(address: usize) {
    FREE.store(address, Ordering::Release);
}

/// Calls libc's realloc at this address from now on.
pub(crate) fn reallocate_by(address: usize) {
    REALLOCATE.store(address, Ordering::Release);
}

/// Calls libc's malloc_usable_size at this address from now on.
pub(crate) fn usable_size_by(address: usize) {
    USABLE_SIZE.store(address, Ordering::Release);
}

/// # Safety
/// `block` is null or came from this module and is no longer used.
pub(crate) unsafe fn free(block: *mut c_void) {
    if pool::has(block) {
        return pool::free(block);
    }
    if pool::is_in_use() {
        // libc's, whose lock may be taken for ever: what a child gives back before it goes on
        // is little.
        return;
    }
    let free: Free = match FREE.load(Ordering::Acquire) {
        0 => __libc_free,
        // SAFETY: the address of a function of exactly this type.
        by => unsafe { core::mem::transmute::<usize, Free>(by) },
    };
    let _there = InLibc::new();
    // SAFETY: the caller's promise.
    unsafe { free(block) };
}

/// # Safety
/// `block` is null or came from this module, and only the result is used
/// afterwards.
pub(crate) unsafe fn reallocate(block: *mut c_void, size: usize) -> *mut c_void {
    if pool::has(block) {
        return pool::reallocate(block, size);
    }
    if pool::is_in_use() {
        // SAFETY: the caller's promise.
        return unsafe { move_to_pool(block, size) };
    }
    let reallocate: Reallocate = match REALLOCATE.load(Ordering::Acquire) {
        0 => __libc_realloc,
        // SAFETY: the address of a function of exactly this type.
        by => unsafe { core::mem::transmute::<usize, Reallocate>(by) },
    };
    let _there = InLibc::new();
    // SAFETY: the caller's promise.
    unsafe { reallocate(block, size) }
}

/// A copy of a block of libc's in the pool, where libc is left alone. The block stays.
///
/// # Safety
/// As [`reallocate`].
#[cold]
unsafe fn move_to_pool(block: *mut c_void, size: usize) -> *mut c_void {
    let new = pool::allocate(size, 16);
    if !block.is_null() && !new.is_null() {
        // SAFETY: a live block of libc's, by the caller's promise.
        let usable = unsafe { usable_size(block) };
        raw::copy(new as usize, block as usize, usable.min(size));
    }
    new
}

/// Finds what has no second name: in libc itself, as another allocator may be
/// loaded between us and it. Once, and by hand: the heap may be made in the midst of the
/// loader's work, and the loader ends a program that opens an object there.
pub(crate) fn find_usable_size() -> usize {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    let found = FOUND.load(Ordering::Acquire);
    if found != 0 {
        return found;
    }
    const NAME: &CStr = c"malloc_usable_size";
    let found = names::in_libc(NAME).unwrap_or_else(|| crate::start::next(NAME));
    FOUND.store(found, Ordering::Release);
    USABLE_SIZE.store(found, Ordering::Release);
    found
}

/// How many bytes of a block may be used.
///
/// # Safety
/// `block` came from this module and is live.
pub(crate) unsafe fn usable_size(block: *mut c_void) -> usize {
    if pool::has(block) {
        return pool::usable_size(block);
    }
    let found = match USABLE_SIZE.load(Ordering::Acquire) {
        0 => find_usable_size(),
        found => found,
    };
    if found == 0 {
        return 0;
    }
    // SAFETY: the address of a function of exactly this type.
    let usable_size = unsafe { core::mem::transmute::<usize, UsableSize>(found) };
    // SAFETY: the caller's promise.
    unsafe { usable_size(block) }
}

/// Bytes for what our own Rust code allocates while libc is left alone.
const SCRATCH_BYTES: usize = 4 << 20;
/// Where they are; 0: nowhere yet.
static SCRATCH: AtomicUsize = AtomicUsize::new(0);
/// Such bytes that were mapped ahead; 0: none.
static AHEAD: AtomicUsize = AtomicUsize::new(0);

/// Maps what [`leave_libc_alone`] needs: later a limit on address space may forbid it.
pub(crate) fn map_ahead() {
    AHEAD.store(
        crate::bounce::map(SCRATCH_BYTES).unwrap_or(0),
        Ordering::Release,
    );
}

/// From now on, what this thread's Rust code of ours allocates comes from memory
/// that nobody gives back: the process is about to end. It may do so in a signal
/// handler that came in the midst of libc's malloc, whose lock is taken then.
pub(crate) fn leave_libc_alone() {
    let base = match AHEAD.swap(0, Ordering::AcqRel) {
        0 => crate::bounce::map(SCRATCH_BYTES),
        base => Some(base),
    };
    if let Some(base) = base
        && SCRATCH
            .compare_exchange(0, base, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    {
        thread::current().scratch.set(base);
    }
}

/// A piece of that memory, zeroed as it is used once; null when it is used up.
fn from_scratch(next: &Cell<usize>, layout: Layout) -> *mut u8 {
    let start = next.get().next_multiple_of(layout.align());
    let end = start.saturating_add(layout.size());
    if end > SCRATCH.load(Ordering::Acquire) + SCRATCH_BYTES {
        return core::ptr::null_mut();
    }
    next.set(end);
    start as *mut u8
}

/// What our own Rust code gets of libc. Where that is nothing it would end the process in
/// many lines. Until the heap is there the limits on address space and data are the cause.
fn given(block: *mut c_void) -> *mut u8 {
    if block.is_null() && !ghost::is_on() {
        raw::say(
            b"ghostmem: cannot run this program on ghost memory: the limits on address space and \
              data (ulimit -v and -d) leave no room for its library: allow more\n",
        );
        let _ends = own!(libc::SYS_exit_group, 126);
    }
    block.cast()
}

/// The allocator of this library's own Rust code: never the ghost heap.
struct Ordinary;

// SAFETY: glibc's malloc family, unchanged, or pieces of a mapping given out once.
unsafe impl GlobalAlloc for Ordinary {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let next = &thread::current().scratch;
        if next.get() != 0 {
            return from_scratch(next, layout);
        }
        given(allocate(layout.size(), layout.align(), false))
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let next = &thread::current().scratch;
        if next.get() != 0 {
            return from_scratch(next, layout);
        }
        given(allocate(layout.size(), layout.align(), true))
    }

    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        let scratch = SCRATCH.load(Ordering::Acquire);
        // What libc gave before stays, too, while its lock may be taken.
        if scratch != 0
            && ((block as usize).wrapping_sub(scratch) < SCRATCH_BYTES
                || thread::current().scratch.get() != 0)
        {
            return;
        }
        // SAFETY: the caller's promise: from `alloc`, no longer used.
        unsafe { free(block.cast()) };
    }
}

#[global_allocator]
static ORDINARY: Ordinary = Ordinary;

//! The process's one ghost heap, and which addresses are its.

use core::alloc::Layout;
use core::ffi::c_void;
use core::ptr;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::OnceLock;

use ghostmem::{Heap, SmallObjects};

use crate::alone::Alone;
use crate::mappings::vacant;
use crate::signals::Blocked;
use crate::thread::{self, EngineScope, Entered, Thread, Undisturbed};
use crate::{attached, begin, cache, heirs, holds, own_limits, put_off, raw};

static HEAP: OnceLock<Heap> = OnceLock::new();
/// Set when everything is in place: from then on blocks are ghost memory.
static ON: AtomicBool = AtomicBool::new(false);
/// The heap's small objects, once blocks are ghost memory and if those of every
/// size are, and no limit on the heap has to be asked: what malloc and free look at first.
static SMALL: AtomicPtr<SmallObjects> = AtomicPtr::new(ptr::null_mut());
/// The bound on memory is close: the heap is asked for each small object.
static ASKED: AtomicBool = AtomicBool::new(false);
/// Blocks below this many bytes are ordinary memory.
static GHOST_FROM: AtomicUsize = AtomicUsize::new(0);

/// All ghost addresses are at or above `LOW` and less than `LENGTH` above it.
/// Not all of those are ghost. The patched system calls have copies of these
/// two, see [`crate::stub`].
static LOW: AtomicUsize = AtomicUsize::new(0);
static LENGTH: AtomicUsize = AtomicUsize::new(0);
/// Most bytes allocated at once so far.
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// A thread tells the heap of its small objects whenever so many bytes of them
/// came together: counting each would cost as much as allocating it.
const COUNTED_AT: isize = 64 << 10;

/// Blocks this large are counted for the peak when they are allocated.
const COUNTED_FROM: usize = 32 << 10;

/// Puts the heap in place; not in use yet.
pub(crate) fn set(heap: Heap, ghost_from: usize) -> &'static Heap {
    GHOST_FROM.store(ghost_from, Ordering::Relaxed);
    let heap = HEAP.get_or_init(|| heap);
    learn_spans(heap);
    heap
}

/// From now on blocks are ghost memory.
pub(crate) fn switch_on() {
    ON.store(true, Ordering::Release);
    if GHOST_FROM.load(Ordering::Relaxed) == 0
        && let Some(small) = HEAP.get().and_then(Heap::small_objects)
    {
        SMALL.store(ptr::from_ref(small).cast_mut(), Ordering::Release);
    }
}

/// What [`SMALL`] points to.
#[inline(always)]
fn small() -> Option<&'static SmallObjects> {
    // SAFETY: null, or part of `HEAP`, which lives for ever.
    unsafe { SMALL.load(Ordering::Acquire).as_ref() }
}

/// Whether blocks are ghost memory by now.
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Acquire)
}

/// The heap, once it is in place.
pub(crate) fn heap() -> Option<&'static Heap> {
    HEAP.get()
}

/// Whether an address may be ghost memory: one comparison.
pub(crate) fn may_be(address: usize) -> bool {
    address.wrapping_sub(LOW.load(Ordering::Relaxed)) < LENGTH.load(Ordering::Relaxed)
}

/// The heap, if the address is ghost memory.
pub(crate) fn owner(address: usize) -> Option<&'static Heap> {
    if !may_be(address) {
        return None;
    }
    HEAP.get()
        .filter(|heap| heap.is_ghost(address as *const u8))
}

/// The heap, if the address, or the last of `bytes` from there on, lies in a region of
/// its: ghost memory, or what was put in its place.
pub(crate) fn region_owner(address: usize, bytes: usize) -> Option<&'static Heap> {
    let last = address.saturating_add(bytes.max(1) - 1);
    let lies = |heap: &&Heap| {
        [address, last]
            .iter()
            .any(|&at| heap.away_run(at, 1).is_some())
    };
    if !may_be(address) && !may_be(last) {
        return None;
    }
    HEAP.get().filter(lies)
}

/// The heap, if a block from malloc is its: the program may have other mappings in the
/// place of its first page.
pub(crate) fn owner_of_block(address: usize) -> Option<&'static Heap> {
    if !may_be(address) {
        return None;
    }
    HEAP.get()
        .filter(|heap| heap.away_run(address, 1).is_some())
}

/// Whether an address is ghost memory.
pub(crate) fn is_ghost(address: usize) -> bool {
    owner(address).is_some()
}

/// Who changes the bounds: of two threads the later one has the regions of both.
static LEARNING: Alone = Alone::new();

/// Widens the bounds to the regions the heap has now.
fn learn_spans(heap: &Heap) {
    let _blocked = Blocked::new();
    let _alone = LEARNING.take();
    let (mut low, mut high) = (usize::MAX, 0);
    for (start, bytes) in heap.spans() {
        low = low.min(start);
        high = high.max(start + bytes);
    }
    if low < high {
        // Everything may be ghost memory while the two change.
        LENGTH.store(usize::MAX, Ordering::SeqCst);
        LOW.store(low, Ordering::SeqCst);
        LENGTH.store(high - low, Ordering::SeqCst);
        crate::stub::publish_bounds(low, high - low);
    }
}

/// In a forked child: whoever changed the bounds in the parent is not here.
pub(crate) fn forget_others() {
    LEARNING.forget_others();
}

/// Tells stubs that were made since how things stand.
pub(crate) fn publish_bounds() {
    match HEAP.get() {
        Some(heap) if is_on() => learn_spans(heap),
        _ if begin::is_waiting() => crate::stub::publish_bounds(0, usize::MAX),
        _ => {}
    }
}

/// Whether a block of `size` bytes, asked for by this thread now, is to be
/// ghost memory.
pub(crate) fn wants(thread: &Thread, size: usize) -> bool {
    (is_on() || begin::has_begun(thread, size))
        && size >= GHOST_FROM.load(Ordering::Relaxed)
        && may_enter(thread)
}

/// A small object of the program's, what programs ask for most; `None`, with
/// nothing done, where [`allocate_small`] or [`allocate`] has to see to it.
#[inline(always)]
pub(crate) fn allocate_quick(size: usize) -> Option<*mut c_void> {
    allocate_by(|small| small.allocate_quick(size))
}

/// As [`allocate_quick`], of every size and alignment small objects have.
pub(crate) fn allocate_small(size: usize, align: usize, zeroed: bool) -> Option<*mut c_void> {
    if put_off::any() {
        free_put_off(thread::current());
    }
    allocate_by(|small| small.allocate(size, align, zeroed))
}

/// A small object that `allocate` takes, counted for this thread.
#[inline(always)]
fn allocate_by(
    allocate: impl FnOnce(&SmallObjects) -> Option<NonNull<[u8]>>,
) -> Option<*mut c_void> {
    let small = small().filter(|_| !ASKED.load(Ordering::Relaxed))?;
    let thread = thread::current();
    let inside = Entered::new(thread)?;
    let block = allocate(small);
    drop(inside);
    let block = block?;
    count(thread, block.len().cast_signed());
    Some(block.cast::<c_void>().as_ptr())
}

/// Bytes of a small object of the program's; `None` for whatever else it may be.
#[inline(always)]
pub(crate) fn bytes_of_small(block: NonNull<u8>) -> Option<usize> {
    small()?.bytes_of(block)
}

/// A ghost block, or null when there is no room (the memory limit, or the
/// address space). `size` may be 0.
#[inline(never)]
pub(crate) fn allocate(
    thread: &'static Thread,
    size: usize,
    align: usize,
    zeroed: bool,
) -> *mut c_void {
    let Some(heap) = HEAP.get() else {
        return core::ptr::null_mut();
    };
    let mut bytes = size;
    if align <= 4096
        && let Some((class, shelf)) = cache::class_of(size)
    {
        // Under a limit of its own the program has as much as it asks for.
        let is_limited = own_limits::any();
        if !(is_limited && own_limits::refuses(heap, class))
            && let Some(block) = cache::take(shelf, class)
        {
            if zeroed {
                raw::clear(block, size);
            }
            return block as *mut c_void;
        }
        bytes = if is_limited { size } else { class };
    }
    // Blocks of pages have a lock, which a handler that forks would wait for.
    let blocked = if size >= COUNTED_FROM || align > 4096 {
        Blocked::if_handled()
    } else {
        None
    };
    let inside = EngineScope::new(thread);
    if ASKED.load(Ordering::Relaxed) {
        count_small(thread, heap);
    }
    if own_limits::refuses(heap, size) {
        return core::ptr::null_mut();
    }
    let block = Layout::from_size_align(bytes.max(1), align)
        .ok()
        .and_then(|layout| heap.allocate_block(layout, zeroed).ok())
        .map(NonNull::cast::<u8>);
    // Small ones have pages of their own, too, where there is no room for small objects.
    let is_outside = block.is_some_and(|block| !may_be(block.as_ptr() as usize));
    if size >= COUNTED_FROM || is_outside {
        note_large(heap, block);
    }
    let lacks_place = block.is_none() && vacant::any() && !heap.has_place(size.max(align));
    drop(inside);
    drop(blocked);
    if lacks_place && vacant::free_all(heap) {
        return allocate(thread, size, align, zeroed);
    }
    block.map_or(core::ptr::null_mut(), |block| block.as_ptr().cast())
}

/// Counts small objects for this thread.
#[inline(always)]
fn count(thread: &'static Thread, bytes: isize) {
    let sum = thread.uncounted.get() + bytes;
    thread.uncounted.set(sum);
    if !(-COUNTED_AT..COUNTED_AT).contains(&sum) {
        tell(thread);
    }
}

/// Counts what this thread has not told yet, and notes whether the heap has to be asked.
fn count_small(thread: &'static Thread, heap: &Heap) {
    let before = ASKED.load(Ordering::Relaxed);
    let asked = heap.count_small(thread.uncounted.replace(0), before) || own_limits::is_close(heap);
    if asked != before {
        ASKED.store(asked, Ordering::Relaxed);
    }
}

/// Tells the heap what this thread has not told yet: that is much, or the thread
/// ends, or somebody asks.
#[cold]
pub(crate) fn tell(thread: &'static Thread) {
    if let Some(heap) = HEAP.get() {
        count_small(thread, heap);
        PEAK.fetch_max(heap.allocated_bytes(), Ordering::Relaxed);
    }
    if put_off::any() {
        free_put_off(thread);
    }
}

#[cold]
pub(crate) fn note_large(heap: &Heap, block: Option<NonNull<u8>>) {
    if let Some(block) = block
        && !may_be(block.as_ptr() as usize)
    {
        learn_spans(heap);
    }
    let now = heap.allocated_bytes();
    PEAK.fetch_max(now, Ordering::Relaxed);
}

/// Most bytes allocated at once, as seen whenever a large block was made and
/// whenever a thread told of its small ones.
pub(crate) fn peak_bytes() -> usize {
    PEAK.load(Ordering::Relaxed)
}

/// Frees a small object of the program's; `false`, with nothing done, for
/// everything else. One that is freed twice ends the process, as in glibc: to ask
/// once more whether it lives could find what another thread just got.
///
/// # Safety
/// Nobody uses the block any more, if it is one.
#[inline(always)]
pub(crate) unsafe fn free_small(block: NonNull<u8>) -> bool {
    let Some(small) = small() else {
        return false;
    };
    let thread = thread::current();
    // Not where the thread runs engine code, or forks, or where a signal
    // interrupted it in malloc or here: see `free`.
    let Some(inside) = Entered::new(thread) else {
        return false;
    };
    // SAFETY: the caller's promise.
    let freed = unsafe { small.free(block) };
    drop(inside);
    match freed.map(|freed| freed.map_err(drop)) {
        Some(Ok(bytes)) => count(thread, -bytes.cast_signed()),
        Some(Err(())) => not_live(),
        None => return false,
    }
    true
}

/// Whether the thread may call the heap: it does not already, as where a signal
/// handler interrupted it there, and does not fork, when the engine's locks are
/// taken.
fn may_enter(thread: &Thread) -> bool {
    thread.inside.get() == 0 && thread.forking.get() == 0
}

/// Frees the blocks that could not be freed where they were.
#[cold]
fn free_put_off(thread: &'static Thread) {
    let Some(heap) = HEAP.get().filter(|_| may_enter(thread)) else {
        return;
    };
    put_off::take(|block| {
        let block = ptr::with_exposed_provenance_mut::<u8>(block);
        if let Some(block) = NonNull::new(block) {
            // SAFETY: whoever put it there freed it.
            unsafe { free_now(thread, heap, block) };
        }
    });
}

/// Frees a ghost block, or sees to it that it is freed once that is possible. One
/// that is freed twice, or no block at all, ends the process, as in glibc.
///
/// # Safety
/// Nobody uses the block any more.
pub(crate) unsafe fn free(thread: &'static Thread, heap: &Heap, block: NonNull<u8>) {
    if !may_enter(thread) {
        put_off::put(block.as_ptr().expose_provenance());
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { free_now(thread, heap, block) };
    if put_off::any() {
        free_put_off(thread);
    }
}

/// As [`free`], where the thread may enter the heap.
///
/// # Safety
/// As there.
unsafe fn free_now(thread: &'static Thread, heap: &Heap, block: NonNull<u8>) {
    let address = block.as_ptr() as usize;
    if !heap.is_among_small(address)
        && let Some((start, bytes)) = heap.pages_around(address)
        && start == address
    {
        if holds::any(start, bytes) || heirs::any() {
            // As a large block that is unmapped is unlocked by that.
            holds::forget(heap, start, bytes);
        }
        attached::forget(start, start + bytes);
        let pages = ptr::slice_from_raw_parts(address as *const u8, bytes);
        let _of_this_heap = heap.fill_holes(pages);
        // Where the program put other mappings, or none, the block is not like new.
        let is_whole = heap.hole_run(start, bytes) == Some((None, bytes))
            && heap.away_run(start, bytes) == Some((false, bytes));
        if let Some((class, shelf)) = cache::class_of(bytes)
            && class == bytes
            && is_whole
        {
            match cache::put(shelf, class, address) {
                cache::Put::Kept => return,
                cache::Put::Twice => not_live(),
                cache::Put::Full => {}
            }
        }
    }
    let blocked = if heap.is_among_small(address) {
        None
    } else {
        Blocked::if_handled()
    };
    let inside = EngineScope::new(thread);
    // SAFETY: the caller's promise.
    let freed = unsafe { heap.deallocate_block(block) };
    drop(inside);
    drop(blocked);
    if freed.is_err() {
        not_live();
    }
}

#[cold]
fn not_live() -> ! {
    raw::abort(
        b"ghostmem: free() of a pointer that is no live block: freed twice, or not from malloc\n",
    )
}

/// Makes a block of pages at least `size` bytes long where it is, if it can
/// be.
///
/// # Safety
/// Nobody uses bytes that the block loses.
pub(crate) unsafe fn resize(
    thread: &'static Thread,
    heap: &Heap,
    block: NonNull<u8>,
    size: usize,
) -> bool {
    if !may_enter(thread) {
        return false;
    }
    let _inside = Undisturbed::new(thread);
    let grows = size.saturating_sub(heap.block_bytes(block).unwrap_or(0));
    if grows > 0 && own_limits::refuses(heap, grows) {
        return false;
    }
    // SAFETY: the caller's promise.
    unsafe { heap.resize_in_place(block, size) }
}

/// A fork begins on this thread: what runs until its end is the engine's.
pub(crate) fn fork_begins() {
    let thread = thread::current();
    thread.forking.set(thread.forking.get() + 1);
    thread.inside.set(thread.inside.get() + 1);
}

/// The end of [`fork_begins`], in parent and child.
pub(crate) fn fork_ends() {
    let thread = thread::current();
    thread.forking.set(thread.forking.get().wrapping_sub(1));
    thread.inside.set(thread.inside.get().wrapping_sub(1));
}

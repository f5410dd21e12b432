//! Arenas: the address space mimalloc cuts small objects from.
//!
//! ```text
//!   base                      base + info                             base + len
//!    ├────────── info ──────────┼──────────────── ghost range ─────────────┤
//!    │ mimalloc's bitmaps and   │ blocks; ghost memory while lent, plain    │
//!    │ page headers: ordinary   │ zero memory otherwise                     │
//!    │ memory, for ever         │                                           │
//!
//!   EMPTY ─► MAKING ─► LENT ⇄ FREE          RETIRED: mapped, never lent again
//!               └► EMPTY (refused)  └──────────┘
//! ```
//! mimalloc can never forget an arena, and knows at most 160 of them, its own
//! included: they live in a static pool and are lent again and again, at the
//! same addresses. The slots change state by compare-and-swap; there is no
//! lock.
//!
//! **Why reuse is safe.** mimalloc's bitmaps survive: a slice used before is
//! marked *dirty* (never assumed zero again) and perhaps *committed* (no
//! callback before its next use). Neither claims anything about contents, so
//! what is in the range when it is lent again does not matter to mimalloc,
//! only that it can be read and written. [`Arena`]'s drop makes it zero, which
//! also gives its memory back. A slice never used is assumed zero: nobody
//! wrote it.
//!
//! **mimalloc reads the range at odd moments**: never. Its per-thread state of
//! our heaps is kept out of it (see `csrc/shim.c`), and its page headers are
//! in the info area. It does *call back* at odd moments: any thread that uses
//! mimalloc may purge free slices of any arena, also one being returned. The
//! callback therefore goes through the slot, and detaching waits for it.

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::thread;

use ghostmem_os::error::ENOMEM;
use ghostmem_os::machine;
use ghostmem_os::map::{Access, Reservation, round_up_to_page};
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::error::SmallError;
use crate::ffi::{self, MiHeap};
use crate::gate;

/// How many arenas this process can have: mimalloc's 160, less some for its
/// own and the program's use.
pub const ARENAS_MAX: usize = 128;

/// The size of an arena where address space is plentiful, bytes. mimalloc's
/// documented limit is twice this, but then the metadata no longer fits the
/// 512 slices its code allows for it (seen with 3.3.2).
pub const ARENA_BYTES: usize = 8 << 30;

/// The smallest arena tried before giving up, bytes.
pub const ARENA_BYTES_MIN: usize = 64 << 20;

/// Alignment of an arena, bytes: mimalloc needs 64 KiB, large pages of page
/// tables and of future huge mappings like more.
const ARENA_ALIGN: usize = 64 << 20;

const EMPTY: u8 = 0;
const MAKING: u8 = 1;
const LENT: u8 = 2;
const FREE: u8 = 3;
const RETIRED: u8 = 4;

/// `discard(context, address, length)`, as the slot remembers it.
pub(crate) type DiscardFn = unsafe fn(*const (), usize, usize);

/// One place of the pool. Lives for ever: mimalloc holds its address.
pub(crate) struct Slot {
    state: AtomicU8,
    info_bytes: AtomicUsize,
    id: AtomicPtr<c_void>,
    /// The mimalloc heap on it, for fork; null while there is none.
    heap: AtomicPtr<MiHeap>,
    /// Who hears of discarded ranges; null: nobody. `discard` is valid and
    /// constant while `context` is not null.
    context: AtomicPtr<()>,
    discard: AtomicPtr<()>,
    /// Threads inside the callback.
    callbacks: AtomicUsize,
    map: OnceLock<Reservation>,
}

impl Slot {
    const fn new() -> Self {
        Self {
            state: AtomicU8::new(EMPTY),
            info_bytes: AtomicUsize::new(0),
            id: AtomicPtr::new(ptr::null_mut()),
            heap: AtomicPtr::new(ptr::null_mut()),
            context: AtomicPtr::new(ptr::null_mut()),
            discard: AtomicPtr::new(ptr::null_mut()),
            callbacks: AtomicUsize::new(0),
            map: OnceLock::new(),
        }
    }

    fn take(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Lets `discard` hear of purged ranges, with `context`.
    ///
    /// # Safety
    /// `discard(context, ..)` must be callable from any thread, inside
    /// mimalloc, with any range inside the ghost range, until [`Slot::detach`]
    /// returned. `context` must not be null.
    pub(crate) unsafe fn attach(&self, heap: *mut MiHeap, context: *const (), discard: DiscardFn) {
        self.heap.store(heap, Ordering::Release);
        self.discard.store(discard as *mut (), Ordering::Relaxed);
        self.context.store(context.cast_mut(), Ordering::SeqCst);
    }

    /// Stops the callbacks and waits for those under way.
    pub(crate) fn detach(&self) {
        self.context.store(ptr::null_mut(), Ordering::SeqCst);
        while self.callbacks.load(Ordering::SeqCst) != 0 {
            thread::yield_now();
        }
        self.heap.store(ptr::null_mut(), Ordering::Release);
    }

    /// Passes a purge on to whoever lent the arena.
    fn purge(&self, start: usize, bytes: usize) {
        // SeqCst on the count and the context, here and in `detach`: either
        // detaching sees this callback, or this callback sees no context.
        self.callbacks.fetch_add(1, Ordering::SeqCst);
        let context = self.context.load(Ordering::SeqCst);
        if !context.is_null() {
            let raw = self.discard.load(Ordering::Relaxed);
            // SAFETY: `attach` stored a `DiscardFn` there before it stored
            // this context, and it stays until the next `attach`.
            let discard = unsafe { core::mem::transmute::<*mut (), DiscardFn>(raw) };
            // SAFETY: `attach`'s caller promised that the pair may be called
            // until `detach` returned, and `detach` waits for us.
            unsafe { discard(context, start, bytes) };
        }
        self.callbacks.fetch_sub(1, Ordering::Release);
    }
}

static POOL: [Slot; ARENAS_MAX] = [const { Slot::new() }; ARENAS_MAX];

/// mimalloc's commit callback, for all our arenas.
///
/// # Safety
/// Called by mimalloc only, with the address of a [`Slot`] of the pool.
unsafe extern "C" fn commit(
    commit: bool,
    start: *mut c_void,
    bytes: usize,
    _is_zero: *mut bool,
    slot: *mut c_void,
) -> bool {
    // SAFETY: mimalloc hands back the argument of `mi_manage_memory`, which is
    // the address of an element of the static POOL.
    let slot = unsafe { &*slot.cast::<Slot>() };
    if commit {
        // The first call, while the arena is made, is for its metadata.
        // Later ones need nothing, and say nothing about zero: the range may
        // contain slices that were used, freed and not purged.
        if slot.state.load(Ordering::Relaxed) == MAKING {
            slot.info_bytes.fetch_max(bytes, Ordering::Relaxed);
        }
    } else {
        slot.purge(start as usize, bytes);
    }
    // For a purge: "no longer committed", so that it is not purged twice.
    true
}

/// A lent arena: address space for one heap. Back to the pool when dropped.
///
/// While it is lent, [`Arena::ghost_range`] belongs to the holder, who may map
/// over it as it likes as long as it can be read and written. Before dropping
/// it, the holder must have stopped treating the range as its own (for the
/// pager: unregistered the region): the drop puts ordinary zero memory there,
/// which also undoes any userfaultfd registration.
#[derive(Debug)]
pub struct Arena {
    slot: usize,
    epoch: usize,
}

impl Arena {
    /// Lends an arena: a free one of the pool, or a new one of
    /// [`ARENA_BYTES`], or of as much (halving, down to [`ARENA_BYTES_MIN`])
    /// as there is address space for.
    ///
    /// # Errors
    /// [`SmallError::TooManyArenas`], the kernel's refusal (of fork hooks
    /// too), or [`SmallError::UnsupportedMimalloc`].
    pub fn acquire() -> Result<Self, SmallError> {
        let inside = gate::enter();
        gate::note_use(&inside);
        if !gate::is_hooked() {
            return Err(OsError::new("pthread_atfork", ENOMEM).into());
        }
        if !ffi::gm_setup(commit, gate::thread_ends) {
            return Err(SmallError::UnsupportedMimalloc);
        }
        let found = POOL
            .iter()
            .position(|slot| slot.take(FREE, LENT))
            .map_or_else(Self::make, Ok)?;
        drop(inside);
        Ok(Self {
            slot: found,
            epoch: gate::epoch(),
        })
    }

    /// Makes a new arena in an empty slot.
    fn make() -> Result<usize, SmallError> {
        let index = POOL
            .iter()
            .position(|slot| slot.take(EMPTY, MAKING))
            .ok_or(SmallError::TooManyArenas)?;
        let slot = &POOL[index];
        let mut bytes = first_try_bytes();
        let made = loop {
            match make_at(slot, bytes) {
                Err(SmallError::Os(_)) if bytes / 2 >= ARENA_BYTES_MIN => bytes /= 2,
                other => break other,
            }
        };
        let state = if made.is_ok() { LENT } else { EMPTY };
        slot.state.store(state, Ordering::Release);
        made.map(|()| index)
    }

    /// First address of the arena.
    #[must_use]
    pub fn base(&self) -> usize {
        self.map().base()
    }

    /// Length of the arena in bytes, metadata included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map().len()
    }

    /// Never: an arena has at least [`ARENA_BYTES_MIN`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The part that becomes ghost memory, `(address, bytes)`: what follows
    /// mimalloc's metadata, which is rounded up to a page (mimalloc itself
    /// rounds it to 64 KiB).
    #[must_use]
    pub fn ghost_range(&self) -> (usize, usize) {
        let info = self.slot().info_bytes.load(Ordering::Relaxed);
        (self.base() + info, self.len() - info)
    }

    /// Where the ghost range lies: the reservation (which lives for ever),
    /// offset and length in bytes.
    #[must_use]
    pub fn ghost_home(&self) -> (&'static Reservation, usize, usize) {
        let (start, bytes) = self.ghost_range();
        (self.map(), start - self.base(), bytes)
    }

    /// Whether this process made it, rather than an ancestor by fork.
    pub(crate) fn is_own(&self) -> bool {
        self.epoch == gate::epoch()
    }

    pub(crate) fn id(&self) -> *mut c_void {
        self.slot().id.load(Ordering::Relaxed)
    }

    pub(crate) fn slot(&self) -> &'static Slot {
        &POOL[self.slot]
    }

    fn map(&self) -> &'static Reservation {
        self.slot()
            .map
            .get()
            .expect("a slot is lent only after its mapping was stored")
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let _inside = gate::enter();
        let (start, bytes) = self.ghost_range();
        let cleared = self
            .map()
            .remap(start - self.base(), bytes, Access::ReadWrite);
        // An ancestor's arena keeps traces of that process's threads; one
        // that could not be cleared keeps its last holder's mapping.
        let reusable = cleared.is_ok() && self.is_own();
        let state = if reusable { FREE } else { RETIRED };
        self.slot().state.store(state, Ordering::Release);
    }
}

/// [`ARENA_BYTES`], or an eighth of the address space the process may have.
fn first_try_bytes() -> usize {
    let eighth = machine::address_space_limit().map_or(usize::MAX, |limit| {
        usize::try_from(limit / 8).unwrap_or(usize::MAX)
    });
    if eighth >= ARENA_BYTES {
        return ARENA_BYTES;
    }
    1 << eighth.max(ARENA_BYTES_MIN).ilog2()
}

/// Maps `bytes` and hands them to mimalloc.
fn make_at(slot: &'static Slot, bytes: usize) -> Result<(), SmallError> {
    let map = Reservation::new(bytes, ARENA_ALIGN, Access::ReadWrite)?;
    // The engine counts 4 KiB pages; a huge page here would be metadata that
    // nobody asked for.
    map.keep_pages_small();
    let mut id = ptr::null_mut();
    slot.info_bytes.store(0, Ordering::Relaxed);
    let argument = ptr::from_ref(slot).cast_mut().cast::<c_void>();
    let start = map.base() as *mut c_void;
    // SAFETY: the range is mapped, zero, readable and writable, aligned to
    // 64 KiB, and ours to give; it is never unmapped once this succeeded
    // (stored in a static below). On failure mimalloc keeps no trace of it.
    // The callback matches its argument.
    let managed = unsafe {
        ffi::mi_manage_memory(
            start,
            bytes,
            false, // not committed: tells us how long the metadata is
            false, // not pinned: free slices are purged, through the callback
            true,  // zero
            -1,    // no NUMA node
            true,  // exclusive: no other heap ever allocates from it
            Some(commit),
            argument,
            &raw mut id,
        )
    };
    if !managed || id.is_null() {
        return Err(SmallError::TooManyArenas);
    }
    let info = slot.info_bytes.load(Ordering::Relaxed);
    let rounded = round_up_to_page(info).expect("metadata is far smaller than the arena");
    assert!(
        info > 0 && rounded < bytes && rounded.is_multiple_of(PAGE_SIZE),
        "mimalloc tells how long its metadata is"
    );
    slot.info_bytes.store(rounded, Ordering::Relaxed);
    slot.id.store(id, Ordering::Relaxed);
    slot.map
        .set(map)
        .expect("only the thread that makes a slot sets its mapping, once");
    Ok(())
}

/// Holds the theap lists of mimalloc's main heap and of ours, for fork. Call
/// with the gate closed and empty.
pub(crate) fn lock_theaps() {
    // SAFETY: null stands for the main heap, which always exists.
    unsafe { ffi::gm_theaps_lock(ptr::null_mut()) };
    for_each_heap(|heap| {
        // SAFETY: a heap in a slot is alive; destroying one needs the gate.
        unsafe { ffi::gm_theaps_lock(heap) };
    });
}

/// Undoes [`lock_theaps`], on the same thread, in parent or child.
pub(crate) fn unlock_theaps() {
    for_each_heap(|heap| {
        // SAFETY: `lock_theaps` took this lock; the set of heaps cannot have
        // changed, since changing it needs the gate.
        unsafe { ffi::gm_theaps_unlock(heap) };
    });
    // SAFETY: as above; null stands for the main heap.
    unsafe { ffi::gm_theaps_unlock(ptr::null_mut()) };
}

/// In a child of fork: callbacks of threads that are not here never end.
pub(crate) fn forget_callbacks() {
    for slot in &POOL {
        slot.callbacks.store(0, Ordering::SeqCst);
    }
}

/// In a child of fork: the pages of threads that are not here become nobody's.
/// A new thread may get the identity of one of those, and would take up pages
/// that it left in the middle of a change.
pub(crate) fn disown_pages() {
    for_each_heap(|heap| {
        // SAFETY: a heap in a slot is alive, and no other thread exists. Its lists
        // are whole: threads that change them are inside the gate.
        unsafe { ffi::gm_disown(heap) };
    });
}

fn for_each_heap(mut act: impl FnMut(*mut MiHeap)) {
    for slot in &POOL {
        let heap = slot.heap.load(Ordering::Acquire);
        if !heap.is_null() {
            act(heap);
        }
    }
}

//! The C side: mimalloc v3's public functions and `csrc/shim.c`.
//!
//! Declared here because `libmimalloc-sys` describes mimalloc v2's heaps.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64};

// The library itself: naming the crate links it.
use libmimalloc_sys as _;

use crate::arena::Classes;

/// mimalloc's `mi_heap_t`, never looked into from here.
#[repr(C)]
pub(crate) struct MiHeap {
    opaque: [u8; 0],
}

/// mimalloc's `mi_page_t`, never looked into from here.
#[repr(C)]
pub(crate) struct MiPage {
    opaque: [u8; 0],
}

/// Where a heap's blocks are, and the words that say which of them live.
#[repr(C)]
pub(crate) struct Table {
    /// The heap whose blocks are handed out, of those of the arena's steps.
    pub(crate) heap: AtomicPtr<MiHeap>,
    /// The words count from here.
    pub(crate) base: usize,
    /// Blocks are here, and so many bytes further.
    pub(crate) start: usize,
    pub(crate) bytes: usize,
    pub(crate) own: *const AtomicU64,
    pub(crate) others: *const AtomicU64,
    pub(crate) mixed: *const AtomicU8,
    /// As `heap`, with the sizes between. Last: the quickest paths do without.
    pub(crate) between: AtomicPtr<MiHeap>,
}

impl Table {
    /// The heap with these classes whose blocks are handed out.
    pub(crate) fn current(&self, classes: Classes) -> &AtomicPtr<MiHeap> {
        match classes {
            Classes::Whole => &self.heap,
            Classes::Between => &self.between,
        }
    }
}

/// A block just allocated, null for none, and how many of its bytes may be used;
/// 0 when it lived already.
#[repr(C)]
pub(crate) struct Found {
    pub(crate) block: *mut c_void,
    pub(crate) bytes: usize,
}

/// What mimalloc knows of a block: its page, null when it has none any more.
#[repr(C)]
pub(crate) struct BlockInfo {
    pub(crate) page: *mut MiPage,
    bytes: u32,
    own: u32,
}

impl BlockInfo {
    /// Bytes of the block that may be used.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Whether the calling thread owns the page. Nobody else can change that.
    #[inline]
    pub(crate) fn is_own(&self) -> bool {
        self.own != 0
    }
}

/// mimalloc's `mi_commit_fun_t`: commit, start, size, is_zero, argument.
pub(crate) type CommitFn =
    unsafe extern "C" fn(bool, *mut c_void, usize, *mut bool, *mut c_void) -> bool;

unsafe extern "C" {
    /// Makes `[start, start + size)` an arena. Its first bytes become the
    /// arena's own metadata and must stay readable and writable for ever.
    pub(crate) fn mi_manage_memory(
        start: *mut c_void,
        size: usize,
        is_committed: bool,
        is_pinned: bool,
        is_zero: bool,
        numa_node: c_int,
        exclusive: bool,
        commit_fun: Option<CommitFn>,
        commit_arg: *mut c_void,
        arena_id: *mut *mut c_void,
    ) -> bool;
    pub(crate) fn mi_heap_new_in_arena(arena_id: *mut c_void) -> *mut MiHeap;
    pub(crate) fn mi_heap_destroy(heap: *mut MiHeap);
    pub(crate) fn mi_free(block: *mut c_void);
    pub(crate) fn mi_usable_size(block: *const c_void) -> usize;

    pub(crate) safe fn gm_setup(commit: CommitFn, exit_hook: extern "C" fn(), scarce: bool)
    -> bool;
    pub(crate) safe fn gm_arenas_allowed() -> bool;
    pub(crate) safe fn gm_reserve_nothing();
    pub(crate) fn gm_heap_is_known(heap: *const MiHeap, arena: *const c_void) -> bool;
    pub(crate) fn gm_allocate_quick(table: *const Table, size: usize) -> Found;
    pub(crate) fn gm_allocate_other(table: *const Table, size: usize, zero: bool) -> Found;
    pub(crate) fn gm_free_quick(table: *const Table, block: *mut c_void) -> usize;
    pub(crate) fn gm_size_quick(table: *const Table, block: *const c_void) -> usize;
    pub(crate) fn gm_allocate(
        heap: *mut MiHeap,
        beside: *mut MiHeap,
        size: usize,
        align: usize,
        zero: bool,
        between: bool,
    ) -> *mut c_void;
    pub(crate) safe fn gm_is_between(size: usize) -> bool;
    pub(crate) fn gm_block_info(block: *const c_void) -> BlockInfo;
    pub(crate) fn gm_free(page: *mut MiPage, own: bool, block: *mut c_void);
    pub(crate) fn gm_disown(heap: *mut MiHeap);
    pub(crate) fn gm_trim(heap: *mut MiHeap) -> bool;
    pub(crate) safe fn gm_trim_arenas();
    pub(crate) safe fn gm_leave_thread();
    pub(crate) safe fn gm_hear_of_thread_end();
    pub(crate) safe fn gm_teardown_lock();
    pub(crate) fn gm_teardown_unlock();
    pub(crate) fn gm_theaps_lock(heap: *mut MiHeap);
    pub(crate) fn gm_theaps_unlock(heap: *mut MiHeap);
    pub(crate) fn gm_theap_is_outside(heap: *mut MiHeap, base: usize, len: usize) -> bool;
    pub(crate) fn gm_no_theap_inside(heap: *mut MiHeap, base: usize, len: usize) -> bool;
    pub(crate) safe fn gm_leaves_first() -> bool;
}

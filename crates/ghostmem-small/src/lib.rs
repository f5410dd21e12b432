//! Small objects of a ghost heap: 1 byte to 32 KiB, by mimalloc v3 over ghost
//! address space.
//!
//! * [`Arena`] lends address space mimalloc knows ([`Arena::acquire`]); its
//!   [`Arena::ghost_range`] is what the pager turns into ghost memory.
//! * [`SmallHeap`] allocates in it, and answers double frees and foreign
//!   pointers with an error.
//! * [`fork::keep_out`] keeps a fork from happening.
//!
//! # What this room owes the others
//! * Nothing here calls the program's allocator: mimalloc maps its own memory,
//!   and everything else is a static or a mapping.
//! * mimalloc's metadata (page headers, bitmaps, per-thread state) is ordinary
//!   memory. Only blocks, and the free lists that run through free blocks, are
//!   ghost memory.
//! * No lock is held while ghost memory is touched that a fault handler or
//!   reclaim could want: they never call this crate.
//!
//! # mimalloc, shared with the program
//! A program may use the `mimalloc` crate itself; it is the same static
//! library. **No option is set** but by [`reserve_nothing`]: options are
//! process-wide, and the defaults fit. Our arenas are exclusive, so no other heap allocates from them, and
//! our heaps never fall back to memory of mimalloc's own. Purging happens only
//! through [`Space::discard`], about a second after memory became free, on
//! whatever thread then allocates or frees; mimalloc never protects, unmaps or
//! advises on our range by itself (it would with cargo feature `secure`, which
//! is refused). It prints nothing unless the user sets
//! `MIMALLOC_SHOW_ERRORS` or `MIMALLOC_VERBOSE`. A handler the program
//! registered with `mi_register_error` also hears when one of our arenas is
//! full.
//!
//! # Costs
//! 256 GiB of address space for an arena and 6 GiB for a heap's three bitmaps,
//! of which the written parts become memory: 1/128 of the memory in use for
//! the blocks that live, up to as much again where threads free what others
//! allocated, and about 1.7 MiB of ordinary memory for each 8 GiB of a heap
//! alive (mimalloc's bitmaps of the arena; measured over 100 heaps). Making a
//! heap on a pooled arena, using and dropping it takes about 50 us. Thread-local
//! variables use the initial-exec model: a library that is loaded with
//! dlopen(3) takes a few dozen bytes of the loader's static reserve.
//!
//! # Limits
//! Nothing here may be called from a signal handler that interrupted it on the
//! same thread, as with any malloc. Where the handler interrupted mimalloc's
//! general half, an allocation is refused and a free put off; the quick paths
//! cannot tell that they are interrupted. After mimalloc's own exit destructor
//! (very late in exit(3)) heaps can be used but not made or dropped.

mod arena;
mod error;
mod ffi;
mod fork_gate;
mod heap;
mod live;
mod put_off;
#[doc(hidden)]
pub mod seam;
mod sync;

pub use arena::{ARENA_BYTES, ARENA_BYTES_MIN, ARENAS_MAX, Arena, STEP_BYTES_MIN, STEPS_MAX};
pub use error::SmallError;
pub use heap::{ALIGN_MAX, SIZE_MAX, SmallHeap, Space};

/// Has mimalloc map what it needs for itself piece by piece, where it would reserve a
/// GiB of address space. An option of the whole process, and for those who know that
/// nobody else in it uses mimalloc.
pub fn reserve_nothing() {
    ffi::gm_reserve_nothing();
}

/// fork(2) and this crate: its handlers are in place from the start; here is
/// what keeps a fork out.
pub mod fork {
    pub use crate::fork_gate::{NoFork, after, before, close_at_the_call, keep_out};
}

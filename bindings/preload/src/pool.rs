//! Blocks for a child that was made past libc, until it goes on.
//!
//! fork(3) takes the locks of libc's malloc and gives them back in the child. A system call that
//! forks without it (`SYS_fork` in a signal handler, `_Fork`) does neither: what another thread
//! had at that moment, because it was in malloc or in a fork(3) of its own, is taken in the
//! child for ever. The engine starts its threads there all the same, and for each libc
//! allocates a table of thread-local storage. So what is ordinary memory comes from here
//! meanwhile, and libc's malloc is not entered. (Locks of the loader's and of libc's cache of
//! stacks remain: a child that is made in the very moment of another thread's pthread_create or
//! dlopen may still wait, with the monitor.)
//!
//! ```text
//!   slots    │ 1 KiB │ 1 KiB │ ... in this library's own data; one bit each
//!   pieces   what is longer, or finds no slot: a mapping each, in a list that only grows;
//!            a piece that was freed is taken again
//! ```
//! A block of these is known by its address, and goes back here whenever it is freed. Atomics
//! and system calls only: signal handlers and several threads may be here at once, and a fork
//! may come at any moment.

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};

use crate::{bounce, raw};

const SLOT_BYTES: usize = 1 << 10;
const SLOTS: usize = 16;

#[repr(align(1024))]
struct Slots([[AtomicU8; SLOT_BYTES]; SLOTS]);

static MEMORY: Slots = Slots([const { [const { AtomicU8::new(0) }; SLOT_BYTES] }; SLOTS]);
/// One bit for each slot, set while it is a block.
static USED: AtomicU32 = AtomicU32::new(0);

/// The piece that was mapped last; 0: none was.
static PIECES: AtomicUsize = AtomicUsize::new(0);

/// What a mapping begins with; its block lies behind.
#[repr(align(64))]
struct Piece {
    /// The one that was mapped before it; 0: it was the first.
    next: usize,
    block: usize,
    end: usize,
    used: AtomicBool,
}

/// Ordinary blocks come from here. A child's alone: in its parent it is never set.
static IN_USE: AtomicBool = AtomicBool::new(false);

/// In a child, right after the system call: from now on libc's malloc is left alone.
pub(crate) fn begin() {
    IN_USE.store(true, Ordering::Relaxed);
}

/// The child goes on, and may do in libc what it could natively.
pub(crate) fn end() {
    IN_USE.store(false, Ordering::Relaxed);
}

/// Whether ordinary blocks come from here, and what is libc's stays where it is.
#[inline]
pub(crate) fn is_in_use() -> bool {
    IN_USE.load(Ordering::Relaxed)
}

fn slots_start() -> usize {
    MEMORY.0.as_ptr().expose_provenance()
}

/// The slot that an address lies in.
#[inline]
fn slot_of(address: usize) -> Option<usize> {
    let at = address.wrapping_sub(slots_start());
    (at < SLOTS * SLOT_BYTES).then_some(at / SLOT_BYTES)
}

/// All pieces, the last one first.
fn pieces() -> impl Iterator<Item = &'static Piece> {
    // SAFETY: null, or a piece that `map_piece` wrote before it could be found. It is never
    // unmapped, and but for the atomic nothing of it changes any more.
    let at = |address: usize| unsafe { (address as *const Piece).as_ref() };
    core::iter::successors(at(PIECES.load(Ordering::Acquire)), move |piece| {
        at(piece.next)
    })
}

/// The piece that a block is.
#[inline]
fn piece_of(address: usize) -> Option<&'static Piece> {
    if PIECES.load(Ordering::Relaxed) == 0 {
        return None;
    }
    pieces().find(|piece| piece.block == address)
}

/// Whether a block is one of these.
#[inline]
pub(crate) fn has(block: *mut c_void) -> bool {
    let address = block as usize;
    slot_of(address).is_some() || piece_of(address).is_some()
}

/// A block of zeros, whatever the size; null: the kernel maps no more.
pub(crate) fn allocate(size: usize, align: usize) -> *mut c_void {
    let slot = if size <= SLOT_BYTES && align <= SLOT_BYTES {
        take_slot()
    } else {
        None
    };
    let block = slot
        .or_else(|| take_piece(size, align))
        .or_else(|| map_piece(size, align));
    block.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
}

fn take_slot() -> Option<usize> {
    let mut used = USED.load(Ordering::Relaxed);
    loop {
        let index = (!used).trailing_zeros() as usize;
        if index >= SLOTS {
            return None;
        }
        let taken = used | 1 << index;
        match USED.compare_exchange_weak(used, taken, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => {
                let block = slots_start() + index * SLOT_BYTES;
                raw::clear(block, SLOT_BYTES);
                return Some(block);
            }
            Err(now) => used = now,
        }
    }
}

/// A piece that was freed and is long enough.
fn take_piece(size: usize, align: usize) -> Option<usize> {
    let fits =
        |piece: &&Piece| piece.block.is_multiple_of(align) && size <= piece.end - piece.block;
    let piece = pieces()
        .filter(fits)
        .find(|piece| !piece.used.swap(true, Ordering::Acquire))?;
    raw::clear(piece.block, size);
    Some(piece.block)
}

fn map_piece(size: usize, align: usize) -> Option<usize> {
    let bytes = size
        .checked_add(size_of::<Piece>())?
        .checked_add(align)?
        .checked_next_multiple_of(ghostmem_os::PAGE_SIZE)?;
    let start = bounce::map(bytes)?;
    let block = (start + size_of::<Piece>()).next_multiple_of(align);
    let mut next = PIECES.load(Ordering::Relaxed);
    loop {
        let piece = Piece {
            next,
            block,
            end: start + bytes,
            used: AtomicBool::new(true),
        };
        // SAFETY: the beginning of a fresh mapping, aligned to a page, which nobody else has.
        unsafe { (start as *mut Piece).write(piece) };
        match PIECES.compare_exchange_weak(next, start, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => return Some(block),
            Err(now) => next = now,
        }
    }
}

/// Gives a block of these back. One that is libc's is none of ours: see [`has`].
pub(crate) fn free(block: *mut c_void) {
    let address = block as usize;
    if let Some(index) = slot_of(address) {
        USED.fetch_and(!(1 << index), Ordering::Release);
    } else if let Some(piece) = piece_of(address) {
        piece.used.store(false, Ordering::Release);
    }
}

/// How many bytes of a block of these may be used.
pub(crate) fn usable_size(block: *mut c_void) -> usize {
    let address = block as usize;
    match slot_of(address) {
        Some(_) => SLOT_BYTES,
        None => piece_of(address).map_or(0, |piece| piece.end - piece.block),
    }
}

/// A block of these with another length: where it was, or a copy. Null, and the block stays
/// as it is, where the kernel maps no more.
pub(crate) fn reallocate(block: *mut c_void, size: usize) -> *mut c_void {
    let usable = usable_size(block);
    if size <= usable {
        return block;
    }
    let new = allocate(size, 16);
    if !new.is_null() {
        raw::copy(new as usize, block as usize, usable);
        free(block);
    }
    new
}

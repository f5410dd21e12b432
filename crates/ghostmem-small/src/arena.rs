//! Arenas: the address space mimalloc cuts small objects from.
//!
//! ```text
//!   base                                                            base + len
//!    ├──────── step 0 ────────┼──────── step 1 ────────┼─ ... reserved, unused ─┤
//!    ├─ info ─┼─ ghost range ─┼─ info ─┼─ ghost range ─┤
//!
//!   info:        mimalloc's bitmaps and page headers: ordinary memory, for ever
//!   ghost range: blocks; ghost memory while lent, plain zero memory otherwise
//!
//!   EMPTY ─► MAKING ─► LENT ⇄ FREE          RETIRED: mapped, never lent again
//!               └► EMPTY (refused)  └──────────┘
//! ```
//! An arena is one range of addresses, of which mimalloc gets a *step* at first
//! and further ones as they are needed ([`Arena::grow`]): one comparison tells
//! whether an address is the heap's, however far it grew. To mimalloc each step is
//! an arena of its own.
//!
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
//! callback therefore goes through the entry, and detaching waits for it.

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_os::error::ENOMEM;
use ghostmem_os::machine;
use ghostmem_os::map::{Access, Reservation, round_up_to_page};
use ghostmem_os::{OsError, PAGE_SIZE};

use crate::error::SmallError;
use crate::ffi::{self, MiHeap};
use crate::fork_gate;
use crate::seam;

mod entry;

pub(crate) use entry::{ArenaEntry, Classes};
use entry::{EMPTY, FREE, LENT, MAKING, POOL, RETIRED};

/// How many arenas this process can have, and steps of all of them together:
/// mimalloc's 160, less some for its own and the program's use.
pub const ARENAS_MAX: usize = 128;

/// Growth stops at so many steps in the process: the rest is for further heaps.
const GROWN_MAX: usize = ARENAS_MAX / 4 * 3;

/// The size of an arena's step where address space is plentiful, bytes.
/// mimalloc's documented limit is twice this, but then the metadata no longer fits
/// the 512 slices its code allows for it (seen with 3.3.2).
pub const ARENA_BYTES: usize = 8 << 30;

/// How many steps an arena can have: half of the regions that an engine has. On
/// Windows, where the tables of reserved memory count, one.
pub const STEPS_MAX: usize = if cfg!(windows) { 1 } else { 32 };

/// The smallest arena tried before giving up, bytes.
pub const ARENA_BYTES_MIN: usize = 32 << 20;

/// With less address space than this left, mimalloc reserves none ahead for what it
/// keeps itself: it takes a gibibyte otherwise.
const PLENTY_BYTES: u64 = 16 << 30;

/// Alignment of an arena, bytes: mimalloc needs 64 KiB, large pages of page
/// tables and of future huge mappings like more.
const ARENA_ALIGN: usize = 64 << 20;

/// The shortest of several steps, bytes: each is given to the engine by itself, which
/// tells regions apart by so many bytes.
pub const STEP_BYTES_MIN: usize = ARENA_ALIGN;

/// Steps that mimalloc knows.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// mimalloc's commit callback, for all our arenas.
///
/// # Safety
/// Called by mimalloc only, with the address of an [`ArenaEntry`] of the pool.
unsafe extern "C" fn commit(
    commit: bool,
    start: *mut c_void,
    bytes: usize,
    _is_zero: *mut bool,
    entry: *mut c_void,
) -> bool {
    // SAFETY: mimalloc hands back the argument of `mi_manage_memory`, which is
    // the address of an element of the static POOL.
    let entry = unsafe { &*entry.cast::<ArenaEntry>() };
    if commit {
        // The first call, while a step is made, is for its metadata, where the
        // step starts. Other ones need nothing, and say nothing about zero: the
        // range may contain slices that were used, freed and not purged.
        if entry.making.load(Ordering::Relaxed) == start as usize {
            entry.making_info_bytes.store(bytes, Ordering::Relaxed);
        }
    } else {
        entry.purge(start as usize, bytes);
    }
    // For a purge: "no longer committed", so that it is not purged twice.
    true
}

/// A lent arena: address space for one heap. Back to the pool when dropped.
///
/// While it is lent, the ghost ranges of its steps ([`Arena::ghost_range`] is that
/// of the first) belong to the holder, who may map over them as it likes as long as
/// they can be read and written. Before dropping it, the holder must have stopped
/// treating them as its own (for the pager: unregistered the regions): the drop puts
/// ordinary zero memory there, which also undoes any userfaultfd registration.
#[derive(Debug)]
pub struct Arena {
    entry: usize,
    epoch: usize,
}

impl Arena {
    /// Lends an arena: a free one of the pool, or a new one with room for
    /// [`STEPS_MAX`] steps of [`ARENA_BYTES`], or for as much (halving, down to
    /// one step of [`ARENA_BYTES_MIN`]) as there is address space for.
    ///
    /// # Errors
    /// [`SmallError::TooManyArenas`], the kernel's refusal (of fork hooks
    /// too), or [`SmallError::UnsupportedMimalloc`].
    pub fn acquire() -> Result<Self, SmallError> {
        let inside = fork_gate::enter();
        fork_gate::note_use(&inside);
        if !fork_gate::is_hooked() {
            return Err(OsError::new("pthread_atfork", ENOMEM).into());
        }
        let scarce = machine::address_space_left().is_some_and(|left| left < PLENTY_BYTES);
        if !ffi::gm_setup(commit, fork_gate::thread_ends, scarce) {
            return Err(SmallError::UnsupportedMimalloc);
        }
        let found = POOL
            .iter()
            .position(|entry| entry.take(FREE, LENT))
            .map_or_else(Self::make, Ok)?;
        POOL[found].lent_steps.store(1, Ordering::Relaxed);
        drop(inside);
        Ok(Self {
            entry: found,
            epoch: fork_gate::epoch(),
        })
    }

    /// Makes a new arena in an empty entry.
    fn make() -> Result<usize, SmallError> {
        let index = POOL
            .iter()
            .position(|entry| entry.take(EMPTY, MAKING))
            .ok_or(SmallError::TooManyArenas)?;
        let entry = &POOL[index];
        let (mut step, mut bytes) = first_try_bytes();
        let made = loop {
            match make_at(entry, step, bytes) {
                Err(SmallError::Os(_)) if bytes / 2 >= ARENA_BYTES_MIN => bytes /= 2,
                other => break other,
            }
            step = step.min(bytes);
        };
        let state = if made.is_ok() { LENT } else { EMPTY };
        entry.state.store(state, Ordering::Release);
        made.map(|()| index)
    }

    /// First address of the arena.
    #[must_use]
    pub fn base(&self) -> usize {
        self.map().base()
    }

    /// Length of the arena in bytes, metadata and steps it never got included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map().len()
    }

    /// Never: an arena has at least [`ARENA_BYTES_MIN`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of a step.
    #[must_use]
    pub fn step_len(&self) -> usize {
        self.entry().step_bytes.load(Ordering::Relaxed)
    }

    /// The part of the first step that becomes ghost memory, `(address, bytes)`:
    /// what follows mimalloc's metadata, which is rounded up to a page (mimalloc
    /// itself rounds it to 64 KiB).
    #[must_use]
    pub fn ghost_range(&self) -> (usize, usize) {
        let (_, offset, bytes) = self.ghost_home();
        (self.base() + offset, bytes)
    }

    /// Where the ghost range of the first step lies: the reservation (which lives
    /// for ever), offset and length in bytes.
    #[must_use]
    pub fn ghost_home(&self) -> (&'static Reservation, usize, usize) {
        self.ghost_home_of(0)
    }

    /// The same of any step it has.
    fn ghost_home_of(&self, step: usize) -> (&'static Reservation, usize, usize) {
        let info = self.entry().steps[step].info_bytes.load(Ordering::Relaxed);
        let bytes = self.step_len();
        (self.map(), step * bytes + info, bytes - info)
    }

    /// Makes mimalloc know a further step, if it does not yet; where its ghost
    /// range lies. Call inside the gate, one thread at a time.
    pub(crate) fn grow(
        &self,
        step: usize,
    ) -> Result<(&'static Reservation, usize, usize), SmallError> {
        let bytes = self.step_len();
        if step >= STEPS_MAX || (step + 1) * bytes > self.len() {
            return Err(OsError::new("an arena's next step", ENOMEM).into());
        }
        if self.id(step).is_null() {
            make_step(self.entry(), self.map(), step, bytes)?;
        }
        self.entry()
            .lent_steps
            .fetch_max(step + 1, Ordering::Relaxed);
        Ok(self.ghost_home_of(step))
    }

    /// Whether this process made it, rather than an ancestor by fork.
    pub(crate) fn is_own(&self) -> bool {
        self.epoch == fork_gate::epoch()
    }

    pub(crate) fn id(&self, step: usize) -> *mut c_void {
        self.entry().steps[step].id.load(Ordering::Relaxed)
    }

    pub(crate) fn entry(&self) -> &'static ArenaEntry {
        &POOL[self.entry]
    }

    fn map(&self) -> &'static Reservation {
        self.entry()
            .map
            .get()
            .expect("an entry is lent only after its mapping was stored")
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let _inside = fork_gate::enter();
        let lent_steps = self.entry().lent_steps.load(Ordering::Relaxed);
        let mut cleared = true;
        for step in 0..lent_steps {
            let (map, offset, bytes) = self.ghost_home_of(step);
            cleared &= map.remap(offset, bytes, Access::ReadWrite).is_ok();
        }
        // An ancestor's arena keeps traces of that process's threads; one
        // that could not be cleared keeps its last holder's mapping.
        let reusable = cleared && self.is_own();
        let state = if reusable { FREE } else { RETIRED };
        self.entry().state.store(state, Ordering::Release);
    }
}

/// Bytes of a step and of an arena: [`STEPS_MAX`] times [`ARENA_BYTES`], or an
/// eighth of the address space that the process may have yet.
fn first_try_bytes() -> (usize, usize) {
    let eighth = machine::address_space_left().map_or(usize::MAX, |limit| {
        usize::try_from(limit / 8).unwrap_or(usize::MAX)
    });
    let step = seam::step_bytes().map_or(ARENA_BYTES, |bytes| bytes.max(STEP_BYTES_MIN));
    let most = step * STEPS_MAX;
    let bytes = if eighth >= most {
        most
    } else {
        1 << eighth.max(ARENA_BYTES_MIN).ilog2()
    };
    (step.min(bytes), bytes)
}

/// Reserves `bytes` and hands the first step of them to mimalloc.
fn make_at(entry: &'static ArenaEntry, step_bytes: usize, bytes: usize) -> Result<(), SmallError> {
    // What is not used yet can not be accessed, and so does not count where the
    // kernel counts what could become memory.
    let access = if bytes == step_bytes {
        Access::ReadWrite
    } else {
        Access::None
    };
    let map = Reservation::new(bytes, ARENA_ALIGN, access)?;
    // The engine counts 4 KiB pages; a huge page here would be metadata that
    // nobody asked for.
    map.keep_pages_small();
    entry.step_bytes.store(step_bytes, Ordering::Relaxed);
    make_step(entry, &map, 0, step_bytes)?;
    entry
        .map
        .set(map)
        .expect("only the thread that makes an entry sets its mapping, once");
    Ok(())
}

/// Hands a step to mimalloc. Of the first, `map` stays for ever if this succeeds.
fn make_step(
    entry: &'static ArenaEntry,
    map: &Reservation,
    step: usize,
    bytes: usize,
) -> Result<(), SmallError> {
    let most = if step == 0 { ARENAS_MAX } else { GROWN_MAX };
    if MADE.fetch_add(1, Ordering::Relaxed) >= most {
        MADE.fetch_sub(1, Ordering::Relaxed);
        return Err(SmallError::TooManyArenas);
    }
    let made = hand_over(entry, map, step, bytes);
    if made.is_err() {
        MADE.fetch_sub(1, Ordering::Relaxed);
    }
    made
}

fn hand_over(
    entry: &'static ArenaEntry,
    map: &Reservation,
    step: usize,
    bytes: usize,
) -> Result<(), SmallError> {
    #[cfg(not(windows))]
    if map.len() > bytes {
        map.protect(step * bytes, bytes, Access::ReadWrite)?;
    }
    let start = map.base() + step * bytes;
    let mut id = ptr::null_mut();
    entry.making_info_bytes.store(0, Ordering::Relaxed);
    entry.making.store(start, Ordering::Relaxed);
    let argument = ptr::from_ref(entry).cast_mut().cast::<c_void>();
    // SAFETY: the range is mapped, zero, readable and writable, aligned to
    // 64 KiB, and ours to give; it is never unmapped once this succeeded
    // (stored in a static by the caller). On failure mimalloc keeps no trace of
    // it. The callback matches its argument.
    let managed = unsafe {
        ffi::mi_manage_memory(
            start as *mut c_void,
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
    entry.making.store(0, Ordering::Relaxed);
    if !managed || id.is_null() {
        return Err(SmallError::TooManyArenas);
    }
    let info = entry.making_info_bytes.load(Ordering::Relaxed);
    let rounded = round_up_to_page(info).expect("metadata is far smaller than the arena");
    assert!(
        info > 0 && rounded < bytes && rounded.is_multiple_of(PAGE_SIZE),
        "mimalloc tells how long its metadata is"
    );
    let made = &entry.steps[step];
    made.info_bytes.store(rounded, Ordering::Relaxed);
    made.id.store(id, Ordering::Relaxed);
    Ok(())
}

/// Holds the theap lists of mimalloc's main heap and of ours, for fork. Call
/// with the gate closed and empty.
pub(crate) fn lock_theaps() {
    // SAFETY: null stands for the main heap, which always exists.
    unsafe { ffi::gm_theaps_lock(ptr::null_mut()) };
    for_each_heap(|heap| {
        // SAFETY: a heap in an entry is alive; destroying one needs the gate.
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
    for entry in &POOL {
        // Each page that is written is copied for the child.
        if entry.callbacks.load(Ordering::SeqCst) != 0 {
            entry.callbacks.store(0, Ordering::SeqCst);
        }
    }
}

/// In a child of fork: the pages of threads that are not here become nobody's.
/// A new thread may get the identity of one of those, and would take up pages
/// that it left in the middle of a change.
pub(crate) fn disown_pages() {
    for_each_heap(|heap| {
        // SAFETY: a heap in an entry is alive, and no other thread exists. Its lists are
        // whole, as threads that change them are inside the gate. One that was stopped
        // there by a handler (`fork_gate`) may have a page in neither of two queues, which
        // is then passed over: a queue is walked by links that are written one at a time.
        unsafe { ffi::gm_disown(heap) };
    });
}

fn for_each_heap(mut act: impl FnMut(*mut MiHeap)) {
    let steps = POOL.iter().flat_map(|entry| &entry.steps);
    for heap in steps.flat_map(|step| &step.heaps) {
        let heap = heap.load(Ordering::Acquire);
        if !heap.is_null() {
            act(heap);
        }
    }
}

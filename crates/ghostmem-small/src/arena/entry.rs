//! The pool that arenas are lent from, and who hears of what mimalloc purges in one.

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};
use std::sync::OnceLock;

use ghostmem_os::map::Reservation;

use super::{ARENAS_MAX, STEPS_MAX};
use crate::ffi::MiHeap;

pub(super) const EMPTY: u8 = 0;
pub(super) const MAKING: u8 = 1;
pub(super) const LENT: u8 = 2;
pub(super) const FREE: u8 = 3;
pub(super) const RETIRED: u8 = 4;

/// `discard(context, address, length)`, as the entry remembers it.
pub(crate) type DiscardFn = unsafe fn(*const (), usize, usize);

/// Which sizes a mimalloc heap has blocks of. mimalloc has four of them for each doubling, so
/// that a block may take a quarter more than was asked for; a second heap, whose sizes lie half
/// way between, makes that an eighth at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Classes {
    /// mimalloc's.
    Whole = 0,
    /// Half way between mimalloc's; none of up to 1024 bytes, where a block takes 127 bytes more
    /// at most.
    Between = 1,
}

impl Classes {
    pub(crate) const ALL: [Self; 2] = [Self::Whole, Self::Between];

    pub(crate) const fn others(self) -> Self {
        match self {
            Self::Whole => Self::Between,
            Self::Between => Self::Whole,
        }
    }

    /// Those that fit a block best.
    pub(crate) fn of(size: usize, align: usize) -> Self {
        // mimalloc finds places for larger alignments in heaps that it knows by itself.
        if align <= crate::heap::GRAIN && crate::ffi::gm_is_between(size) {
            Self::Between
        } else {
            Self::Whole
        }
    }
}

/// A step of an arena, one of mimalloc's arenas.
pub(super) struct Step {
    pub(super) info_bytes: AtomicUsize,
    /// mimalloc's name for it; null while it does not know it.
    pub(super) id: AtomicPtr<c_void>,
    /// The mimalloc heaps on it by [`Classes`], also for fork; null while there are none.
    pub(super) heaps: [AtomicPtr<MiHeap>; 2],
}

/// One place of the pool. Lives for ever: mimalloc holds its address.
pub(crate) struct ArenaEntry {
    pub(super) state: AtomicU8,
    pub(super) step_bytes: AtomicUsize,
    pub(super) steps: [Step; STEPS_MAX],
    /// Steps that the one who lent the arena had.
    pub(super) lent_steps: AtomicUsize,
    /// Where the step is that is being made; 0: none is.
    pub(super) making: AtomicUsize,
    pub(super) making_info_bytes: AtomicUsize,
    /// Who hears of discarded ranges; null: nobody. `discard` is valid and
    /// constant while `context` is not null.
    context: AtomicPtr<()>,
    discard: AtomicPtr<()>,
    /// Threads inside the callback.
    pub(super) callbacks: AtomicUsize,
    pub(super) map: OnceLock<Reservation>,
}

impl ArenaEntry {
    const fn new() -> Self {
        Self {
            state: AtomicU8::new(EMPTY),
            step_bytes: AtomicUsize::new(0),
            steps: [const {
                Step {
                    info_bytes: AtomicUsize::new(0),
                    id: AtomicPtr::new(ptr::null_mut()),
                    heaps: [const { AtomicPtr::new(ptr::null_mut()) }; 2],
                }
            }; STEPS_MAX],
            lent_steps: AtomicUsize::new(0),
            making: AtomicUsize::new(0),
            making_info_bytes: AtomicUsize::new(0),
            context: AtomicPtr::new(ptr::null_mut()),
            discard: AtomicPtr::new(ptr::null_mut()),
            callbacks: AtomicUsize::new(0),
            map: OnceLock::new(),
        }
    }

    pub(super) fn take(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Lets `discard` hear of purged ranges, with `context`.
    ///
    /// # Safety
    /// `discard(context, ..)` must be callable from any thread, inside
    /// mimalloc, with any range inside the ghost range, until [`ArenaEntry::detach`]
    /// returned. `context` must not be null.
    pub(crate) unsafe fn attach(&self, context: *const (), discard: DiscardFn) {
        self.discard.store(discard as *mut (), Ordering::Relaxed);
        self.context.store(context.cast_mut(), Ordering::SeqCst);
    }

    /// Stops the callbacks and waits for those under way.
    pub(crate) fn detach(&self) {
        self.context.store(ptr::null_mut(), Ordering::SeqCst);
        let mut tries = 0;
        while self.callbacks.load(Ordering::SeqCst) != 0 {
            crate::fork_gate::pause(&mut tries);
        }
        for heap in self.steps.iter().flat_map(|step| &step.heaps) {
            heap.store(ptr::null_mut(), Ordering::Release);
        }
    }

    /// The mimalloc heap on a step with these classes; null while there is none.
    pub(crate) fn heap(&self, step: usize, classes: Classes) -> *mut MiHeap {
        self.steps[step].heaps[classes as usize].load(Ordering::Acquire)
    }

    /// The mimalloc heaps on a step.
    pub(crate) fn heaps(&self, step: usize) -> [*mut MiHeap; 2] {
        Classes::ALL.map(|classes| self.heap(step, classes))
    }

    /// Says which mimalloc heaps are on a step, in the order of [`Classes`].
    pub(crate) fn set_heaps(&self, step: usize, heaps: [*mut MiHeap; 2]) {
        for (place, heap) in self.steps[step].heaps.iter().zip(heaps) {
            place.store(heap, Ordering::Release);
        }
    }

    /// Passes a purge on to whoever lent the arena.
    pub(super) fn purge(&self, start: usize, bytes: usize) {
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

pub(super) static POOL: [ArenaEntry; ARENAS_MAX] = [const { ArenaEntry::new() }; ARENAS_MAX];

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

/// A step of an arena, one of mimalloc's arenas.
pub(super) struct Step {
    pub(super) info_bytes: AtomicUsize,
    /// mimalloc's name for it; null while it does not know it.
    pub(super) id: AtomicPtr<c_void>,
    /// The mimalloc heap on it, also for fork; null while there is none.
    pub(super) heap: AtomicPtr<MiHeap>,
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
                    heap: AtomicPtr::new(ptr::null_mut()),
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
        for step in &self.steps {
            step.heap.store(ptr::null_mut(), Ordering::Release);
        }
    }

    /// The mimalloc heap on a step; null while there is none.
    pub(crate) fn heap(&self, step: usize) -> *mut MiHeap {
        self.steps[step].heap.load(Ordering::Acquire)
    }

    /// Says which mimalloc heap is on a step.
    pub(crate) fn set_heap(&self, step: usize, heap: *mut MiHeap) {
        self.steps[step].heap.store(heap, Ordering::Release);
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

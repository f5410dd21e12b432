//! How a heap goes on where its arena's first step is full: mimalloc heaps for each
//! step, one for each of [`Classes`]. Of these one step's, the *current*, serves the quick paths.
//!
//! Only when the current heap has no room the others are asked, the newest first, and
//! one that has becomes the current; only when none has, a step is added. Frees
//! need none of this: mimalloc finds a block's page by its address.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_os::OsError;
use ghostmem_os::map::ZeroArray;
use ghostmem_os::thread::SignalsBlocked;

use super::{GRAIN, SmallHeap, Space};
use crate::arena::{Arena, Classes};
use crate::error::SmallError;
use crate::ffi::{self, MiHeap};
use crate::seam;

impl<S: Space> SmallHeap<S> {
    /// A block of mimalloc's, from a step that has room or a new one. Call inside the
    /// gate; size and alignment are within bounds.
    pub(super) fn allocate_generally(
        &self,
        size: usize,
        align: usize,
        zeroed: bool,
    ) -> Option<NonNull<u8>> {
        let table = &self.core.table;
        let allocate = |heap: *mut MiHeap, classes: Classes| {
            let beside = table.current(classes.others()).load(Ordering::Acquire);
            let between = classes == Classes::Between;
            // SAFETY: heaps of this arena's, which live, the first with these classes and the
            // second with the others; size and alignment are what mimalloc takes.
            let block = unsafe { ffi::gm_allocate(heap, beside, size, align, zeroed, between) };
            NonNull::new(block.cast::<u8>())
        };
        let wanted = Classes::of(size, align);
        let tried = table.current(wanted).load(Ordering::Acquire);
        if let Some(block) = allocate(tried, wanted) {
            return Some(block);
        }
        // Where there is no block of the better size, the next of mimalloc's own serves.
        let also = (wanted == Classes::Between).then_some(Classes::Whole);
        let entry = self.core.entry;
        for _ in 0..=STEPS_IN_VAIN {
            let steps = self.core.steps.load(Ordering::Acquire);
            for classes in [Some(wanted), also].into_iter().flatten() {
                for heap in (0..steps).rev().map(|step| entry.heap(step, classes)) {
                    if heap != tried
                        && let Some(block) = allocate(heap, classes)
                    {
                        table.current(classes).store(heap, Ordering::Release);
                        return Some(block);
                    }
                }
            }
            if !self.grow(steps) {
                return None;
            }
        }
        None
    }

    /// Adds a step, unless there are more than `steps` meanwhile. `false` when there
    /// is no other step. Call inside the gate.
    fn grow(&self, steps: usize) -> bool {
        // A handler that forked in here would wait for others who wait for the lock, or for
        // what the pager takes for a new region.
        let _signals = SignalsBlocked::all_but_faults();
        let mut stopped = self.core.growth.lock();
        if self.core.steps.load(Ordering::Acquire) != steps {
            return true;
        }
        if !*stopped {
            *stopped = self.add_step(steps).is_err();
        }
        !*stopped
    }

    fn add_step(&self, step: usize) -> Result<(), SmallError> {
        let room = self.core.own.len() * 64 * GRAIN;
        if (step + 1) * self.arena.step_len() > room {
            return Err(SmallError::NoHeap);
        }
        seam::step()?;
        let (reservation, offset, bytes) = self.arena.grow(step)?;
        let heaps = open_heaps(&self.arena, step)?;
        let adopted = self.core.space.adopt(reservation, offset, bytes);
        if let Err(error) = adopted.and_then(|()| seam::step()) {
            self.core.entry.set_heaps(step, [ptr::null_mut(); 2]);
            for heap in heaps {
                // SAFETY: fresh, used by nobody, destroyed once.
                unsafe { ffi::mi_heap_destroy(heap) };
            }
            return Err(error.into());
        }
        self.core.steps.store(step + 1, Ordering::Release);
        Ok(())
    }
}

/// Where so many fresh steps have no block either, it is not room for blocks that is missing.
const STEPS_IN_VAIN: usize = 2;

type Words = ZeroArray<AtomicU64>;

/// Three bitmaps, a bit each for every place where a block can start, and how many
/// bytes of the arena they speak of: all, or as many steps (halving, down to one) as
/// there is memory for.
pub(super) fn words_for(arena: &Arena) -> Result<(Words, Words, Words, usize), OsError> {
    let mut reach = arena.len();
    loop {
        let words = || {
            seam::step()?;
            ZeroArray::new(reach / GRAIN / 64)
        };
        match words().and_then(|own| Ok((own, words()?, words()?))) {
            Ok((own, others, retired)) => return Ok((own, others, retired, reach)),
            Err(_) if reach / 2 >= arena.step_len() => reach /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Makes the mimalloc heaps of a step. Call inside the gate.
pub(super) fn open_heaps(arena: &Arena, step: usize) -> Result<[*mut MiHeap; 2], SmallError> {
    let whole = open_heap(arena, step)?;
    let between = open_heap(arena, step).inspect_err(|_| {
        // SAFETY: fresh, used by nobody, destroyed once.
        unsafe { ffi::mi_heap_destroy(whole.as_ptr()) };
    })?;
    let heaps = [whole.as_ptr(), between.as_ptr()];
    arena.entry().set_heaps(step, heaps);
    Ok(heaps)
}

/// Makes a mimalloc heap of a step.
fn open_heap(arena: &Arena, step: usize) -> Result<NonNull<MiHeap>, SmallError> {
    seam::step()?;
    // SAFETY: the id is an arena's of ours, which lives for ever.
    let heap = unsafe { ffi::mi_heap_new_in_arena(arena.id(step)) };
    let heap = NonNull::new(heap).ok_or(SmallError::NoHeap)?;
    // SAFETY: the heap was just made; only its own memory is read.
    if !unsafe { ffi::gm_heap_is_known(heap.as_ptr(), arena.id(step)) } {
        // SAFETY: fresh, used by nobody, destroyed once.
        unsafe { ffi::mi_heap_destroy(heap.as_ptr()) };
        return Err(SmallError::UnsupportedMimalloc);
    }
    Ok(heap)
}

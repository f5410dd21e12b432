//! The held ranges of one reason, sorted by address and without overlaps.
//!
//! What changes a list is called under the lock of all of them; what only looks at one
//! takes none, and looks again where the list changed meanwhile.

use core::cell::Cell;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use ghostmem::{Heap, Pinned};

use super::{EVERY, Reason};
use crate::bounce;
use crate::raw::own;

/// Ranges in a list: four times the kernel's own default bound on mappings
/// (`vm.max_map_count`). The memory of unused places is never touched.
const HOLDS_MAX: usize = 1 << 18;

/// One held range. Its first two words are read without the lock.
#[repr(C)]
pub(super) struct Hold {
    start: usize,
    end: usize,
    /// What protection it has, or which thread's stack it is; 0: not known yet.
    pub(super) tag: Cell<usize>,
    /// Made by the call that runs now.
    fresh: Cell<bool>,
    pub(super) pinned: ManuallyDrop<Pinned>,
}

pub(super) struct List {
    /// Where the holds are: [`HOLDS_MAX`] places; 0: not mapped yet.
    holds: AtomicUsize,
    pub(super) count: AtomicUsize,
    /// Odd while the list changes.
    pub(super) version: AtomicU32,
}

pub(super) static LISTS: [List; EVERY.len()] = [const {
    List {
        holds: AtomicUsize::new(0),
        count: AtomicUsize::new(0),
        version: AtomicU32::new(0),
    }
}; EVERY.len()];

/// Holds of all lists.
pub(super) static TOTAL: AtomicUsize = AtomicUsize::new(0);

impl List {
    pub(super) fn of(reason: Reason) -> &'static Self {
        &LISTS[reason as usize]
    }

    fn place(&self, index: usize) -> *mut Hold {
        let first = self.holds.load(Ordering::Acquire) as *mut Hold;
        first.wrapping_add(index)
    }

    /// First and last address of a hold, as it is at this moment.
    pub(super) fn bounds(&self, index: usize) -> (usize, usize) {
        let bounds = self.place(index).cast::<[usize; 2]>();
        // SAFETY: the first words of a place below `count`, in memory that stays
        // mapped; a torn value is thrown away by `any`.
        let [start, end] = unsafe { bounds.read_volatile() };
        (start, end)
    }

    /// The first hold that ends above an address.
    pub(super) fn first_above(&self, address: usize) -> usize {
        let (mut low, mut high) = (0, self.count.load(Ordering::Acquire));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.bounds(middle).1 <= address {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Whether a hold touches a range. Takes no lock; async-signal-safe.
    pub(super) fn any(&self, start: usize, end: usize) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        loop {
            let before = self.version.load(Ordering::Acquire);
            let index = self.first_above(start);
            let found = index < self.count.load(Ordering::Acquire) && self.bounds(index).0 < end;
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return found;
            }
            core::hint::spin_loop();
        }
    }

    fn changes<R>(&self, body: impl FnOnce() -> R) -> R {
        self.version.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::Release);
        let result = body();
        self.version.fetch_add(1, Ordering::Release);
        result
    }

    /// Puts a hold in its place; gives it back when there is none.
    fn insert(&self, hold: Hold) -> Result<(), Pinned> {
        let count = self.count.load(Ordering::Relaxed);
        if count == HOLDS_MAX || !self.is_mapped() {
            return Err(ManuallyDrop::into_inner(hold.pinned));
        }
        let index = self.first_above(hold.start);
        let place = self.place(index);
        self.changes(|| {
            // SAFETY: the holds from `index` on move up into a free place.
            unsafe { place.copy_to(place.wrapping_add(1), count - index) };
            // SAFETY: a place whose content was moved away.
            unsafe { place.write(hold) };
            self.count.store(count + 1, Ordering::Release);
        });
        TOTAL.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn is_mapped(&self) -> bool {
        if self.holds.load(Ordering::Acquire) == 0 {
            let room = bounce::map(HOLDS_MAX * size_of::<Hold>()).unwrap_or(0);
            self.holds.store(room, Ordering::Release);
        }
        self.holds.load(Ordering::Acquire) != 0
    }

    pub(super) fn remove(&self, index: usize) -> Hold {
        let count = self.count.load(Ordering::Relaxed);
        let place = self.place(index);
        // SAFETY: a hold of the list, which forgets it below.
        let hold = unsafe { place.read() };
        self.changes(|| {
            let above = place.wrapping_add(1);
            // SAFETY: the holds above move down by one.
            unsafe { above.copy_to(place, count - index - 1) };
            self.count.store(count - 1, Ordering::Release);
        });
        TOTAL.fetch_sub(1, Ordering::Release);
        hold
    }

    /// A hold of the list.
    pub(super) fn get(&self, index: usize) -> &Hold {
        // SAFETY: below `count`; only the thread with the lock changes holds, and
        // it does so between two uses of this.
        unsafe { &*self.place(index) }
    }

    /// Takes a range out of the holds; what they have beyond it stays held.
    pub(super) fn release(&self, heap: &Heap, start: usize, end: usize) {
        loop {
            let index = self.first_above(start);
            if index >= self.count.load(Ordering::Relaxed) || self.bounds(index).0 >= end {
                return;
            }
            let hold = self.remove(index);
            for (from, to) in [(hold.start, start), (end, hold.end)] {
                if from < to {
                    // Pinned already, so there is room; a full list lets go.
                    let _kept = self.add(heap, from, to, hold.tag.get(), hold.fresh.get());
                }
            }
            drop(ManuallyDrop::into_inner(hold.pinned));
        }
    }

    fn add(&self, heap: &Heap, start: usize, end: usize, tag: usize, fresh: bool) -> bool {
        let range = core::ptr::slice_from_raw_parts(start as *const u8, end - start);
        let Ok(pinned) = heap.pin(range) else {
            return false;
        };
        let inserted = self.insert(Hold {
            start,
            end,
            tag: Cell::new(tag),
            fresh: Cell::new(fresh),
            pinned: ManuallyDrop::new(pinned),
        });
        protect_again(start, end);
        inserted.is_ok()
    }

    /// Holds what of a range is not held yet: all or nothing.
    pub(super) fn hold(&self, heap: &Heap, start: usize, end: usize, tag: usize) -> bool {
        let mut from = start;
        let mut all = true;
        while from < end && all {
            let index = self.first_above(from);
            let (mut next, mut held_until) = (end, end);
            if index < self.count.load(Ordering::Relaxed) {
                let (held_from, held_to) = self.bounds(index);
                if held_from < end {
                    (next, held_until) = (held_from, held_to);
                }
            }
            if from < next {
                all = self.add(heap, from, next, tag, true);
            }
            from = held_until;
        }
        let mut index = self.first_above(start);
        while index < self.count.load(Ordering::Relaxed) && self.bounds(index).0 < end {
            let hold = self.get(index);
            if hold.fresh.get() && !all {
                let hold = self.remove(index);
                drop(ManuallyDrop::into_inner(hold.pinned));
                continue;
            }
            hold.fresh.set(false);
            index += 1;
        }
        all
    }
}

/// Protects what of a range is to be protected: pinning opens pages, with some
/// backends.
pub(super) fn protect_again(start: usize, end: usize) {
    let list = List::of(Reason::Protected);
    let mut index = list.first_above(start);
    while index < list.count.load(Ordering::Relaxed) && list.bounds(index).0 < end {
        let (from, to) = list.bounds(index);
        let (from, to) = (from.max(start), to.min(end));
        let access = list.get(index).tag.get();
        let _as_before = own!(libc::SYS_mprotect, from, to - from, access);
        index += 1;
    }
}

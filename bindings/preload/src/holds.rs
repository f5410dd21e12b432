//! Ranges that stay resident because the program locked or protected them.
//!
//! A short list; programs that protect heap memory at all do so for a few
//! ranges. Holding one twice is one hold, as mlock(2) does not nest.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem::{Heap, Pinned};

use crate::thread::{self, Inside};

const HOLDS_MAX: usize = 512;

struct Hold {
    start: usize,
    end: usize,
    pinned: Pinned,
    /// The program may not read and write it.
    protected: bool,
}

struct List(UnsafeCell<[Option<Hold>; HOLDS_MAX]>);
// SAFETY: used only by `with`, one thread at a time.
unsafe impl Sync for List {}

static LIST: List = List(UnsafeCell::new([const { None }; HOLDS_MAX]));
static BUSY: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The ranges held because of mprotect(2), for signal handlers: as many first
/// and last addresses, both 0 where there is none.
static PROTECTED: [[AtomicUsize; 2]; HOLDS_MAX] =
    [const { [const { AtomicUsize::new(0) }; 2] }; HOLDS_MAX];
static PROTECTED_COUNT: AtomicUsize = AtomicUsize::new(0);

/// Whether the program has taken access to an address away. One load when it
/// never did; async-signal-safe.
pub(crate) fn is_protected(address: usize) -> bool {
    PROTECTED_COUNT.load(Ordering::Acquire) > 0
        && PROTECTED.iter().any(|[start, end]| {
            (start.load(Ordering::Acquire)..end.load(Ordering::Acquire)).contains(&address)
        })
}

/// Remembers for [`is_protected`] what the list says.
fn publish(list: &[Option<Hold>; HOLDS_MAX]) {
    let mut count = 0;
    for (hold, [start, end]) in list.iter().zip(&PROTECTED) {
        let (from, to) = match hold {
            Some(hold) if hold.protected => (hold.start, hold.end),
            _ => (0, 0),
        };
        count += usize::from(to > 0);
        // Empty while it changes.
        end.store(0, Ordering::Release);
        start.store(from, Ordering::Release);
        end.store(to, Ordering::Release);
    }
    PROTECTED_COUNT.store(count, Ordering::Release);
}

fn with<R>(body: impl FnOnce(&mut [Option<Hold>; HOLDS_MAX]) -> R) -> R {
    let _inside = Inside::new(thread::current());
    while BUSY.swap(true, Ordering::Acquire) {
        std::thread::yield_now();
    }
    // SAFETY: BUSY was clear, so this is the only thread here; `body` does not
    // come back to this function.
    let result = body(unsafe { &mut *LIST.0.get() });
    BUSY.store(false, Ordering::Release);
    result
}

/// In a forked child: whoever was here in the parent is not.
pub(crate) fn forget_others() {
    BUSY.store(false, Ordering::Release);
}

/// Whether anything in a range is held. One load when nothing is.
pub(crate) fn any(start: usize, bytes: usize) -> bool {
    COUNT.load(Ordering::Acquire) > 0
        && with(|list| {
            list.iter()
                .flatten()
                .any(|hold| hold.start < start + bytes && start < hold.end)
        })
}

/// Makes whole pages resident and keeps them; `false` when the limit has no
/// room for them or the list is full. `protected`: the program is about to
/// lose access to them.
pub(crate) fn hold(heap: &Heap, start: usize, bytes: usize, protected: bool) -> bool {
    with(|list| {
        let end = start + bytes;
        let covered = list
            .iter()
            .flatten()
            .any(|hold| hold.start <= start && end <= hold.end && hold.protected >= protected);
        if covered {
            return true;
        }
        let Some(slot) = list.iter_mut().find(|slot| slot.is_none()) else {
            return false;
        };
        let range = core::ptr::slice_from_raw_parts(start as *const u8, bytes);
        match heap.pin(range) {
            Ok(pinned) => {
                *slot = Some(Hold {
                    start,
                    end,
                    pinned,
                    protected,
                });
                COUNT.fetch_add(1, Ordering::Release);
                publish(list);
                true
            }
            Err(_) => false,
        }
    })
}

/// Lets the pages of a range go; what a hold has beyond it stays held.
pub(crate) fn release(heap: &Heap, start: usize, bytes: usize) {
    if COUNT.load(Ordering::Acquire) == 0 {
        return;
    }
    let end = start + bytes;
    with(|list| {
        for index in 0..HOLDS_MAX {
            let cut = |hold: &Hold| hold.start < end && start < hold.end;
            if !list[index].as_ref().is_some_and(cut) {
                continue;
            }
            let Some(hold) = list[index].take() else {
                continue;
            };
            COUNT.fetch_sub(1, Ordering::Release);
            for (from, to) in [(hold.start, start), (end, hold.end)] {
                if from >= to {
                    continue;
                }
                let range = core::ptr::slice_from_raw_parts(from as *const u8, to - from);
                // Held already, so there is room; a list that is full lets go.
                if let Ok(pinned) = heap.pin(range)
                    && let Some(slot) = list.iter_mut().find(|slot| slot.is_none())
                {
                    *slot = Some(Hold {
                        start: from,
                        end: to,
                        pinned,
                        protected: hold.protected,
                    });
                    COUNT.fetch_add(1, Ordering::Release);
                }
            }
            drop(hold.pinned);
        }
        publish(list);
    });
}

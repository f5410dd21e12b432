//! Ranges that stay resident, each for a reason, until the reason ends.
//!
//! | reason | ends with |
//! |---|---|
//! | locked (mlock) | munlock, munmap, free |
//! | protected (mprotect) | mprotect to read-write, munmap, free |
//! | stack of a thread | the thread's end, free |
//! | alternate signal stack | another one, none, the thread's end, free |
//! | known to the kernel for good (rseq, robust lists) | free |
//!
//! One list for each reason, sorted by address and without overlaps: holding a
//! range twice is one hold, as mlock(2) does not nest, and the engine counts
//! the pins of different reasons. As many ranges fit as a process may have
//! mappings, and more than that cannot be protected anyway.
//!
//! Lists change under one lock, every signal but ours blocked. Fault handlers
//! and free(3) read them without: again, when a list changed meanwhile.

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem::{Backend, Heap};

use crate::alone::{Alone, Taken};
use crate::raw::{self, own};
use crate::thread::{self, Undisturbed};
use crate::{bounce, ghost, heirs, moving};

mod list;

use list::{LISTS, List, TOTAL};

/// Why a range is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Locked,
    Protected,
    Stack,
    SignalStack,
    Kernel,
}

/// All of them.
pub(crate) const EVERY: [Reason; 5] = [
    Reason::Locked,
    Reason::Protected,
    Reason::Stack,
    Reason::SignalStack,
    Reason::Kernel,
];

static CHANGES: Alone = Alone::new();

/// Runs `body` as the only thread that changes lists.
pub(crate) fn with<R>(body: impl FnOnce() -> R) -> R {
    let _undisturbed = Undisturbed::new(thread::current());
    let _alone = CHANGES.take();
    body()
}

/// Waits until nobody changes a list, and nobody does while the answer is there: a forked
/// child gets whole ones. With signals blocked, and not while pages cannot move (the gate), as
/// whoever changes a list moves them.
pub(crate) fn hold_still() -> Taken {
    CHANGES.take()
}

/// In a forked child, once it has its memory: protects what its parent had protected. The
/// guard backends map a child's memory anew, open. The lists are held still.
pub(crate) fn protect_in_child() {
    let backend = ghost::heap().map(Heap::backend);
    if matches!(backend, Some(Backend::Guard | Backend::GuardMprotect)) {
        list::protect_again(0, usize::MAX);
    }
}

/// In a forked child: whoever was here in the parent is not.
pub(crate) fn forget_others() {
    for list in &LISTS {
        let version = list.version.load(Ordering::Relaxed);
        list.version.store(version & !1, Ordering::Release);
    }
    CHANGES.forget_others();
}

/// Whether the program has taken access to an address away. One load when it
/// never did; async-signal-safe.
pub(crate) fn is_protected(address: usize) -> bool {
    List::of(Reason::Protected).any(address, address.saturating_add(1))
}

/// Whether anything in a range is held. One load when nothing is;
/// async-signal-safe.
pub(crate) fn any(start: usize, bytes: usize) -> bool {
    let end = start.saturating_add(bytes);
    TOTAL.load(Ordering::Acquire) > 0 && LISTS.iter().any(|list| list.any(start, end))
}

/// Whether anything in a range is held for a reason.
pub(crate) fn any_for(reason: Reason, start: usize, bytes: usize) -> bool {
    List::of(reason).any(start, start.saturating_add(bytes))
}

/// Makes whole pages resident and keeps them; `false`, and nothing has
/// changed, when the limit has no room for them. `tag`: the protection, or the
/// thread whose stack it is.
pub(crate) fn hold(heap: &Heap, reason: Reason, start: usize, bytes: usize, tag: usize) -> bool {
    let end = start + bytes;
    let list = List::of(reason);
    with(|| {
        if list.hold(heap, start, end, tag) {
            return true;
        }
        // Stacks of threads that have ended by now are in nobody's way.
        sweep();
        list.hold(heap, start, end, tag)
    })
}

/// Lets the pages of a range go, as far as they are held for a reason.
pub(crate) fn release(heap: &Heap, reason: Reason, start: usize, bytes: usize) {
    if any_for(reason, start, bytes) {
        let end = start.saturating_add(bytes);
        with(|| List::of(reason).release(heap, start, end));
    }
}

/// The range is gone, as far as the program is concerned: lets it go whatever
/// it was held for, open for loads and stores.
pub(crate) fn forget(heap: &Heap, start: usize, bytes: usize) {
    heirs::forget(start, bytes);
    let_go(heap, start, bytes);
}

/// Lets a range go whatever it was held for, open for loads and stores.
pub(crate) fn let_go(heap: &Heap, start: usize, bytes: usize) {
    let open = libc::PROT_READ | libc::PROT_WRITE;
    each_protected(start, bytes, |from, bytes| {
        own!(libc::SYS_mprotect, from, bytes, open)
    });
    for reason in EVERY {
        release(heap, reason, start, bytes);
    }
}

/// What was held of a range, to hold it again where what was to come in its place does
/// not.
pub(crate) struct Noted {
    /// A few need no mapping, which there may be none of.
    few: [Note; FEW],
    /// The first of more notes, in memory of their own; 0: none.
    more: usize,
    count: usize,
}

const FEW: usize = 8;

#[derive(Clone, Copy)]
struct Note {
    reason: Reason,
    start: usize,
    end: usize,
    tag: usize,
}

impl Noted {
    /// What is held of a range now; `None`: no memory to note it.
    pub(crate) fn of(start: usize, bytes: usize) -> Option<Self> {
        let end = start.saturating_add(bytes);
        let nothing = Note {
            reason: Reason::Locked,
            start,
            end: start,
            tag: 0,
        };
        let mut noted = Self {
            few: [nothing; FEW],
            more: 0,
            count: 0,
        };
        if !any(start, bytes) {
            return Some(noted);
        }
        with(|| {
            each_of(start, end, |_| noted.count += 1);
            if noted.count > FEW {
                noted.more = bounce::map(noted.bytes())?;
            }
            let mut index = 0;
            each_of(start, end, |note| {
                // SAFETY: one of as many places as were counted under the same lock.
                unsafe { noted.place(index).write(note) };
                index += 1;
            });
            Some(noted)
        })
    }

    const fn bytes(&self) -> usize {
        self.count * size_of::<Note>()
    }

    fn place(&mut self, index: usize) -> *mut Note {
        let first = match self.more {
            0 => self.few.as_mut_ptr(),
            more => more as *mut Note,
        };
        first.wrapping_add(index)
    }

    /// Calls `lock` with each part that was locked, first address and bytes, until that is
    /// refused: whether none was.
    pub(crate) fn each_locked(&mut self, mut lock: impl FnMut(usize, usize) -> bool) -> bool {
        (0..self.count).all(|index| {
            // SAFETY: written by `of`, in memory that goes with `self`.
            let note = unsafe { self.place(index).read() };
            note.reason != Reason::Locked || lock(note.start, note.end - note.start)
        })
    }

    /// Holds all of it again from an address on, and gives all the access it had: what lies
    /// before is ordinary memory by now.
    pub(crate) fn hold_again(&mut self, heap: &Heap, from: usize) {
        for index in 0..self.count {
            // SAFETY: written by `of`, in memory that goes with `self`.
            let note = unsafe { self.place(index).read() };
            let middle = from.clamp(note.start, note.end);
            let bytes = note.end - middle;
            let held = bytes == 0 || hold(heap, note.reason, middle, bytes, note.tag);
            if note.reason == Reason::Locked && note.start < middle {
                let _as_before = own!(libc::SYS_mlock, note.start, middle - note.start);
            }
            if note.reason == Reason::Protected {
                let end = if held { note.end } else { middle };
                let bytes = end - note.start;
                let _as_before = own!(libc::SYS_mprotect, note.start, bytes, note.tag);
            }
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if self.more != 0 {
            bounce::unmap(self.more, self.bytes());
        }
    }
}

/// Calls `body` with what is held between two addresses, for each reason. The caller has
/// the lists.
fn each_of(start: usize, end: usize, mut body: impl FnMut(Note)) {
    for reason in EVERY {
        let list = List::of(reason);
        let mut index = list.first_above(start);
        while index < list.count.load(Ordering::Relaxed) && list.bounds(index).0 < end {
            let (from, to) = list.bounds(index);
            body(Note {
                reason,
                start: from.max(start),
                end: to.min(end),
                tag: list.get(index).tag.get(),
            });
            index += 1;
        }
    }
}

/// Calls `open` for each part of a range that is protected: what lies between them may be
/// closed because it is absent. The first answer that is a refusal, else 0.
pub(crate) fn each_protected(
    start: usize,
    bytes: usize,
    open: impl Fn(usize, usize) -> raw::Answer,
) -> raw::Answer {
    if !any_for(Reason::Protected, start, bytes) {
        return 0;
    }
    let end = start.saturating_add(bytes);
    let list = List::of(Reason::Protected);
    with(|| {
        let mut refused = 0;
        let mut index = list.first_above(start);
        while index < list.count.load(Ordering::Relaxed) && list.bounds(index).0 < end {
            let (from, to) = list.bounds(index);
            let (from, to) = (from.max(start), to.min(end));
            let answer = open(from, to - from);
            if raw::failed(answer) && refused == 0 {
                refused = answer;
            }
            index += 1;
        }
        refused
    })
}

/// Gives what is held of a range, all of it, another tag.
pub(crate) fn change(heap: &Heap, reason: Reason, start: usize, bytes: usize, tag: usize) {
    let list = List::of(reason);
    let range = core::ptr::slice_from_raw_parts(start as *const u8, bytes);
    with(|| {
        // Nothing leaves in between.
        let pinned = heap.pin(range);
        list.release(heap, start, start + bytes);
        let _has_room = list.hold(heap, start, start + bytes, tag);
        drop(pinned);
    });
}

/// The first part of a range that is held for a reason with this tag.
pub(crate) fn next_with(
    reason: Reason,
    start: usize,
    end: usize,
    tag: usize,
) -> Option<(usize, usize)> {
    let list = List::of(reason);
    with(|| {
        let mut index = list.first_above(start);
        while index < list.count.load(Ordering::Relaxed) && list.bounds(index).0 < end {
            if list.get(index).tag.get() == tag {
                let (from, to) = list.bounds(index);
                return Some((from.max(start), to.min(end)));
            }
            index += 1;
        }
        None
    })
}

/// The first part of a range that is held for a reason.
pub(crate) fn next_for(reason: Reason, start: usize, end: usize) -> Option<(usize, usize)> {
    if !any_for(reason, start, end.saturating_sub(start)) {
        return None;
    }
    let list = List::of(reason);
    with(|| {
        let index = list.first_above(start);
        let (from, to) =
            (index < list.count.load(Ordering::Relaxed)).then(|| list.bounds(index))?;
        (from < end).then_some((from.max(start), to.min(end)))
    })
}

/// What access the program left the page at an address, and up to where, before `end`, it
/// is the same; `None`: all of that is open.
pub(crate) fn access_at(start: usize, end: usize) -> Option<(usize, usize)> {
    if !any_for(Reason::Protected, start, end - start) {
        return None;
    }
    let list = List::of(Reason::Protected);
    with(|| {
        let index = list.first_above(start);
        let is_there = index < list.count.load(Ordering::Relaxed);
        let (from, to) = is_there.then(|| list.bounds(index))?;
        if from >= end {
            return None;
        }
        Some(match from <= start {
            true => (list.get(index).tag.get(), to.min(end)),
            false => ((libc::PROT_READ | libc::PROT_WRITE) as usize, from),
        })
    })
}

/// Says for which thread a stack is held.
pub(crate) fn belongs_to(start: usize, thread: usize) {
    let list = List::of(Reason::Stack);
    with(|| {
        let index = list.first_above(start);
        if index < list.count.load(Ordering::Relaxed) && list.bounds(index).0 <= start {
            list.get(index).tag.set(thread);
        }
    });
}

/// How many stacks were held after the last sweep.
static SWEPT: AtomicUsize = AtomicUsize::new(0);
/// Fewer stacks than this are not worth a sweep.
const SWEEP_FROM: usize = 32;

/// Lets the stacks of threads go that have ended, now and then.
pub(crate) fn sweep_if_many() {
    let count = List::of(Reason::Stack).count.load(Ordering::Relaxed);
    if count >= SWEEP_FROM.max(2 * SWEPT.load(Ordering::Relaxed)) {
        with(sweep);
    }
}

fn sweep() {
    let list = List::of(Reason::Stack);
    let mut index = 0;
    while index < list.count.load(Ordering::Relaxed) {
        let tag = list.get(index).tag.get();
        let gone = tag != 0 && own!(libc::SYS_tkill, tag, 0) == -(libc::ESRCH as raw::Answer);
        if gone {
            let hold = list.remove(index);
            drop(ManuallyDrop::into_inner(hold.pinned));
        } else {
            index += 1;
        }
    }
    SWEPT.store(list.count.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Makes the held pages of a range zero, protected ones included: what the
/// program takes for fresh pages. (The engine leaves held pages alone.)
pub(crate) fn clear(start: usize, bytes: usize) {
    let end = start + bytes;
    let open = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    // What moves is closed to stores, and its thread waits for the lists.
    moving::with_holds_at_rest(start, end, || {
        // What is held for another reason may be protected as well.
        set_access(start, end, |_| open);
        each_of(start, end, |note| {
            raw::clear(note.start, note.end - note.start);
        });
        set_access(start, end, |note| note.tag);
    });
}

/// Has each part between two addresses that is protected be read and not stored to, or have
/// the access again that the program left it. The caller has the lists.
pub(crate) fn set_readable(start: usize, end: usize, is_readable: bool) {
    set_access(start, end, |note| match is_readable {
        true => libc::PROT_READ as usize,
        false => note.tag,
    });
}

/// Gives each part between two addresses that is protected an access. The caller has the
/// lists.
fn set_access(start: usize, end: usize, access: impl Fn(Note) -> usize) {
    each_of(start, end, |note| {
        if note.reason == Reason::Protected {
            let bytes = note.end - note.start;
            let _as_it_goes = own!(libc::SYS_mprotect, note.start, bytes, access(note));
        }
    });
}

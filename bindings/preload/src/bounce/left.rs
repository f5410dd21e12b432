//! Stand-ins of calls that a signal handler left by a jump (siglongjmp(3)).
//!
//! Such a call never comes back to give its stand-ins back. Each is noted, with the call it is
//! for, on the thread that makes the call:
//!
//! ```text
//!   thread's notes              its stack
//!   mark of the call ─────────► mark, in the frame that the call came in by
//!   where the stand-in is
//! ```
//! Nobody but us writes to that frame as long as the call goes on, whatever stacks the
//! program changes to meanwhile. So where the mark is no longer there, or no memory at all,
//! the call is over. That is looked at when the thread is given its next stand-in. A frame
//! that was left and not written over since keeps its stand-in until it is: another call that
//! comes in at the same place does that.
//!
//! A mark is where it stands, and a number that tells one call there from the next. A handler
//! that jumps within the few instructions between a note and its stand-in loses the latter.

use core::cell::Cell;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use super::give_back;
use crate::guarded;
use crate::signals::Blocked;
use crate::thread::Thread;

/// Calls of a thread, each in a handler that came in the midst of the one before, that have
/// notes; others do without.
pub(crate) const NOTES: usize = 8;

/// The lower bits of a mark say where it stands.
const PLACE_BITS: u32 = 48;
/// A note whose stand-in is being given back.
const GATHERED: u64 = 1;
/// Between a call's frame and whoever asks for a stand-in there are fewer bytes of stack.
const NEAR_BYTES: usize = 4 << 10;

/// What a thread notes of one stand-in.
pub(crate) struct Noted {
    /// The call's mark; 0: nothing is noted here.
    mark: AtomicU64,
    /// Where the stand-in is; 0: not there yet.
    start: Cell<usize>,
    bytes: Cell<usize>,
}

/// A note; gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Note(&'static Noted);

impl core::fmt::Debug for Noted {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Noted").field(&self.start.get()).finish()
    }
}

impl Note {
    /// A note of a stand-in for the call that the thread is in; `None` where that is not
    /// known, or there are too many.
    pub(super) fn new(thread: &'static Thread) -> Option<Self> {
        gather(thread);
        let mark = mark(thread)?;
        let free = |place: &&Noted| {
            let free = place
                .mark
                .compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed);
            free.is_ok()
        };
        thread.stand_ins.iter().find(free).map(Self)
    }

    /// What it is about.
    pub(super) fn has(&self, start: usize, bytes: usize) {
        self.0.bytes.set(bytes);
        self.0.start.set(start);
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        self.0.start.set(0);
        self.0.mark.store(0, Ordering::Relaxed);
    }
}

/// The mark of the call that the thread is in, which is made with its first stand-in. Outside
/// of calls nobody asks: what the thread knows of may be that of one that was left.
fn mark(thread: &Thread) -> Option<u64> {
    let call = thread.call.get();
    let here = 0_u8;
    // What a handler left, or another stack has, is not this one's.
    let near = call.wrapping_sub(black_box(&raw const here).addr());
    if call == 0 || near > NEAR_BYTES {
        return None;
    }
    // SAFETY: the frame of a call that this thread is in: set when it came in, above this
    // frame on the same stack.
    let place = unsafe { &*core::ptr::with_exposed_provenance::<AtomicU64>(call) };
    let mut mark = place.load(Ordering::Relaxed);
    if mark == 0 {
        let number = thread.calls.get().wrapping_add(1).max(1);
        thread.calls.set(number);
        mark = (u64::from(number) << PLACE_BITS) | call as u64;
        place.store(mark, Ordering::Relaxed);
    }
    Some(mark)
}

/// Gives back what the calls had that were left.
fn gather(thread: &Thread) {
    for place in &thread.stand_ins {
        let mark = place.mark.load(Ordering::Relaxed);
        if mark <= GATHERED {
            continue;
        }
        let at = mark & ((1 << PLACE_BITS) - 1);
        if guarded::load::<u64>(at as usize) != Ok(mark) {
            give(place, mark);
        }
    }
}

/// Gives back what a note is about, if it is that note still.
fn give(place: &Noted, mark: u64) {
    // A handler that jumped out of here would leave it half done.
    let blocked = Blocked::new();
    let mine = place
        .mark
        .compare_exchange(mark, GATHERED, Ordering::Relaxed, Ordering::Relaxed);
    if mine.is_ok() {
        let (start, bytes) = (place.start.replace(0), place.bytes.get());
        place.mark.store(0, Ordering::Relaxed);
        if start != 0 {
            give_back(start, bytes);
        }
    }
    drop(blocked);
}

/// The thread makes no more calls: none of those that were left goes on.
pub(crate) fn ends(thread: &Thread) {
    for place in &thread.stand_ins {
        let mark = place.mark.load(Ordering::Relaxed);
        if mark > GATHERED {
            give(place, mark);
        }
    }
}

/// The stand-ins that are noted: where each is, and its length.
pub(super) fn each(thread: &Thread, mut act: impl FnMut(usize, usize)) {
    for place in &thread.stand_ins {
        let start = place.start.get();
        if place.mark.load(Ordering::Relaxed) > GATHERED && start != 0 {
            act(start, place.bytes.get());
        }
    }
}

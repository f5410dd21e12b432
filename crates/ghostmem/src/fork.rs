//! The moment of a fork, for a library that serves `malloc` from a heap.
//!
//! A heap takes care of fork(2) by handlers of pthread_atfork(3). Between those
//! and the system call libc does work of its own on what it allocated; where
//! that is ghost memory, the work must happen while pages can still move, and in
//! the child when its memory is there. A library that gets between libc and the
//! kernel calls [`freeze_at_the_call`] once, and the other two around the call:
//!
//! ```no_run
//! # fn system_call() -> isize { 0 }
//! use ghostmem::fork::{Call, after_call, before_call};
//! let (call, _held) = before_call(|| {});
//! let answer = match call {
//!     Call::Strange => system_call(),
//!     Call::Ready => {
//!         let answer = system_call();
//!         after_call(answer == 0);
//!         answer
//!     }
//!     // EAGAIN
//!     Call::Refused => -11,
//! };
//! ```
//! A system call that forks without running any handlers is made by
//! [`around_call`]. Everything else needs none of this.

use ghostmem_os::thread::SignalsBlocked;

use crate::Heap;

pub use ghostmem_fault::fork::Call;

/// Before the handlers of a fork run: pages of the heap leave until what is left of the
/// bound that holds parent and child together, a tree's or a memory group's, has room for
/// what stays resident once more, as the child may write all of it. Where there is no such
/// bound, or it is far away, all pages stay.
pub fn make_room(heap: &Heap) {
    heap.engine().make_room_for_child();
}

/// Registers the engine's handlers of pthread_atfork(3), which is done as the library is loaded:
/// for those who run code before that.
pub fn hook() {
    ghostmem_fault::fork::hook_at_load();
}

/// Leaves stopping all page transitions, and handing a child its memory, to
/// [`before_call`] and [`after_call`] from now on. A fork that runs the
/// handlers but not these two then ends the child with a message. The library also says
/// [`before_a_thread`].
pub fn freeze_at_the_call() {
    ghostmem_small::fork::close_at_the_call();
    ghostmem_fault::fork::freeze_at_the_call();
}

/// The program is about to make a thread. A child of a fork begins with one, and has one
/// descriptor for its faults; those that keep the faults of several threads apart are opened
/// now, if they can be. One load otherwise.
pub fn before_a_thread() {
    ghostmem_fault::fork::before_a_thread();
}

/// Right before the system call of a fork whose handlers have run on the
/// calling thread. From here to [`after_call`] the caller must not touch ghost
/// memory.
///
/// `hold` runs once signals are blocked and before any gate closes: it may wait for
/// threads that touch ghost memory. What it takes is the caller's from then on, whatever
/// the answer, to be released after [`after_call`]. It runs again where another thread,
/// whose handler forks in the midst of malloc, has to go first: what it took is dropped
/// before, as that one may wait for it.
#[must_use]
pub fn before_call<T>(hold: impl FnMut() -> T) -> (Call, Option<T>) {
    // Its handlers took everything before the library took over.
    if ghostmem_fault::fork::is_under_way() {
        return (Call::Strange, None);
    }
    // From the first gate on, or a handler that forks would find it closed by the very
    // thread it interrupted.
    let blocked = SignalsBlocked::all_but_faults();
    let held = ghostmem_small::fork::before(hold);
    let call = ghostmem_fault::fork::before_call(blocked);
    if call != Call::Ready {
        ghostmem_small::fork::after(false);
    }
    (call, Some(held))
}

/// Right after the system call that [`before_call`] spoke of, in parent
/// (whether the call worked or not) and child.
pub fn after_call(in_child: bool) {
    ghostmem_fault::fork::after_call(in_child);
    ghostmem_small::fork::after(in_child);
}

/// After [`after_call`]: the mask of signals that the thread gets back at the fork's end, as
/// the kernel has it, where the caller blocked some before [`before_call`].
pub fn give_back(mask: u64) {
    ghostmem_fault::fork::give_back(mask);
}

/// Makes a system call that forks where no handlers of pthread_atfork(3) run: the
/// child gets its memory as after fork(3). `call` answers as the kernel does, 0 in
/// the child, where it must return on the same stack; it must not touch ghost
/// memory. The handlers of others do not run. Without a call `-EAGAIN`, where the
/// child could not go on.
pub fn around_call(call: impl FnOnce() -> isize) -> isize {
    around_call_holding(|| {}, call).0
}

/// As [`around_call`], with what `hold` took, as [`before_call`] has it.
pub fn around_call_holding<T>(hold: impl FnMut() -> T, call: impl FnOnce() -> isize) -> (isize, T) {
    frozen(hold, || ghostmem_fault::fork::around_call(call))
}

/// As [`around_call_holding`], for a call whose child shares the table of descriptors
/// (`CLONE_FILES` of clone(2)): both processes keep their heaps.
pub fn around_sharing_call<T>(hold: impl FnMut() -> T, call: impl FnOnce() -> isize) -> (isize, T) {
    frozen(hold, || ghostmem_fault::fork::around_sharing_call(call))
}

/// Closes the gate of small objects around a call that forks.
fn frozen<T>(hold: impl FnMut() -> T, call: impl FnOnce() -> isize) -> (isize, T) {
    // As in `before_call`, and until the gate is open again.
    let blocked = SignalsBlocked::all_but_faults();
    let held = ghostmem_small::fork::before(hold);
    let answer = call();
    ghostmem_small::fork::after(answer == 0);
    drop(blocked);
    (answer, held)
}

//! Where a simulation may let another of its threads go on: before each look at a page
//! word, and before each change of one.
//!
//! Only in builds with the feature `sim`, for tests of the engine. Threads that set no
//! hook notice nothing.

use core::cell::Cell;

/// What a thread is about to do to a page word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It looks at the word.
    Look,
    /// It changes the word, if that is still what it has seen.
    Change,
}

std::thread_local! {
    static HOOK: Cell<Option<fn(Moment)>> = const { Cell::new(None) };
}

/// Has `hook` called by the calling thread at each such moment from now on.
pub fn set_hook(hook: Option<fn(Moment)>) {
    HOOK.set(hook);
}

#[inline]
pub(crate) fn at(moment: Moment) {
    if let Some(hook) = HOOK.get() {
        hook(moment);
    }
}

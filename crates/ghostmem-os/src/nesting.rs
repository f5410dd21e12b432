//! Whether the handler that ours passed a fault on to has passed it back.
//!
//! A program that installs a handler over ours often calls the one it found,
//! ours, for what it does not want itself. Once ours is put in front again
//! (re-arm) the two would call each other until the stack ends:
//!
//! ```text
//!   ours ──► theirs ──► ours ──► what was there before theirs
//!   level 0             level 1
//! ```
//! The same signal frame, further down the same stack, is such a call. A handler
//! that left by longjmp(3) leaves its note behind; the next fault is not further
//! down than that one was, and replaces it.

use core::sync::atomic::{AtomicU64, Ordering};

/// Threads that can be noted at once; one more is taken to be at level 0.
const THREADS: usize = 64;

/// What threads are passing on, for a whole process.
pub(crate) struct Nesting {
    notes: [Note; THREADS],
}

/// One thread's note; changed only by the thread that owns it.
#[repr(align(64))]
struct Note {
    /// The owner's [`crate::thread::key`], or 0.
    thread: AtomicU64,
    frame: AtomicU64,
    stack: AtomicU64,
    level: AtomicU64,
}

/// A fault being passed on; over when dropped.
pub(crate) struct Passing<'a> {
    note: Option<(&'a Note, [u64; 3])>,
    level: u64,
}

impl Nesting {
    pub(crate) const fn new() -> Self {
        Self {
            notes: [const {
                Note {
                    thread: AtomicU64::new(0),
                    frame: AtomicU64::new(0),
                    stack: AtomicU64::new(0),
                    level: AtomicU64::new(0),
                }
            }; THREADS],
        }
    }

    /// Thread `thread` passes on the fault whose signal frame is at `frame`,
    /// from a function whose stack is at `stack`. Async-signal-safe.
    pub(crate) fn pass_on(&self, thread: u64, frame: u64, stack: u64) -> Passing<'_> {
        let owned = |note: &&Note| note.thread.load(Ordering::Relaxed) == thread;
        let free = |note: &&Note| {
            let taken =
                note.thread
                    .compare_exchange(0, thread, Ordering::Acquire, Ordering::Relaxed);
            taken.is_ok()
        };
        let found = self.notes.iter().find(owned);
        let Some(note) = found.or_else(|| self.notes.iter().find(free)) else {
            return Passing {
                note: None,
                level: 0,
            };
        };
        let before = [&note.frame, &note.stack, &note.level].map(|w| w.load(Ordering::Relaxed));
        let [frame_before, stack_before, level_before] = before;
        let nested = found.is_some() && frame_before == frame && stack < stack_before;
        let level = if nested { level_before + 1 } else { 0 };
        note.set([frame, stack, level]);
        Passing {
            note: Some((note, if nested { before } else { [0; 3] })),
            level,
        }
    }
}

impl Note {
    fn set(&self, values: [u64; 3]) {
        for (word, value) in [&self.frame, &self.stack, &self.level]
            .into_iter()
            .zip(values)
        {
            word.store(value, Ordering::Relaxed);
        }
    }
}

impl Passing<'_> {
    /// How often this fault was passed back already.
    pub(crate) const fn level(&self) -> usize {
        self.level as usize
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if let Some((note, before)) = self.note {
            note.set(before);
            if self.level == 0 {
                note.thread.store(0, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_frame_further_down_is_nested() {
        let nesting = Nesting::new();
        let outer = nesting.pass_on(7, 1000, 900);
        assert_eq!(outer.level(), 0);
        let back = nesting.pass_on(7, 1000, 800);
        assert_eq!(back.level(), 1);
        assert_eq!(nesting.pass_on(7, 1000, 700).level(), 2);
        assert_eq!(nesting.pass_on(8, 1000, 700).level(), 0, "another thread");
        drop(back);
        assert_eq!(nesting.pass_on(7, 1000, 800).level(), 1, "once more");
        drop(outer);
        assert_eq!(nesting.pass_on(7, 1000, 800).level(), 0, "a later fault");
    }

    #[test]
    fn a_handler_that_never_returned_leaves_nothing_that_counts() {
        let nesting = Nesting::new();
        core::mem::forget(nesting.pass_on(7, 1000, 900));
        core::mem::forget(nesting.pass_on(7, 1000, 800));
        assert_eq!(nesting.pass_on(7, 1000, 900).level(), 0, "the same place");
        core::mem::forget(nesting.pass_on(7, 1000, 900));
        assert_eq!(nesting.pass_on(7, 600, 500).level(), 0, "another frame");
    }

    #[test]
    fn more_threads_than_notes_are_at_level_zero() {
        let nesting = Nesting::new();
        for thread in 1..=THREADS as u64 + 3 {
            core::mem::forget(nesting.pass_on(thread, 1000, 900));
        }
        assert_eq!(nesting.pass_on(1, 1000, 800).level(), 1);
        assert_eq!(nesting.pass_on(THREADS as u64 + 3, 1000, 800).level(), 0);
    }
}

//! Recording which pages a program touches.
//!
//! A ring of words that the recorded process writes and whoever keeps the
//! record reads, in the same process or another.
//!
//! ```text
//!   fault ─► ticket (one fetch_add) ─► room? ─► store ┄┄ ring ┄┄► take ─► zero ─► taken + 1
//!                                       └► no: wait; nobody takes: count as lost
//!
//!    63   62                 36 35                0
//!   ┌─┬────┬───────────────────┬──────────────────┐
//!   │1│ W  │ thread, 26 bits   │ address / 4096   │
//!   └─┴────┴───────────────────┴──────────────────┘
//! ```
//! What is seen is faults: the first touch of a page that is not resident, and
//! the first store to one that is open for loads only. A touch of a page that
//! is open happens without us. So the smaller the resident limit, the more is
//! seen; readahead must be off, as it opens pages that nobody touched. While it
//! is recorded a heap gives pages no credit, or those that are touched most
//! would be seen least.
//!
//! The writing side runs in fault handlers: no allocation, no lock, and it
//! waits for the reader for a bounded time only.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_os::error::EINVAL;
use ghostmem_os::map::MapArc;
use ghostmem_os::shared::SharedWords;
use ghostmem_os::{OsError, futex};

/// Words between two words of the head that different sides write: two lines.
const APART: usize = 16;

/// Where the slots begin; before them, [`APART`] apart, these.
const HEAD: usize = 512;
const TICKETS: usize = 0;
const TAKEN: usize = APART;
const LOST: usize = 2 * APART;
const CLOSED: usize = 3 * APART;

/// Slots of a ring: half a mebibyte.
const SLOTS: usize = 1 << 16;
const PRESENT: u64 = 1 << 63;
const STORE: u64 = 1 << 62;
const THREAD_SHIFT: u32 = 36;
const THREAD_MASK: u64 = (1 << 26) - 1;
const PAGE_MASK: u64 = (1 << THREAD_SHIFT) - 1;

/// A sleep of a writer that finds the ring full, and how many it sleeps before
/// it takes the reader for gone: two seconds.
const NAP: Duration = Duration::from_micros(500);
const NAPS: u32 = 4000;

/// One touch that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenTouch {
    /// Address of the page over 4096.
    pub page: u64,
    /// Tells threads apart; two of many may share a number.
    pub thread: u32,
    /// A store, or of unknown kind.
    pub write: bool,
}

impl SeenTouch {
    fn to_word(self) -> u64 {
        let write = if self.write { STORE } else { 0 };
        PRESENT | write | u64::from(self.thread) << THREAD_SHIFT | self.page & PAGE_MASK
    }

    fn from_word(word: u64) -> Self {
        Self {
            page: word & PAGE_MASK,
            thread: ((word & !(PRESENT | STORE)) >> THREAD_SHIFT) as u32,
            write: word & STORE != 0,
        }
    }
}

/// Folds what identifies a thread into 26 bits.
pub(crate) const fn fold(thread: u64) -> u32 {
    ((thread.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 38) & THREAD_MASK) as u32
}

/// The reading side: made by whoever keeps the record.
#[derive(Debug)]
pub struct Recording {
    words: MapArc<SharedWords>,
    taken: u64,
}

impl Recording {
    /// An empty ring.
    ///
    /// # Errors
    /// The kernel's refusal of memory.
    pub fn new() -> Result<Self, OsError> {
        Ok(Self {
            words: MapArc::new(SharedWords::create(HEAD + SLOTS)?)?,
            taken: 0,
        })
    }

    /// A writing side in this process. The thread that takes must not touch
    /// memory of a heap that is recorded: it would wait for itself.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        Recorder {
            words: self.words.clone(),
            active: AtomicBool::new(true),
        }
    }

    /// The descriptor through which another process finds the ring, as
    /// `/proc/PID/fd/N`, for [`Recorder::open`].
    #[must_use]
    pub fn file(&self) -> Option<i32> {
        self.words.file()
    }

    /// The next touch in the order of the record, if there is one yet.
    pub fn take(&mut self) -> Option<SeenTouch> {
        let slot = &self.words[HEAD + (self.taken as usize % SLOTS)];
        let word = slot.load(Ordering::Acquire);
        if word == 0 {
            return None;
        }
        slot.store(0, Ordering::Relaxed);
        self.taken += 1;
        // Whoever sees the count sees the slot empty.
        self.words[TAKEN].store(self.taken, Ordering::Release);
        Some(SeenTouch::from_word(word))
    }

    /// Touches that were not recorded because nobody took others in time.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.words[LOST].load(Ordering::Relaxed)
    }
}

impl Drop for Recording {
    /// Nobody takes any more: nobody shall wait for it.
    fn drop(&mut self) {
        self.words[CLOSED].store(1, Ordering::Release);
    }
}

/// The writing side, for [`crate::Engine::record`].
#[derive(Debug)]
pub struct Recorder {
    words: MapArc<SharedWords>,
    /// Of this process: a forked child is another program's story.
    active: AtomicBool,
}

impl Recorder {
    /// The ring of another process, at `/proc/PID/fd/N`.
    ///
    /// # Errors
    /// The kernel's refusal to open it; `EINVAL` when it is no ring.
    pub fn open(path: &core::ffi::CStr) -> Result<Self, OsError> {
        let words = SharedWords::open(path)?;
        if words.len() != HEAD + SLOTS {
            return Err(OsError::new("open", EINVAL));
        }
        Ok(Self {
            words: MapArc::new(words)?,
            active: AtomicBool::new(true),
        })
    }

    /// Notes one touch. Async-signal-safe; waits while the ring is full, for
    /// two seconds at most.
    pub(crate) fn note(&self, touch: SeenTouch) {
        if !self.active.load(Ordering::Relaxed) || self.words[CLOSED].load(Ordering::Relaxed) != 0 {
            return;
        }
        let ticket = self.words[TICKETS].fetch_add(1, Ordering::Relaxed);
        let mut naps = 0;
        // A slot may be written again once the touch before was taken.
        while ticket - self.words[TAKEN].load(Ordering::Acquire).min(ticket) >= SLOTS as u64 {
            if naps == NAPS || self.words[CLOSED].load(Ordering::Relaxed) != 0 {
                self.words[CLOSED].store(1, Ordering::Relaxed);
                self.words[LOST].fetch_add(1, Ordering::Relaxed);
                return;
            }
            naps += 1;
            // Nobody wakes it: a sleep in a form that a handler may use.
            let never = AtomicU64::new(0);
            futex::wait(&never, 0, NAP);
        }
        self.words[HEAD + (ticket as usize % SLOTS)].store(touch.to_word(), Ordering::Release);
    }

    /// In a forked child.
    pub(crate) fn stop(&self) {
        self.active.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(page: u64) -> SeenTouch {
        SeenTouch {
            page,
            thread: fold(page % 3),
            write: page.is_multiple_of(2),
        }
    }

    /// Proves that what goes in comes out, in order, many rings full of it,
    /// also through a second mapping of the ring.
    #[cfg(not(windows))] // there is no other process to open it
    #[test]
    fn touches_come_out_as_they_went_in() {
        let mut recording = Recording::new().unwrap();
        let path = format!("/proc/self/fd/{}", recording.file().unwrap());
        let recorder = Recorder::open(&std::ffi::CString::new(path).unwrap()).unwrap();
        let count = 3 * SLOTS as u64 + 5;
        std::thread::scope(|scope| {
            scope.spawn(|| (0..count).for_each(|page| recorder.note(touch(page))));
            let mut next = 0;
            while next < count {
                match recording.take() {
                    Some(seen) => {
                        assert_eq!(seen, touch(next));
                        next += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        assert_eq!((recording.take(), recording.lost()), (None, 0));
    }

    /// Proves that writers from several threads lose and invent nothing.
    #[test]
    fn threads_share_a_ring() {
        let mut recording = Recording::new().unwrap();
        let recorder = recording.recorder();
        let each = SLOTS as u64;
        let mut seen = vec![0; each as usize];
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..each).for_each(|page| recorder.note(touch(page))));
            }
            let mut left = 3 * each;
            while left > 0 {
                match recording.take() {
                    Some(touch) => {
                        seen[touch.page as usize] += 1;
                        left -= 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        assert!(seen.iter().all(|&times| times == 3));
    }

    /// Proves that a writer whose reader is gone goes on.
    #[test]
    fn nobody_waits_for_a_reader_that_is_gone() {
        let recording = Recording::new().unwrap();
        let recorder = recording.recorder();
        (0..SLOTS as u64).for_each(|page| recorder.note(touch(page)));
        drop(recording);
        recorder.note(touch(1));
        let full = Recording::new().unwrap();
        let recorder = full.recorder();
        (0..SLOTS as u64 + 2).for_each(|page| recorder.note(touch(page)));
        // Waited for once, not for each.
        assert_eq!(full.lost(), 1);
    }
}

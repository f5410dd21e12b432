//! Signals of ours that were sent to the process while the thread that the kernel chose had
//! them blocked, as the program sees it.
//!
//! They are nobody's yet: a thread that waits for one (sigwaitinfo(2)) gets it at once. Else it
//! stays here, one of a kind as in the kernel, for the first that waits for it or blocks it no
//! longer. sigpending(2) tells every thread of it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Blocked, OURS};
use crate::raw::{call, failed, own};
use crate::thread::INFO_WORDS;

/// One signal, and what came with it.
struct Sent {
    state: AtomicU32,
    info: [AtomicU64; INFO_WORDS],
}

const EMPTY: u32 = 0;
const FULL: u32 = 1;
/// It is being written, or read.
const BUSY: u32 = 2;

static SIGNALS: [Sent; OURS.len()] = [const {
    Sent {
        state: AtomicU32::new(EMPTY),
        info: [const { AtomicU64::new(0) }; INFO_WORDS],
    }
}; OURS.len()];

/// Threads in a call that waits for signals of ours: the kernel's number above, one bit for
/// each signal below; 0: nobody.
static WAITERS: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
const NUMBER_AT: u32 = 8;

/// Whether a signal was sent to the process, and not to one thread (tgkill(2)).
pub(super) fn is_to_the_process(info: *const libc::siginfo_t) -> bool {
    // SAFETY: the kernel's own structure.
    unsafe { (*info).si_code != libc::SI_TKILL }
}

/// Keeps one that the calling thread has blocked. In a handler, with all signals blocked.
pub(super) fn put(place: usize, info: *const libc::siginfo_t) {
    if hand_on(place, info) {
        return;
    }
    let sent = &SIGNALS[place];
    let empty = sent
        .state
        .compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Relaxed);
    if empty.is_err() {
        return;
    }
    for (index, word) in sent.info.iter().enumerate() {
        // SAFETY: the kernel's structure has that many words.
        let from = unsafe { info.cast::<u64>().add(index) };
        // SAFETY: one of its words, plain bytes.
        word.store(unsafe { from.read() }, Ordering::Relaxed);
    }
    sent.state.store(FULL, Ordering::SeqCst);
    // Who began to wait meanwhile looked before, or is found now.
    let is_waited_for = WAITERS.iter().any(|waiter| is_for(waiter, place));
    if is_waited_for && let Some(info) = take(place) {
        let info = info.as_ptr().cast();
        if !hand_on(place, info) {
            put(place, info);
        }
    }
}

fn is_for(waiter: &AtomicU64, place: usize) -> bool {
    waiter.load(Ordering::SeqCst) & 1 << place != 0
}

/// Gives a signal to a thread that waits for it; `false`: there is none.
fn hand_on(place: usize, info: *const libc::siginfo_t) -> bool {
    let process = own!(libc::SYS_getpid);
    WAITERS.iter().any(|waiter| {
        let seen = waiter.load(Ordering::SeqCst);
        let mine = seen & 1 << place != 0
            && waiter
                .compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok();
        let thread = seen >> NUMBER_AT;
        mine && !failed(call!(
            libc::SYS_rt_tgsigqueueinfo,
            process,
            thread,
            OURS[place],
            info
        ))
    })
}

/// Which signals are here, one bit for each.
pub(super) fn waiting() -> u32 {
    let signals = SIGNALS.iter().enumerate();
    signals
        .filter(|(_, sent)| sent.state.load(Ordering::SeqCst) == FULL)
        .fold(0, |bits, (place, _)| bits | 1 << place)
}

/// Takes one.
pub(super) fn take(place: usize) -> Option<[u64; INFO_WORDS]> {
    let sent = &SIGNALS[place];
    if sent.state.load(Ordering::SeqCst) != FULL {
        return None;
    }
    // Who jumps out of a handler here would take it along.
    let blocked = Blocked::new();
    let full = sent
        .state
        .compare_exchange(FULL, BUSY, Ordering::Acquire, Ordering::Relaxed);
    let taken = full.is_ok().then(|| {
        let mut info = [0; INFO_WORDS];
        for (word, kept) in info.iter_mut().zip(&sent.info) {
            *word = kept.load(Ordering::Relaxed);
        }
        sent.state.store(EMPTY, Ordering::Release);
        info
    });
    drop(blocked);
    taken
}

/// The thread waits for signals of ours while this is there.
pub(super) struct Waits(Option<(&'static AtomicU64, u64)>);

impl Waits {
    /// `wanted`: one bit for each of ours.
    pub(super) fn new(wanted: u32) -> Self {
        if wanted == 0 {
            return Self(None);
        }
        let number = own!(libc::SYS_gettid) as u64;
        let entry = number << NUMBER_AT | u64::from(wanted);
        // One that a handler left by a jump.
        for waiter in &WAITERS {
            let seen = waiter.load(Ordering::Relaxed);
            if seen != 0 && seen >> NUMBER_AT == number {
                let _taken = waiter.compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
        let place = WAITERS.iter().find(|waiter| {
            let free = waiter.compare_exchange(0, entry, Ordering::SeqCst, Ordering::Relaxed);
            free.is_ok()
        });
        Self(place.map(|place| (place, entry)))
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some((place, entry)) = self.0 {
            let _taken = place.compare_exchange(entry, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }
}

/// In a forked child: what was sent to the parent is not the child's.
pub(crate) fn forget() {
    for sent in &SIGNALS {
        sent.state.store(EMPTY, Ordering::Release);
    }
    for waiter in &WAITERS {
        waiter.store(0, Ordering::Release);
    }
}

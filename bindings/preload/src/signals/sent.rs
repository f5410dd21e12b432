//! Signals of ours that were sent to the process while the thread that the kernel chose had
//! them blocked, as the program sees it.
//!
//! They are nobody's yet: a thread that waits for one (sigwaitinfo(2)) gets it at once. Else it
//! stays here, one of a kind as in the kernel, for the first that waits for it or blocks it no
//! longer. sigpending(2) tells every thread of it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Blocked, OURS, place_of};
use crate::calls::Done;
use crate::guarded::{Touch, load};
use crate::raw::{Answer, call, failed, own};
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

/// Which word of what comes with a signal has a mark of ours: of those that the kernel hands
/// through, one that nobody uses. Its upper half says what the mark is about.
const MARK_AT: usize = 5;
/// It was queued for one thread: of that the kernel tells nothing (`SI_QUEUE`).
const OF_A_THREAD: u64 = 0x6768_6d31;
/// It was handed on. The kernel sends nothing to another thread that says it came by kill(2),
/// so the code that it came with is the lower half.
const HANDED_ON: u64 = 0x6768_6d32;
/// Which word has the code, in its lower half.
const CODE_AT: usize = 1;

/// `SI_MESGQ`.
const OF_A_QUEUE: i32 = -3;

/// Whether a signal that was sent is one thread's. The process's are those of kill(2),
/// sigqueue(3) and mq_notify(3); what else is sent may be for one thread (tgkill(2),
/// pthread_sigqueue(3), timers), and is taken for that. The mark is taken away.
pub(super) fn is_to_a_thread(info: *mut libc::siginfo_t) -> bool {
    // SAFETY: the kernel's own structure, as the words that it has: only the handler that was
    // given it uses it.
    let words = unsafe { &mut *info.cast::<[u64; INFO_WORDS]>() };
    let marked = forget_mark(words);
    match code_of(words) {
        libc::SI_USER | OF_A_QUEUE => false,
        libc::SI_QUEUE => marked,
        _ => true,
    }
}

/// Takes a mark away, and what it is about back; whether the signal is one thread's by it.
pub(super) fn forget_mark(info: &mut [u64; INFO_WORDS]) -> bool {
    let (about, low) = (info[MARK_AT] >> 32, info[MARK_AT] & LOWER);
    if about == HANDED_ON {
        info[CODE_AT] = info[CODE_AT] & !LOWER | low;
    }
    if [OF_A_THREAD, HANDED_ON].contains(&about) {
        info[MARK_AT] = 0;
    }
    about == OF_A_THREAD
}

const LOWER: u64 = u32::MAX as u64;

/// The code of one.
const fn code_of(info: &[u64; INFO_WORDS]) -> i32 {
    info[CODE_AT] as i32
}

/// rt_tgsigqueueinfo of one of ours: whoever gets it has to know that it is the thread's.
/// `None` for other signals.
pub(crate) fn queue(args: [usize; 6]) -> Touch<Option<Done>> {
    let [process, thread, signal, info, ..] = args;
    if place_of(signal).is_none() {
        return Ok(None);
    }
    let mut words: [u64; INFO_WORDS] = load(info)?;
    if code_of(&words) == libc::SI_QUEUE {
        words[MARK_AT] = OF_A_THREAD << 32;
    }
    let info = words.as_ptr();
    let answer = call!(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info);
    Ok(Some(Done::With(answer)))
}

/// What came of handing a signal on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handed {
    On,
    /// Nobody waits for it.
    ToNobody,
    /// A filter of the program's forbids it.
    Refused,
}

/// Keeps one that the calling thread has blocked, for the process. In a handler, with all
/// signals blocked.
pub(super) fn put(place: usize, info: *const libc::siginfo_t) {
    // SAFETY: the kernel's own structure, as the words that it has.
    let mut words: [u64; INFO_WORDS] = unsafe { info.cast::<[u64; INFO_WORDS]>().read() };
    loop {
        let handed = hand_on(place, &words);
        if handed == Handed::On || !fill(place, &words) || handed == Handed::Refused {
            return;
        }
        // Who began to wait meanwhile looked before, or is found now.
        if !WAITERS.iter().any(|waiter| is_for(waiter, place)) {
            return;
        }
        match take(place) {
            Some(taken) => words = taken,
            None => return,
        }
    }
}

/// Keeps one here; `false`: there is one of the kind.
fn fill(place: usize, words: &[u64; INFO_WORDS]) -> bool {
    let sent = &SIGNALS[place];
    let empty = sent
        .state
        .compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Relaxed);
    if empty.is_err() {
        return false;
    }
    for (kept, word) in sent.info.iter().zip(words) {
        kept.store(*word, Ordering::Relaxed);
    }
    sent.state.store(FULL, Ordering::SeqCst);
    true
}

fn is_for(waiter: &AtomicU64, place: usize) -> bool {
    waiter.load(Ordering::SeqCst) & 1 << place != 0
}

/// Gives a signal to a thread that waits for it. One that is not in the kernel yet keeps it
/// again, and finds it before it waits.
fn hand_on(place: usize, words: &[u64; INFO_WORDS]) -> Handed {
    let process = own!(libc::SYS_getpid);
    let mut handed = *words;
    let code = u64::from(code_of(words).cast_unsigned());
    handed[MARK_AT] = HANDED_ON << 32 | code;
    let queued = libc::SI_QUEUE.cast_unsigned();
    handed[CODE_AT] = words[CODE_AT] & !LOWER | u64::from(queued);
    for waiter in &WAITERS {
        let seen = waiter.load(Ordering::SeqCst);
        let mine = seen & 1 << place != 0
            && waiter
                .compare_exchange(seen, 0, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok();
        if !mine {
            continue;
        }
        let thread = seen >> NUMBER_AT;
        let answer = call!(
            libc::SYS_rt_tgsigqueueinfo,
            process,
            thread,
            OURS[place],
            handed.as_ptr()
        );
        if !failed(answer) {
            return Handed::On;
        }
        if answer != -(libc::ESRCH as Answer) {
            // It waits on.
            let _left = waiter.compare_exchange(0, seen, Ordering::SeqCst, Ordering::Relaxed);
            return Handed::Refused;
        }
    }
    Handed::ToNobody
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

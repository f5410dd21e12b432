//! What the program has blocked of the signals that it shares with the engine, and the calls
//! about it.

use super::{OUR_BITS, OURS, bit, in_vfork_child, inherited, send_again, sent};
use crate::calls::{Done, load_if, store_if};
use crate::ghost;
use crate::guarded::{self, Touch};
use crate::raw::{self, Answer, call, failed, own};
use crate::thread::{self, INFO_WORDS, Thread};

/// Keeps a signal that was sent while the program has it blocked; one of a
/// kind, as the kernel does. In a handler, with all signals blocked.
pub(super) fn keep(
    thread: &Thread,
    place: usize,
    info: *const libc::siginfo_t,
    is_the_threads: bool,
) {
    thread.kept.set(1);
    // What a child of vfork(2) is sent is not its parent's, whose memory this is.
    if !is_the_threads && !in_vfork_child() {
        return sent::put(place, info);
    }
    if thread.pending.get() & 1 << place != 0 {
        return;
    }
    for (index, word) in thread.pending_info[place].iter().enumerate() {
        // SAFETY: the kernel's structure has that many words.
        let from = unsafe { info.cast::<u64>().add(index) };
        // SAFETY: one of its words, plain bytes.
        word.set(unsafe { from.read() });
    }
    thread.pending.set(thread.pending.get() | 1 << place);
}

/// Which of our signals the program believes to be blocked, from now on; those
/// that waited for it come now.
pub(super) fn set_blocked(thread: &Thread, bits: u32) {
    thread.blocked.set(bits);
    let due = all_pending(thread) & !bits;
    if due == 0 {
        return;
    }
    for (place, signal) in OURS.iter().enumerate() {
        if due & 1 << place != 0
            && let Some(info) = take(thread, place)
        {
            let _sent = send_again(*signal, info.as_ptr().cast());
        }
    }
}

/// Which of our signals wait for this thread, or for any.
fn all_pending(thread: &Thread) -> u32 {
    thread.pending.get() | sent::waiting()
}

/// Takes one of these: the thread's own first, as the kernel does it.
fn take(thread: &Thread, place: usize) -> Option<[u64; INFO_WORDS]> {
    if thread.pending.get() & 1 << place == 0 {
        return sent::take(place);
    }
    thread.pending.set(thread.pending.get() & !(1 << place));
    let mut info = [0_u64; INFO_WORDS];
    for (word, kept) in info.iter_mut().zip(&thread.pending_info[place]) {
        *word = kept.get();
    }
    Some(info)
}

/// Which of our signals a mask has, one bit for each.
pub(super) fn ours_of(mask: u64) -> u32 {
    let signals = OURS.iter().enumerate();
    signals
        .filter(|&(_, &signal)| mask & bit(signal) != 0)
        .fold(0, |bits, (place, _)| bits | 1 << place)
}

/// The same as a mask of the kernel's.
pub(super) fn as_mask(bits: u32) -> u64 {
    let signals = OURS.iter().enumerate();
    signals
        .filter(|&(place, _)| bits & 1 << place != 0)
        .fold(0, |mask, (_, &signal)| mask | bit(signal))
}

/// A mask without our signals.
pub(crate) fn without_ours(mask: u64) -> u64 {
    mask & !OUR_BITS
}

/// rt_sigprocmask: our signals are never blocked, and reported as the program
/// set them.
pub(crate) fn mask(args: [usize; 6]) -> Touch<Done> {
    let [how, new, old, bytes, ..] = args;
    if bytes != 8 {
        return Ok(Done::Asis);
    }
    let thread = thread::current();
    let is_child = in_vfork_child();
    let theirs = match is_child {
        true => inherited::of(thread)[0],
        false => {
            inherited::forget(thread);
            thread.blocked.get()
        }
    };
    let given: Option<u64> = load_if(new)?;
    let asked = given.map(without_ours);
    let asked_place = asked
        .as_ref()
        .map_or(0, |mask| core::ptr::from_ref(mask) as usize);
    let mut before = 0_u64;
    let answer = call!(
        libc::SYS_rt_sigprocmask,
        how,
        asked_place,
        &raw mut before,
        8
    );
    if failed(answer) {
        return Ok(Done::With(answer));
    }
    // As the kernel does it: the mask is set even where `old` cannot be.
    let stored = store_if(old, before | as_mask(theirs));
    if let Some(given) = given {
        let bits = ours_of(given);
        let bits = match how as i32 {
            libc::SIG_BLOCK => theirs | bits,
            libc::SIG_UNBLOCK => theirs & !bits,
            _ => bits,
        };
        if is_child {
            inherited::note(thread, [bits, inherited::of(thread)[1]]);
        } else if bits != theirs {
            set_blocked(thread, bits);
        }
    }
    stored?;
    Ok(Done::With(answer))
}

/// rt_sigpending: what waits here, too.
pub(crate) fn pending(args: [usize; 6]) -> Touch<Done> {
    let [place, bytes, ..] = args;
    let thread = thread::current();
    // What is not blocked does not wait.
    let waiting = as_mask(all_pending(thread) & thread.blocked.get());
    if bytes != 8 || (waiting == 0 && !ghost::is_ghost(place)) {
        return Ok(Done::Asis);
    }
    let mut mask = 0_u64;
    let answer = call!(libc::SYS_rt_sigpending, &raw mut mask, 8);
    if !failed(answer) {
        guarded::store(place, mask | waiting)?;
    }
    Ok(Done::With(answer))
}

/// rt_sigtimedwait: what was sent while it was blocked is taken from here.
pub(crate) fn wait(args: [usize; 6]) -> Touch<Done> {
    let [set, info, timeout, bytes, ..] = args;
    if set == 0 || bytes != 8 {
        return Ok(Done::Asis);
    }
    let mask: u64 = guarded::load(set)?;
    let time: Option<[u64; 2]> = load_if(timeout)?;
    let thread = thread::current();
    let wanted = ours_of(mask);
    if wanted == 0 && ![set, info, timeout].into_iter().any(ghost::is_ghost) {
        return Ok(Done::Asis);
    }
    if let Some(signal) = taken(thread, wanted, info)? {
        return Ok(Done::With(signal));
    }
    let mut got = [0_u64; INFO_WORDS];
    let time = time
        .as_ref()
        .map_or(0, |time| core::ptr::from_ref(time) as usize);
    let answer = loop {
        let waits = sent::Waits::new(wanted);
        thread.kept.set(0);
        // What came before others could know of it, or on the way into the kernel.
        if let Some(signal) = taken(thread, wanted, info)? {
            return Ok(Done::With(signal));
        }
        let (mask, got) = ((&raw const mask) as usize, got.as_mut_ptr() as usize);
        let answer = raw::wait_unless(&thread.kept, mask, got, time);
        drop(waits);
        if answer != 0 {
            break answer;
        }
    };
    sent::forget_mark(&mut got);
    if failed(answer) {
        // One of ours came: the kernel does not know that it is blocked.
        if let Some(signal) = taken(thread, wanted, info)? {
            return Ok(Done::With(signal));
        }
    } else {
        store_if(info, got)?;
    }
    Ok(Done::With(answer))
}

/// Takes one of the signals that wait here, if it is among these.
fn taken(thread: &Thread, wanted: u32, info: usize) -> Touch<Option<Answer>> {
    for (place, &signal) in OURS.iter().enumerate() {
        if all_pending(thread) & wanted & 1 << place != 0
            && let Some(words) = take(thread, place)
        {
            store_if(info, words)?;
            return Ok(Some(signal as Answer));
        }
    }
    Ok(None)
}

/// Another mask for the time of a call, as far as it has our signals. Says whether
/// one that waited came by it: the call is then over before it began.
pub(crate) fn with_mask(mask: u64, call: impl FnOnce() -> Answer) -> Answer {
    let thread = thread::current();
    let before = thread.blocked.get();
    let meanwhile = ours_of(mask);
    let due = all_pending(thread) & !meanwhile != 0;
    set_blocked(thread, meanwhile);
    let answer = if due {
        -(libc::EINTR as Answer)
    } else {
        call()
    };
    set_blocked(thread, before);
    answer
}

/// rt_sigprocmask in engine code. What it blocks passes to the threads it
/// starts, and libc blocks everything while it starts one: ours stay open, as
/// what libc reads then (the locale) may be absent. `None`: as it is.
pub(crate) fn engine_mask(args: [usize; 6]) -> Option<Answer> {
    let [how, new, old, bytes, ..] = args;
    let given = load_if::<u64>(new).ok()?;
    let given = given.filter(|_| bytes == 8 && how as i32 != libc::SIG_UNBLOCK)?;
    let asked = without_ours(given);
    let place = core::ptr::from_ref(&asked);
    Some(own!(libc::SYS_rt_sigprocmask, how, place, old, bytes))
}

//! What a program that is executed gets of our signals: blocked ones stay blocked over
//! execve(2), and ignored ones ignored. The kernel does not know of them, so it is told for
//! the time of the call; where that fails all is as before.
//!
//! A child of vfork(2) has its parent's memory. What it sets for itself is noted with its
//! number, beside what its parent has.

use super::actions::kernel_action;
use super::masks::as_mask;
use super::{Action, DEFAULT, FRONT, OURS, THEIRS, in_vfork_child};
use crate::raw::{Answer, own};
use crate::thread::Thread;
use crate::{thread, threads};

use core::sync::atomic::{AtomicBool, Ordering};

/// A child was made that is no thread, and has its parent's handlers (`CLONE_SIGHAND`): what
/// it ignored for a call that executes a program, its parent would ignore from then on.
static HANDLERS_ARE_SHARED: AtomicBool = AtomicBool::new(false);

/// Notes such a child.
pub(crate) fn share_handlers() {
    HANDLERS_ARE_SHARED.store(true, Ordering::Relaxed);
}

/// Which of our signals the program has blocked and ignored, one bit for each.
pub(super) fn of(thread: &Thread) -> [u32; 2] {
    let [child, blocked, ignored] = thread.heir.get();
    match in_vfork_child() {
        true if child == own!(libc::SYS_getpid) as u32 => return [blocked, ignored],
        true => {}
        false => forget(thread),
    }
    let ignores = |saved: &super::SavedAction| saved.get().handler == libc::SIG_IGN;
    let bits = THEIRS.iter().enumerate();
    let ignored = bits.filter(|(_, saved)| ignores(saved));
    let ignored = ignored.fold(0, |bits, (place, _)| bits | 1 << place);
    [thread.blocked.get(), ignored]
}

/// Notes what a child of vfork has set for itself.
pub(super) fn note(thread: &Thread, [blocked, ignored]: [u32; 2]) {
    let child = own!(libc::SYS_getpid) as u32;
    thread.heir.set([child, blocked, ignored]);
}

/// The child that noted something is gone: the thread's process goes on, or makes another,
/// which may have the same number in a namespace of its own.
pub(crate) fn forget(thread: &Thread) {
    thread.heir.set([0; 3]);
}

/// Whether what is executed is to get anything of our signals that the kernel does not know
/// of.
pub(crate) fn is_any() -> bool {
    FRONT.load(Ordering::Acquire) != 0 && of(thread::current()) != [0; 2]
}

/// The signals that the kernel blocks on this thread.
pub(crate) fn mask() -> u64 {
    change_mask(libc::SIG_BLOCK, 0)
}

/// Makes a call that executes a program, to which `mask` goes, with our signals as the
/// program has them. Until it is made no page may be missing: neither of what it reads nor
/// of the stack in use.
pub(crate) fn hand_on(mask: u64, call: impl FnOnce() -> Answer) -> Answer {
    let [blocked, ignored] = of(thread::current());
    // Others would end by their next fault, if there is no program to execute after all.
    let is_alone = match in_vfork_child() {
        true => !HANDLERS_ARE_SHARED.load(Ordering::Relaxed),
        false => threads::is_alone(),
    };
    let ignored = if is_alone { ignored } else { 0 };
    let mut before = [DEFAULT; OURS.len()];
    for (place, signal) in OURS.iter().enumerate() {
        if ignored & 1 << place != 0 {
            let ignore = Action {
                handler: libc::SIG_IGN,
                ..DEFAULT
            };
            let _fits = kernel_action(*signal, Some(&ignore), Some(&mut before[place]));
        }
    }
    const BOTH: u32 = (1 << OURS.len()) - 1;
    let handed = mask & !as_mask(BOTH) | as_mask(blocked);
    let now = change_mask(libc::SIG_SETMASK, handed);
    let answer = call();
    change_mask(libc::SIG_SETMASK, now);
    for (place, signal) in OURS.iter().enumerate() {
        if ignored & 1 << place != 0 {
            let _fits = kernel_action(*signal, Some(&before[place]), None);
        }
    }
    answer
}

/// The mask as it was before.
fn change_mask(how: i32, mask: u64) -> u64 {
    let mut before = 0_u64;
    let _fits = own!(
        libc::SYS_rt_sigprocmask,
        how,
        &raw const mask,
        &raw mut before,
        8
    );
    before
}

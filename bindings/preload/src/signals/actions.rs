//! What the kernel does for a signal, as the program or the engine set it; and no signal for
//! a moment.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ghostmem_os::doorway;

use super::{FRONT, OUR_BITS, bit, without_ours};
use crate::raw::{Answer, own};

/// `struct kernel_sigaction` of x86-64.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Action {
    pub(crate) handler: usize,
    pub(crate) flags: u64,
    pub(crate) restorer: usize,
    pub(crate) mask: u64,
}

pub(crate) const DEFAULT: Action = Action {
    handler: libc::SIG_DFL,
    flags: 0,
    restorer: 0,
    mask: 0,
};

/// An action that signal handlers read while another thread may set it: read
/// again until the version stood still.
pub(crate) struct SavedAction {
    version: AtomicU32,
    action: UnsafeCell<Action>,
}

// SAFETY: written under an odd version by one thread at a time, read as
// volatile words and used only when the version did not change.
unsafe impl Sync for SavedAction {}

impl SavedAction {
    pub(crate) const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            action: UnsafeCell::new(DEFAULT),
        }
    }

    pub(crate) fn get(&self) -> Action {
        loop {
            let before = self.version.load(Ordering::Acquire);
            // SAFETY: see `Sync`; a torn value is thrown away below.
            let action = unsafe { self.action.get().read_volatile() };
            core::sync::atomic::fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return action;
            }
            core::hint::spin_loop();
        }
    }

    pub(crate) fn set(&self, action: Action) {
        // A handler that came in between on this thread would wait for it.
        let blocked = Blocked::new();
        let mut before = self.version.load(Ordering::Relaxed);
        loop {
            before &= !1;
            let odd = before + 1;
            match self.version.compare_exchange_weak(
                before,
                odd,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => before = now,
            }
        }
        // SAFETY: the odd version keeps every other writer out.
        unsafe { self.action.get().write_volatile(action) };
        self.version
            .store(before.wrapping_add(2), Ordering::Release);
        drop(blocked);
    }

    /// In a forked child: whoever was setting it in the parent is not there.
    pub(crate) fn forget_others(&self) {
        self.version.fetch_and(!1, Ordering::AcqRel);
    }
}

/// A handler may come in the midst of engine code: one of the program's, or one of ours that
/// reports at the end. Not ours of faults, and not libc's.
static HANDLED: AtomicBool = AtomicBool::new(false);

/// A handler is about to be set, or was found.
pub(crate) fn handler_is_set(signal: usize) {
    /// Of libc's threads: one changes users, the other ends a thread where it may end.
    const LIBCS: [usize; 2] = [32, 33];
    if !LIBCS.contains(&signal) {
        HANDLED.store(true, Ordering::SeqCst);
    }
}

/// Every signal but ours blocked, while this lives. (Nothing here touches
/// ghost memory meanwhile.)
pub(crate) struct Blocked(u64);

impl Blocked {
    /// Where a handler may come, for code that many programs without any run often. It is
    /// looked at before a lock is taken: a thread in that very moment, while another one sets
    /// the first handler of the process, has its lock without. That handler waits for ever
    /// only if it forks, and its signal comes to the one thread before it has left.
    #[inline]
    pub(crate) fn if_handled() -> Option<Self> {
        HANDLED.load(Ordering::Relaxed).then(Self::new)
    }

    pub(crate) fn new() -> Self {
        let (all, mut before) = (!OUR_BITS, 0_u64);
        let _fits = own!(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            &raw const all,
            &raw mut before,
            8
        );
        Self(before)
    }

    /// For [`Blocked::kept`], later on the same thread. Never 0.
    pub(crate) fn keep(self) -> u64 {
        let before = self.0 | bit(libc::SIGKILL);
        core::mem::forget(self);
        before
    }

    /// What [`Blocked::keep`] returned, once; of 0 nothing. (SIGKILL is never blocked,
    /// whatever a mask says.)
    pub(crate) fn kept(before: u64) -> Option<Self> {
        (before != 0).then(|| Self(before))
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // Ours are never blocked from when they are ours, which may be since.
        let before = match FRONT.load(Ordering::Acquire) {
            0 => self.0,
            _ => without_ours(self.0),
        };
        let _fits = own!(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const before,
            0,
            8
        );
    }
}

/// Makes a call without the signals that it may send to this thread: SIGPIPE and SIGXFSZ.
/// The program did not write, and is not told.
pub(crate) fn without_own_signals(call: impl FnOnce() -> Answer) -> Answer {
    let blocked = Blocked::new();
    let sent = bit(libc::SIGPIPE) | bit(libc::SIGXFSZ);
    let mut before = 0_u64;
    // A filter of the program's may not know that call.
    if !doorway::is_confined() {
        let _fits = own!(libc::SYS_rt_sigpending, &raw mut before, 8);
    }
    let answer = call();
    let ours = sent & !before;
    if ours != 0 && [-(libc::EPIPE as Answer), -(libc::EFBIG as Answer)].contains(&answer) {
        let at_once = [0_u64; 2];
        let _taken = own!(
            libc::SYS_rt_sigtimedwait,
            &raw const ours,
            0,
            &raw const at_once,
            8
        );
    }
    drop(blocked);
    answer
}

pub(crate) fn kernel_action(signal: i32, new: Option<&Action>, old: Option<&mut Action>) -> Answer {
    let new = new.map_or(0, |action| core::ptr::from_ref(action) as usize);
    let old = old.map_or(0, |action| core::ptr::from_mut(action) as usize);
    own!(libc::SYS_rt_sigaction, signal, new, old, 8)
}

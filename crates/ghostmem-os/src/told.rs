//! A touch that no page can answer, told to the thread that made it.
//!
//! The kernel makes such a thread wait for the fault monitor, which is another thread:
//! only a signal takes it out of that wait. Where the owner of the signal handlers
//! [asks for it](by_signals), the monitor sends SIGSEGV with the touched address, and
//! that owner takes it for the fault it stands for.
//!
//! A thread that waits inside a system call does not hear it. It is told once: who asks
//! a second time, before the first was heard, is answered that it cannot be told.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::doorway;

static ASKED_FOR: AtomicBool = AtomicBool::new(false);
/// Threads that were told and have not heard it, by the low bits of their numbers.
static UNHEARD: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// A code below zero, so that the kernel lets one thread send it to another; no other
/// sender has it.
const CODE: i32 = -0x676d;

/// `siginfo_t` as far as it is used here (sigaction(2), rt_tgsigqueueinfo(2)).
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    signal: i32,
    /// Whether it was a store.
    errno: i32,
    code: i32,
    _pad: i32,
    process: i32,
    user: u32,
    value: usize,
    _rest: [u64; 12],
}

/// From now on threads are told by SIGSEGV: its handler asks [`heard`] first.
pub fn by_signals() {
    ASKED_FOR.store(true, Ordering::Release);
}

/// Tells a thread that its touch has no answer; `false` where it cannot be told.
pub fn tell(thread: u32, address: usize, write: bool) -> bool {
    let place = &UNHEARD[thread as usize % UNHEARD.len()];
    if !ASKED_FOR.load(Ordering::Acquire)
        || place.swap(u64::from(thread), Ordering::AcqRel) == u64::from(thread)
    {
        return false;
    }
    // SAFETY: getpid(2) has no preconditions.
    let process = unsafe { doorway::call(libc::SYS_getpid as usize, [0; 6]) } as i32;
    let info = Info {
        signal: libc::SIGSEGV,
        errno: i32::from(write),
        code: CODE,
        _pad: 0,
        process,
        user: 0,
        value: address,
        _rest: [0; 12],
    };
    let number = libc::SYS_rt_tgsigqueueinfo as usize;
    let signal = libc::SIGSEGV as usize;
    let info = (&raw const info).addr();
    let args = [process as usize, thread as usize, signal, info, 0, 0];
    // SAFETY: the kernel reads a structure of that size.
    unsafe { doorway::call(number, args) == 0 }
}

/// The address that the calling thread, `thread`, touched, and whether it was a store;
/// `None` for a signal that is no word of the monitor's. Async-signal-safe.
///
/// # Safety
/// `info` is what the kernel gave a handler of SIGSEGV.
#[must_use]
pub unsafe fn heard(thread: u32, info: *const libc::siginfo_t) -> Option<(usize, bool)> {
    // SAFETY: the kernel's structure has 128 bytes, as ours has.
    let info = unsafe { info.cast::<Info>().read() };
    (info.code == CODE).then(|| {
        UNHEARD[thread as usize % UNHEARD.len()].store(0, Ordering::Release);
        (info.value, info.errno != 0)
    })
}

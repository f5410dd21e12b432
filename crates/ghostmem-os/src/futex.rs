//! futex(2) on the low half of a 64-bit word, private to the process.

use core::sync::atomic::AtomicU64;
use core::time::Duration;

use crate::error::KeptErrno;
use crate::kernel;
use crate::thread;

/// Sleeps while the low 32 bits of `word` equal `expected`, at most
/// `timeout`. May return early for no reason; the caller looks again. Leaves errno
/// alone. Async-signal-safe.
pub fn wait(word: &AtomicU64, expected: u32, timeout: Duration) {
    #[cfg(feature = "sim")]
    if crate::sim::is_on() {
        if word.load(core::sync::atomic::Ordering::Acquire) as u32 == expected {
            let ns = timeout.as_nanos() as u64;
            match (crate::sim::scheduler(), crate::sim::now_ns()) {
                (Some(scheduler), Some(now)) => (scheduler.wait)(word.as_ptr().addr(), now + ns),
                _ => crate::sim::advance(ns),
            }
        }
        return;
    }
    let limit = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    // It ends by its time as a rule, which is nobody's error.
    let _errno = KeptErrno::now();
    // SAFETY: `word` is alive for the call, 8-byte aligned, and on a
    // little-endian machine its first four bytes are its low half.
    unsafe {
        kernel::syscall!(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            &raw const limit,
        )
    };
}

/// Wakes every thread waiting on `word`. Async-signal-safe.
pub fn wake_all(word: &AtomicU64) {
    #[cfg(feature = "sim")]
    if crate::sim::is_on() {
        if let Some(scheduler) = crate::sim::scheduler() {
            (scheduler.wake)(word.as_ptr().addr());
        }
        return;
    }
    // SAFETY: only the address is used; the word is not accessed.
    unsafe {
        kernel::syscall!(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX,
        )
    };
}

/// How often [`pause`] gives up the processor before it sleeps.
const YIELDS: u32 = 64;
/// How long it sleeps then: about what a page takes to be restored or evicted.
const NAP: Duration = Duration::from_micros(50);

/// Lets other threads run while the caller waits for one of them, for the
/// `tries`-th time. It sleeps after a while: giving up the processor alone never
/// lets a thread of lower priority run (sched_yield(2), `SCHED_FIFO`), and it may
/// be that one who is waited for. Async-signal-safe.
pub fn pause(tries: u32) {
    #[cfg(feature = "sim")]
    if crate::sim::is_on() {
        // Without one: for a thread of another simulation, at a lock of the process.
        let pause = crate::sim::scheduler().map_or(thread::yield_now as fn(), |s| s.pause);
        return pause();
    }
    if tries < YIELDS {
        thread::yield_now();
    } else {
        wait(&AtomicU64::new(0), 0, NAP);
    }
}

#[cfg(not(target_endian = "little"))]
compile_error!("futex waits on the low half of a 64-bit word, which must come first in memory");

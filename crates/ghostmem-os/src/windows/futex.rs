//! Waiting on the low half of a 64-bit word: `WaitOnAddress`, which is a futex
//! within the process.

use core::sync::atomic::AtomicU64;
use core::time::Duration;

use windows_sys::Win32::System::Threading::{WaitOnAddress, WakeByAddressAll};

use crate::thread;

/// Sleeps while the low 32 bits of `word` equal `expected`, at most
/// `timeout` (in steps of a millisecond, at least one). May return early for no
/// reason; the caller looks again. Safe in an exception handler: it takes no
/// lock that outlives the call and allocates nothing.
pub fn wait(word: &AtomicU64, expected: u32, timeout: Duration) {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX - 1);
    // SAFETY: `word` is alive for the call, 8-byte aligned, and on a
    // little-endian machine its first four bytes are its low half; `expected`
    // is as long as the size says.
    unsafe {
        WaitOnAddress(
            word.as_ptr().cast(),
            (&raw const expected).cast(),
            size_of::<u32>(),
            ms.max(1),
        )
    };
}

/// Wakes every thread waiting on `word`. Safe in an exception handler.
pub fn wake_all(word: &AtomicU64) {
    // SAFETY: only the address is used; the word is not accessed.
    unsafe { WakeByAddressAll(word.as_ptr().cast()) };
}

/// How often [`pause`] gives up the processor before it sleeps.
const YIELDS: u32 = 64;
/// How long it sleeps then: about what a page takes to be restored or evicted.
const NAP: Duration = Duration::from_micros(50);

/// Lets other threads run while the caller waits for one of them, for the
/// `tries`-th time. It sleeps after a while: giving up the processor alone never
/// lets a thread of lower priority run (sched_yield(2), `SCHED_FIFO`), and it may
/// be that one who is waited for. Safe in an exception handler.
pub fn pause(tries: u32) {
    if tries < YIELDS {
        thread::yield_now();
    } else {
        wait(&AtomicU64::new(0), 0, NAP);
    }
}

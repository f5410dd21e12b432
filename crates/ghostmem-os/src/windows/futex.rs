//! Waiting on the low half of a 64-bit word: `WaitOnAddress`, which is a futex
//! within the process.

use core::sync::atomic::AtomicU64;
use core::time::Duration;

use windows_sys::Win32::System::Threading::{WaitOnAddress, WakeByAddressAll};

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

//! futex(2) on the low half of a 64-bit word, private to the process.

use core::sync::atomic::AtomicU64;
use core::time::Duration;

/// Sleeps while the low 32 bits of `word` equal `expected`, at most
/// `timeout`. May return early for no reason; the caller looks again.
/// Async-signal-safe.
pub fn wait(word: &AtomicU64, expected: u32, timeout: Duration) {
    let limit = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    };
    // SAFETY: `word` is alive for the call, 8-byte aligned, and on a
    // little-endian machine its first four bytes are its low half.
    unsafe {
        libc::syscall(
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
    // SAFETY: only the address is used; the word is not accessed.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            i32::MAX,
        )
    };
}

#[cfg(not(target_endian = "little"))]
compile_error!("futex waits on the low half of a 64-bit word, which must come first in memory");

//! Monotonic time, and a thread's own.

use core::sync::atomic::{AtomicU64, Ordering};

use windows_sys::Win32::Foundation::FILETIME;
use windows_sys::Win32::System::Performance::{QueryPerformanceCounter, QueryPerformanceFrequency};
use windows_sys::Win32::System::Threading::{GetCurrentThread, GetThreadTimes};

/// Ticks of the performance counter in a second; 0 before the first reading.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds of the performance counter. Safe in an exception handler.
#[must_use]
pub fn now_ns() -> u64 {
    let mut frequency = FREQUENCY.load(Ordering::Relaxed);
    if frequency == 0 {
        let mut read = 0_i64;
        // SAFETY: `read` is writable; the call cannot fail since Windows XP.
        unsafe { QueryPerformanceFrequency(&raw mut read) };
        frequency = read.unsigned_abs().max(1);
        FREQUENCY.store(frequency, Ordering::Relaxed);
    }
    let mut ticks = 0_i64;
    // SAFETY: as above.
    unsafe { QueryPerformanceCounter(&raw mut ticks) };
    let wide = u128::from(ticks.unsigned_abs()) * 1_000_000_000 / u128::from(frequency);
    wide as u64
}

/// Processor time of the process: not asked for on Windows.
#[must_use]
pub const fn process_ns() -> Option<u64> {
    None
}

/// Nanoseconds of processor time the calling thread has used, in steps of the
/// scheduler's clock. Safe in an exception handler.
#[must_use]
pub fn thread_ns() -> u64 {
    const NONE: FILETIME = FILETIME {
        dwLowDateTime: 0,
        dwHighDateTime: 0,
    };
    let (mut created, mut ended, mut kernel, mut user) = (NONE, NONE, NONE, NONE);
    // SAFETY: no preconditions; the handle it returns needs no closing.
    let thread = unsafe { GetCurrentThread() };
    // SAFETY: a valid handle and four writable places.
    unsafe {
        GetThreadTimes(
            thread,
            &raw mut created,
            &raw mut ended,
            &raw mut kernel,
            &raw mut user,
        )
    };
    let ticks = |t: FILETIME| u64::from(t.dwHighDateTime) << 32 | u64::from(t.dwLowDateTime);
    (ticks(kernel) + ticks(user)) * 100
}

//! Monotonic time, and a thread's own.

use core::sync::atomic::{AtomicU64, Ordering};

use windows_sys::Win32::Foundation::FILETIME;
use windows_sys::Win32::System::Performance::{QueryPerformanceCounter, QueryPerformanceFrequency};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetCurrentThread, GetProcessTimes, GetThreadTimes,
};

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

const NONE: FILETIME = FILETIME {
    dwLowDateTime: 0,
    dwHighDateTime: 0,
};

/// Nanoseconds of a time in steps of 100 ns.
const fn ns_of(time: FILETIME) -> u64 {
    ((time.dwHighDateTime as u64) << 32 | time.dwLowDateTime as u64) * 100
}

/// Nanoseconds that the process has computed for, all threads together, in its own code
/// and not in the system's, in steps of the scheduler's clock. `None` where it cannot be
/// had.
#[must_use]
pub fn process_user_ns() -> Option<u64> {
    let (mut created, mut ended, mut kernel, mut user) = (NONE, NONE, NONE, NONE);
    // SAFETY: no preconditions; the handle it returns needs no closing.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: a valid handle and four writable places.
    let told = unsafe {
        GetProcessTimes(
            process,
            &raw mut created,
            &raw mut ended,
            &raw mut kernel,
            &raw mut user,
        )
    };
    (told != 0).then(|| ns_of(user))
}

/// The same for the calling thread alone.
#[must_use]
pub fn thread_user_ns() -> Option<u64> {
    let [_, user] = thread_times()?;
    Some(ns_of(user))
}

/// Nanoseconds of processor time the calling thread has used, in steps of the
/// scheduler's clock. Safe in an exception handler.
#[must_use]
pub fn thread_ns() -> u64 {
    thread_times().map_or(0, |[kernel, user]| ns_of(kernel) + ns_of(user))
}

/// Time of the calling thread in the system and in its own code.
fn thread_times() -> Option<[FILETIME; 2]> {
    let (mut created, mut ended, mut kernel, mut user) = (NONE, NONE, NONE, NONE);
    // SAFETY: no preconditions; the handle it returns needs no closing.
    let thread = unsafe { GetCurrentThread() };
    // SAFETY: a valid handle and four writable places.
    let told = unsafe {
        GetThreadTimes(
            thread,
            &raw mut created,
            &raw mut ended,
            &raw mut kernel,
            &raw mut user,
        )
    };
    (told != 0).then_some([kernel, user])
}

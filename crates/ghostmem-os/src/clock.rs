//! Monotonic time, and a thread's and the process's own.

use crate::kernel;

/// Nanoseconds of `CLOCK_MONOTONIC` (clock_gettime(2), through the vDSO).
/// Async-signal-safe.
#[must_use]
pub fn now_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Nanoseconds of processor time the calling thread has used: a system call.
/// Async-signal-safe.
#[must_use]
pub fn thread_ns() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Nanoseconds of processor time that the process has used, all threads together: a
/// system call. `None` where it cannot be had. Async-signal-safe.
#[must_use]
pub fn process_ns() -> Option<u64> {
    Some(read(libc::CLOCK_PROCESS_CPUTIME_ID))
}

/// Nanoseconds that the process has computed for, all threads together, in its own code and
/// not in the kernel's (getrusage(2): exact in sum with the kernel's part, and told apart by
/// the scheduler's clock): a system call. `None` where it cannot be had. Async-signal-safe.
#[must_use]
pub fn process_user_ns() -> Option<u64> {
    user_ns(libc::RUSAGE_SELF)
}

/// The same for the calling thread alone. Async-signal-safe.
#[must_use]
pub fn thread_user_ns() -> Option<u64> {
    user_ns(libc::RUSAGE_THREAD)
}

fn user_ns(whose: libc::c_int) -> Option<u64> {
    let mut usage = core::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is writable.
    let answer = unsafe { kernel::syscall!(libc::SYS_getrusage, whose, usage.as_mut_ptr()) };
    // SAFETY: zeroed, and filled by the kernel unless it refused.
    let time = unsafe { usage.assume_init() }.ru_utime;
    let ns = time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    (answer == 0).then_some(ns)
}

fn read(clock: libc::clockid_t) -> u64 {
    #[cfg(feature = "sim")]
    if let Some(now_ns) = crate::sim::now_ns() {
        return now_ns;
    }
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if crate::doorway::is_confined() {
        // Where the vDSO cannot tell, libc would ask the kernel.
        // SAFETY: `now` is writable; both clocks always exist.
        unsafe { kernel::syscall!(libc::SYS_clock_gettime, clock, &raw mut now) };
    } else {
        // SAFETY: as above.
        unsafe { libc::clock_gettime(clock, &raw mut now) };
    }
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

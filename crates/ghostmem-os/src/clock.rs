//! Monotonic time, and a thread's and the process's own.

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
        unsafe { crate::kernel::syscall!(libc::SYS_clock_gettime, clock, &raw mut now) };
    } else {
        // SAFETY: as above.
        unsafe { libc::clock_gettime(clock, &raw mut now) };
    }
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

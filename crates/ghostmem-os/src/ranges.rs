//! Giving the frames of many ghost pages back to the kernel in one call.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::error::OsError;
use crate::map::PAGE_SIZE;
use crate::{kernel, trial};

/// Whether the vectored call is not to be made: a filter ends whoever makes it.
static ONE_BY_ONE: AtomicBool = AtomicBool::new(false);

/// Makes the vectored call of [`drop_ranges`] once, for nothing, where a filter of
/// system calls may end the process for it; not again if it does.
pub fn try_vectored() {
    let attempt = || {
        // SAFETY: no ranges.
        unsafe { kernel::syscall!(libc::SYS_process_madvise, PIDFD_SELF, 0, 0, 0, 0) };
        Ok(0)
    };
    if trial::is_needed() && trial::ask("process_madvise", attempt).is_err() {
        drop_one_by_one();
    }
}

/// The vectored call is not made from now on.
pub fn drop_one_by_one() {
    ONE_BY_ONE.store(true, Ordering::Relaxed);
}

/// Whether the vectored call is made.
#[must_use]
pub fn drops_vectored() -> bool {
    !ONE_BY_ONE.load(Ordering::Relaxed)
}

/// `PIDFD_SELF_THREAD_GROUP` (Linux 6.14, include/uapi/linux/pidfd.h).
const PIDFD_SELF: i32 = -10001;

/// Most ranges [`drop_ranges`] takes in one call.
pub const DROP_RANGES_MAX: usize = 256;

/// A range as process_madvise(2) wants it.
pub type DropRange = libc::iovec;

/// An empty [`DropRange`].
pub const NO_RANGE: DropRange = libc::iovec {
    iov_base: core::ptr::null_mut(),
    iov_len: 0,
};

/// The [`DropRange`] of `len` bytes at `address`.
#[must_use]
pub const fn drop_range(address: usize, len: usize) -> DropRange {
    libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: len,
    }
}

/// Takes the lock of mlock(2) off whole pages (munlock(2)), as munmap(2) does:
/// whoever locked them has given them back. Async-signal-safe.
///
/// # Errors
/// `ENOMEM` when part of the range is not mapped, or the process has too many
/// mappings to split one.
pub fn unlock(address: usize, len: usize) -> Result<(), OsError> {
    // SAFETY: it changes no contents, and a range that is not mapped is refused.
    let rc = unsafe { kernel::munlock(address as *const libc::c_void, len) };
    if rc == 0 {
        Ok(())
    } else {
        Err(OsError::last("munlock"))
    }
}

/// Has whole pages refuse every load and store, the kernel's too, or take them again
/// (mprotect(2)). Async-signal-safe.
///
/// # Safety
/// The range is the caller's, and nobody has a reference into it.
///
/// # Errors
/// `ENOMEM` when the process has too many mappings to split one.
pub unsafe fn set_open(address: usize, len: usize, open: bool) -> Result<(), OsError> {
    let access = match open {
        true => libc::PROT_READ | libc::PROT_WRITE,
        false => libc::PROT_NONE,
    };
    // SAFETY: the caller's promise.
    let rc = unsafe { kernel::mprotect(address as *mut libc::c_void, len, access) };
    if rc == 0 {
        Ok(())
    } else {
        Err(OsError::last("mprotect"))
    }
}

/// Has a core dump of the process contain a range, or leave it out (core(5)). What
/// the kernel refuses stays as it is: only the length of a core file depends on it.
/// Async-signal-safe.
pub fn set_dumped(address: usize, len: usize, dumped: bool) {
    let advice = if dumped {
        libc::MADV_DODUMP
    } else {
        libc::MADV_DONTDUMP
    };
    // SAFETY: it changes no contents, and a range that is not mapped is refused.
    unsafe { kernel::madvise(address as *mut libc::c_void, len, advice) };
}

/// Gives the frames behind page ranges of the calling process back to the
/// kernel: one vectored process_madvise(2) with `MADV_DONTNEED` (Linux 6.13
/// allows it on oneself). One call means one round of inter-processor
/// interrupts. Where that fails, each page is tried by itself, and `kept` is
/// called with the address of each whose frame stays: locked memory (mlock(2)),
/// unless `even_locked`, for which Linux before 5.18 has no advice ([`unlock`] it
/// there). Async-signal-safe.
///
/// # Safety
/// The ranges must be private anonymous memory whose contents nobody needs:
/// they are gone afterwards.
pub unsafe fn drop_ranges(ranges: &[DropRange], even_locked: bool, kept: &mut dyn FnMut(usize)) {
    /// `MADV_DONTNEED_LOCKED` (Linux 5.18).
    const MADV_DONTNEED_LOCKED: i32 = 24;
    if let [only] = ranges {
        // SAFETY: the caller's promise.
        let rc = unsafe { kernel::madvise(only.iov_base, only.iov_len, libc::MADV_DONTNEED) };
        if rc == 0 {
            return;
        }
    // SAFETY: the caller's promise.
    } else if unsafe { dropped_at_once(ranges) } {
        return;
    }
    // Not offered, or stopped half-way: dropping a page twice is harmless, as
    // its pages are claimed until we are done.
    for range in ranges {
        // SAFETY: the caller's promise.
        let rc = unsafe { kernel::madvise(range.iov_base, range.iov_len, libc::MADV_DONTNEED) };
        if rc == 0 {
            continue;
        }
        let start = range.iov_base as usize;
        for address in (start..start + range.iov_len).step_by(PAGE_SIZE) {
            let page = address as *mut libc::c_void;
            // SAFETY: the caller's promise.
            let mut rc = unsafe { kernel::madvise(page, PAGE_SIZE, libc::MADV_DONTNEED) };
            if rc != 0 && even_locked {
                // SAFETY: the caller's promise.
                rc = unsafe { kernel::madvise(page, PAGE_SIZE, MADV_DONTNEED_LOCKED) };
            }
            if rc != 0 {
                kept(address);
            }
        }
    }
}

/// As [`drop_ranges`], for memory that need not go: the first range that stays ends it.
/// Async-signal-safe.
///
/// # Safety
/// As there.
///
/// # Errors
/// The kernel's refusal: some of the ranges are left as they were.
pub(crate) unsafe fn give_back(ranges: &[DropRange]) -> Result<(), OsError> {
    // SAFETY: the caller's promise.
    if ranges.len() > 1 && unsafe { dropped_at_once(ranges) } {
        return Ok(());
    }
    for range in ranges {
        // SAFETY: the caller's promise.
        let rc = unsafe { kernel::madvise(range.iov_base, range.iov_len, libc::MADV_DONTNEED) };
        if rc != 0 {
            return Err(OsError::last("madvise"));
        }
    }
    Ok(())
}

/// Drops ranges by the vectored call; whether it did, all of them. [`DROP_RANGES_MAX`] at most.
///
/// # Safety
/// As [`drop_ranges`].
unsafe fn dropped_at_once(ranges: &[DropRange]) -> bool {
    if !drops_vectored() {
        return false;
    }
    let wanted: usize = ranges.iter().map(|r| r.iov_len).sum();
    // SAFETY: the array is alive for the call; the effect is the caller's promise.
    let done = unsafe {
        kernel::syscall!(
            libc::SYS_process_madvise,
            PIDFD_SELF,
            ranges.as_ptr(),
            ranges.len(),
            libc::MADV_DONTNEED,
            0,
        )
    };
    done as usize == wanted
}

//! A change of the process's groups.
//!
//! libc makes such a call on every thread of the process, by a signal, with the caller's
//! own pointer. The engine's threads take no fault, so the list is ordinary memory for
//! them.

use core::ffi::c_int;

use crate::bounce::Lease;
use crate::family::set_errno;
use crate::{ghost, guarded, start};

/// As many as the kernel takes (`NGROUPS_MAX`, credentials(7)).
const MOST: usize = 65536;

type SetGroups = unsafe extern "C" fn(usize, *const libc::gid_t) -> c_int;

/// setgroups(2).
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn setgroups(count: usize, list: *const libc::gid_t) -> c_int {
    let next = start::next(c"setgroups");
    if next == 0 {
        return fail(libc::ENOSYS);
    }
    // SAFETY: libc's function of that name.
    let next = unsafe { core::mem::transmute::<usize, SetGroups>(next) };
    if !ghost::is_ghost(list as usize) || count == 0 {
        // SAFETY: the caller's promise.
        return unsafe { next(count, list) };
    }
    if count > MOST {
        // Refused before it is read, on every thread.
        // SAFETY: as above.
        return unsafe { next(count, core::ptr::null()) };
    }
    let bytes = count * size_of::<libc::gid_t>();
    let Some(mut lease) = Lease::new(bytes + 64) else {
        return fail(libc::ENOMEM);
    };
    let Some(place) = lease.carve(bytes) else {
        return fail(libc::ENOMEM);
    };
    if guarded::copy(place, list as usize, bytes).is_err() {
        return fail(libc::EFAULT);
    }
    // SAFETY: as many numbers, in memory of ours.
    unsafe { next(count, place as *const libc::gid_t) }
}

fn fail(errno: i32) -> c_int {
    set_errno(errno);
    -1
}

//! A change of the process's groups.
//!
//! libc makes such a call on every thread of the process, by a signal, with the caller's
//! own pointer. The engine's threads take no fault, so the list is ordinary memory for
//! them.

use core::ffi::{c_char, c_int};

use ghostmem_os::error::set_errno;

use crate::bounce::Lease;
use crate::family;
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
    let Some(mut lease) = Lease::in_no_call(bytes + 64) else {
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

type GroupList =
    unsafe extern "C" fn(*const c_char, libc::gid_t, *mut libc::gid_t, *mut c_int) -> c_int;

/// initgroups(3). libc's own gives a list from malloc to libc's setgroups without coming by
/// here.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn initgroups(user: *const c_char, group: libc::gid_t) -> c_int {
    /// What libc's own begins with.
    const FIRST: usize = 64;
    let next = start::next(c"getgrouplist");
    if next == 0 {
        return fail(libc::ENOSYS);
    }
    // SAFETY: libc's function of that name.
    let get = unsafe { core::mem::transmute::<usize, GroupList>(next) };
    let mut room = FIRST;
    loop {
        let list = family::malloc(room * size_of::<libc::gid_t>()).cast::<libc::gid_t>();
        if list.is_null() {
            return fail(libc::ENOMEM);
        }
        let mut count = room as c_int;
        // SAFETY: the caller's promise, and a list with room for as many.
        let got = unsafe { get(user, group, list, &raw mut count) };
        let count = usize::try_from(count).unwrap_or(0);
        let answer = (got >= 0 || room >= MOST).then(|| set(list, count.min(room)));
        // SAFETY: allocated above, and not used any more.
        unsafe { family::free(list.cast()) };
        match answer {
            Some(answer) => return answer,
            // There was room: it failed for another reason.
            None if count <= room => return fail(libc::ENOMEM),
            None => room = count.clamp(room + 1, MOST),
        }
    }
}

/// Sets as many of these groups as the kernel takes.
fn set(list: *const libc::gid_t, mut count: usize) -> c_int {
    loop {
        // SAFETY: so many are there.
        let answer = unsafe { setgroups(count, list) };
        if answer == 0 || count <= 1 || ghostmem_os::error::errno() != libc::EINVAL {
            return answer;
        }
        count -= 1;
    }
}

fn fail(errno: i32) -> c_int {
    set_errno(errno);
    -1
}

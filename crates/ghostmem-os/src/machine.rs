//! What the machine is and allows: sizes and limits, read without a heap.

use core::ffi::CStr;

use crate::map::PAGE_SIZE;
use crate::report::Reports;
use crate::{doorway, kernel};

/// The number in a small file such as a sysctl, or `None`.
#[must_use]
pub fn number_in(path: &str) -> Option<u64> {
    Reports::of_this_machine().number_in(path)
}

/// Whether the kernel's base page is the size the engine works with.
#[must_use]
pub fn page_size_is_supported() -> bool {
    // SAFETY: no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) == PAGE_SIZE as libc::c_long }
}

/// The processors this process may run on; `None` on machines with more of them than a
/// set of libc's has room for.
pub(crate) fn affinity() -> Option<libc::cpu_set_t> {
    let mut set = core::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: `set` is writable and of the size given.
    let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) };
    // SAFETY: zeroed, then filled by the kernel.
    (rc == 0).then(|| unsafe { set.assume_init() })
}

/// Processors this process may run on, at least 1.
#[must_use]
pub fn cpus() -> usize {
    let Some(set) = affinity() else { return 1 };
    // SAFETY: a valid set.
    let count = unsafe { libc::CPU_COUNT(&set) };
    usize::try_from(count).unwrap_or(1).max(1)
}

/// One more than the highest number of a processor this process may run on: from its
/// affinity, which takes no file to read and knows of control groups.
#[must_use]
pub fn processor_numbers() -> usize {
    let most = libc::CPU_SETSIZE as usize;
    let Some(set) = affinity() else { return most };
    // SAFETY: a valid set and numbers below its size.
    let last = (0..most)
        .rev()
        .find(|&number| unsafe { libc::CPU_ISSET(number, &set) });
    last.map_or(1, |last| last + 1)
}

/// Installed memory in bytes.
#[must_use]
pub fn ram_bytes() -> u64 {
    // SAFETY: no preconditions.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    u64::try_from(pages)
        .unwrap_or(0)
        .saturating_mul(PAGE_SIZE as u64)
}

/// The memory limit of the control group this process is in (v2 or v1), in
/// bytes; `None` when there is none. Ancestors count too, and `memory.high` where it is
/// smaller.
#[must_use]
pub fn cgroup_limit_bytes() -> Option<u64> {
    Reports::of_this_machine().memory_group()?.limit_bytes()
}

/// What this process takes of the machine now, as the kernel charges it, bytes (see
/// [`Reports::process_bytes`]); `None` where it does not say. Async-signal-safe.
#[must_use]
pub fn process_bytes() -> Option<u64> {
    Reports::of_this_machine().process_bytes()
}

/// Faults of this process that needed no disk, since it started: a page that was shared
/// with another process of a fork costs one when it is written. Async-signal-safe.
#[must_use]
pub fn minor_faults() -> u64 {
    let mut usage = core::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is writable.
    unsafe { kernel::syscall!(libc::SYS_getrusage, libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: zeroed, then filled by the kernel.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_minflt).unwrap_or(0)
}

/// The soft limit on address space (`RLIMIT_AS`), bytes; `None` for none.
#[must_use]
pub fn address_space_limit() -> Option<u64> {
    soft_limit(libc::RLIMIT_AS)
}

/// The soft limit on private writable memory (`RLIMIT_DATA`), bytes; `None` for none.
#[must_use]
pub fn data_limit() -> Option<u64> {
    soft_limit(libc::RLIMIT_DATA)
}

fn soft_limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable, and no new one is given.
    unsafe { kernel::syscall!(libc::SYS_prlimit64, 0, resource, 0, &raw mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// What the limits on address space and on private writable memory (`RLIMIT_AS`,
/// `RLIMIT_DATA`; that which is reserved only counts too) leave the process now,
/// bytes; `None` where there are none.
#[must_use]
pub fn address_space_left() -> Option<u64> {
    let limits = [(libc::RLIMIT_AS, "VmSize"), (libc::RLIMIT_DATA, "VmData")];
    let left = limits.into_iter().filter_map(|(resource, used)| {
        let limit = soft_limit(resource)?;
        // A filter of the program's may let nobody open a file.
        let used = if doorway::is_confined() {
            None
        } else {
            Reports::of_this_machine().status_bytes(used)
        };
        Some(limit.saturating_sub(used.unwrap_or(0)))
    });
    left.min()
}

/// Bytes that a file in this folder may take now, for a user without privileges
/// (statvfs(3)); `None` where the file system does not say.
#[must_use]
pub fn disk_room_bytes(folder: &CStr) -> Option<u64> {
    let mut found = core::mem::MaybeUninit::<libc::statvfs64>::zeroed();
    // SAFETY: a C string, and `found` is writable.
    let rc = unsafe { libc::statvfs64(folder.as_ptr(), found.as_mut_ptr()) };
    // SAFETY: zeroed, and filled where the call succeeded.
    let found = unsafe { found.assume_init() };
    (rc == 0 && found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether a file gives capabilities to whoever executes it (capabilities(7)).
#[must_use]
pub fn gives_capabilities(file: &CStr) -> bool {
    const NAME: &CStr = c"security.capability";
    let nowhere = core::ptr::null_mut();
    // SAFETY: two C strings, and no room: how long the value is.
    let bytes = unsafe { libc::getxattr(file.as_ptr(), NAME.as_ptr(), nowhere, 0) };
    bytes > 0
}

/// How many filters of system calls this process has; `None` when that cannot be told.
#[must_use]
pub fn filters() -> Option<u64> {
    let reports = Reports::of_this_machine();
    let Some(mode) = reports.status_bytes("Seccomp") else {
        // In a root folder without /proc. That there are none can be asked, not how many.
        // SAFETY: asks for a number.
        let mode = unsafe { kernel::syscall!(libc::SYS_prctl, libc::PR_GET_SECCOMP, 0, 0, 0, 0) };
        return (mode == 0).then_some(0);
    };
    // The count is there since Linux 5.9.
    Some(mode.min(1) * reports.status_bytes("Seccomp_filters").unwrap_or(1))
}

/// Whether [`filters`] tells two from one: the kernel counts them.
#[must_use]
pub fn counts_filters() -> bool {
    let reports = Reports::of_this_machine();
    reports.status_bytes("Seccomp_filters").is_some()
}

/// The seccomp mode of this process: 0 none, 1 strict, 2 filter; `None` when
/// the kernel does not say.
#[must_use]
pub fn seccomp_mode() -> Option<u64> {
    Reports::of_this_machine().status_bytes("Seccomp")
}

/// The kernel's release, as uname(2) gives it, copied into `buffer`.
#[must_use]
pub fn kernel_release(buffer: &mut [u8; 65]) -> &str {
    let mut name = core::mem::MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: `name` is writable.
    unsafe { libc::uname(name.as_mut_ptr()) };
    // SAFETY: zeroed, then filled by the kernel.
    let name = unsafe { name.assume_init() };
    let mut len = 0;
    for (to, &from) in buffer.iter_mut().zip(&name.release) {
        if from == 0 {
            break;
        }
        *to = from as u8;
        len += 1;
    }
    core::str::from_utf8(&buffer[..len]).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_sizes() {
        assert!(page_size_is_supported());
        assert!(cpus() >= 1);
        assert!(processor_numbers() >= cpus());
        assert!(ram_bytes() > 1 << 26);
        let mut buffer = [0; 65];
        assert!(kernel_release(&mut buffer).starts_with(|c: char| c.is_ascii_digit()));
        // A limit, if there is one, is a plausible number.
        assert!(cgroup_limit_bytes().is_none_or(|limit| limit >= 1 << 20));
    }
}

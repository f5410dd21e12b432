//! What the machine is and allows: sizes and limits, read without a heap.

use crate::map::PAGE_SIZE;
use crate::report::Reports;

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

/// Processors this process may run on, at least 1.
#[must_use]
pub fn cpus() -> usize {
    let mut set = core::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: `set` is writable and of the size given.
    let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) };
    if rc != 0 {
        return 1;
    }
    // SAFETY: zeroed, then filled by the kernel.
    let set = unsafe { set.assume_init() };
    // SAFETY: a valid set.
    let count = unsafe { libc::CPU_COUNT(&set) };
    usize::try_from(count).unwrap_or(1).max(1)
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
/// bytes; `None` when there is none. Ancestors count too.
#[must_use]
pub fn cgroup_limit_bytes() -> Option<u64> {
    Reports::of_this_machine().memory_group()?.limit_bytes()
}

/// The soft limit on address space (`RLIMIT_AS`), bytes; `None` for none.
#[must_use]
pub fn address_space_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    (rc == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// How many filters of system calls this process has; `None` when that cannot be told.
#[must_use]
pub fn filters() -> Option<u64> {
    let reports = Reports::of_this_machine();
    let mode = reports.status_bytes("Seccomp")?;
    // The count is there since Linux 5.9.
    Some(mode.min(1) * reports.status_bytes("Seccomp_filters").unwrap_or(1))
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
        assert!(ram_bytes() > 1 << 26);
        let mut buffer = [0; 65];
        assert!(kernel_release(&mut buffer).starts_with(|c: char| c.is_ascii_digit()));
        // A limit, if there is one, is a plausible number.
        assert!(cgroup_limit_bytes().is_none_or(|limit| limit >= 1 << 20));
    }
}

//! What the machine is and allows: sizes and limits, read without a heap.

use windows_sys::Win32::System::JobObjects::{
    JOB_OBJECT_LIMIT_JOB_MEMORY, JOB_OBJECT_LIMIT_PROCESS_MEMORY,
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION, JobObjectExtendedLimitInformation,
    QueryInformationJobObject,
};
use windows_sys::Win32::System::SystemInformation::{
    GetSystemInfo, GlobalMemoryStatusEx, MEMORYSTATUSEX, SYSTEM_INFO,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessAffinityMask};

use crate::map::PAGE_SIZE;

/// Whether the system's page is the size the engine works with.
#[must_use]
pub fn page_size_is_supported() -> bool {
    let mut info = core::mem::MaybeUninit::<SYSTEM_INFO>::zeroed();
    // SAFETY: a writable place of the right type.
    unsafe { GetSystemInfo(info.as_mut_ptr()) };
    // SAFETY: zeroed, then filled by the call.
    let info = unsafe { info.assume_init() };
    info.dwPageSize as usize == PAGE_SIZE
}

/// Processors this process may run on, at least 1; at most those of one
/// processor group.
#[must_use]
pub fn cpus() -> usize {
    let (mut own, mut all) = (0_usize, 0_usize);
    // SAFETY: no preconditions; the handle it returns needs no closing.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: a valid handle and two writable places.
    unsafe { GetProcessAffinityMask(process, &raw mut own, &raw mut all) };
    (own.count_ones() as usize).max(1)
}

/// One more than the highest number of a processor this process may run on, within its
/// processor group.
#[must_use]
pub fn processor_numbers() -> usize {
    let (mut own, mut all) = (0_usize, 0_usize);
    // SAFETY: no preconditions; the handle it returns needs no closing.
    let process = unsafe { GetCurrentProcess() };
    // SAFETY: a valid handle and two writable places.
    unsafe { GetProcessAffinityMask(process, &raw mut own, &raw mut all) };
    (usize::BITS - own.leading_zeros()).max(1) as usize
}

/// Installed memory in bytes.
#[must_use]
pub fn ram_bytes() -> u64 {
    let mut status = MEMORYSTATUSEX {
        dwLength: size_of::<MEMORYSTATUSEX>() as u32,
        ..Default::default()
    };
    // SAFETY: writable, and its length is filled in.
    unsafe { GlobalMemoryStatusEx(&raw mut status) };
    status.ullTotalPhys
}

/// The memory limit of the job this process is in, in bytes: that of the job or
/// of each of its processes, whichever is smaller; `None` when there is none.
/// Of nested jobs the system tells the innermost.
#[must_use]
pub fn cgroup_limit_bytes() -> Option<u64> {
    let mut limits = JOBOBJECT_EXTENDED_LIMIT_INFORMATION::default();
    // SAFETY: a null job is the caller's own; the place is writable and of the
    // length given.
    let ok = unsafe {
        QueryInformationJobObject(
            core::ptr::null_mut(),
            JobObjectExtendedLimitInformation,
            (&raw mut limits).cast(),
            size_of::<JOBOBJECT_EXTENDED_LIMIT_INFORMATION>() as u32,
            core::ptr::null_mut(),
        )
    };
    if ok == 0 {
        return None;
    }
    let flags = limits.BasicLimitInformation.LimitFlags;
    [
        (JOB_OBJECT_LIMIT_JOB_MEMORY, limits.JobMemoryLimit),
        (JOB_OBJECT_LIMIT_PROCESS_MEMORY, limits.ProcessMemoryLimit),
    ]
    .into_iter()
    .filter(|&(flag, _)| flags & flag != 0)
    .map(|(_, bytes)| bytes as u64)
    .min()
}

/// The limit on address space, bytes: there is none.
#[must_use]
pub const fn address_space_limit() -> Option<u64> {
    None
}

/// What such a limit leaves: there is none.
#[must_use]
pub const fn address_space_left() -> Option<u64> {
    None
}

/// Not counted on Windows, where nothing forks.
#[must_use]
pub const fn minor_faults() -> u64 {
    0
}

/// What this process takes of the machine: not measured on Windows.
#[must_use]
pub const fn process_bytes() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_sizes() {
        assert!(page_size_is_supported());
        assert!(cpus() >= 1);
        assert!(ram_bytes() > 1 << 26);
        assert!(cgroup_limit_bytes().is_none_or(|limit| limit >= 1 << 20));
    }
}

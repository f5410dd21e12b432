//! Where a descriptor comes from: the device, or the call.

use core::sync::atomic::{AtomicBool, Ordering};

use super::abi::REQ_DEVICE_NEW;
use super::{USER_MODE_ONLY, Uffd};
use crate::descriptor::{close, out_of_the_way};
use crate::error::OsError;
use crate::{calls, kernel, trial};

/// How a descriptor was obtained, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `/dev/userfaultfd`: full mode whatever the sysctl says.
    Device,
    /// userfaultfd(2) in full mode: kernel accesses fault too.
    Syscall,
    /// userfaultfd(2) with `UFFD_USER_MODE_ONLY`: no privilege needed.
    UserModeOnly,
}

/// Whether userfaultfd(2) itself is not to be called: a filter may end the process for
/// it.
static CALL_AVOIDED: AtomicBool = AtomicBool::new(false);

/// From now on descriptors come from `/dev/userfaultfd` only.
pub fn avoid_call() {
    CALL_AVOIDED.store(true, Ordering::Relaxed);
}

/// Whether descriptors come from `/dev/userfaultfd` only.
#[must_use]
pub fn avoids_call() -> bool {
    CALL_AVOIDED.load(Ordering::Relaxed)
}

/// Makes the call in a child first where a filter may end the process for it; not here
/// if it does.
pub fn try_call() {
    if trial::is_needed() {
        let open = || Uffd::features(Source::UserModeOnly);
        if trial::ask("userfaultfd", open).is_err() {
            avoid_call();
        }
    }
}

pub(super) fn open_fd(source: Source) -> Result<i32, OsError> {
    const FLAGS: i32 = libc::O_CLOEXEC | libc::O_NONBLOCK;
    match source {
        Source::Device => {
            let dev = calls::open(c"/dev/userfaultfd", libc::O_RDWR, 0);
            if dev < 0 {
                return Err(OsError::last("open of /dev/userfaultfd"));
            }
            // SAFETY: this request takes its flags by value.
            let fd =
                unsafe { kernel::syscall!(libc::SYS_ioctl, dev, REQ_DEVICE_NEW, FLAGS) } as i32;
            let result = if fd < 0 {
                Err(OsError::last("USERFAULTFD_IOC_NEW"))
            } else {
                out_of_the_way(fd)
            };
            close(dev);
            result
        }
        Source::Syscall | Source::UserModeOnly if avoids_call() => {
            Err(OsError::new("userfaultfd", libc::EPERM))
        }
        Source::Syscall | Source::UserModeOnly => {
            let flags = if source == Source::UserModeOnly {
                FLAGS | USER_MODE_ONLY
            } else {
                FLAGS
            };
            // SAFETY: userfaultfd(2) takes one integer.
            let fd = unsafe { kernel::syscall!(libc::SYS_userfaultfd, flags) };
            if fd < 0 {
                Err(OsError::last("userfaultfd"))
            } else {
                out_of_the_way(fd as i32)
            }
        }
    }
}

//! Whether a folder's files are kept in memory: what leaves memory for one of those has
//! gone nowhere.
//!
//! An overlay keeps what is written in its upper folder, which proc_pid_mountinfo(5)
//! names. Where that folder cannot be seen, as from inside a container, nothing is known,
//! and the folder is taken for one on a disk.

use core::mem::MaybeUninit;
use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The kernel's number for ramfs (`linux/magic.h`).
const RAMFS_MAGIC: i64 = 0x8584_58f6;

/// What keeps the files of a folder in memory; `None` where that is not known of it.
#[must_use]
pub fn in_memory(folder: &Path) -> Option<&'static str> {
    match kind_of(folder)? {
        libc::TMPFS_MAGIC => Some("a tmpfs"),
        RAMFS_MAGIC => Some("a ramfs"),
        libc::OVERLAYFS_SUPER_MAGIC => match kind_of(&upper_of(folder)?)? {
            libc::TMPFS_MAGIC | RAMFS_MAGIC => Some("an overlay with its upper folder there"),
            _ => None,
        },
        _ => None,
    }
}

/// The number of the kind of file system that a folder is in (statfs(2)).
fn kind_of(folder: &Path) -> Option<i64> {
    let name = CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut seen = MaybeUninit::<libc::statfs64>::zeroed();
    // SAFETY: a NUL-terminated path, and `seen` is writable.
    let rc = unsafe { libc::statfs64(name.as_ptr(), seen.as_mut_ptr()) };
    // SAFETY: zeroed, and filled by the kernel where it succeeded.
    let seen = unsafe { seen.assume_init() };
    (rc == 0).then_some(seen.f_type)
}

/// The upper folder of the overlay that a folder is on.
fn upper_of(folder: &Path) -> Option<PathBuf> {
    let device = fs::metadata(folder).ok()?.dev();
    let device = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    upper_in(&mounts, &device)
}

/// `36 35 0:52 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w`
fn upper_in(mounts: &[u8], device: &str) -> Option<PathBuf> {
    mounts.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        (fields.nth(2)? == device.as_bytes()).then_some(())?;
        fields.find(|&field| field == b"-")?;
        let options = fields.nth(2)?;
        let mut options = options.split(|&byte| byte == b',');
        let upper = options.find_map(|option| option.strip_prefix(b"upperdir="))?;
        Some(PathBuf::from(OsString::from_vec(unescaped(upper))))
    })
}

/// Without the `\040` that mountinfo writes for a space.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\');
        let octal = octal.and_then(|digits| str::from_utf8(digits).ok());
        let octal = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_folder_of_the_right_mount_is_found() {
        let mounts = b"20 1 8:1 / / rw - ext4 /dev/a rw\n\
            36 20 0:52 / /merged rw shared:1 - overlay overlay rw,lowerdir=/a:/b,upperdir=/up\\040per,workdir=/w\n\
            37 20 0:53 / /other ro - overlay overlay ro,lowerdir=/a:/b\n\
            38 20 0:54 / /last rw - overlay none rw,upperdir=/u\n";
        let upper = |device| upper_in(mounts, device);
        assert_eq!(upper("0:52"), Some(PathBuf::from("/up per")));
        assert_eq!(upper("0:54"), Some(PathBuf::from("/u")));
        for device in ["0:53", "8:1", "0:5", "9:9"] {
            assert_eq!(upper(device), None, "{device}");
        }
    }
}

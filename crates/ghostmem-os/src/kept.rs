//! Files that are opened once, and read again and again from their beginning.
//!
//! A look at the kernel's reports happens in a fault handler, where a program may have no
//! free descriptor, or a filter that forbids opening. So the file is opened before, at a
//! number that programs do not use, and closed by execve(2). A program may close that
//! number all the same, or put a file of its own there: each read asks first whether the
//! number is still what was opened, and answers nothing where it is not.
//!
//! Everything here but [`KeptFile::open`] is async-signal-safe; that one is too, but for a
//! program's own filter, which may end the process for openat(2).

use core::ffi::CStr;
use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use crate::calls;
use crate::descriptor;

/// One file, open or not yet.
#[derive(Debug)]
pub struct KeptFile {
    fd: AtomicI32,
    /// Device and inode.
    file: [AtomicU64; 2],
}

impl KeptFile {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            fd: AtomicI32::new(-1),
            file: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// Opens the file in place of the one that was open; whether it is. One thread at a
    /// time.
    pub fn open(&self, path: &CStr) -> bool {
        self.close();
        let fd = calls::open(path, libc::O_RDONLY, 0);
        if fd < 0 {
            return false;
        }
        let Ok(fd) = descriptor::out_of_the_way(fd) else {
            return false;
        };
        for (kept, seen) in self
            .file
            .iter()
            .zip(descriptor::identity(fd).unwrap_or([0; 2]))
        {
            kept.store(seen, Ordering::Relaxed);
        }
        self.fd.store(fd, Ordering::Release);
        true
    }

    /// The beginning of the file, as it is now, in `out`; `None` where the number is not
    /// open any more, or is another file's.
    pub fn read<'t>(&self, out: &'t mut [u8]) -> Option<&'t [u8]> {
        if !self.is_there() {
            return None;
        }
        let got = calls::read_at(self.fd.load(Ordering::Acquire), out, 0);
        out.get(..usize::try_from(got).ok()?)
    }

    /// Whether the number is still the file that was opened.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let fd = self.fd.load(Ordering::Acquire);
        let file = self
            .file
            .each_ref()
            .map(|kept| kept.load(Ordering::Relaxed));
        fd >= 0 && descriptor::identity(fd) == Some(file)
    }

    /// Whether it was opened, and not closed here since.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.fd.load(Ordering::Relaxed) >= 0
    }

    /// Closes it. A number that became another file's is left alone.
    pub fn close(&self) {
        let was_there = self.is_there();
        let fd = self.fd.swap(-1, Ordering::AcqRel);
        if was_there {
            descriptor::close(fd);
        } else {
            descriptor::disown(fd);
        }
    }
}

impl Default for KeptFile {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(file: &KeptFile) -> i32 {
        file.fd.load(Ordering::Relaxed)
    }

    #[test]
    fn a_file_is_read_from_its_beginning_each_time() {
        let file = KeptFile::new();
        let mut room = [0; 64];
        assert_eq!(file.read(&mut room), None);
        assert!(file.open(c"/proc/self/status"));
        for _ in 0..2 {
            assert!(file.read(&mut room).unwrap().starts_with(b"Name:"));
        }
        assert!(descriptor::is_ours(number(&file)));
        let fd = number(&file);
        file.close();
        assert!(!descriptor::is_ours(fd) && file.read(&mut room).is_none());
        assert!(!file.open(c"/nowhere/at/all"));
    }

    #[test]
    fn a_number_that_became_another_files_is_not_read_and_not_closed() {
        let file = KeptFile::new();
        assert!(file.open(c"/proc/self/status"));
        let fd = number(&file);
        let other = crate::guard::memory_file(4096).unwrap();
        // SAFETY: the test's own descriptors: a program puts a file of its own there.
        assert_eq!(unsafe { libc::dup2(other, fd) }, fd);
        assert_eq!(file.read(&mut [0; 64]), None);
        drop(file);
        // SAFETY: looks at a number.
        assert!(unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0, "left open");
        // SAFETY: the test's own.
        unsafe { libc::close(fd) };
        crate::guard::close(other);
    }
}

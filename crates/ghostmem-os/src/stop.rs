//! Ending the process with a line on its error stream.

use core::mem::MaybeUninit;

use crate::error::KeptErrno;
use crate::{kernel, thread};

/// Writes `line` to the standard error stream; what cannot be written is lost, and the
/// signal that says so to whoever writes (`SIGPIPE`, `SIGXFSZ`) with it.
/// Async-signal-safe.
pub fn complain(line: &[u8]) {
    let _errno = KeptErrno::now();
    let _lost = thread::without_write_signals(|| crate::calls::write(libc::STDERR_FILENO, line));
}

/// Which file the standard error stream is, device and inode; `None` where it is closed.
/// Async-signal-safe.
#[must_use]
pub fn error_stream() -> Option<[u64; 2]> {
    let mut seen = MaybeUninit::<libc::stat64>::zeroed();
    // SAFETY: `seen` is writable.
    let rc = unsafe { kernel::syscall!(libc::SYS_fstat, libc::STDERR_FILENO, seen.as_mut_ptr()) };
    // SAFETY: zeroed, and filled by the kernel where it succeeded.
    let seen = unsafe { seen.assume_init() };
    (rc == 0).then_some([seen.st_dev, seen.st_ino])
}

/// Ends the process at once, with a core dump where those are on.
/// Async-signal-safe.
pub fn abort() -> ! {
    // SAFETY: no preconditions.
    unsafe { libc::abort() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// In a child, as standard error is the process's: how that ends.
    fn ended(stderr: &impl AsRawFd, prepare: impl FnOnce() -> bool) -> i32 {
        // SAFETY: the child makes system calls only.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: descriptors of this process.
            let is_there = unsafe { libc::dup2(stderr.as_raw_fd(), libc::STDERR_FILENO) } >= 0;
            let is_ready = is_there && prepare();
            complain(b"ghostmem: nobody has this line\n");
            // SAFETY: no preconditions.
            unsafe { libc::_exit(i32::from(!is_ready)) };
        }
        let mut status = -1;
        // SAFETY: a place for the status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        status
    }

    #[test]
    fn a_line_that_nobody_reads_ends_nobody() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        // SAFETY: no handler.
        let as_ever = || unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) != libc::SIG_ERR };
        assert_eq!(ended(&writer, as_ever), 0);
    }

    #[test]
    fn a_line_to_a_file_that_may_not_grow_ends_nobody() {
        let file = std::env::temp_dir().join(format!("ghostmem-mute-{}", std::process::id()));
        let opened = std::fs::File::create(&file).unwrap();
        let none = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: a complete structure.
        let limit = || unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const none) == 0 };
        assert_eq!(ended(&opened, limit), 0);
        assert_eq!(std::fs::read(&file).unwrap(), b"");
        std::fs::remove_file(&file).unwrap();
    }
}

//! File descriptors of the engine's own.
//!
//! A program started with a closed standard stream gives its number to the next
//! file opened: output meant for the stream would go into a heap's memory file.

use crate::error::OsError;

/// Moves a descriptor out of the numbers of the standard streams.
///
/// # Errors
/// The kernel's refusal of another descriptor; the old one is closed then.
pub(crate) fn off_standard_streams(fd: i32) -> Result<i32, OsError> {
    if fd > libc::STDERR_FILENO {
        return Ok(fd);
    }
    // SAFETY: duplicates a descriptor; no memory is involved.
    let moved = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, libc::STDERR_FILENO + 1) };
    let result = if moved < 0 {
        Err(OsError::last("fcntl(F_DUPFD_CLOEXEC)"))
    } else {
        Ok(moved)
    };
    close(fd);
    result
}

/// Closes a descriptor that the caller owns; -1 is none.
pub(crate) fn close(fd: i32) {
    if fd >= 0 {
        // SAFETY: callers give up descriptors they own.
        unsafe { libc::close(fd) };
    }
}

#[cfg(test)]
mod tests {
    use crate::guard::memory_file;
    use crate::uffd::{FEATURE_SIGBUS, Source, Uffd};

    #[test]
    fn closed_standard_streams_stay_closed() {
        // SAFETY: the child opens descriptors and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            for stream in 0..3 {
                // SAFETY: the child's own.
                unsafe { libc::close(stream) };
            }
            let file = memory_file(4096).unwrap_or(-1);
            // Where userfaultfd is refused there is nothing to see.
            let uffd = Uffd::open_lanes(Source::UserModeOnly, FEATURE_SIGBUS, 3);
            let open = (0..3).filter(|&stream| {
                // SAFETY: looks at a number.
                unsafe { libc::fcntl(stream, libc::F_GETFD) >= 0 }
            });
            let code = if file > 2 { open.count() } else { 9 };
            drop(uffd);
            // SAFETY: ends the child.
            unsafe { libc::_exit(code as i32) };
        }
        let mut status = 0;
        // SAFETY: our own child and a valid place.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert!(
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
            "status {status}"
        );
    }
}

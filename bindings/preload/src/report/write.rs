//! How a report is written: by calls of its own, as it may be made in a signal handler.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::endings;
use crate::raw::{failed, own};

/// Writes a file anew. Not by libc: a thread that is to be cancelled would end in its calls.
pub(super) fn write_anew(path: &Path, text: &str) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
    if endings::is_reporting() {
        // Nobody waits for a reader of a named pipe.
        flags |= libc::O_NONBLOCK;
    }
    let folder = libc::AT_FDCWD;
    let file = own!(libc::SYS_openat, folder, name.as_ptr(), flags, 0o666);
    if failed(file) {
        return Err(io::Error::from_raw_os_error(-file as i32));
    }
    let written = write_all(file, text.as_bytes());
    let _closed = own!(libc::SYS_close, file);
    written
}

/// Writes all, in as many calls as it takes.
pub(super) fn write_all(file: isize, mut bytes: &[u8]) -> io::Result<()> {
    /// What a pipe takes that can be written to (`PIPE_BUF` of pipe(7)).
    const PIECE: usize = 4096;
    while !bytes.is_empty() {
        endings::wait_to_write(file);
        let piece = bytes.len().min(PIECE);
        let answer = own!(libc::SYS_write, file, bytes.as_ptr(), piece);
        if failed(answer) && answer != -(libc::EINTR as isize) {
            return Err(io::Error::from_raw_os_error(-answer as i32));
        }
        if answer == 0 {
            break;
        }
        bytes = &bytes[usize::try_from(answer).unwrap_or(0)..];
    }
    Ok(())
}

//! How a report is written: by calls of its own, as it may be made in a signal handler.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ghostmem_os::doorway;

use crate::raw::{Answer, failed, own};
use crate::{endings, signals};

/// Writes a file anew. Not by libc: a thread that is to be cancelled would end in its calls.
pub(super) fn write_anew(path: &Path, text: &str) -> io::Result<()> {
    // Nobody waits for a reader of a named pipe.
    let flags = if endings::is_reporting() {
        libc::O_NONBLOCK
    } else {
        0
    };
    let opened = name_of(path).and_then(|name| open_anew(&name, flags));
    let file = opened.map_err(io::Error::from_raw_os_error)?;
    let written = write_all(file, text.as_bytes());
    let _closed = own!(libc::SYS_close, file);
    written
}

/// A path as the kernel wants it; an error's number.
pub(super) fn name_of(path: &Path) -> Result<CString, i32> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| libc::EINVAL)
}

/// Opens a file that is to be written anew; its descriptor, or an error's number. One system
/// call.
pub(super) fn open_anew(name: &CStr, flags: i32) -> Result<Answer, i32> {
    let flags = flags | libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
    let folder = libc::AT_FDCWD;
    let file = own!(libc::SYS_openat, folder, name.as_ptr(), flags, 0o666);
    match failed(file) {
        true => Err(-file as i32),
        false => Ok(file),
    }
}

/// Writes all, in as many calls as it takes.
pub(super) fn write_all(file: isize, mut bytes: &[u8]) -> io::Result<()> {
    /// What a pipe takes that can be written to (`PIPE_BUF` of pipe(7)).
    const PIECE: usize = 4096;
    /// So often a file may take nothing though it said that it would.
    const TRIES: u32 = 100;
    let mut tries = 0;
    while !bytes.is_empty() {
        if !endings::wait_to_write(file) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let piece = bytes.len().min(PIECE);
        let part = &bytes[..piece];
        let answer = signals::without_own_signals(|| match doorway::is_confined() {
            true => write(file, part),
            false => write_now(file, part),
        });
        let again = [-(libc::EINTR as isize), -(libc::EAGAIN as isize)].contains(&answer);
        tries = if again { tries + 1 } else { 0 };
        if failed(answer) && (!again || tries > TRIES) {
            return Err(io::Error::from_raw_os_error(-answer as i32));
        }
        if answer == 0 {
            break;
        }
        bytes = &bytes[usize::try_from(answer).unwrap_or(0)..];
    }
    Ok(())
}

/// One write, which does not wait in a pipe or socket that somebody else has filled since.
fn write_now(file: isize, bytes: &[u8]) -> isize {
    // `EPERM`: by a filter that does not know the call.
    const REFUSED: [i32; 4] = [libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL, libc::EPERM];
    if can_say_not_now(file) {
        let part = [bytes.as_ptr() as usize, bytes.len()];
        let (here, flags) = (-1_isize, libc::RWF_NOWAIT);
        let answer = own!(
            libc::SYS_pwritev2,
            file,
            part.as_ptr(),
            1,
            here,
            here,
            flags
        );
        if !REFUSED.contains(&(-answer as i32)) {
            return answer;
        }
    }
    write(file, bytes)
}

fn write(file: isize, bytes: &[u8]) -> isize {
    own!(libc::SYS_write, file, bytes.as_ptr(), bytes.len())
}

/// Whether a file is a pipe or a socket.
fn can_say_not_now(file: isize) -> bool {
    // SAFETY: all zero is a valid stat structure.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    let answer = own!(libc::SYS_fstat, file, &raw mut stat);
    let kind = stat.st_mode & libc::S_IFMT;
    !failed(answer) && [libc::S_IFIFO, libc::S_IFSOCK].contains(&kind)
}

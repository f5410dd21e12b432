//! System calls that are no points of thread cancellation.
//!
//! In libc `read`, `pwrite`, `close` and some fifty more are such points
//! (pthreads(7)): a cancelled thread ends inside them. The engine makes its calls
//! in fault handlers, with a page claimed, and under locks; a thread that ended
//! there would leave the page claimed for ever. These here go to the kernel by
//! the [doorway](crate::doorway), which never ends a thread. The test `cancellation` keeps the
//! engine's rooms free of the others.
//!
//! All are async-signal-safe. They answer as the kernel does, and leave the reason
//! of a refusal in `errno`: a fault handler puts the program's back.

use core::ffi::CStr;

use crate::error::errno;
use crate::kernel;

/// How often a call that a signal interrupts is made again.
const INTERRUPTIONS_MAX: usize = 1000;

/// Makes a call again that a signal interrupted, a bounded number of times.
fn patiently(mut call: impl FnMut() -> libc::c_long) -> isize {
    let mut interruptions = 0;
    loop {
        let answer = call();
        if answer >= 0 || errno() != libc::EINTR || interruptions == INTERRUPTIONS_MAX {
            return answer as isize;
        }
        interruptions += 1;
    }
}

/// open(2); the file is closed by execve(2).
pub(crate) fn open(path: &CStr, flags: i32, mode: u32) -> i32 {
    let flags = libc::c_long::from(flags | libc::O_CLOEXEC);
    let (dir, path) = (libc::c_long::from(libc::AT_FDCWD), path.as_ptr());
    // SAFETY: a NUL-terminated path.
    patiently(|| unsafe {
        kernel::syscall!(libc::SYS_openat, dir, path, flags, libc::c_long::from(mode))
    }) as i32
}

/// Whether a path leads to a file, which takes no descriptor: faccessat(2).
pub(crate) fn is_there(path: &CStr) -> bool {
    let (dir, path) = (libc::c_long::from(libc::AT_FDCWD), path.as_ptr());
    let exists = libc::c_long::from(libc::F_OK);
    // SAFETY: a NUL-terminated path.
    patiently(|| unsafe { kernel::syscall!(libc::SYS_faccessat, dir, path, exists) }) == 0
}

/// close(2). Not made again: Linux closes the descriptor in any case.
pub(crate) fn close(fd: i32) {
    // SAFETY: callers give up descriptors they own.
    unsafe { kernel::syscall!(libc::SYS_close, libc::c_long::from(fd)) };
}

/// read(2)
pub(crate) fn read(fd: i32, out: &mut [u8]) -> isize {
    let fd = libc::c_long::from(fd);
    // SAFETY: `out` is writable and the length its own.
    patiently(|| unsafe { kernel::syscall!(libc::SYS_read, fd, out.as_mut_ptr(), out.len()) })
}

/// write(2)
pub(crate) fn write(fd: i32, data: &[u8]) -> isize {
    let fd = libc::c_long::from(fd);
    // SAFETY: `data` is readable and the length its own.
    patiently(|| unsafe { kernel::syscall!(libc::SYS_write, fd, data.as_ptr(), data.len()) })
}

/// pread(2)
pub(crate) fn read_at(fd: i32, out: &mut [u8], offset: u64) -> isize {
    let fd = libc::c_long::from(fd);
    // SAFETY: `out` is writable and the length its own.
    patiently(|| unsafe {
        kernel::syscall!(libc::SYS_pread64, fd, out.as_mut_ptr(), out.len(), offset)
    })
}

/// pwrite(2)
pub(crate) fn write_at(fd: i32, data: &[u8], offset: u64) -> isize {
    let fd = libc::c_long::from(fd);
    // SAFETY: `data` is readable and the length its own.
    patiently(|| unsafe {
        kernel::syscall!(libc::SYS_pwrite64, fd, data.as_ptr(), data.len(), offset)
    })
}

/// Gives the blocks of a range back, fallocate(2) with `FALLOC_FL_PUNCH_HOLE`.
pub(crate) fn punch(fd: i32, offset: u64, len: u64) -> isize {
    fallocate(fd, libc::FALLOC_FL_PUNCH_HOLE, offset, len)
}

/// Gets blocks for a range, fallocate(2). The file's length stays.
pub(crate) fn reserve(fd: i32, offset: u64, len: u64) -> isize {
    fallocate(fd, 0, offset, len)
}

fn fallocate(fd: i32, mode: i32, offset: u64, len: u64) -> isize {
    let mode = libc::c_long::from(mode | libc::FALLOC_FL_KEEP_SIZE);
    let fd = libc::c_long::from(fd);
    // SAFETY: no memory of the process is involved.
    patiently(|| unsafe { kernel::syscall!(libc::SYS_fallocate, fd, mode, offset, len) })
}

/// sync_file_range(2)
pub(crate) fn sync_range(fd: i32, offset: u64, len: u64, flags: u32) -> isize {
    let (fd, flags) = (libc::c_long::from(fd), libc::c_long::from(flags));
    // SAFETY: no memory is involved.
    patiently(|| unsafe { kernel::syscall!(libc::SYS_sync_file_range, fd, offset, len, flags) })
}

/// poll(2) of one descriptor: what is so of it now, or, when `wait`, as soon as
/// anything is or a signal comes; 0 when nothing is.
#[must_use]
pub fn poll(fd: i32, events: i16, wait: bool) -> i16 {
    let mut poll = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    let zero = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let limit = if wait {
        core::ptr::null()
    } else {
        &raw const zero
    };
    let nothing: libc::c_long = 0;
    let one: libc::c_long = 1;
    // SAFETY: one valid entry, a time or none, and no mask of signals.
    let ready =
        unsafe { kernel::syscall!(libc::SYS_ppoll, &raw mut poll, one, limit, nothing, nothing) };
    if ready == 1 { poll.revents } else { 0 }
}

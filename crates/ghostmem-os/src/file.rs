//! Files of the engine's own: made, read and written at offsets, and given back
//! to the file system in parts.
//!
//! A [`File`] is a number, not an owner: files are shared with forked children
//! and replaced while others may be reading, so whoever keeps one decides when to
//! [close](File::close) it. A call on a closed one fails with `EBADF`, and never
//! touches memory but the buffer it was given.
//!
//! Reads and writes are those of [`calls`], no points of thread cancellation: they
//! are made in fault handlers.

use core::ffi::CStr;

use crate::calls;
use crate::descriptor::{close, out_of_the_way};
use crate::error::{OsError, errno};
use crate::kernel;
use crate::thread::SignalsBlocked;

/// Direct I/O works in whole blocks of this many bytes, at addresses and offsets
/// that are multiples of it; file systems that want larger ones are not used so.
pub const BLOCK_BYTES: usize = 4096;

/// An open file, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File(i32);

/// Which file this is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
}

/// What the file system says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Which file it is.
    pub identity: Identity,
    /// Its length.
    pub len_bytes: u64,
    /// Bytes of the blocks it takes on the disk.
    pub block_bytes: u64,
    /// Whether it is a plain file: no directory, device or pipe.
    pub is_regular: bool,
    /// Whether it belongs to the user the process acts as.
    pub is_own: bool,
}

impl File {
    /// A file without a name in the file system of `dir` (`O_TMPFILE`, open(2)),
    /// which nobody can give one later.
    ///
    /// # Errors
    /// `EOPNOTSUPP` (or `EISDIR`, `ENOENT` from old kernels) where the file system
    /// cannot make one; the kernel's other refusals.
    pub fn unnamed(dir: &CStr) -> Result<Self, OsError> {
        Self::open(
            dir,
            libc::O_TMPFILE | libc::O_EXCL | libc::O_RDWR,
            "open(O_TMPFILE)",
        )
    }

    /// Lets nobody but its owner read or write it (fchmod(2)).
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn make_private(&self) -> Result<(), OsError> {
        // SAFETY: a descriptor of ours.
        let rc = unsafe { libc::fchmod(self.0, 0o600) };
        done("fchmod", rc)
    }

    /// A new file at `path`.
    ///
    /// # Errors
    /// `EEXIST` when something is there; the kernel's other refusals.
    pub fn create(path: &CStr) -> Result<Self, OsError> {
        Self::open(
            path,
            libc::O_CREAT | libc::O_EXCL | libc::O_RDWR,
            "open(O_CREAT)",
        )
    }

    /// The file at `path`, made if nothing is there. Does not follow a symbolic
    /// link, nor wait for a pipe.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open_or_create(path: &CStr) -> Result<Self, OsError> {
        let flags = libc::O_CREAT | libc::O_RDWR | libc::O_NOFOLLOW | libc::O_NONBLOCK;
        Self::open(path, flags, "open")
    }

    fn open(path: &CStr, flags: i32, call: &'static str) -> Result<Self, OsError> {
        const OWNER_ONLY: u32 = 0o600;
        let fd = calls::open(path, flags, OWNER_ONLY);
        if fd < 0 {
            return Err(OsError::last(call));
        }
        out_of_the_way(fd).map(Self)
    }

    /// Closes the file, for everybody who has this number.
    pub fn close(self) {
        close(self.0);
    }

    /// The number, to be kept in an atomic.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }

    /// The file with a number from [`File::number`].
    #[must_use]
    pub const fn from_number(number: i32) -> Self {
        Self(number)
    }

    /// Switches direct I/O (`O_DIRECT`) on or off for the file, in every process
    /// that shares it. On only where blocks of [`BLOCK_BYTES`] will do.
    ///
    /// # Errors
    /// `EINVAL` where the file system has no direct I/O, or wants larger blocks.
    pub fn set_direct(self, on: bool) -> Result<(), OsError> {
        if on && self.direct_block().is_some_and(|bytes| bytes > BLOCK_BYTES) {
            return Err(OsError::new("statx(STATX_DIOALIGN)", libc::EINVAL));
        }
        // SAFETY: changes flags of a descriptor; no memory is involved.
        let flags = unsafe { libc::fcntl(self.0, libc::F_GETFL) };
        if flags < 0 {
            return Err(OsError::last("fcntl(F_GETFL)"));
        }
        let flags = if on {
            flags | libc::O_DIRECT
        } else {
            flags & !libc::O_DIRECT
        };
        // SAFETY: as above.
        let rc = unsafe { libc::fcntl(self.0, libc::F_SETFL, flags) };
        done("fcntl(O_DIRECT)", rc)
    }

    /// What direct I/O wants addresses and offsets to be multiples of; `None` when
    /// the kernel does not say (before 6.1), or has none for this file.
    fn direct_block(self) -> Option<usize> {
        let mut seen = core::mem::MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: an empty path names the descriptor; `seen` is writable.
        let rc = unsafe {
            libc::statx(
                self.0,
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                libc::STATX_DIOALIGN,
                seen.as_mut_ptr(),
            )
        };
        // SAFETY: zeroed, and filled by the kernel where it succeeded.
        let seen = unsafe { seen.assume_init() };
        let known = rc == 0 && seen.stx_mask & libc::STATX_DIOALIGN != 0;
        let bytes = seen.stx_dio_mem_align.max(seen.stx_dio_offset_align) as usize;
        (known && bytes > 0).then_some(bytes)
    }

    /// Reads up to `out.len()` bytes at `offset`: fewer only where the file ends.
    /// Async-signal-safe.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn read_at(self, out: &mut [u8], offset: u64) -> Result<usize, OsError> {
        let mut done = 0;
        while done < out.len() {
            let rest = &mut out[done..];
            let got = calls::read_at(self.0, rest, offset.wrapping_add(done as u64));
            match usize::try_from(got) {
                Ok(0) => break,
                Ok(got) => done += got,
                // Direct I/O behind the end of a file that ends within a block.
                Err(_) if errno() == libc::EINVAL && done > 0 => break,
                Err(_) => return Err(OsError::last("pread")),
            }
        }
        Ok(done)
    }

    /// Writes `data` at `offset`: all of it, or an error.
    ///
    /// # Errors
    /// The kernel's refusal; any part may have been written then. `ENOSPC` also
    /// when the kernel takes no more without saying why.
    pub fn write_at(self, data: &[u8], offset: u64) -> Result<(), OsError> {
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            let put = calls::write_at(self.0, rest, offset.wrapping_add(done as u64));
            match usize::try_from(put) {
                Ok(0) => return Err(OsError::new("pwrite", libc::ENOSPC)),
                Ok(put) => done += put,
                Err(_) => return Err(OsError::last("pwrite")),
            }
        }
        Ok(())
    }

    /// Writes a range out of the page cache to the device and waits for it, which
    /// is when a write through the cache learns of an error
    /// (sync_file_range(2)).
    ///
    /// # Errors
    /// The error of the write; `ENOSYS` or `EOPNOTSUPP` where there is no such call.
    pub fn sync_range(self, offset: u64, len: u64) -> Result<(), OsError> {
        let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
            | libc::SYNC_FILE_RANGE_WRITE
            | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        done(
            "sync_file_range",
            calls::sync_range(self.0, offset, len, flags) as i32,
        )
    }

    /// Drops a range from the page cache, as far as it is written out: a hint
    /// (posix_fadvise(2)).
    pub fn drop_cache(self, offset: u64, len: u64) {
        self.advise(offset, len, libc::POSIX_FADV_DONTNEED);
    }

    /// Turns the kernel's own readahead off for the file: a hint.
    pub fn expect_random(self) {
        self.advise(0, 0, libc::POSIX_FADV_RANDOM);
    }

    fn advise(self, offset: u64, len: u64, advice: i32) {
        // SAFETY: no memory is involved.
        unsafe { kernel::syscall!(libc::SYS_fadvise64, self.0, offset, len, advice) };
    }

    /// Gives the blocks of a range back to the file system; it reads as zeros
    /// afterwards (fallocate(2), `FALLOC_FL_PUNCH_HOLE`).
    ///
    /// # Errors
    /// `EOPNOTSUPP` where the file system cannot; its other refusals.
    pub fn punch(self, offset: u64, len: u64) -> Result<(), OsError> {
        done(
            "fallocate(PUNCH_HOLE)",
            calls::punch(self.0, offset, len) as i32,
        )
    }

    /// Gets blocks for a range, so that writing it finds no disk full; what is
    /// written there stays, and so does the file's length (fallocate(2)). A file
    /// system that copies what it writes may want new blocks all the same.
    ///
    /// # Errors
    /// `ENOSPC` and its like where there are not as many, and part of the range may
    /// have got some; `EOPNOTSUPP` where the file system cannot; its other refusals.
    pub fn reserve(self, offset: u64, len: u64) -> Result<(), OsError> {
        done("fallocate", calls::reserve(self.0, offset, len) as i32)
    }

    /// Makes the file `len` bytes long; what is new has no blocks and reads as
    /// zeros.
    ///
    /// # Errors
    /// The kernel's refusal, `EFBIG` over `RLIMIT_FSIZE` among them.
    pub fn set_len(self, len: u64) -> Result<(), OsError> {
        // SAFETY: no memory is involved.
        let rc = unsafe { kernel::ftruncate(self.0, len as i64) };
        done("ftruncate", rc)
    }

    /// What the file system says of the file.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn status(self) -> Result<Status, OsError> {
        let mut seen = core::mem::MaybeUninit::<libc::stat64>::zeroed();
        // SAFETY: `seen` is writable.
        let rc = unsafe { kernel::syscall!(libc::SYS_fstat, self.0, seen.as_mut_ptr()) };
        // SAFETY: zeroed, and filled by the kernel where it succeeded.
        done("fstat", rc as i32).map(|()| Status::of(&unsafe { seen.assume_init() }))
    }

    /// Locks the file against every other open of it, here and in other
    /// processes, until it is closed (flock(2)).
    ///
    /// # Errors
    /// `EWOULDBLOCK` when somebody else has it locked; the kernel's refusal.
    pub fn try_lock(self) -> Result<(), OsError> {
        // SAFETY: no memory is involved.
        let rc = unsafe { libc::flock(self.0, libc::LOCK_EX | libc::LOCK_NB) };
        done("flock", rc)
    }
}

/// Does something with files whose size a limit (`RLIMIT_FSIZE`) may forbid: the answer
/// is an error then, and the signal that comes with it (`SIGXFSZ`) is taken back.
pub fn without_size_signal<T>(body: impl FnOnce() -> T) -> T {
    let blocked = SignalsBlocked::new();
    let done = body();
    crate::guard::take_size_signal();
    drop(blocked);
    done
}

impl Status {
    fn of(stat: &libc::stat64) -> Self {
        Self {
            identity: Identity {
                device: stat.st_dev,
                inode: stat.st_ino,
            },
            len_bytes: stat.st_size.cast_unsigned(),
            // stat(2): always in units of 512 bytes.
            block_bytes: stat.st_blocks.cast_unsigned() * 512,
            is_regular: stat.st_mode & libc::S_IFMT == libc::S_IFREG,
            // SAFETY: no preconditions.
            is_own: stat.st_uid == unsafe { libc::geteuid() },
        }
    }
}

/// Which file a path names now; not through a symbolic link.
///
/// # Errors
/// The kernel's refusal, `ENOENT` when there is none.
pub fn identity_at(path: &CStr) -> Result<Identity, OsError> {
    let mut seen = core::mem::MaybeUninit::<libc::stat64>::zeroed();
    // SAFETY: a NUL-terminated path, and `seen` is writable.
    let rc = unsafe { libc::lstat64(path.as_ptr(), seen.as_mut_ptr()) };
    // SAFETY: zeroed, and filled by the kernel where it succeeded.
    done("lstat", rc).map(|()| Status::of(&unsafe { seen.assume_init() }).identity)
}

/// Removes the name `path`; the file lives until its last user closes it.
///
/// # Errors
/// The kernel's refusal.
pub fn unlink(path: &CStr) -> Result<(), OsError> {
    // SAFETY: a NUL-terminated path.
    let rc = unsafe { libc::unlink(path.as_ptr()) };
    done("unlink", rc)
}

/// A pipe that nothing is ever written to. It tells, across fork(2), whether
/// anybody still holds an end.
#[derive(Debug, Clone, Copy)]
pub struct Tether {
    /// Held by those who are waited for.
    pub held: File,
    /// Kept by the one that asks [`Tether::is_let_go`].
    pub watch: File,
}

impl Tether {
    /// A pipe, gone from a process that calls execve(2).
    ///
    /// # Errors
    /// The kernel's refusal of two more descriptors.
    pub fn new() -> Result<Self, OsError> {
        let mut ends = [-1; 2];
        // SAFETY: a place for two descriptors.
        let rc = unsafe {
            kernel::syscall!(
                libc::SYS_pipe2,
                ends.as_mut_ptr(),
                libc::O_CLOEXEC | libc::O_NONBLOCK
            )
        };
        done("pipe2", rc as i32)?;
        let held = out_of_the_way(ends[0]).inspect_err(|_| close(ends[1]))?;
        let watch = out_of_the_way(ends[1]).inspect_err(|_| close(held))?;
        Ok(Self {
            held: File(held),
            watch: File(watch),
        })
    }

    /// Another end to hold, of a pipe whose own this process has closed: opened by
    /// the name that proc(5) has for the one it watches.
    ///
    /// # Errors
    /// The kernel's refusal, `ENOENT` without a mounted /proc.
    pub fn again(watch: File) -> Result<File, OsError> {
        let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
        let mut number = u32::try_from(watch.0).map_err(|_| OsError::new("open", libc::EBADF))?;
        let mut digits = 1;
        while number >= 10_u32.pow(digits) && digits < 9 {
            digits += 1;
        }
        for at in (0..digits as usize).rev() {
            path["/proc/self/fd/".len() + at] = b'0' + (number % 10) as u8;
            number /= 10;
        }
        let path = CStr::from_bytes_until_nul(&path).expect("the path ends with zeros");
        File::open(
            path,
            libc::O_RDONLY | libc::O_NONBLOCK,
            "open(/proc/self/fd)",
        )
    }

    /// Whether no process has the held end open any more.
    #[must_use]
    pub fn is_let_go(watch: File) -> bool {
        // The end of a pipe that is written to reports an error once nobody can
        // read it (poll(2)).
        calls::poll(watch.0, 0, false) & libc::POLLERR != 0
    }
}

fn done(call: &'static str, rc: i32) -> Result<(), OsError> {
    if rc == 0 {
        Ok(())
    } else {
        Err(OsError::last(call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_blocks_are_given_back() {
        let file = File::unnamed(c"/tmp").unwrap();
        assert!(file.number() > 2);
        file.write_at(&[7; 3 * BLOCK_BYTES], BLOCK_BYTES as u64)
            .unwrap();
        let mut back = [0; BLOCK_BYTES + 5];
        assert_eq!(
            file.read_at(&mut back, 2 * BLOCK_BYTES as u64).unwrap(),
            back.len()
        );
        assert!(back.iter().all(|&byte| byte == 7));
        assert_eq!(
            file.read_at(&mut back, 4 * BLOCK_BYTES as u64 - 3).unwrap(),
            3
        );
        assert_eq!(file.read_at(&mut back, 1 << 40).unwrap(), 0);
        let status = file.status().unwrap();
        assert!(status.is_regular);
        assert_eq!(status.len_bytes, 4 * BLOCK_BYTES as u64);
        file.punch(0, status.len_bytes).unwrap();
        assert_eq!(file.status().unwrap().block_bytes, 0);
        file.reserve(0, 2 * status.len_bytes).unwrap();
        let reserved = file.status().unwrap();
        assert_eq!(reserved.block_bytes, 2 * status.len_bytes);
        assert_eq!(reserved.len_bytes, status.len_bytes);
        file.close();
        // A test beside this one may have a file of its own under the number by now.
        let is_gone = match file.status() {
            Ok(other) => other.len_bytes != status.len_bytes,
            Err(error) => error.errno == libc::EBADF,
        };
        assert!(is_gone);
    }

    #[test]
    fn a_lock_keeps_a_second_open_out() {
        let path = format!("/tmp/ghostmem-os-lock-{}\0", std::process::id());
        let path = CStr::from_bytes_with_nul(path.as_bytes()).unwrap();
        let file = File::create(path).unwrap();
        file.try_lock().unwrap();
        assert_eq!(File::create(path).unwrap_err().errno, libc::EEXIST);
        let second = File::open_or_create(path).unwrap();
        assert_eq!(second.try_lock().unwrap_err().errno, libc::EWOULDBLOCK);
        assert_eq!(identity_at(path).unwrap(), file.status().unwrap().identity);
        unlink(path).unwrap();
        assert_eq!(identity_at(path).unwrap_err().errno, libc::ENOENT);
        second.close();
        file.close();
    }

    #[test]
    fn a_tether_is_let_go_with_its_last_holder() {
        let tether = Tether::new().unwrap();
        // SAFETY: the child waits for a byte that never comes, or ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            loop {
                // SAFETY: only waits.
                unsafe { libc::pause() };
            }
        }
        tether.held.close();
        assert!(!Tether::is_let_go(tether.watch));
        // SAFETY: our own child.
        unsafe { libc::kill(child, libc::SIGKILL) };
        let mut status = 0;
        // SAFETY: our own child and a valid place.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert!(Tether::is_let_go(tether.watch));
        let again = Tether::again(tether.watch).unwrap();
        assert!(!Tether::is_let_go(tether.watch));
        again.close();
        assert!(Tether::is_let_go(tether.watch));
        tether.watch.close();
    }
}

//! System calls the standard library does not offer, one safe function each.
//!
//! Unsafe room: every block holds one call, and nothing here keeps state
//! except which signals arrived.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::buffer::{Buffer, PAGE_SIZE};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Keeps the calling thread on processor number `which` of those it may use,
/// counted round; nothing changes where the kernel refuses. Left alone, two
/// threads of a short workload often share one processor.
pub(crate) fn stay_on_processor(which: usize) {
    // SAFETY: an all-zero set is a valid, empty one.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given into the set.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed) } != 0 {
        return;
    }
    let usable: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
        // SAFETY: the number is below CPU_SETSIZE.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &allowed) })
        .collect();
    let Some(&cpu) = usable.get(which % usable.len().max(1)) else {
        return;
    };
    // SAFETY: as above.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    unsafe { libc::CPU_SET(cpu, &mut one) };
    // SAFETY: the set is initialised and of the size given.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one) };
}

/// An anonymous file in memory that a spawned child inherits (no
/// close-on-exec), memfd_create(2).
pub(crate) fn memfd(name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), 0) })?;
    // SAFETY: the descriptor was just created and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Takes ownership of a descriptor that the parent process passed down by
/// number. Refuses numbers that are not open descriptors of a regular file.
pub(crate) fn inherited_file(fd: RawFd) -> io::Result<File> {
    // SAFETY: F_GETFD reads the flags of a descriptor and touches no memory.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open (checked above), and this process, freshly
    // executed, has no other owner for a number it was given as an argument.
    let file = unsafe { File::from_raw_fd(fd) };
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        std::mem::forget(file);
        Err(io::Error::from_raw_os_error(libc::EBADF))
    }
}

/// A private anonymous mapping, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of zeros, no advice given, no commit charge.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(len, flags, -1)
    }

    /// Maps the first `len` bytes of a file, shared: what is written goes to it.
    pub(crate) fn file(file: &File, len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn map(len: usize, flags: libc::c_int, fd: RawFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice cannot
        // overlap memory that is in use.
        let raw = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(raw.cast())
            .map(|base| Self { base, len })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
    }

    /// The whole pages of the mapping as memory under test.
    pub(crate) fn buffer(&self) -> Buffer<'_> {
        let pages = u32::try_from(self.len / PAGE_SIZE).unwrap_or(u32::MAX);
        // SAFETY: the kernel maps page-aligned and at least this many pages;
        // the borrow keeps the mapping alive, and nothing but its
        // buffers, which are copies of one another, accesses it.
        unsafe { Buffer::new(self.base, pages) }
    }

    /// Makes the kernel back every page now, madvise(2) MADV_POPULATE_WRITE
    /// (Linux 5.14).
    pub(crate) fn populate(&self) -> io::Result<()> {
        // SAFETY: the range is this value's own mapping; populating it changes
        // no contents.
        let result = unsafe {
            libc::madvise(
                self.base.as_ptr().cast(),
                self.len,
                libc::MADV_POPULATE_WRITE,
            )
        };
        check(result).map(drop)
    }

    /// Makes all pages zero and gives back what they occupied; of a shared
    /// file, the blocks on disk too, madvise(2).
    pub(crate) fn forget(&self, shared: bool) -> io::Result<()> {
        let advice = if shared {
            libc::MADV_REMOVE
        } else {
            libc::MADV_DONTNEED
        };
        // SAFETY: the range is this value's own mapping, whose contents are
        // bytes that nobody holds a reference to.
        check(unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, advice) }).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value and is given up with it.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Reserves the blocks of a file's first `len` bytes on disk, fallocate(2).
pub(crate) fn allocate_blocks(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the call, which touches no memory.
    check(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) }).map(drop)
}

/// Keeps what is mapped now in memory, mlockall(2) MCL_CURRENT.
pub(crate) fn lock_current_memory() -> io::Result<()> {
    // SAFETY: locking pages changes no contents.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT) }).map(drop)
}

/// Turns a block device or file on as swap with `priority` (0..=32767, higher is used
/// first).
pub(crate) fn swap_on(device: &str, priority: i32) -> io::Result<()> {
    const SWAP_FLAG_PREFER: libc::c_int = 0x8000;
    let path = CString::new(device)?;
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    check(unsafe { libc::swapon(path.as_ptr(), SWAP_FLAG_PREFER | (priority & 0x7fff)) }).map(drop)
}

/// Turns a block device or file off as swap; retried when a signal interrupts it.
pub(crate) fn swap_off(device: &str) -> io::Result<()> {
    let path = CString::new(device)?;
    loop {
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        match check(unsafe { libc::swapoff(path.as_ptr()) }) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// What the kernel charged to this process so far, getrusage(2).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// User and system time of all threads, nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Faults that read from swap or a file.
    pub(crate) major_faults: u64,
}

/// Reads [`Usage`] of the whole process.
pub(crate) fn usage() -> Usage {
    let mut raw = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one rusage into the room provided for it.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, raw.as_mut_ptr()) };
    if result != 0 {
        return Usage::default();
    }
    // SAFETY: zero bytes are a valid rusage, and the kernel has filled it.
    let raw = unsafe { raw.assume_init() };
    let nanos = |t: libc::timeval| t.tv_sec as u64 * 1_000_000_000 + t.tv_usec as u64 * 1000;
    Usage {
        cpu_ns: nanos(raw.ru_utime) + nanos(raw.ru_stime),
        major_faults: raw.ru_majflt as u64,
    }
}

/// Makes the kernel kill this process when its parent dies, prctl(2)
/// PR_SET_PDEATHSIG, so that no measured child outlives the clean-up.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: this option takes a signal number and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on SIGINT, SIGTERM and SIGHUP only set a flag, see [`interrupted`];
/// the caller unwinds, and its guards take everything down.
pub(crate) fn catch_signals() -> io::Result<()> {
    // SAFETY: zero bytes are a valid sigaction (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is
        // async-signal-safe.
        check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

/// Whether a signal has asked the bench to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Signals that arrived and are to go on to a program, one bit each.
static TO_PASS_ON: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal_for_program(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes the signal's own description.
    let code = unsafe { (*info).si_code };
    // The terminal sends its own to the program as well.
    if code != libc::SI_KERNEL {
        TO_PASS_ON.fetch_or(1 << signal, Ordering::SeqCst);
    }
}

/// From now on the signals that people send to programs are only noted here,
/// for [`signals_to_pass_on`]. Programs started later are not affected.
pub(crate) fn pass_signals_on() -> io::Result<()> {
    // SAFETY: zero bytes are a valid sigaction (no flags, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
        on_signal_for_program;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART | libc::SA_SIGINFO;
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ] {
        // SAFETY: the handler reads its argument and changes an atomic, which
        // is async-signal-safe.
        check(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) })?;
    }
    Ok(())
}

/// What arrived since the last call.
pub(crate) fn signals_to_pass_on() -> impl Iterator<Item = libc::c_int> {
    let mut bits = TO_PASS_ON.swap(0, Ordering::SeqCst);
    std::iter::from_fn(move || {
        let signal = (bits != 0).then(|| bits.trailing_zeros());
        bits &= bits.wrapping_sub(1);
        signal.map(u32::cast_signed)
    })
}

/// Makes this process the parent of those below it whose own parent ends, prctl(2)
/// `PR_SET_CHILD_SUBREAPER`, so that none is lost from sight.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    // SAFETY: this option takes a number and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }).map(drop)
}

/// Takes note of the end of an adopted process, waitpid(2), without waiting for it.
pub(crate) fn reap(process: u32) {
    let Ok(process) = libc::pid_t::try_from(process) else {
        return;
    };
    // SAFETY: no room for a status is given; a process that is no child of this one is
    // refused.
    let _ = unsafe { libc::waitpid(process, std::ptr::null_mut(), libc::WNOHANG) };
}

/// Sends a signal to a process, kill(2); one that has ended needs none.
pub(crate) fn send_signal(process: u32, signal: libc::c_int) {
    let Ok(process) = libc::pid_t::try_from(process) else {
        return;
    };
    // SAFETY: takes two numbers and touches no memory. The number is still the
    // process's own: it is a child that was not waited for, or was just seen below one.
    let _ = unsafe { libc::kill(process, signal) };
}

/// What a process that has ended was charged, children that it waited for included.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    /// User and system time of all threads, nanoseconds.
    pub(crate) user_ns: u64,
    pub(crate) system_ns: u64,
    /// Faults that read from swap or a file.
    pub(crate) major_faults: u64,
    /// The most that was resident, bytes.
    pub(crate) peak_rss_bytes: u64,
}

/// Waits for a child without waiting long, wait4(2): how it ended, and what it spent.
/// `None`: it runs still. After an answer the child is gone, and nobody may wait for
/// it again or send it a signal.
pub(crate) fn try_wait(child: &Child) -> io::Result<Option<(ExitStatus, Spent)>> {
    let process = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: zero bytes are a valid rusage.
    let mut raw: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a number and a rusage into the room provided for them.
    let ended =
        check(unsafe { libc::wait4(process, &raw mut status, libc::WNOHANG, &raw mut raw) })?;
    let nanos = |t: libc::timeval| t.tv_sec as u64 * 1_000_000_000 + t.tv_usec as u64 * 1000;
    let spent = Spent {
        user_ns: nanos(raw.ru_utime),
        system_ns: nanos(raw.ru_stime),
        major_faults: raw.ru_majflt as u64,
        peak_rss_bytes: raw.ru_maxrss as u64 * 1024,
    };
    Ok((ended != 0).then(|| (ExitStatus::from_raw(status), spent)))
}

//! Trying system calls that a filter may end the process for.
//!
//! A filter that was in force before the program began (a service manager's, a
//! container's) may answer a call with an errno, or with the process's end, and no
//! call tells which without being made. So it is made in a child process first, which
//! nobody misses. Without filters there is no child.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::error::OsError;
use crate::map::PAGE_SIZE;
use crate::{kernel, machine};

/// Whether filters are in force: [`UNKNOWN`], or one of the two.
static FILTERS: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;

/// Says that what a backend needs was tried under the filters that are in force, or is
/// let by: no more trials in this process.
pub fn all_is_known() {
    FILTERS.store(NONE, Ordering::Relaxed);
}

/// Whether calls have to be tried before they are made.
#[must_use]
pub fn is_needed() -> bool {
    if FILTERS.load(Ordering::Relaxed) == UNKNOWN {
        // Where nobody can tell, as if there were.
        let found = machine::filters().is_none_or(|count| count > 0);
        FILTERS.store(if found { SOME } else { NONE }, Ordering::Relaxed);
    }
    FILTERS.load(Ordering::Relaxed) == SOME
}

/// What `attempt` answers in a child process, or the refusal: `call` with `EPERM`
/// where the child was ended. Where no filter is in force it is asked here.
///
/// `attempt` makes system calls and touches what is on its stack, nothing else: the
/// child has one thread only.
///
/// # Errors
/// Those of `attempt`, under the name of `call`; the kernel's refusal of a child.
pub fn ask(
    call: &'static str,
    attempt: impl FnOnce() -> Result<u64, OsError>,
) -> Result<u64, OsError> {
    if !is_needed() {
        return attempt();
    }
    let answer = Shared::new()?;
    // Not libc's fork: handlers of the program's would run. No signal tells of the
    // child's end, so that nobody else waits for it.
    // SAFETY: a child with a copy of this memory; it ends below.
    let child = unsafe { kernel::syscall!(libc::SYS_clone, 0, 0, 0, 0, 0) };
    if child < 0 {
        return Err(OsError::last("clone"));
    }
    if child == 0 {
        die_quietly();
        let (code, value) = match attempt() {
            Ok(value) => (0, value),
            Err(error) => (error.errno, 0),
        };
        answer.set(code, value);
        loop {
            // SAFETY: ends the child.
            unsafe { kernel::syscall!(libc::SYS_exit_group, 0) };
        }
    }
    loop {
        // SAFETY: our own child, and nothing to write to.
        let ended = unsafe { kernel::syscall!(libc::SYS_wait4, child, 0, libc::__WALL, 0) };
        if ended >= 0 || crate::error::errno() != libc::EINTR {
            break;
        }
    }
    match answer.get() {
        Some((0, value)) => Ok(value),
        Some((errno, _)) => Err(OsError::new(call, errno)),
        None => Err(OsError::new(call, libc::EPERM)),
    }
}

/// Whether the filters in force answer a call that they do not name, and end nobody for it.
/// Those that a container has by default do.
#[must_use]
pub fn is_answered() -> bool {
    /// Far above every call there is, and none of another interface's.
    const NO_CALL: libc::c_long = 4095;
    let attempt = || {
        // SAFETY: no call has this number: nothing is done.
        unsafe { kernel::syscall!(NO_CALL, 0) };
        Ok(0)
    };
    ask("a call that there is not", attempt).is_ok()
}

/// The child's end by a filter is no news: no core, and no handler of the program's.
fn die_quietly() {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // libc makes this call as every program starts, so filters let it by.
    // SAFETY: a complete structure, and no place for the old limit.
    unsafe {
        kernel::syscall!(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_CORE,
            &raw const none,
            0
        )
    };
    // SAFETY: all zero is the default action.
    let default: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: a complete action; the signal is one that can be set.
    unsafe { libc::sigaction(libc::SIGSYS, &raw const default, core::ptr::null_mut()) };
}

/// A word of memory that parent and child share, and one that says it was written.
struct Shared(usize);

impl Shared {
    fn new() -> Result<Self, OsError> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at = unsafe { kernel::mmap(core::ptr::null_mut(), PAGE_SIZE, access, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(OsError::last("mmap"));
        }
        Ok(Self(at as usize))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        let at = self.0 + index * size_of::<AtomicU64>();
        // SAFETY: one of the first words of the page, which is mapped as long as this
        // value lives and only ever used as atomics.
        unsafe { &*(at as *const AtomicU64) }
    }

    fn set(&self, code: i32, value: u64) {
        self.word(1).store(value, Ordering::Relaxed);
        self.word(0)
            .store(u64::from(code.unsigned_abs()) << 1 | 1, Ordering::Release);
    }

    fn get(&self) -> Option<(i32, u64)> {
        let code = self.word(0).load(Ordering::Acquire);
        let value = self.word(1).load(Ordering::Relaxed);
        (code & 1 != 0).then_some(((code >> 1) as i32, value))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, used by nobody any more.
        unsafe { kernel::munmap(self.0 as *mut libc::c_void, PAGE_SIZE) };
    }
}

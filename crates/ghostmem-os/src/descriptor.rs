//! File descriptors of the engine's own.
//!
//! A program started with a closed standard stream gives its number to the next
//! file opened: output meant for the stream would go into a heap's memory file.
//! And a program may put a file of its own over any low number (dup2(2)), as
//! every shell does for 3 to 9: ours would be gone without a word. A program may
//! count on all numbers below its limit, too: ours are above it where the hard limit
//! leaves room. Which numbers are ours is written down, for who looks after what a
//! program closes.
//!
//! A child may share its parent's table of descriptors, and not its memory (clone(2)
//! with `CLONE_FILES` alone). To close a number there closes it for both: see [`leave_open`].

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use crate::calls;
use crate::doorway;
use crate::error::OsError;
use crate::kernel;

/// Ours are at or above this where the process may have as many, or could have: a
/// descriptor above the limit stays open. A thousand of them are looked after.
const LOWEST: i32 = 3072;
/// Below the process's limit by this much otherwise.
const FROM_TOP: u64 = 64;

/// Numbers that are looked after. The kernel's table of a process grows to as many
/// entries of eight bytes.
const NUMBERS: usize = 4096;

/// Numbers, one bit for each.
struct Numbers([AtomicU64; NUMBERS / 64]);

impl Numbers {
    const fn none() -> Self {
        Self([const { AtomicU64::new(0) }; NUMBERS / 64])
    }

    fn place(&self, fd: i32) -> Option<(&AtomicU64, u64)> {
        let fd = usize::try_from(fd).ok()?;
        Some((self.0.get(fd / 64)?, 1 << (fd % 64)))
    }

    fn has(&self, fd: i32) -> bool {
        self.place(fd)
            .is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    fn note(&self, fd: i32) {
        if let Some((word, bit)) = self.place(fd) {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether the number was there.
    fn forget(&self, fd: i32) -> bool {
        self.place(fd)
            .is_some_and(|(word, bit)| word.fetch_and(!bit, Ordering::Relaxed) & bit != 0)
    }
}

/// Our numbers.
static OURS: Numbers = Numbers::none();
/// Those that are only kept in reserve, see [`Spare`].
static SPARES: Numbers = Numbers::none();
/// Numbers that a process on the same table of descriptors holds, see [`leave_open`].
static SHARED: Numbers = Numbers::none();
/// Another process may have made descriptors on the same table, whose numbers are not
/// known here.
static IS_SHARED: AtomicBool = AtomicBool::new(false);

/// Whether a descriptor is one of the engine's, which nobody else may close.
/// Async-signal-safe.
#[must_use]
pub fn is_ours(fd: i32) -> bool {
    OURS.has(fd) || SPARES.has(fd) || is_anothers(fd)
}

/// The descriptor of the caller's that a file name stands for: `/dev/stdout`, `/dev/fd/7`. To
/// open the name makes another one, which begins at the file's start, or is refused.
#[must_use]
pub fn named(path: &[u8]) -> Option<i32> {
    let number = match path {
        b"/dev/stdin" => b"0",
        b"/dev/stdout" => b"1",
        b"/dev/stderr" => b"2",
        _ => [&b"/dev/fd/"[..], b"/proc/self/fd/"]
            .iter()
            .find_map(|folder| path.strip_prefix(*folder))?,
    };
    let is_number = number.iter().all(u8::is_ascii_digit);
    let number = str::from_utf8(number).ok().filter(|_| is_number)?;
    number.parse().ok()
}

/// Whether a descriptor is, or may be, an engine's in another process.
fn is_anothers(fd: i32) -> bool {
    let range = LOWEST..NUMBERS as i32;
    SHARED.has(fd) || (range.contains(&fd) && is_shared())
}

/// Whether the table of descriptors is, or was, another process's, too.
#[must_use]
pub fn is_shared() -> bool {
    IS_SHARED.load(Ordering::Relaxed)
}

/// Right before the system call that makes a child on the same table of descriptors:
/// nobody moves pages. From here on the numbers that are ours now are closed by
/// neither process: the parent goes on with them, and the child with the copies that
/// were made for it. Where both are, in the parent, [`close_again`] follows.
///
/// Whether the table was shared before, for [`was_not_shared`].
pub fn leave_open() -> bool {
    let before = IS_SHARED.swap(true, Ordering::Relaxed);
    let words = OURS.0.iter().zip(&SPARES.0);
    for (shared, (ours, spares)) in SHARED.0.iter().zip(words) {
        let all = ours.load(Ordering::Relaxed) | spares.load(Ordering::Relaxed);
        shared.fetch_or(all, Ordering::Relaxed);
    }
    before
}

/// No child was made: the table is shared as it was before [`leave_open`].
pub fn was_not_shared(before: bool) {
    IS_SHARED.store(before, Ordering::Relaxed);
}

/// In the parent: numbers that are still ours are ours alone to close. Those that it
/// has given up since [`leave_open`], as they are the child's copies, stay open.
pub fn close_again() {
    let words = OURS.0.iter().zip(&SPARES.0);
    for (shared, (ours, spares)) in SHARED.0.iter().zip(words) {
        let all = ours.load(Ordering::Relaxed) | spares.load(Ordering::Relaxed);
        shared.fetch_and(!all, Ordering::Relaxed);
    }
}

/// Leaves a number to the program that the engine only keeps in reserve; `false`
/// when it does not. The program is about to put a file of its own there.
/// Async-signal-safe.
pub fn cede(fd: i32) -> bool {
    let ceded = SPARES.forget(fd);
    if ceded {
        SHARED.forget(fd);
    }
    ceded
}

fn note(fd: i32) -> i32 {
    OURS.note(fd);
    fd
}

/// Moves a descriptor to a number that programs do not use; one that the
/// limits leave no such number stays where it is, if that is not a standard
/// stream's.
///
/// # Errors
/// The kernel's refusal of another descriptor; the old one is closed then.
pub(crate) fn out_of_the_way(fd: i32) -> Result<i32, OsError> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a valid place for the answer.
    unsafe {
        kernel::syscall!(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_NOFILE,
            0,
            &raw mut limit
        )
    };
    if fd < LOWEST
        && let Some(moved) = above_limit(fd, limit)
    {
        close(fd);
        return Ok(note(moved));
    }
    let top = limit.rlim_cur.saturating_sub(FROM_TOP);
    let high = i32::try_from(top).map_or(LOWEST, |top| top.min(LOWEST));
    let low = libc::STDERR_FILENO + 1;
    for lowest in [high.max(low), low] {
        if fd >= lowest {
            return Ok(note(fd));
        }
        // SAFETY: duplicates a descriptor; no memory is involved.
        let moved =
            unsafe { kernel::syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, lowest) } as i32;
        if moved >= 0 {
            close(fd);
            return Ok(note(moved));
        }
    }
    let error = OsError::last("fcntl(F_DUPFD_CLOEXEC)");
    close(fd);
    Err(error)
}

/// Duplicates a descriptor to a number above the process's limit, by raising that for
/// a moment; `None` where the hard limit has no room, the soft one needs no raising, or
/// nobody may set one.
fn above_limit(fd: i32, limit: libc::rlimit) -> Option<i32> {
    let wanted = NUMBERS as libc::rlim_t;
    // A filter of the program's own may end the process for setting a limit.
    if limit.rlim_cur >= wanted || limit.rlim_max < wanted || doorway::is_confined() {
        return None;
    }
    let raised = libc::rlimit {
        rlim_cur: wanted,
        rlim_max: limit.rlim_max,
    };
    // SAFETY: a valid limit.
    if unsafe {
        kernel::syscall!(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_NOFILE,
            &raw const raised,
            0
        )
    } != 0
    {
        return None;
    }
    // SAFETY: duplicates a descriptor; no memory is involved.
    let moved =
        unsafe { kernel::syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, LOWEST) } as i32;
    let mut now = limit;
    // SAFETY: a valid place for the answer.
    unsafe { kernel::syscall!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, &raw mut now) };
    // What another thread of the program set meanwhile stays.
    if now.rlim_cur == wanted {
        // SAFETY: a valid limit.
        unsafe {
            kernel::syscall!(
                libc::SYS_prlimit64,
                0,
                libc::RLIMIT_NOFILE,
                &raw const limit,
                0
            )
        };
    }
    (moved >= 0).then_some(moved)
}

/// A descriptor held only for its number: one can be had in its place where the
/// process may open no more, as a fork needs.
///
/// A process that lowers its limit keeps the descriptors above, but gets new ones
/// below only. So the number is low: where the program takes it for a file of its
/// own ([`cede`]), the spare is gone, and that file is left alone.
#[derive(Debug)]
pub struct Spare {
    fd: AtomicI32,
    /// Which file it is: device and inode.
    file: [AtomicU64; 2],
}

/// Set where a filter ends the process for the call that makes a spare.
static WITHOUT_SPARES: AtomicBool = AtomicBool::new(false);

/// No spare is held from now on: memory files cannot be had.
pub fn hold_no_spares() {
    WITHOUT_SPARES.store(true, Ordering::Relaxed);
}

/// Spares are at or above this: below is where programs choose numbers.
const SPARE_LOWEST: i32 = 16;

impl Spare {
    /// None yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            fd: AtomicI32::new(-1),
            file: [const { AtomicU64::new(0) }; 2],
        }
    }

    /// Takes one, if there is none and the process may open another. One thread at
    /// a time. None where the table is another process's, too: that one would find a file
    /// at a number of its own, and keep it when this process has ended.
    pub fn hold(&self) {
        if self.is_held() || is_shared() || WITHOUT_SPARES.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the name is a NUL-terminated literal.
        let made = unsafe { kernel::memfd_create(c"ghostmem-spare".as_ptr(), libc::MFD_CLOEXEC) };
        if made < 0 {
            self.fd.store(-1, Ordering::Relaxed);
            return;
        }
        let fd = Self::move_up(made);
        for (kept, seen) in self.file.iter().zip(file_of(fd).unwrap_or([0; 2])) {
            kept.store(seen, Ordering::Relaxed);
        }
        SPARES.note(fd);
        self.fd.store(fd, Ordering::Relaxed);
    }

    /// Moves a descriptor to [`SPARE_LOWEST`] or above, if it can be.
    fn move_up(fd: i32) -> i32 {
        if fd >= SPARE_LOWEST {
            return fd;
        }
        // SAFETY: duplicates a descriptor; no memory is involved.
        let moved =
            unsafe { kernel::syscall!(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, SPARE_LOWEST) }
                as i32;
        // A standard stream's number stays free.
        if moved < 0 && fd > libc::STDERR_FILENO {
            return fd;
        }
        calls::close(fd);
        moved
    }

    /// Gives it up, so that its number is free; `false` when there was none.
    pub fn let_go(&self) -> bool {
        let held = self.is_held();
        let fd = self.fd.swap(-1, Ordering::Relaxed);
        if held {
            // Before the number can be somebody else's.
            SPARES.forget(fd);
            close_unless_shared(fd);
        }
        held
    }

    fn is_held(&self) -> bool {
        let fd = self.fd.load(Ordering::Relaxed);
        let [device, inode] = &self.file;
        let file = [device, inode].map(|kept| kept.load(Ordering::Relaxed));
        fd >= 0 && file_of(fd) == Some(file)
    }
}

impl Default for Spare {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Device and inode of an empty file without a name; `None` for anything else.
fn file_of(fd: i32) -> Option<[u64; 2]> {
    let seen = status_of(fd)?;
    (seen.st_nlink == 0 && seen.st_size == 0).then_some([seen.st_dev, seen.st_ino])
}

/// Device and inode of whatever file is open at a number; `None` for none.
pub(crate) fn identity(fd: i32) -> Option<[u64; 2]> {
    status_of(fd).map(|seen| [seen.st_dev, seen.st_ino])
}

fn status_of(fd: i32) -> Option<libc::stat64> {
    let mut seen = MaybeUninit::<libc::stat64>::zeroed();
    // SAFETY: `seen` is writable.
    let rc = unsafe { kernel::syscall!(libc::SYS_fstat, fd, seen.as_mut_ptr()) };
    // SAFETY: zeroed, and filled by the kernel where it succeeded.
    let seen = unsafe { seen.assume_init() };
    (rc == 0).then_some(seen)
}

/// Lets programs that are executed from here have a descriptor of the engine's.
///
/// # Errors
/// The kernel's refusal of fcntl(2).
pub(crate) fn leave_to_programs(fd: i32) -> Result<(), OsError> {
    match set_flags(fd, 0) {
        true => Ok(()),
        false => Err(OsError::last("fcntl(F_SETFD)")),
    }
}

/// Whether the program that this process is about to execute gets a descriptor that came
/// from the one before. Nothing is done about a number that is not the engine's, nor where
/// a filter of the program's may forbid it. Async-signal-safe.
pub fn pass_to_programs(fd: i32, passed: bool) {
    if OURS.has(fd) && !doorway::is_confined() {
        let _stays_as_it_was = set_flags(fd, if passed { 0 } else { libc::FD_CLOEXEC });
    }
}

fn set_flags(fd: i32, flags: i32) -> bool {
    // SAFETY: changes a flag of a number; no memory is involved.
    unsafe { kernel::syscall!(libc::SYS_fcntl, fd, libc::F_SETFD, flags) >= 0 }
}

/// Notes that a descriptor is the engine's, which came with this program.
pub(crate) fn own(fd: i32) {
    note(fd);
}

/// A number of the engine's that the program took for a file of its own; -1 is none.
pub(crate) fn disown(fd: i32) {
    OURS.forget(fd);
}

/// Closes a descriptor that the caller owns; -1 is none.
pub(crate) fn close(fd: i32) {
    // Before the number can be somebody else's.
    OURS.forget(fd);
    if fd >= 0 {
        close_unless_shared(fd);
    }
}

fn close_unless_shared(fd: i32) {
    if !SHARED.has(fd) {
        calls::close(fd);
    }
}

#[cfg(test)]
mod tests {
    use super::{SPARE_LOWEST, Spare, leave_open, named, was_not_shared};
    use crate::guard::memory_file;
    use crate::uffd::{FEATURE_SIGBUS, Source, Uffd};

    #[test]
    fn names_of_descriptors_are_told_from_those_of_files() {
        for (name, file) in [
            ("/dev/stdout", Some(1)),
            ("/dev/stderr", Some(2)),
            ("/dev/fd/12", Some(12)),
            ("/proc/self/fd/3", Some(3)),
            ("/dev/fd/", None),
            ("/dev/fd/+1", None),
            ("/dev/fd/1/x", None),
            ("/dev/fd/99999999999", None),
            ("/dev/null", None),
            ("stdout", None),
        ] {
            assert_eq!(named(name.as_bytes()), file, "{name}");
        }
    }

    #[test]
    fn no_spare_is_put_on_a_table_that_is_anothers_too() {
        let code = crate::stack::forked(|| {
            let open = || {
                let numbers = SPARE_LOWEST..1024;
                // SAFETY: looks at a number.
                let is_open = |&fd: &i32| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0;
                numbers.filter(is_open).count()
            };
            let before = open();
            let spare = Spare::new();
            spare.hold();
            let alone = open() - before;
            spare.let_go();
            let was_shared = leave_open();
            spare.hold();
            let shared = open() - before;
            // No child was made of it.
            was_not_shared(was_shared);
            spare.hold();
            let again = open() - before;
            i32::from((alone, shared, again) == (1, 0, 1))
        });
        assert_eq!(code, 1);
    }

    #[test]
    fn closed_standard_streams_stay_closed() {
        let code = crate::stack::forked(|| {
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
            code as i32
        });
        assert_eq!(code, 0);
    }
}

//! execve and execveat with argument and environment strings in ghost memory, and what a
//! child asks for that is to happen with them.
//!
//! execve does not come back when it works, and between vfork and exec the
//! memory is the parent's. The copies therefore stand in memory that the
//! thread keeps for its next execve, not in a lease.

use ghostmem_os::doorway;

use crate::guarded::{self, Touch, load, store};
use crate::raw::{self, call, failed, own};
use crate::signals::{self, inherited};
use crate::{begin, bounce, ghost, lifted, raised, start, thread, tree};

use super::spawn::on_ordinary_stack;
use super::{Done, error, target};

/// A string longer than this is refused by the kernel (`MAX_ARG_STRLEN`).
const STRING_MAX: usize = 32 * 4096 + 1;
/// More entries than this cannot be passed.
const ENTRIES_MAX: usize = 1 << 20;

/// A null-terminated array of strings.
#[derive(Clone, Copy)]
struct Strings {
    array: usize,
    count: usize,
    /// Bytes of all the strings, NULs included.
    bytes: usize,
    ghost: bool,
    /// Our variable is among them.
    has_us: bool,
    /// Copies leave out what makes a program ours.
    without_us: bool,
}

impl Strings {
    fn of(array: usize) -> Touch<Self> {
        let mut strings = Self {
            array,
            count: 0,
            bytes: 0,
            ghost: array != 0 && ghost::is_ghost(array),
            has_us: false,
            without_us: false,
        };
        while array != 0 && strings.count < ENTRIES_MAX {
            let text = strings.get(strings.count)?;
            if text == 0 {
                break;
            }
            strings.ghost |= ghost::is_ghost(text);
            strings.has_us = strings.has_us || target::begins(text, target::OURS)?;
            strings.bytes += guarded::string_bytes(text, STRING_MAX)?;
            strings.count += 1;
        }
        Ok(strings)
    }

    fn get(self, index: usize) -> Touch<usize> {
        load(self.array.wrapping_add(index * size_of::<usize>()))
    }

    /// Copies array and strings to `at`; where it ends.
    fn copy(self, at: usize) -> Touch<usize> {
        let mut end = at + (self.count + 1) * size_of::<usize>();
        let mut place = at;
        for index in 0..self.count {
            let text = self.get(index)?;
            let bytes = guarded::string_bytes(text, STRING_MAX)?;
            if self.without_us && target::begins(text, target::OURS)? {
                continue;
            }
            guarded::copy(end, text, bytes)?;
            let names_us = self.without_us && target::begins(text, target::PRELOAD)?;
            let left = if names_us {
                target::leave_out(end, bytes)
            } else {
                bytes
            };
            if left > 0 {
                store(place, end)?;
                place += size_of::<usize>();
                end += left;
            }
        }
        store(place, 0_usize)?;
        Ok(end.next_multiple_of(size_of::<usize>()))
    }

    fn room(self) -> usize {
        (self.count + 2) * size_of::<usize>() + self.bytes
    }
}

/// A request of ptrace(2).
pub(super) const PTRACE_TRACEME: usize = 0;

/// ptrace's TRACEME. A traced child stops at each signal, those that bring pages in
/// included; between vfork and exec its parent, the tracer, cannot go on to see
/// that. There the request is made when the child executes a program.
pub(super) fn trace_me() -> Done {
    if !signals::in_vfork_child() {
        return Done::Asis;
    }
    thread::current()
        .to_trace
        .set(own!(libc::SYS_getpid) as i32);
    Done::With(0)
}

/// Makes the request that was put off.
fn trace_now() {
    let child = thread::current().to_trace.replace(0);
    if child != 0 && child == own!(libc::SYS_getpid) as i32 {
        let _as_asked = call!(libc::SYS_ptrace, PTRACE_TRACEME, 0, 0, 0);
    }
}

/// Whether what execve reads can be read, its arguments beginning at `shift`: before
/// the heap is made no handler of ours turns a bad address into an answer.
pub(super) fn can_be_read(args: [usize; 6], shift: usize) -> bool {
    let strings = |array: usize| {
        for index in 0..ENTRIES_MAX {
            let place = array.wrapping_add(index * size_of::<usize>());
            if !begin::is_readable(place) {
                return false;
            }
            match raw::load(place) {
                0 => return true,
                text if begin::is_readable(text) => {}
                _ => return false,
            }
        }
        true
    };
    let arrays = [args[shift + 1], args[shift + 2]];
    begin::is_readable(args[shift]) && arrays.into_iter().all(|array| array == 0 || strings(array))
}

/// execve, or execveat when `at` is given.
pub(super) fn execve(args: [usize; 6], at: Option<()>) -> Touch<Done> {
    let (number, shift) = if at.is_some() { (322, 1) } else { (59, 0) };
    let path = args[shift];
    let (argv, mut envp) = (Strings::of(args[shift + 1])?, Strings::of(args[shift + 2])?);
    let folder = if at.is_some() {
        args[0]
    } else {
        libc::AT_FDCWD as usize
    };
    envp.without_us = envp.has_us && !target::takes_us(folder, path)?;
    if envp.without_us && start::settings().is_some_and(|settings| settings.verbose) {
        raw::say(
            b"ghostmem: a child runs without GhostMem: the library cannot be in what it executes\n",
        );
    }
    raised::before_exec();
    tree::before_exec(envp.has_us && !envp.without_us);
    let hands_on = inherited::is_any();
    if !(ghost::is_ghost(path) || argv.ghost || envp.ghost || envp.without_us) {
        trace_now();
        return Ok(match hands_on || lifted::is_any() {
            true => execute(number, args, hands_on),
            false => Done::Asis,
        });
    }
    let path_bytes = if path == 0 {
        0
    } else {
        guarded::string_bytes(path, 4097)?
    };
    let room = path_bytes + argv.room() + envp.room() + 64;
    let Some(memory) = kept(room) else {
        return Ok(error(libc::ENOMEM));
    };
    let mut passed = args;
    let mut end = memory;
    if path != 0 {
        guarded::copy(memory, path, path_bytes)?;
        passed[shift] = memory;
        end = (memory + path_bytes).next_multiple_of(8);
    }
    for (offset, strings) in [(1, argv), (2, envp)] {
        if strings.array != 0 {
            passed[shift + offset] = end;
            end = strings.copy(end)?;
        }
    }
    trace_now();
    Ok(execute(number, passed, hands_on))
}

/// Executes a program. `hands_on`: with what it gets of our signals, and so on a stack that
/// cannot be missing.
fn execute(number: usize, args: [usize; 6], hands_on: bool) -> Done {
    let execute = move || match is_missing(number, args) {
        true => raw::syscall(number, args),
        false => lifted::around_exec(|| raw::syscall(number, args)),
    };
    if !hands_on {
        return Done::With(execute());
    }
    // Where the stack is changed all signals are blocked: the program gets what was blocked
    // before.
    let mask = inherited::mask();
    let executed = move || Done::With(inherited::hand_on(mask, execute));
    on_ordinary_stack(executed).unwrap_or(error(libc::ENOMEM))
}

/// Whether execve finds no file, or one that this user may not execute: limits that are lowered
/// for it may stay so. Shells look for theirs in one folder after another.
fn is_missing(number: usize, args: [usize; 6]) -> bool {
    let [path, ..] = args;
    // A filter of the program's may end the process for the question, which is asked as the
    // real user.
    let is_itself = || {
        own!(libc::SYS_getuid) == own!(libc::SYS_geteuid)
            && own!(libc::SYS_getgid) == own!(libc::SYS_getegid)
    };
    number == 59
        && lifted::is_any()
        && !doorway::is_confined()
        && is_itself()
        && (failed(call!(libc::SYS_faccessat, libc::AT_FDCWD, path, libc::X_OK)) || !is_file(path))
}

/// Whether a path leads to a regular file.
fn is_file(path: usize) -> bool {
    // SAFETY: all zero is a valid value of the structure.
    let mut seen: libc::stat = unsafe { core::mem::zeroed() };
    let asked = call!(libc::SYS_stat, path, &raw mut seen);
    !failed(asked) && seen.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// Maps what this thread's next execve may need, but for very long arguments: later a limit
/// on address space may forbid it.
pub(super) fn map_ahead() {
    const BYTES: usize = 1 << 20;
    let _later_if_not = kept(BYTES);
}

/// The thread's memory for this, grown if need be.
fn kept(room: usize) -> Option<usize> {
    let thread = thread::current();
    if thread.exec_bytes.get() < room {
        if thread.exec.get() != 0 {
            bounce::unmap(thread.exec.get(), thread.exec_bytes.get());
            thread.exec_bytes.set(0);
        }
        let bytes = room.checked_next_multiple_of(1 << 16)?;
        thread.exec.set(bounce::map(bytes)?);
        thread.exec_bytes.set(bytes);
    }
    Some(thread.exec.get())
}

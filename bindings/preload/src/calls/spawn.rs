//! New processes: fork's own system call, the ones that programs make by
//! themselves, and execve and execveat with argument and environment strings in
//! ghost memory.
//!
//! execve does not come back when it works, and between vfork and exec the
//! memory is the parent's. The copies therefore stand in memory that the
//! thread keeps for its next execve, not in a lease.

use ghostmem::fork::Call;

use crate::raw::{self, Answer, call, load, store};
use crate::{bounce, ghost, start, thread};

use super::{Done, error};

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
}

impl Strings {
    fn of(array: usize) -> Self {
        let mut strings = Self {
            array,
            count: 0,
            bytes: 0,
            ghost: array != 0 && ghost::is_ghost(array),
        };
        while array != 0 && strings.count < ENTRIES_MAX {
            let text = strings.get(strings.count);
            if text == 0 {
                break;
            }
            strings.ghost |= ghost::is_ghost(text);
            strings.bytes += raw::string_bytes(text, STRING_MAX);
            strings.count += 1;
        }
        strings
    }

    fn get(self, index: usize) -> usize {
        load(self.array + index * size_of::<usize>())
    }

    /// Copies array and strings to `at`; where it ends.
    fn copy(self, at: usize) -> usize {
        let mut end = at + (self.count + 1) * size_of::<usize>();
        for index in 0..self.count {
            let text = self.get(index);
            let bytes = raw::string_bytes(text, STRING_MAX);
            raw::copy(end, text, bytes);
            store(at + index * size_of::<usize>(), end);
            end += bytes;
        }
        store(at + self.count * size_of::<usize>(), 0_usize);
        end.next_multiple_of(size_of::<usize>())
    }

    fn room(self) -> usize {
        (self.count + 2) * size_of::<usize>() + self.bytes
    }
}

/// clone or fork on a thread that is in libc's fork: libc's own work before
/// and after the call, on its open files and the like, finds the heap working.
pub(super) fn fork(number: usize, args: [usize; 6]) -> Done {
    let shares_memory = number == 56 && args[0] & libc::CLONE_VM as usize != 0;
    if shares_memory {
        return Done::Asis;
    }
    match ghostmem::fork::before_call() {
        Call::Strange => return Done::Asis,
        Call::Refused => return Done::With(-(libc::EAGAIN as Answer)),
        Call::Ready => {}
    }
    let answer: Answer = raw::syscall(number, args);
    ghostmem::fork::after_call(answer == 0);
    Done::With(answer)
}

/// Longest structure of clone3 that is looked at; the kernel's has 88 bytes.
const CLONE_ARGS_MAX: usize = 128;

/// clone, clone3 or fork that a program makes by itself (sandboxes do, for a child
/// in namespaces of its own): no handlers run then. What shares memory, or starts
/// the child on another stack, is left alone.
pub(super) fn raw_fork(number: usize, mut args: [usize; 6]) -> Done {
    let mut copy = [0_u8; CLONE_ARGS_MAX];
    let (flags, stack) = match number {
        57 => (0, 0),
        56 => (args[0], args[1]),
        _ => {
            let [address, bytes, ..] = args;
            if address == 0 || !(64..=CLONE_ARGS_MAX).contains(&bytes) {
                return Done::Asis;
            }
            args[0] = copy.as_mut_ptr() as usize;
            raw::copy(args[0], address, bytes);
            (load(address), load(address + 40))
        }
    };
    if stack != 0 || flags & libc::CLONE_VM as usize != 0 {
        return Done::Asis;
    }
    start::before_fork();
    let answer: Answer = ghostmem::fork::around_call(|| raw::syscall(number, args));
    if answer == 0 {
        start::in_child();
    } else {
        start::in_parent();
    }
    Done::With(answer)
}

/// execve, or execveat when `at` is given.
pub(super) fn execve(args: [usize; 6], at: Option<()>) -> Done {
    let (number, shift) = if at.is_some() { (322, 1) } else { (59, 0) };
    let path = args[shift];
    let (argv, envp) = (Strings::of(args[shift + 1]), Strings::of(args[shift + 2]));
    if !(ghost::is_ghost(path) || argv.ghost || envp.ghost) {
        return Done::Asis;
    }
    let path_bytes = if path == 0 {
        0
    } else {
        raw::string_bytes(path, 4097)
    };
    let room = path_bytes + argv.room() + envp.room() + 64;
    let Some(memory) = kept(room) else {
        return error(libc::ENOMEM);
    };
    let mut passed = args;
    let mut end = memory;
    if path != 0 {
        raw::copy(memory, path, path_bytes);
        passed[shift] = memory;
        end = (memory + path_bytes).next_multiple_of(8);
    }
    for (offset, strings) in [(1, argv), (2, envp)] {
        if strings.array != 0 {
            passed[shift + offset] = end;
            end = strings.copy(end);
        }
    }
    let answer: Answer = raw::syscall(number, passed);
    Done::With(answer)
}

/// The thread's memory for this, grown if need be.
fn kept(room: usize) -> Option<usize> {
    let thread = thread::current();
    if thread.exec_bytes.get() < room {
        if thread.exec.get() != 0 {
            let _gone = call!(libc::SYS_munmap, thread.exec.get(), thread.exec_bytes.get());
            thread.exec_bytes.set(0);
        }
        let bytes = room.checked_next_multiple_of(1 << 16)?;
        thread.exec.set(bounce::map(bytes)?);
        thread.exec_bytes.set(bytes);
    }
    Some(thread.exec.get())
}

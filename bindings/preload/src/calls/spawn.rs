//! New processes: fork's own system call, the ones that programs make by
//! themselves, and execve and execveat with argument and environment strings in
//! ghost memory.
//!
//! execve does not come back when it works, and between vfork and exec the
//! memory is the parent's. The copies therefore stand in memory that the
//! thread keeps for its next execve, not in a lease.

use core::hint::black_box;

use ghostmem::fork::Call as ForkCall;
use ghostmem_os::stack::OwnStack;

use crate::guarded::{self, Touch, load, store};
use crate::raw::{self, Answer, call, failed, own};
use crate::signals::{Blocked, WithoutStack};
use crate::{begin, bounce, ghost, holds, signals, start, taken, thread, tree};

use super::held::{self, WithoutRseq};
use super::{Call, Done, error, misc, table, target};

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

/// Runs what makes a child on ordinary memory. Where the program's stack is ghost memory
/// (from malloc, or a mapping that was taken) its pages stop moving with all others before
/// the call, and with the guard backends parent and child have the same ones until the
/// child has its own: two processes on one stack. `None`: there is no memory for another.
///
/// `body` brings what it needs along: the caller's stack is not there for it.
fn on_ordinary_stack<R>(body: impl FnOnce() -> R) -> Option<R> {
    let here = 0_u8;
    if !ghost::is_ghost(black_box(&raw const here).addr()) {
        return Some(body());
    }
    let mut stack = OwnStack::new().ok()?;
    // Another handler would begin where the one began that this is called from, or on the
    // other stack, which is short.
    let handles = signals::is_on_signal_stack();
    let blocked = handles.then(Blocked::new);
    let result = stack.run(move || {
        let inside = (!handles).then(Blocked::new);
        let without = handles.then(WithoutStack::new);
        let result = body();
        drop(without);
        drop(inside);
        result
    });
    drop(blocked);
    result.ok()
}

/// clone or fork on a thread that is in libc's fork: libc's own work before
/// and after the call, on its open files and the like, finds the heap working.
pub(super) fn fork(number: usize, args: [usize; 6]) -> Done {
    let shares_memory = number == table::CLONE && args[0] & libc::CLONE_VM as usize != 0;
    if shares_memory {
        return Done::Asis;
    }
    on_ordinary_stack(move || between_handlers(number, args)).unwrap_or(error(libc::EAGAIN))
}

fn between_handlers(number: usize, mut args: [usize; 6]) -> Done {
    let Ok(Some(asked)) = Asked::new(number, args) else {
        return Done::Asis;
    };
    // A thread's block may be in ghost memory, too (its stack came from malloc).
    let mut numbers = [0_u32; 3];
    let ours = numbers.as_mut_ptr() as usize;
    asked.pass_stand_ins(number, &mut args, ours);
    let without = WithoutRseq::new();
    let mut still = None;
    match ghostmem::fork::before_call(|| still = Some(taken::hold_still())) {
        ForkCall::Strange => return Done::Asis,
        ForkCall::Refused => return error(libc::EAGAIN),
        ForkCall::Ready => {}
    }
    let answer: Answer = raw::syscall(number, args);
    ghostmem::fork::after_call(answer == 0);
    drop(still);
    drop(without);
    asked.give(answer, ours);
    Done::With(answer)
}

/// Longest structure of clone3 that is looked at; the kernel's has 88 bytes.
const CLONE_ARGS_MAX: usize = 128;
/// clone3(2), since 5.5: the child has no handlers.
const CLONE_CLEAR_SIGHAND: usize = 0x1_0000_0000;

/// What a call that makes a child asks for.
#[derive(Clone, Copy)]
struct Asked {
    flags: usize,
    /// The child's stack pointer; 0: the caller's.
    stack: usize,
    /// Where the child's stack begins, if the call says it.
    stack_base: usize,
    /// Places that the kernel writes numbers to: [`PARENT`], [`CHILD`], [`FILE`].
    places: [usize; 3],
}

/// The child's number for the parent, the same for the child, and its pidfd.
const PARENT: usize = 0;
const CHILD: usize = 1;
const FILE: usize = 2;

impl Asked {
    fn new(number: usize, args: [usize; 6]) -> Touch<Option<Self>> {
        Ok(Some(match number {
            57 => Self {
                flags: 0,
                stack: 0,
                stack_base: 0,
                places: [0; 3],
            },
            table::CLONE => Self {
                flags: args[0],
                stack: args[1],
                stack_base: 0,
                places: [args[2], args[3], args[2]],
            },
            _ => {
                let [address, bytes, ..] = args;
                if address == 0 || !(64..=CLONE_ARGS_MAX).contains(&bytes) {
                    return Ok(None);
                }
                // flags, pidfd, child_tid, parent_tid, exit_signal, stack, its size
                let words: [usize; 7] = load(address)?;
                let [flags, file, child, parent, _, base, length] = words;
                Self {
                    flags,
                    stack: if base == 0 {
                        0
                    } else {
                        base.wrapping_add(length)
                    },
                    stack_base: base,
                    places: [parent, child, file],
                }
            }
        }))
    }

    fn has(self, flag: i32) -> bool {
        self.flags & flag as usize != 0
    }

    /// The places to pass to the kernel: those in ghost memory are replaced by
    /// numbers at `ours`.
    fn stand_ins(self, ours: usize) -> [usize; 3] {
        let mut places = self.places;
        for (index, place) in places.iter_mut().enumerate() {
            if ghost::is_ghost(*place) {
                *place = ours + index * size_of::<u32>();
            }
        }
        places
    }

    /// Puts them among the arguments of clone(2); fork(2) has none.
    fn pass_stand_ins(self, number: usize, args: &mut [usize; 6], ours: usize) {
        if number != table::CLONE {
            return;
        }
        let stand_ins = self.stand_ins(ours);
        // One argument for either.
        args[2] = stand_ins[if self.has(libc::CLONE_PIDFD) {
            FILE
        } else {
            PARENT
        }];
        args[3] = stand_ins[CHILD];
    }

    /// Puts the numbers that the kernel wrote at `ours` in their places.
    fn give(self, answer: Answer, ours: usize) {
        if failed(answer) {
            return;
        }
        let child = answer == 0;
        let flags = [
            !child && self.has(libc::CLONE_PARENT_SETTID),
            child && self.has(libc::CLONE_CHILD_SETTID),
            !child && self.has(libc::CLONE_PIDFD),
        ];
        for (index, place) in self.places.into_iter().enumerate() {
            if flags[index] && ghost::is_ghost(place) {
                let _as_the_kernel = guarded::copy(place, ours + index * 4, 4);
            }
        }
        let clears = self.has(libc::CLONE_CHILD_CLEARTID);
        if child && clears && ghost::is_ghost(self.places[CHILD]) {
            let _cannot_fail = call!(libc::SYS_set_tid_address, self.places[CHILD]);
        }
    }
}

/// clone, clone3 or fork that a program makes by itself (sandboxes do, for a child
/// in namespaces of its own, or on a stack of the program's).
pub(super) fn raw_fork(call: &mut Call) -> Touch<Done> {
    let (number, args) = (call.number, call.args);
    let Some(asked) = Asked::new(number, args)? else {
        return Ok(Done::Asis);
    };
    if asked.has(libc::CLONE_VM) {
        if asked.flags & CLONE_CLEAR_SIGHAND != 0 && number == table::CLONE3 {
            // The child would meet absent pages without a handler. The C
            // library does the same by other means, as on older kernels.
            return Ok(error(libc::ENOSYS));
        }
        return on_shared_memory(asked);
    }
    let Some(answer) = on_ordinary_stack(move || make_child(number, args, asked)) else {
        return Ok(error(libc::EAGAIN));
    };
    let answer = answer?;
    if answer == 0 {
        call.other_stack = asked.stack;
    }
    Ok(Done::With(answer))
}

/// Makes a child that is to have a memory of its own, with the handlers of ours alone.
fn make_child(number: usize, mut args: [usize; 6], asked: Asked) -> Touch<Answer> {
    // Pages are frozen during the call: what the kernel reads and writes is
    // here, and goes to its places when parent and child have their memory.
    let mut copy = [0_u8; CLONE_ARGS_MAX];
    let (mut numbers, mut chosen) = ([0_u32; 3], [0_u32; misc::LEVELS_MAX]);
    let ours = numbers.as_mut_ptr() as usize;
    // The child goes on here, on its copy of this stack, until its memory is
    // there. Only then it changes to the stack that was asked for.
    if number == table::CLONE {
        args[1] = 0;
        asked.pass_stand_ins(number, &mut args, ours);
    } else if number == table::CLONE3 {
        guarded::copy(copy.as_mut_ptr() as usize, args[0], args[1])?;
        args[0] = copy.as_mut_ptr() as usize;
        let [parent, child, file] = asked.stand_ins(ours);
        store(args[0] + 8, [file, child, parent])?;
        store(args[0] + 40, [0_usize; 2])?;
        misc::choose_numbers(args, &mut chosen)?;
    }
    start::before_fork();
    let without = WithoutRseq::new();
    let call_it = || raw::syscall(number, args);
    let blocked = Blocked::new();
    let still = taken::hold_still();
    let answer: Answer = if asked.has(libc::CLONE_FILES) {
        ghostmem::fork::around_sharing_call(call_it)
    } else {
        ghostmem::fork::around_call(call_it)
    };
    drop(still);
    drop(blocked);
    drop(without);
    if answer == 0 {
        start::in_child();
    } else {
        start::in_parent();
    }
    asked.give(answer, ours);
    Ok(answer)
}

/// Stacks whose length a call does not say are held this far down.
const STACK_BYTES_MAX: usize = 1 << 20;

/// A child on the same memory: a thread made by hand, or a child until it
/// executes a program. It has no alternate stack for faults on its stack, which
/// is therefore held until it ends.
fn on_shared_memory(asked: Asked) -> Touch<Done> {
    for place in asked.places {
        if ghost::is_ghost(place) {
            guarded::open(place)?;
        }
    }
    let stack = stack_stays(asked);
    // The kernel writes to it when the child ends.
    let word = asked.places[CHILD];
    let is_held = !asked.has(libc::CLONE_CHILD_CLEARTID) || holds::any(word, 1);
    if stack == Done::Asis && !is_held && !held::stays(word, 4) {
        return Ok(error(libc::ENOMEM));
    }
    Ok(stack)
}

/// Holds the stack of such a child.
fn stack_stays(asked: Asked) -> Done {
    let top = asked.stack.wrapping_sub(1);
    let Some(heap) = ghost::owner(top) else {
        return Done::Asis;
    };
    if holds::any_for(holds::Reason::Stack, top, 1) {
        return Done::Asis;
    }
    let block = heap.pages_around(top).map(|(start, _)| start);
    let lowest = block.unwrap_or(asked.stack.saturating_sub(32 << 10));
    let base = if asked.stack_base == 0 {
        lowest.max(asked.stack.saturating_sub(STACK_BYTES_MAX))
    } else {
        asked.stack_base
    };
    let start = base & !4095;
    let bytes = asked.stack.next_multiple_of(4096) - start;
    // What begins a small object's page may be nobody's.
    for skip in (0..bytes).step_by(4096).take(8) {
        if holds::hold(heap, holds::Reason::Stack, start + skip, bytes - skip, 0) {
            return Done::Asis;
        }
    }
    error(libc::ENOMEM)
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
    tree::before_exec(envp.has_us && !envp.without_us);
    if !(ghost::is_ghost(path) || argv.ghost || envp.ghost || envp.without_us) {
        trace_now();
        return Ok(Done::Asis);
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
    let answer: Answer = raw::syscall(number, passed);
    Ok(Done::With(answer))
}

/// The thread's memory for this, grown if need be.
fn kept(room: usize) -> Option<usize> {
    let thread = thread::current();
    if thread.exec_bytes.get() < room {
        if thread.exec.get() != 0 {
            let _gone = own!(libc::SYS_munmap, thread.exec.get(), thread.exec_bytes.get());
            thread.exec_bytes.set(0);
        }
        let bytes = room.checked_next_multiple_of(1 << 16)?;
        thread.exec.set(bounce::map(bytes)?);
        thread.exec_bytes.set(bytes);
    }
    Some(thread.exec.get())
}

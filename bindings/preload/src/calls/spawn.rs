//! New processes: fork's own system call, and the ones that programs make by themselves.

use core::hint::black_box;

use ghostmem::fork::Call as ForkCall;
use ghostmem_os::error::KeptErrno;
use ghostmem_os::stack::OwnStack;

use crate::alone::Taken;
use crate::guarded::{self, Touch, load, store};
use crate::raw::{self, Answer, call, failed, own};
use crate::signals::{Blocked, WithoutStack};
use crate::{ghost, holds, moving, pool, raised, refused_fork, signals, start, taken, thread};

use super::held::{self, WithoutRseq};
use super::{Call, Done, error, misc, table};

/// Runs what makes a child on ordinary memory. Where the program's stack is ghost memory
/// (from malloc, or a mapping that was taken) its pages stop moving with all others before
/// the call, and with the guard backends parent and child have the same ones until the
/// child has its own: two processes on one stack. `None`: there is no memory for another.
///
/// `body` brings what it needs along: the caller's stack is not there for it.
pub(super) fn on_ordinary_stack<R>(body: impl FnOnce() -> R) -> Option<R> {
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
    let mask = signals::inherited::mask();
    let done = on_ordinary_stack(move || between_handlers(number, args));
    // Another stack is used with signals blocked, and the fork ends behind that.
    ghostmem::fork::give_back(mask);
    done.unwrap_or(error(libc::EAGAIN))
}

fn between_handlers(number: usize, mut args: [usize; 6]) -> Done {
    let _errno = KeptErrno::now();
    let Ok(Some(asked)) = Asked::new(number, args) else {
        return Done::Asis;
    };
    // A thread's block may be in ghost memory, too (its stack came from malloc).
    let mut numbers = [0_u32; 3];
    let ours = numbers.as_mut_ptr() as usize;
    asked.pass_stand_ins(number, &mut args, ours);
    let without = WithoutRseq::new();
    let (call, still) = ghostmem::fork::before_call(hold_still);
    match call {
        ForkCall::Strange => return Done::Asis,
        ForkCall::Refused => {
            raised::say_why_no_fork();
            return error(libc::EAGAIN);
        }
        ForkCall::Ready => {}
    }
    let answer: Answer = raw::syscall(number, args);
    ghostmem::fork::after_call(answer == 0);
    if answer == 0 {
        holds::protect_in_child();
    }
    drop(still);
    drop(without);
    asked.give(answer, ours);
    Done::With(answer)
}

/// The tables of mappings and of what is held, as they are, for a child, and nothing that moves:
/// that comes first, as a move waits for the tables. Who has the one of these never waits for the
/// other's.
fn hold_still() -> [Taken; 3] {
    [
        moving::hold_still(),
        taken::hold_still(),
        holds::hold_still(),
    ]
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
                if address == 0 || bytes < 64 {
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
    let (number, mut args) = (call.number, call.args);
    if number == table::CLONE3 && args[1] > CLONE_ARGS_MAX {
        // What the kernel knows nothing of has to be zero (clone3(2)).
        if !is_zero(
            args[0].wrapping_add(CLONE_ARGS_MAX),
            args[1] - CLONE_ARGS_MAX,
        )? {
            return Ok(error(libc::E2BIG));
        }
        args[1] = CLONE_ARGS_MAX;
    }
    let Some(asked) = Asked::new(number, args)? else {
        return Ok(Done::Asis);
    };
    if asked.has(libc::CLONE_VM) {
        if asked.flags & CLONE_CLEAR_SIGHAND != 0 && number == table::CLONE3 {
            // The child would meet absent pages without a handler. The C
            // library does the same by other means, as on older kernels.
            return Ok(error(libc::ENOSYS));
        }
        let thread = thread::current();
        if !signals::in_vfork_child() {
            signals::inherited::forget(thread);
        }
        let waits = asked.has(libc::CLONE_VFORK);
        if !waits && !asked.has(libc::CLONE_SETTLS) && thread.host.get() == 0 {
            thread.host.set(own!(libc::SYS_gettid) as u32);
        }
        if asked.has(libc::CLONE_SIGHAND) && !asked.has(libc::CLONE_THREAD) {
            signals::inherited::share_handlers();
        }
        return on_shared_memory(asked);
    }
    if refused_fork::is_refused_past_libc() {
        return Ok(error(libc::EAGAIN));
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

/// Whether the end of a structure says nothing. As much as a page is too much in any case.
fn is_zero(address: usize, bytes: usize) -> Touch<bool> {
    if bytes > 4096 - CLONE_ARGS_MAX {
        return Ok(false);
    }
    for at in 0..bytes {
        let byte: u8 = load(address.wrapping_add(at))?;
        if byte != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a child that is to have a memory of its own, with the handlers of ours alone.
fn make_child(number: usize, mut args: [usize; 6], asked: Asked) -> Touch<Answer> {
    let _errno = KeptErrno::now();
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
        // The child's handlers are cleared once it has its memory, which comes by ours.
        store(args[0], asked.flags & !CLONE_CLEAR_SIGHAND)?;
        misc::choose_numbers(args, &mut chosen)?;
    }
    // A handler of the program's is no part of a fork.
    let blocked = Blocked::new();
    start::before_fork();
    let without = WithoutRseq::new();
    let call_it = || {
        let answer = raw::syscall(number, args);
        if answer == 0 {
            // The locks of libc's malloc are as other threads of the parent's had them.
            pool::begin();
        }
        answer
    };
    let (answer, still): (Answer, _) = if asked.has(libc::CLONE_FILES) {
        ghostmem::fork::around_sharing_call(hold_still, call_it)
    } else {
        ghostmem::fork::around_call_holding(hold_still, call_it)
    };
    let in_child = answer == 0;
    if in_child {
        holds::protect_in_child();
    }
    drop(still);
    if in_child {
        start::in_child();
        // Before a handler comes, which may leave by a jump.
        pool::end();
    } else {
        start::in_parent();
    }
    drop(without);
    drop(blocked);
    if in_child && number == table::CLONE3 && asked.flags & CLONE_CLEAR_SIGHAND != 0 {
        signals::clear();
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
    let is_held = !asked.has(libc::CLONE_CHILD_CLEARTID)
        || [holds::Reason::Kernel, holds::Reason::Stack]
            .iter()
            .any(|&reason| holds::any_for(reason, word, 1));
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

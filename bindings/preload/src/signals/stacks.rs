//! The alternate stacks for signals: one for each thread, unless the program has its own.

use crate::bounce;
use crate::calls::{Done, error, load_if};
use crate::guarded::{self, Touch};
use crate::mappings::OPEN;
use crate::raw::{call, failed, own};
use crate::{foreign, ghost, holds, thread};

/// Whether this thread is on an alternate signal stack.
pub(crate) fn is_on_signal_stack() -> bool {
    let mut now = NO_STACK;
    let _cannot_fail = own!(libc::SYS_sigaltstack, 0, &raw mut now);
    now.flags & libc::SS_ONSTACK != 0
}

/// Bytes of the alternate stack that every thread gets, for faults on stacks
/// that are ghost memory, and for threads with hardly any stack.
const STACK_BYTES: usize = 256 << 10;

/// `stack_t`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Stack {
    base: usize,
    flags: i32,
    gap: i32,
    bytes: usize,
}

/// Gives the calling thread an alternate signal stack, unless it has one.
pub(crate) fn give_stack() {
    let thread = thread::current();
    let mut now = NO_STACK;
    let asked = own!(libc::SYS_sigaltstack, 0, &raw mut now);
    if failed(asked) {
        return;
    }
    if now.flags & libc::SS_DISABLE == 0 {
        // Set before we were there: the program's own.
        if now.base != thread.stack.get() + 4096 {
            thread.own_stack.set(1);
        }
        return;
    }
    if thread.stack.get() == 0 {
        let Some(base) = bounce::map(STACK_BYTES) else {
            return;
        };
        // An overflow is to be a fault.
        let _cannot_fail = own!(libc::SYS_mprotect, base, 4096, libc::PROT_NONE);
        thread.stack.set(base);
    }
    let ours = Stack {
        base: thread.stack.get() + 4096,
        flags: 0,
        gap: 0,
        bytes: STACK_BYTES - 4096,
    };
    let _refused_on_it = own!(libc::SYS_sigaltstack, &raw const ours, 0);
}

const NO_STACK: Stack = Stack {
    base: 0,
    flags: libc::SS_DISABLE,
    gap: 0,
    bytes: 0,
};

/// The thread has no alternate signal stack while this is there: it is on it, but its stack
/// pointer is elsewhere, so that the kernel would use it from the top again. Made and
/// dropped elsewhere, with signals blocked.
pub(crate) struct WithoutStack(Stack);

impl WithoutStack {
    pub(crate) fn new() -> Self {
        let (none, mut before) = (NO_STACK, NO_STACK);
        let _cannot_fail = own!(libc::SYS_sigaltstack, &raw const none, &raw mut before);
        Self(before)
    }
}

impl Drop for WithoutStack {
    fn drop(&mut self) {
        let _cannot_fail = own!(libc::SYS_sigaltstack, &raw const self.0, 0);
    }
}

/// Takes the stack back at the thread's end, and lets the program's own go.
pub(crate) fn take_stack() {
    let thread = thread::current();
    let base = thread.stack.replace(0);
    let own = thread.own_stack.get() != 0;
    if base == 0 && !own {
        return;
    }
    let (none, mut before) = (NO_STACK, NO_STACK);
    if failed(own!(
        libc::SYS_sigaltstack,
        &raw const none,
        &raw mut before
    )) {
        // In use at this moment: it stays.
        thread.stack.set(base);
        return;
    }
    if own {
        thread.own_stack.set(0);
        let_go(before);
    }
    if base != 0 {
        bounce::unmap(base, STACK_BYTES);
    }
}

/// The whole pages of an alternate stack: where they start, and how many bytes.
fn pages_of(stack: Stack) -> Option<(usize, usize)> {
    let start = stack.base & !4095;
    let end = stack
        .base
        .checked_add(stack.bytes)?
        .checked_next_multiple_of(4096)?;
    (start < end).then(|| (start, end - start))
}

/// An alternate stack of the program's is no longer one.
fn let_go(stack: Stack) {
    if let Some(heap) = ghost::owner(stack.base)
        && let Some((start, bytes)) = pages_of(stack)
    {
        holds::release(heap, holds::Reason::SignalStack, start, bytes);
    }
}

/// The low end of the alternate stack that the thread was given, which signals on it reach
/// last: ordinary memory, for a moment. Where it begins and ends.
pub(super) fn low_end() -> Option<(usize, usize)> {
    let base = thread::current().stack.get();
    (base != 0).then_some((base + 4096, base + STACK_BYTES / 2))
}

/// A handler of the program's returns: with its frame the kernel sets the alternate stack
/// again that the thread had before. `was_own`: that was one of the program's.
pub(super) fn as_before(before: &libc::stack_t, was_own: bool) {
    let thread = thread::current();
    let mut now = NO_STACK;
    let asked = own!(libc::SYS_sigaltstack, 0, &raw mut now);
    if failed(asked) || (now.base == before.ss_sp as usize && now.bytes == before.ss_size) {
        return;
    }
    if thread.own_stack.get() != 0 {
        let_go(now);
    }
    thread.own_stack.set(u32::from(was_own));
    let before = Stack {
        base: before.ss_sp as usize,
        bytes: before.ss_size,
        ..NO_STACK
    };
    if was_own
        && let Some(heap) = ghost::owner(before.base)
        && let Some((start, bytes)) = pages_of(before)
    {
        let _room = holds::hold(heap, holds::Reason::SignalStack, start, bytes, 0);
    }
}

/// sigaltstack: the program's own goes in place of ours, and is held resident
/// if it is ghost memory, until another one or none is set.
pub(crate) fn stack(args: [usize; 6]) -> Touch<Done> {
    let [new, old, ..] = args;
    let thread = thread::current();
    let given: Option<Stack> = load_if(new)?;
    let had_own = thread.own_stack.get() != 0;
    let mut before = NO_STACK;
    let asked = own!(libc::SYS_sigaltstack, 0, &raw mut before);
    if failed(asked) {
        return Ok(Done::With(asked));
    }
    if let Some(given) = given {
        let none = given.flags & libc::SS_DISABLE != 0;
        let same = had_own && !none && given.base == before.base;
        if !none
            && let Some(heap) = ghost::owner(given.base)
            && let Some((start, bytes)) = pages_of(given)
            && !holds::hold(heap, holds::Reason::SignalStack, start, bytes, 0)
            // What the limit has no room to hold becomes ordinary memory, if it can.
            && failed(foreign::let_go(heap, start, bytes, OPEN).answer)
        {
            return Ok(error(libc::ENOMEM));
        }
        // Without one of its own, the program has none to give up.
        if !none || had_own {
            let answer = call!(libc::SYS_sigaltstack, &raw const given, 0);
            if failed(answer) {
                if !none && !same {
                    let_go(given);
                }
                return Ok(Done::With(answer));
            }
        }
        if had_own && !same {
            let_go(before);
        }
        thread.own_stack.set(u32::from(!none));
        if none && had_own {
            give_stack();
        }
    }
    if old != 0 {
        if !had_own {
            before = Stack {
                flags: libc::SS_DISABLE | (before.flags & libc::SS_ONSTACK),
                ..NO_STACK
            };
        }
        guarded::store(old, before)?;
    }
    Ok(Done::With(0))
}

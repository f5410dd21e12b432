//! The program's handler on the stack where the kernel would have run it.
//!
//! Ours run on the thread's alternate stack, as the stack in use may be missing. The program's
//! runs there too, if it asked for that (`SA_ONSTACK`) and the thread has an alternate stack
//! of the program's. Else it runs below what was interrupted: it may need more stack than
//! ours has, set another alternate stack, or go on elsewhere and come back later.
//!
//! ```text
//!   alternate stack                        the stack that was interrupted
//!   kernel's frame  ── copied ───────────► frame: registers, mask, restorer
//!     front ► … ► pass_on                  deliver ► the program's handler
//!        └─ returns to `deliver` ─────────►    └─ returns by the frame (rt_sigreturn)
//! ```
//! The copy is a frame as the kernel makes them: unwinders, debuggers and setcontext(3) find
//! what they know, and what the handler changes in it counts.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::offset_of;

use super::front::Handler;
use super::masks::set_blocked;
use super::stacks;
use crate::ghost;
use crate::guarded::{self, Touch};
use crate::thread::{self, Thread};

/// What the kernel puts on the stack (`struct rt_sigframe`): where the handler returns to,
/// the context, and what came with the signal. The context is what the kernel has of it.
const CONTEXT_AT: usize = 8;
const CONTEXT_BYTES: usize = 304;
const INFO_BYTES: usize = 128;
/// What a function may use below its stack pointer (System V ABI).
const RED_ZONE: usize = 128;

/// Where in the state of the vector units their length stands, and the sign that it does
/// (`struct _fpx_sw_bytes`).
const LENGTH_AT: usize = 464;
const HAS_LENGTH: u32 = 0x4650_5853;
const LEAST_STATE: usize = 512;

/// Flags that a handler begins without: direction, single steps, resume.
const NOT_AT_A_START: i64 = 0x1_0500;

/// What the program's handler is called with.
pub(super) struct Delivery {
    pub(super) signal: i32,
    pub(super) info: *const libc::siginfo_t,
    pub(super) handler: usize,
    /// Where it returns to.
    pub(super) restorer: usize,
    /// Signals that are blocked meanwhile, and those of ours that the program believes to be.
    pub(super) mask: u64,
    pub(super) blocked: u32,
}

/// The stack pointer that was interrupted, if the kernel would run a handler there and ours
/// runs elsewhere. `asked`: with `SA_ONSTACK`.
pub(super) fn is_elsewhere(thread: &Thread, asked: bool, context: &libc::ucontext_t) -> bool {
    let stack = &context.uc_stack;
    if stack.ss_flags & libc::SS_DISABLE != 0 || (asked && thread.own_stack.get() != 0) {
        return false;
    }
    let pointer = context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize;
    // As the kernel has it: an empty stack is one in use.
    pointer.wrapping_sub(stack.ss_sp as usize + 1) >= stack.ss_size
}

/// Makes the thread go on in the program's handler once ours has returned. An error: there is
/// no room on that stack.
pub(super) fn prepare(delivery: &Delivery, context: &mut libc::ucontext_t) -> Touch<()> {
    let registers = &context.uc_mcontext.gregs;
    let pointer = registers[libc::REG_RSP as usize] as usize;
    let state = context.uc_mcontext.fpregs as usize;
    let state_bytes = if state == 0 {
        0
    } else {
        bytes_of_state(state)?
    };
    let top = pointer.wrapping_sub(RED_ZONE);
    let state_at = top.wrapping_sub(state_bytes) & !63;
    let whole = CONTEXT_AT + CONTEXT_BYTES + INFO_BYTES;
    // Aligned as behind a call.
    let frame = (state_at.wrapping_sub(whole) & !15).wrapping_sub(8);
    let context_at = frame.wrapping_add(CONTEXT_AT);
    let info_at = context_at.wrapping_add(CONTEXT_BYTES);
    guarded::copy(state_at, state, state_bytes)?;
    guarded::copy(info_at, delivery.info as usize, INFO_BYTES)?;
    guarded::copy(
        context_at,
        core::ptr::from_ref(context) as usize,
        CONTEXT_BYTES,
    )?;
    guarded::store(frame, delivery.restorer)?;
    if state != 0 {
        let place =
            offset_of!(libc::ucontext_t, uc_mcontext) + offset_of!(libc::mcontext_t, fpregs);
        guarded::store(context_at + place, state_at)?;
    }
    // What is restored now: the start of a function, with the vector units as at one.
    let registers = &mut context.uc_mcontext.gregs;
    for (register, value) in [
        (libc::REG_RIP, deliver as *const () as usize),
        (libc::REG_RSP, frame),
        (libc::REG_RDI, delivery.signal as usize),
        (libc::REG_RSI, info_at),
        (libc::REG_RDX, context_at),
        (libc::REG_RCX, delivery.handler),
        (libc::REG_R8, delivery.blocked as usize),
    ] {
        registers[register as usize] = value as i64;
    }
    registers[libc::REG_EFL as usize] &= !NOT_AT_A_START;
    context.uc_mcontext.fpregs = core::ptr::null_mut();
    set_mask(context, delivery.mask);
    Ok(())
}

/// The mask that a context has: of the kernel's, one word.
pub(super) fn mask_of(context: &libc::ucontext_t) -> u64 {
    let mask = (&raw const context.uc_sigmask).cast::<u64>();
    // SAFETY: a word of the structure.
    unsafe { mask.read() }
}

fn set_mask(context: &mut libc::ucontext_t, mask: u64) {
    let place = (&raw mut context.uc_sigmask).cast::<u64>();
    // SAFETY: as above.
    unsafe { place.write(mask) };
}

fn bytes_of_state(state: usize) -> Touch<usize> {
    let [sign, bytes]: [u32; 2] = guarded::load(state + LENGTH_AT)?;
    let bytes = if sign == HAS_LENGTH {
        bytes as usize
    } else {
        0
    };
    Ok(bytes.max(LEAST_STATE))
}

/// Where the thread goes on: calls the program's handler, and returns by the frame.
extern "C-unwind" fn deliver(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
    handler: usize,
    bits: u32,
) {
    let thread = thread::current();
    let (inside, blocked) = (thread.inside.replace(0), thread.blocked.get());
    let had_own_stack = thread.own_stack.get() != 0;
    thread.blocked.set(blocked | bits);
    // SAFETY: a handler that the program installed; with one argument or three, the calling
    // convention is the same for both.
    let handler = unsafe { core::mem::transmute::<usize, Handler>(handler) };
    handler(signal, info, context);
    // SAFETY: made by `prepare`, and what the thread returns by.
    let before = unsafe { (*context.cast::<libc::ucontext_t>()).uc_stack };
    stacks::as_before(&before, had_own_stack);
    thread.inside.set(inside);
    set_blocked(thread, blocked);
    if ghost::is_ghost(context.addr()) {
        return_by_copy(context.addr());
    }
}

/// Returns by a copy of a frame that may be missing: the kernel reads it, and takes none that
/// it cannot read. Comes back where no copy can be made.
fn return_by_copy(context: usize) {
    let Some((low, high)) = stacks::low_end() else {
        return;
    };
    let place = offset_of!(libc::ucontext_t, uc_mcontext) + offset_of!(libc::mcontext_t, fpregs);
    let copied = || -> Touch<Option<usize>> {
        let state: usize = guarded::load(context + place)?;
        let bytes = if state == 0 {
            0
        } else {
            bytes_of_state(state)?
        };
        let state_at = (low + CONTEXT_BYTES).next_multiple_of(64);
        if state_at + bytes > high {
            return Ok(None);
        }
        guarded::copy(low, context, CONTEXT_BYTES)?;
        guarded::copy(state_at, state, bytes)?;
        if state != 0 {
            guarded::store(low + place, state_at)?;
        }
        Ok(Some(low))
    };
    let Ok(Some(frame)) = copied() else {
        return;
    };
    // SAFETY: the stack pointer is where the kernel expects it, right behind the address that
    // the handler would have returned to; nothing of this function is used any more.
    unsafe {
        asm!(
            "mov rsp, {frame}",
            "mov eax, 15",
            "syscall",
            "ud2",
            frame = in(reg) frame,
            options(noreturn),
        );
    }
}

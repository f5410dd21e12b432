//! Calls on a stack that is not the thread's own.
//!
//! ```text
//!   caller's frame ──┐ call, on top of        ┌── body's frames
//!   may be absent    └──────────────────────► │   ordinary memory
//!   meanwhile        ◄────────────────────────┘   of nobody else
//! ```
//! What the body is given comes to the other stack before it runs, and what it answers
//! goes back when it is done: in between nothing of the caller's stack is touched.

use core::hint::black_box;

use crate::error::{EINVAL, OsError};
use crate::map::{Access, PAGE_SIZE, Reservation};

/// Calls `body(argument)` with the stack pointer at `top`.
///
/// # Safety
/// `top` is the end, at a multiple of 16, of writable memory that `body` finds long
/// enough and that nothing else refers to; `body` does not unwind.
pub(crate) unsafe fn call_at<T>(top: usize, argument: *mut T, body: extern "C" fn(*mut T)) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise; the stack pointer is saved in a callee-saved
    // register and put back; everything else the C ABI may clobber is declared.
    unsafe {
        core::arch::asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {body}",
            "mov rsp, r12",
            top = in(reg) top,
            body = in(reg) body,
            in("rdi") argument,
            out("r12") _,
            clobber_abi("C"),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _this_ones = top;
        body(argument);
    }
}

/// Memory for a stack of so many bytes, above a page that faults: an overflow is loud.
///
/// # Errors
/// The kernel's refusal to map it.
pub(crate) fn memory(bytes: usize) -> Result<Reservation, OsError> {
    let memory = Reservation::new(PAGE_SIZE + bytes, PAGE_SIZE, Access::ReadWrite)?;
    memory.protect(0, PAGE_SIZE, Access::None)?;
    Ok(memory)
}

/// What is to be done on another stack, and what came of it.
pub(crate) struct Call<F, R> {
    pub(crate) body: Option<F>,
    pub(crate) result: Option<R>,
}

impl<F, R> Call<F, R> {
    pub(crate) const fn new(body: F) -> Self {
        Self {
            body: Some(body),
            result: None,
        }
    }
}

/// A stack of ordinary memory, unmapped when dropped. A forked child has a copy of it,
/// and goes on there.
#[derive(Debug)]
pub struct OwnStack {
    memory: Reservation,
}

/// Bytes of it. What is not used is never memory.
const BYTES: usize = 256 << 10;

impl OwnStack {
    /// A fresh one.
    ///
    /// # Errors
    /// The kernel's refusal to map it.
    pub fn new() -> Result<Self, OsError> {
        Ok(Self {
            memory: memory(BYTES)?,
        })
    }

    /// Runs `body` on it. `body` borrows nothing from the caller's stack that may be
    /// absent while it runs, and does not unwind: a panic ends the process.
    ///
    /// # Errors
    /// `EINVAL` where `body` did not run, which cannot be.
    pub fn run<F: FnOnce() -> R, R>(&mut self, body: F) -> Result<R, OsError> {
        extern "C" fn trampoline<F: FnOnce() -> R, R>(call: *mut Call<F, R>) {
            // SAFETY: `call` points to the live local below, used by nobody else while
            // we run.
            let call = unsafe { &mut *call };
            // Opaque, so that no load or store of the caller's stack moves to where the
            // body runs.
            let body = black_box(call.body.take());
            call.result = black_box(body.map(|body| body()));
        }
        let mut call = Call::new(body);
        let top = self.memory.base() + self.memory.len();
        // SAFETY: the page-aligned end of memory of ours, which `&mut self` keeps to this
        // call; a trampoline of the C ABI does not unwind.
        unsafe { call_at(top, &raw mut call, trampoline::<F, R>) };
        call.result
            .ok_or(OsError::new("a call on another stack", EINVAL))
    }
}

#[cfg(test)]
pub(crate) use tests::forked;

#[cfg(test)]
mod tests {
    use super::*;

    /// How a child ends that makes these calls, which are async-signal-safe: for what no
    /// other test may notice.
    pub(crate) fn forked(body: impl FnOnce() -> i32) -> i32 {
        // SAFETY: as `body` promises; the child ends here.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = body();
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: our own child and a valid place.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert!(libc::WIFEXITED(status), "{status:#x}");
        libc::WEXITSTATUS(status)
    }

    fn here() -> usize {
        let local = 0_u8;
        black_box(&raw const local) as usize
    }

    #[test]
    fn a_body_runs_on_the_other_stack_with_what_it_is_given() {
        let mut stack = OwnStack::new().unwrap();
        let memory = stack.memory.base()..stack.memory.base() + stack.memory.len();
        let numbers = [7_usize; 100];
        for round in 0..3 {
            let (at, sum) = stack
                .run(move || (here(), numbers.iter().sum::<usize>() + round))
                .unwrap();
            assert!(memory.contains(&at), "{at:#x} outside {memory:x?}");
            assert_eq!(sum, 700 + round);
        }
        assert!(!memory.contains(&here()));
    }

    #[test]
    fn a_forked_child_goes_on_on_its_copy_and_comes_back() {
        let mut stack = OwnStack::new().unwrap();
        let mut status = 0;
        let child = stack
            .run(|| {
                // SAFETY: the child does nothing but return here and end.
                let child = unsafe { libc::fork() };
                if child > 0 {
                    // SAFETY: our own child and a valid place.
                    unsafe { libc::waitpid(child, &raw mut status, 0) };
                }
                child
            })
            .unwrap();
        if child == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(9) };
        }
        assert!(child > 0 && libc::WIFEXITED(status), "{child}: {status}");
        assert_eq!(libc::WEXITSTATUS(status), 9);
    }
}

//! Access violations: one vectored exception handler for the process.
//!
//! What is not ours goes on to the handlers behind it, as
//! `EXCEPTION_CONTINUE_SEARCH` asks. It runs on the thread that touched, on that
//! thread's stack, and works on the context that the system handed it: two
//! threads share nothing here. No heap, no critical section.

use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::OnceLock;

use windows_sys::Win32::Foundation::{EXCEPTION_ACCESS_VIOLATION, GetLastError, SetLastError};
use windows_sys::Win32::System::Diagnostics::Debug::{
    AddVectoredExceptionHandler, CONTEXT, EXCEPTION_CONTINUE_EXECUTION, EXCEPTION_CONTINUE_SEARCH,
    EXCEPTION_POINTERS, RemoveVectoredExceptionHandler,
};
use windows_sys::Win32::System::LibraryLoader::{
    GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS, GET_MODULE_HANDLE_EX_FLAG_PIN, GetModuleHandleExW,
};

pub use crate::access::{AccessKind, FaultHook, Sign, SignalFault};
use crate::error::OsError;
use crate::lazy;

static HOOK: OnceLock<FaultHook> = OnceLock::new();
/// What the system calls our handler, 0 before there is one, 1 while one thread
/// sees to it.
static HANDLE: AtomicUsize = AtomicUsize::new(0);
const BUSY: usize = 1;

/// Makes our handler call `hook`, and the first of all handlers. Those found are
/// asked about what is not ours, as always.
///
/// # Errors
/// The system's refusal: no memory.
pub fn install(hook: FaultHook) -> Result<(), OsError> {
    let _set_once = HOOK.set(hook);
    arm(true)
}

/// Makes sure that there is a handler.
pub(crate) fn ensure() -> Result<(), OsError> {
    if HANDLE.load(Ordering::Acquire) > BUSY {
        return Ok(());
    }
    arm(false)
}

fn arm(again: bool) -> Result<(), OsError> {
    let before = loop {
        let seen = HANDLE.load(Ordering::Acquire);
        if seen > BUSY && !again {
            return Ok(());
        }
        let taken = HANDLE.compare_exchange(seen, BUSY, Ordering::AcqRel, Ordering::Relaxed);
        if seen != BUSY && taken.is_ok() {
            break seen;
        }
        crate::thread::yield_now();
    };
    // SAFETY: `handler` has the required signature and stays loaded (below).
    let handle = unsafe { AddVectoredExceptionHandler(1, Some(handler)) };
    if handle.is_null() {
        let error = OsError::last("AddVectoredExceptionHandler");
        HANDLE.store(before, Ordering::Release);
        return Err(error);
    }
    if before == 0 {
        stay_loaded();
    } else {
        // There are two of it for a moment, and the first to see a fault
        // resolves it.
        // SAFETY: what AddVectoredExceptionHandler returned, removed once.
        unsafe { RemoveVectoredExceptionHandler(before as *const core::ffi::c_void) };
    }
    HANDLE.store(handle as usize, Ordering::Release);
    Ok(())
}

/// A library that was loaded by the program and let go of must not leave a
/// handler, and threads, that are no longer there.
fn stay_loaded() {
    let mut module = core::ptr::null_mut();
    let here: unsafe extern "system" fn(*mut EXCEPTION_POINTERS) -> i32 = handler;
    // SAFETY: an address of this module, and a writable place.
    unsafe {
        GetModuleHandleExW(
            GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN,
            here as *const u16,
            &raw mut module,
        )
    };
}

unsafe extern "system" fn handler(exception: *mut EXCEPTION_POINTERS) -> i32 {
    // SAFETY: the system passes valid pointers to a handler.
    let exception = unsafe { &*exception };
    // SAFETY: as above.
    let record = unsafe { &*exception.ExceptionRecord };
    if record.ExceptionCode != EXCEPTION_ACCESS_VIOLATION || record.NumberParameters < 2 {
        return EXCEPTION_CONTINUE_SEARCH;
    }
    // SAFETY: no preconditions.
    let last_error = unsafe { GetLastError() };
    let [kind, address, ..] = record.ExceptionInformation;
    // SAFETY: as above.
    let context = unsafe { &*exception.ContextRecord };
    let handled = lazy::on_fault(address) || on_touch(kind, address, context);
    // SAFETY: no preconditions.
    unsafe { SetLastError(last_error) };
    if handled {
        EXCEPTION_CONTINUE_EXECUTION
    } else {
        EXCEPTION_CONTINUE_SEARCH
    }
}

fn on_touch(kind: usize, address: usize, context: &CONTEXT) -> bool {
    // EXCEPTION_RECORD: 0 a load, 1 a store, 8 an instruction fetch, which
    // ghost memory never allows.
    if kind == 8 {
        return false;
    }
    let access = if kind == 1 {
        AccessKind::Write
    } else {
        AccessKind::Read
    };
    let registers = [
        context.R8,
        context.R9,
        context.R10,
        context.R11,
        context.R12,
        context.R13,
        context.R14,
        context.R15,
        context.Rdi,
        context.Rsi,
        context.Rbp,
        context.Rbx,
        context.Rdx,
        context.Rax,
        context.Rcx,
        context.Rsp,
        context.Rip,
    ];
    let instant = registers.iter().fold(0_u64, |instant, register| {
        (instant ^ register)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29)
    });
    let fault = SignalFault {
        address,
        access,
        sign: Sign::Forbidden,
        // Not told; but ghost pages that are there can always be read.
        present: access == AccessKind::Write,
        instant,
    };
    HOOK.get().is_some_and(|hook| hook(&fault))
}

//! SIGBUS and SIGSEGV: installing one handler, reading what the processor
//! said, and passing on what is not ours.
//!
//! `signal-hook` and its kin refuse these signals, hence raw sigaction(2).

use core::sync::atomic::{AtomicU8, Ordering};
use std::sync::OnceLock;

pub use crate::access::{AccessKind, FaultHook, Sign, SignalFault};
use crate::error::{KeptErrno, OsError};
use crate::nesting::Nesting;
use crate::saved::Saved;
use crate::thread::{full_set, key};

/// The two signals a touch can raise.
const SIGNALS: [i32; 2] = [libc::SIGBUS, libc::SIGSEGV];

/// Values of `si_code` (siginfo.h): what the kernel found at the address.
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRERR: i32 = 2;
/// Bit 4 of a page fault's error code: an instruction fetch.
#[cfg(target_arch = "x86_64")]
const FETCH: libc::greg_t = 1 << 4;

/// The handlers found, for each of [`SIGNALS`].
static PREVIOUS: [Saved; 2] = [const { Saved::new() }; 2];
/// Whom ours passed a fault on to, and who passed it back.
static NESTING: Nesting = Nesting::new();
static HOOK: OnceLock<FaultHook> = OnceLock::new();
static STATE: AtomicU8 = AtomicU8::new(0);

/// Installs our handler for SIGBUS and SIGSEGV and makes it call `hook`.
/// The handlers found are kept and called for faults that are not ours. Later
/// calls only make sure that the handler is still ours ("re-arm").
///
/// # Errors
/// A refused sigaction(2); `ENOSPC` when the program has put more different
/// handlers in front of ours than [`SAVED_MAX`](crate::saved::SAVED_MAX).
pub fn install(hook: FaultHook) -> Result<(), OsError> {
    // One thread at a time; the others wait for the few microseconds.
    let mut tries = 0;
    while STATE
        .compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        crate::futex::pause(tries);
        tries = tries.saturating_add(1);
    }
    let result = install_locked(hook);
    STATE.store(0, Ordering::Release);
    result
}

fn install_locked(hook: FaultHook) -> Result<(), OsError> {
    let ours: usize = handler as *const () as usize;
    for (which, &signal) in SIGNALS.iter().enumerate() {
        let mut current = core::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: a null new action only reads the current one into `current`.
        let rc = unsafe { libc::sigaction(signal, core::ptr::null(), current.as_mut_ptr()) };
        if rc != 0 {
            return Err(OsError::last("sigaction"));
        }
        // SAFETY: filled by the successful call.
        let current = unsafe { current.assume_init() };
        if current.sa_sigaction == ours {
            continue;
        }
        // Before our handler can be called for it.
        PREVIOUS[which].publish(current)?;
        let _set_once = HOOK.set(hook);
        let action = libc::sigaction {
            sa_sigaction: ours,
            // Every signal blocked inside; the alternate stack where the
            // thread has one; the previous handler's wish to restart calls
            // does not matter for synchronous faults.
            sa_mask: every_signal(),
            sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK,
            sa_restorer: None,
        };
        let mut replaced = current;
        // SAFETY: `action` is fully initialised, `handler` has the
        // three-argument signature that SA_SIGINFO asks for, and `replaced` is
        // writable.
        let rc = unsafe { libc::sigaction(signal, &raw const action, &raw mut replaced) };
        if rc != 0 {
            return Err(OsError::last("sigaction"));
        }
        // Another thread may have installed its own since we looked.
        if replaced.sa_sigaction != ours {
            PREVIOUS[which].publish(replaced)?;
        }
    }
    Ok(())
}

/// Every signal, with the two that libc sends to threads that are cancelled, or change their
/// user, which sigfillset(3) leaves out. Their handlers run on the alternate stack, as ours
/// does; ours goes on elsewhere, and they would begin where it began.
fn every_signal() -> libc::sigset_t {
    const OF_LIBC: u64 = 0b11 << (32 - 1);
    let mut set = full_set();
    let word = (&raw mut set).cast::<u64>();
    // SAFETY: a set is an array of words, the first of which has these signals; it is ours.
    unsafe { *word |= OF_LIBC };
    set
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let kept = KeptErrno::now();
    // SAFETY: the kernel passes valid pointers to an SA_SIGINFO handler.
    let fault = unsafe { decode(info, context) };
    let handled = fault.is_some_and(|fault| HOOK.get().is_some_and(|hook| hook(&fault)));
    drop(kept);
    if !handled {
        // SAFETY: the arguments are the kernel's own.
        unsafe { chain(signal, info, context) };
    }
}

/// The touch that a signal reports, if a page put in place could answer it.
/// Poisoned memory, a protection key, an alignment check and a signal that
/// somebody sent are no such touch: their instruction would fail for ever.
///
/// # Safety
/// The arguments must be those the kernel gave an `SA_SIGINFO` handler for
/// SIGBUS or SIGSEGV.
unsafe fn decode(info: *mut libc::siginfo_t, context: *mut libc::c_void) -> Option<SignalFault> {
    // SAFETY: valid per this function's contract.
    let info = unsafe { &*info };
    let sign = match (info.si_signo, info.si_code) {
        (libc::SIGBUS, BUS_ADRERR) => Sign::Bus,
        (libc::SIGSEGV, SEGV_MAPERR) => Sign::Unmapped,
        (libc::SIGSEGV, SEGV_ACCERR) => Sign::Forbidden,
        _ => return None,
    };
    // SAFETY: the kernel fills si_addr for these signals.
    let address = unsafe { info.si_addr() } as usize;
    #[cfg(target_arch = "x86_64")]
    {
        let context: *const libc::ucontext_t = context.cast();
        // SAFETY: valid per this function's contract.
        let registers = unsafe { &(*context).uc_mcontext.gregs };
        // Intel SDM vol. 3, "Page-Fault Exceptions": bit 0 protection
        // violation (else not present), bit 1 write.
        let error = registers[libc::REG_ERR as usize];
        // The kernel looks at the mapping's rights before it looks for the
        // page: code in this mapping is never run, whatever page is there.
        if error & FETCH != 0 && sign == Sign::Forbidden {
            return None;
        }
        let access = if error & 2 != 0 {
            AccessKind::Write
        } else {
            AccessKind::Read
        };
        // r8..r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip come first.
        let mut instant = 0_u64;
        for &register in &registers[..=libc::REG_RIP as usize] {
            instant = (instant ^ register as u64)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(29);
        }
        Some(SignalFault {
            address,
            access,
            sign,
            present: error & 1 != 0,
            instant,
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = context;
        Some(SignalFault {
            address,
            access: AccessKind::Unknown,
            sign,
            present: false,
            instant: 0,
        })
    }
}

/// Hands a fault that is not ours to whoever was there before, as the kernel
/// would have done.
///
/// # Safety
/// As [`decode`].
unsafe fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let which = usize::from(signal == libc::SIGSEGV);
    let stack = (&raw const which).addr() as u64;
    let passing = NESTING.pass_on(key() as u64, context.addr() as u64, stack);
    // Called by the very handler that we would call: on to the one before it.
    let previous = PREVIOUS[which].current(passing.level());
    let action = previous.map_or(libc::SIG_DFL, |p| p.sa_sigaction);
    // SAFETY: valid per this function's contract.
    let code = unsafe { (*info).si_code };
    // Sent by somebody, or news of memory that this thread did not touch: no
    // instruction of this thread raises the signal again.
    let asynchronous = code <= 0 || signal == libc::SIGBUS && code == libc::BUS_MCEERR_AO;
    match (action, previous) {
        (libc::SIG_IGN, Some(_)) if asynchronous => {}
        (libc::SIG_DFL | libc::SIG_IGN, _) | (_, None) => {
            // The default action of a synchronous fault is to end the
            // process; ignoring one is not possible either. Put it back and
            // return: the instruction faults again and the kernel acts, with
            // a core dump that names the right place. What no instruction
            // raises is raised again instead.
            // SAFETY: an all-zero sigaction is SIG_DFL with an empty mask.
            let default: libc::sigaction = unsafe { core::mem::zeroed() };
            // SAFETY: fully initialised.
            unsafe { libc::sigaction(signal, &raw const default, core::ptr::null_mut()) };
            if asynchronous {
                // SAFETY: raise is async-signal-safe; the signal is blocked
                // until we return.
                unsafe { libc::raise(signal) };
            }
        }
        (_, Some(previous)) => {
            // The mask the previous handler asked for, on top of what was
            // blocked when the fault came.
            let context_ptr: *mut libc::ucontext_t = context.cast();
            // SAFETY: valid per this function's contract.
            let interrupted = unsafe { (*context_ptr).uc_sigmask };
            let mut mask = interrupted;
            for number in 1..=64 {
                // SAFETY: a valid set and a signal number in range.
                if unsafe { libc::sigismember(&raw const previous.sa_mask, number) } == 1 {
                    // SAFETY: as above.
                    unsafe { libc::sigaddset(&raw mut mask, number) };
                }
            }
            if previous.sa_flags & libc::SA_NODEFER == 0 {
                // SAFETY: as above.
                unsafe { libc::sigaddset(&raw mut mask, signal) };
            }
            // SAFETY: a valid set; the kernel restores the interrupted mask
            // when we return.
            unsafe {
                libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, core::ptr::null_mut())
            };
            if previous.sa_flags & libc::SA_SIGINFO != 0 {
                type WithInfo = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
                // SAFETY: SA_SIGINFO says that the handler has this type.
                let call =
                    unsafe { core::mem::transmute::<usize, WithInfo>(previous.sa_sigaction) };
                call(signal, info, context);
            } else {
                type Plain = extern "C" fn(i32);
                // SAFETY: without SA_SIGINFO the handler has this type.
                let call = unsafe { core::mem::transmute::<usize, Plain>(previous.sa_sigaction) };
                call(signal);
            }
        }
    }
}

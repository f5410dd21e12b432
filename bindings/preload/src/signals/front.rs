//! The handler in front of the engine's, and what becomes of a signal that is none of the
//! engine's: it is told to the program as the kernel tells it.

use core::ffi::c_void;

use ghostmem::{Backend, Hole};
use ghostmem_os::error::set_errno;
use ghostmem_os::told;

use super::deliver::{self, Delivery};
use super::masks::{keep, ours_of, set_blocked, without_ours};
use super::{DEFAULT, ENGINE, THEIRS, bit, kernel_action, place_of, restorer_of, sent};
use crate::guarded;
use crate::raw::{self, call, failed, own};
use crate::thread::{self, EngineScope};
use crate::{ghost, holds, moving, taken};

pub(crate) type Handler = extern "C-unwind" fn(i32, *mut libc::siginfo_t, *mut c_void);

/// `SEGV_PKUERR`, `BUS_MCEERR_AR` and `BUS_MCEERR_AO` (sigaction(2)).
const PROTECTION_KEY: i32 = 4;
const POISONED: [i32; 2] = [4, 5];
/// The bit of a page fault's error code for an instruction fetch (Intel SDM,
/// vol. 3, "Page-Fault Exceptions").
const FETCH: i64 = 16;

/// Whether a fault has nothing to do with where pages are: no page brought in
/// would make it go away.
fn is_never_ours(signal: i32, code: i32, address: usize, context: *mut c_void) -> bool {
    if signal == libc::SIGBUS {
        return POISONED.contains(&code);
    }
    code == PROTECTION_KEY
        || registers(context)[libc::REG_ERR as usize] & FETCH != 0
        || holds::is_protected(address)
}

/// The registers that a handler's context has.
fn registers<'a>(context: *mut c_void) -> &'a mut [i64; 23] {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel's own structure on this stack, used by this thread
    // alone until the handler returns.
    unsafe { &mut (*context).uc_mcontext.gregs }
}

/// The kernel's way in.
pub(super) extern "C-unwind" fn front(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    let Some(place) = place_of(signal as usize) else {
        return;
    };
    if signal == libc::SIGSEGV && by_monitor(info, context) {
        return;
    }
    // SAFETY: the kernel's own structure.
    let told = unsafe { &*info };
    // SAFETY: a fault has an address; what is read otherwise is not used.
    let address = unsafe { told.si_addr() } as usize;
    if signal == libc::SIGSEGV && told.si_code > 0 && is_amid_a_move(address) {
        return;
    }
    if told.si_code > 0 && is_never_ours(signal, told.si_code, address, context) {
        // The engine would open the page, over and over.
        passed_on(signal, info, context);
        return;
    }
    let engine = ENGINE[place].get().handler;
    // SAFETY: the engine installed a handler of three arguments.
    let engine = unsafe { core::mem::transmute::<usize, Handler>(engine) };
    let thread = thread::current();
    // The engine's calls are made by its doorway: without a mark they are left alone, too.
    let inside = (!thread::is_guest(thread)).then(|| EngineScope::new(thread));
    engine(signal, info, context);
    drop(inside);
}

/// Whether a touch was refused as what lies there moves: it is tried again, now that this is
/// over. As [`is_amid_a_change`].
fn is_amid_a_move(address: usize) -> bool {
    let errno = ghostmem_os::error::errno();
    let again = moving::wait_at(address);
    set_errno(errno);
    again
}

/// `SEGV_MAPERR` and `SEGV_ACCERR` (sigaction(2)).
const NOT_MAPPED: i32 = 1;
const NO_ACCESS: i32 = 2;
/// `BUS_ADRERR`.
const NO_PAGE: i32 = 2;

/// The page fault exception (Intel SDM, vol. 3), and two bits of its error code.
const PAGE_FAULT: i64 = 14;
const BY_USER: i64 = 4;
const BY_STORE: i64 = 2;

/// A word of the fault monitor's: what this thread touches cannot be had. The program
/// is told of a fault, as by the kernel.
extern "C-unwind" fn by_monitor(info: *mut libc::siginfo_t, context: *mut c_void) -> bool {
    let thread = own!(libc::SYS_gettid) as u32;
    // SAFETY: the kernel's own structure, of SIGSEGV.
    let Some((address, is_store)) = (unsafe { told::heard(thread, info) }) else {
        return false;
    };
    let registers = registers(context);
    registers[libc::REG_TRAPNO as usize] = PAGE_FAULT;
    registers[libc::REG_ERR as usize] = BY_USER | if is_store { BY_STORE } else { 0 };
    registers[libc::REG_CR2 as usize] = address as i64;
    let fault = fault_at(libc::SIGBUS, NO_PAGE, address);
    if is_amid_a_change(libc::SIGBUS, &fault) {
        return true;
    }
    let mut fault = of_a_hole(libc::SIGBUS, &fault).unwrap_or(fault);
    pass_on(fault.si_signo, &raw mut fault, context, true);
    true
}

/// What the kernel would say of a fault.
fn fault_at(signal: i32, code: i32, address: usize) -> libc::siginfo_t {
    // SAFETY: all zero is a signal without more to say.
    let mut info: libc::siginfo_t = unsafe { core::mem::zeroed() };
    (info.si_signo, info.si_code) = (signal, code);
    // `si_addr` is the first of what a fault has beside these.
    let address_at = (&raw mut info).wrapping_byte_add(16).cast::<usize>();
    // SAFETY: within the structure, aligned, and plain bytes.
    unsafe { address_at.write(address) };
    info
}

/// Where a fault was.
fn address_of(info: &libc::siginfo_t) -> usize {
    // SAFETY: faults have an address; what is read otherwise is not used.
    unsafe { info.si_addr() as usize }
}

/// The address of a touch that a signal tells of; `None` for signals of other kinds.
fn touched(signal: i32, info: &libc::siginfo_t) -> Option<usize> {
    let is_touch = match signal {
        libc::SIGBUS => info.si_code == NO_PAGE,
        _ => matches!(info.si_code, NOT_MAPPED | NO_ACCESS),
    };
    is_touch.then(|| address_of(info))
}

/// Whether a touch met a change of what is mapped where, and is to be tried again. The
/// program goes on as if nothing were: `errno` is kept.
fn is_amid_a_change(signal: i32, info: &libc::siginfo_t) -> bool {
    let Some(address) = touched(signal, info).filter(|&address| ghost::may_be(address)) else {
        return false;
    };
    let errno = ghostmem_os::error::errno();
    let again = taken::is_to_be_tried_again(address);
    set_errno(errno);
    again
}

/// A fault at ghost memory that is not the program's; `None` for every other.
fn of_a_hole(signal: i32, info: &libc::siginfo_t) -> Option<libc::siginfo_t> {
    let address = touched(signal, info)?;
    let heap = ghost::owner(address)?;
    let code = match heap.hole_at(address)? {
        Hole::Unmapped => NOT_MAPPED,
        Hole::Closed => NO_ACCESS,
    };
    Some(fault_at(libc::SIGSEGV, code, address))
}

/// Whether a fault at an address came to a page of the program's that the engine did not
/// bring in: it is lost, or a bound on memory has no place for it. By SIGSEGV the kernel
/// also tells of what the program protected by itself, as long as that is ghost memory.
fn is_kept_back(signal: i32, address: usize) -> bool {
    ghost::owner(address).is_some_and(|heap| {
        let is_engines = match heap.backend() {
            Backend::Guard | Backend::GuardMprotect => signal == libc::SIGSEGV,
            _ => signal == libc::SIGBUS,
        };
        is_engines
            && heap.hole_at(address).is_none()
            && heap.is_resident(address as *const u8) == Some(false)
    })
}

/// The engine's way out, for faults that are not its own.
pub(crate) extern "C-unwind" fn passed_on(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    // SAFETY: the kernel's own structure, or one made as it makes them.
    let told = unsafe { &*info };
    if is_amid_a_change(signal, told) {
        return;
    }
    match of_a_hole(signal, told) {
        Some(mut fault) => pass_on(fault.si_signo, &raw mut fault, context, true),
        None => pass_on(signal, info, context, false),
    }
}

/// Hands a signal to the program, or does what the kernel does without a handler.
/// `is_remade`: the instruction would raise another signal, or none.
extern "C-unwind" fn pass_on(
    signal: i32,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
    is_remade: bool,
) {
    let Some(place) = place_of(signal as usize) else {
        return;
    };
    // SAFETY: the kernel's own structure, handed through.
    let sent = unsafe { (*info).si_code } <= 0;
    let instruction = &mut registers(context)[libc::REG_RIP as usize];
    if !sent && let Some(land) = guarded::landing(*instruction as usize) {
        // SAFETY: the kernel's own structure, handed through.
        let address = address_of(unsafe { &*info });
        if !is_remade && is_kept_back(signal, address) && !moving::is_own() {
            // What is copied may be nowhere else any more: no answer would tell of it.
            return end_by(signal, false);
        }
        // A copy of ours at an address that the program gave.
        *instruction = land as i64;
        return;
    }
    let thread = thread::current();
    let action = THEIRS[place].get();
    let is_blocked = thread.blocked.get() & 1 << place != 0;
    let is_the_threads = sent && sent::is_to_a_thread(info);
    if sent && is_blocked {
        keep(thread, place, info, is_the_threads);
        if let Some(land) = raw::landing_of_wait(*instruction as usize) {
            // The thread is about to wait for what came just now.
            *instruction = land as i64;
        }
        return;
    }
    match action.handler {
        libc::SIG_IGN if sent => return,
        // A fault cannot be ignored, and not be blocked either. Put the default
        // back: the instruction faults again, and the core dump names the
        // program's own fault.
        libc::SIG_DFL | libc::SIG_IGN if is_remade => return end_with(signal, info),
        _ if is_blocked && is_remade => return end_with(signal, info),
        libc::SIG_DFL | libc::SIG_IGN => return end_by(signal, sent),
        _ if is_blocked => return end_by(signal, sent),
        _ => {}
    }
    if action.flags & libc::SA_RESETHAND as u64 != 0 {
        THEIRS[place].set(DEFAULT);
    }
    let own = if action.flags & libc::SA_NODEFER as u64 == 0 {
        1 << place
    } else {
        0
    };
    let bits = own | ours_of(action.mask);
    // SAFETY: the kernel's own structure on this stack, used by this thread alone until the
    // handler returns.
    let context_of = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    // Ours are open from here on: what the handler touches may be missing.
    let mask = without_ours(deliver::mask_of(context_of) | action.mask);
    let _cannot_fail = own!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_SETMASK,
        &raw const mask,
        0,
        8
    );
    let asked = action.flags & libc::SA_ONSTACK as u64 != 0;
    if deliver::is_elsewhere(thread, asked, context_of) {
        let delivery = Delivery {
            signal,
            info,
            handler: action.handler,
            restorer: restorer_of(place, action),
            mask,
            blocked: bits,
        };
        if deliver::prepare(&delivery, context_of).is_err() {
            // As the kernel does it.
            end_by(libc::SIGSEGV, sent || is_remade || signal != libc::SIGSEGV);
        }
        return;
    }
    let (inside, blocked) = (thread.inside.replace(0), thread.blocked.get());
    thread.blocked.set(blocked | bits);
    // SAFETY: a handler the program installed; with one argument or three,
    // the calling convention is the same for both.
    let handler = unsafe { core::mem::transmute::<usize, Handler>(action.handler) };
    handler(signal, info, context);
    thread.inside.set(inside);
    set_blocked(thread, blocked);
}

/// The default action, by the kernel.
fn end_by(signal: i32, sent: bool) {
    let _cannot_fail = kernel_action(signal, Some(&DEFAULT), None);
    if sent {
        let (pid, tid) = (own!(libc::SYS_getpid), own!(libc::SYS_gettid));
        let _pending = call!(libc::SYS_tgkill, pid, tid, signal);
    }
}

/// The default action for a fault whose instruction would not raise this signal.
fn end_with(signal: i32, info: *mut libc::siginfo_t) {
    let bits = bit(signal);
    // Not before the return, so that a core dump names the instruction.
    let _cannot_fail = own!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_BLOCK,
        &raw const bits,
        0,
        8
    );
    let _cannot_fail = kernel_action(signal, Some(&DEFAULT), None);
    let (pid, tid) = (own!(libc::SYS_getpid), own!(libc::SYS_gettid));
    let sent = call!(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, info);
    if failed(sent) {
        // A filter of the program's: by the signal that the instruction raises.
        let _cannot_fail = kernel_action(libc::SIGBUS, Some(&DEFAULT), None);
    }
}

//! SIGBUS and SIGSEGV belong to two: to the engine, which must see every one
//! first and may never find them blocked, and to the program, which sees the
//! handlers and masks it set.
//!
//! ```text
//!   kernel ─► front ─► the engine's handler ── ours ──► retry
//!                             └─ not ours ─► passed_on ─► the program's handler
//! ```
//! `front` marks the thread as being inside the engine, so that the engine's
//! system calls are not taken for the program's; `passed_on` takes the mark
//! off again for the program's handler, which may jump out of it.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::bounce;
use crate::calls::{Done, error, load_if, store_if};
use crate::raw::{Answer, call, failed, store};
use crate::thread::{self, Inside};
use crate::{ghost, holds};

/// The signals that a touch of ghost memory can raise.
pub(crate) const OURS: [i32; 2] = [libc::SIGBUS, libc::SIGSEGV];

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

const OUR_BITS: u64 = bit(OURS[0]) | bit(OURS[1]);

/// `struct kernel_sigaction` of x86-64.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

const DEFAULT: Action = Action {
    handler: libc::SIG_DFL,
    flags: 0,
    restorer: 0,
    mask: 0,
};

/// An action that signal handlers read while another thread may set it: read
/// again until the version stood still.
struct Slot {
    version: AtomicU32,
    action: UnsafeCell<Action>,
}

// SAFETY: written under an odd version by one thread at a time, read as
// volatile words and used only when the version did not change.
unsafe impl Sync for Slot {}

impl Slot {
    const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            action: UnsafeCell::new(DEFAULT),
        }
    }

    fn get(&self) -> Action {
        loop {
            let before = self.version.load(Ordering::Acquire);
            // SAFETY: see `Sync`; a torn value is thrown away below.
            let action = unsafe { self.action.get().read_volatile() };
            core::sync::atomic::fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return action;
            }
            core::hint::spin_loop();
        }
    }

    fn set(&self, action: Action) {
        // A handler that came in between on this thread would wait for it.
        let blocked = Blocked::new();
        let mut before = self.version.load(Ordering::Relaxed);
        loop {
            before &= !1;
            let odd = before + 1;
            match self.version.compare_exchange_weak(
                before,
                odd,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => break,
                Err(now) => before = now,
            }
        }
        // SAFETY: the odd version keeps every other writer out.
        unsafe { self.action.get().write_volatile(action) };
        self.version
            .store(before.wrapping_add(2), Ordering::Release);
        drop(blocked);
    }
}

/// Every signal but ours blocked, while this lives. (Nothing here touches
/// ghost memory meanwhile.)
struct Blocked(u64);

impl Blocked {
    fn new() -> Self {
        let (all, mut before) = (!OUR_BITS, 0_u64);
        let _fits = call!(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            &raw const all,
            &raw mut before,
            8
        );
        Self(before)
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let _fits = call!(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const self.0,
            0,
            8
        );
    }
}

/// What the program believes to be installed.
static THEIRS: [Slot; 2] = [const { Slot::new() }; 2];
/// The engine's own handlers, as it installed them.
static ENGINE: [Slot; 2] = [const { Slot::new() }; 2];
/// Set once `front` is in the kernel.
static FRONT: AtomicUsize = AtomicUsize::new(0);

fn place_of(signal: usize) -> Option<usize> {
    OURS.iter().position(|&ours| ours as usize == signal)
}

/// Before the engine is built: the handlers found become the program's, and
/// the engine will find one that passes on to them.
pub(crate) fn stand_behind() {
    for (slot, signal) in THEIRS.iter().zip(OURS) {
        let mut found = DEFAULT;
        let _cannot_fail = kernel_action(signal, None, Some(&mut found));
        slot.set(found);
        // SAFETY: all zero is an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = passed_on as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: a complete action; `passed_on` takes three arguments.
        unsafe { libc::sigaction(signal, &raw const action, core::ptr::null_mut()) };
        // Blocked signals come with exec; ours must not be.
        unblock();
    }
}

fn unblock() {
    let bits = OUR_BITS;
    let _cannot_fail = call!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_UNBLOCK,
        &raw const bits,
        0,
        8
    );
}

/// Once the engine has its handlers in place and libc is patched: stands in
/// front of them.
pub(crate) fn stand_in_front() {
    for (slot, signal) in ENGINE.iter().zip(OURS) {
        let mut found = DEFAULT;
        let _cannot_fail = kernel_action(signal, None, Some(&mut found));
        slot.set(found);
        let front = Action {
            handler: front as *const () as usize,
            ..found
        };
        let _cannot_fail = kernel_action(signal, Some(&front), None);
    }
    FRONT.store(1, Ordering::Release);
}

fn kernel_action(signal: i32, new: Option<&Action>, old: Option<&mut Action>) -> Answer {
    let new = new.map_or(0, |action| core::ptr::from_ref(action) as usize);
    let old = old.map_or(0, |action| core::ptr::from_mut(action) as usize);
    call!(libc::SYS_rt_sigaction, signal, new, old, 8)
}

type Handler = extern "C-unwind" fn(i32, *mut libc::siginfo_t, *mut c_void);

/// The kernel's way in.
extern "C-unwind" fn front(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(place) = place_of(signal as usize) else {
        return;
    };
    // SAFETY: the kernel's own structure.
    let told = unsafe { &*info };
    // SAFETY: a fault has an address; what is read otherwise is not used.
    let address = unsafe { told.si_addr() } as usize;
    if told.si_code > 0 && signal == libc::SIGSEGV && holds::is_protected(address) {
        // The engine would open the page.
        passed_on(signal, info, context);
        return;
    }
    let engine = ENGINE[place].get().handler;
    // SAFETY: the engine installed a handler of three arguments.
    let engine = unsafe { core::mem::transmute::<usize, Handler>(engine) };
    let inside = Inside::new(thread::current());
    engine(signal, info, context);
    drop(inside);
}

/// The engine's way out, for faults that are not its own.
extern "C-unwind" fn passed_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(place) = place_of(signal as usize) else {
        return;
    };
    // SAFETY: the kernel's own structure, handed through.
    let sent = unsafe { (*info).si_code } <= 0;
    let action = THEIRS[place].get();
    match action.handler {
        libc::SIG_IGN if sent => return,
        // A fault cannot be ignored. Put the default back: the instruction
        // faults again, and the core dump names the program's own fault.
        libc::SIG_DFL | libc::SIG_IGN => {
            let _cannot_fail = kernel_action(signal, Some(&DEFAULT), None);
            if sent {
                let (pid, tid) = (call!(libc::SYS_getpid), call!(libc::SYS_gettid));
                let _pending = call!(libc::SYS_tgkill, pid, tid, signal);
            }
            return;
        }
        _ => {}
    }
    if action.flags & libc::SA_RESETHAND as u64 != 0 {
        THEIRS[place].set(DEFAULT);
    }
    let thread = thread::current();
    let (inside, blocked) = (thread.inside.replace(0), thread.blocked.get());
    let mask = without_ours(action.mask);
    let _cannot_fail = call!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_BLOCK,
        &raw const mask,
        0,
        8
    );
    // SAFETY: a handler the program installed; with one argument or three,
    // the calling convention is the same for both.
    let handler = unsafe { core::mem::transmute::<usize, Handler>(action.handler) };
    handler(signal, info, context);
    thread.inside.set(inside);
    thread.blocked.set(blocked);
}

/// A mask without our signals.
pub(crate) fn without_ours(mask: u64) -> u64 {
    mask & !OUR_BITS
}

/// rt_sigaction.
pub(crate) fn action(args: [usize; 6]) -> Done {
    let [signal, new, old, bytes, ..] = args;
    if bytes != 8 || FRONT.load(Ordering::Acquire) == 0 {
        return Done::Asis;
    }
    let given: Option<Action> = load_if(new);
    if let Some(place) = place_of(signal) {
        let before = THEIRS[place].get();
        if let Some(given) = given {
            THEIRS[place].set(given);
        }
        store_if(old, before);
        return Done::With(0);
    }
    let given = given.map(|action| Action {
        mask: without_ours(action.mask),
        ..action
    });
    let mut before = DEFAULT;
    let answer = kernel_action(signal as i32, given.as_ref(), Some(&mut before));
    if !failed(answer) {
        store_if(old, before);
    }
    Done::With(answer)
}

/// The engine's calls about these signals must find the engine's handlers.
pub(crate) fn engine_action(args: [usize; 6]) -> Option<Answer> {
    let [signal, new, old, ..] = args;
    let place = place_of(signal)?;
    if FRONT.load(Ordering::Acquire) == 0 {
        return None;
    }
    let before = ENGINE[place].get();
    if let Some(given) = load_if::<Action>(new) {
        // The default action is put in place for good, see `chain`.
        if given.handler == libc::SIG_DFL {
            return None;
        }
        ENGINE[place].set(given);
    }
    store_if(old, before);
    Some(0)
}

/// rt_sigprocmask: our signals are never blocked, and reported as the program
/// set them.
pub(crate) fn mask(args: [usize; 6]) -> Done {
    let [how, new, old, bytes, ..] = args;
    if bytes != 8 {
        return Done::Asis;
    }
    let thread = thread::current();
    let theirs = u64::from(thread.blocked.get());
    let reported = OURS
        .iter()
        .enumerate()
        .filter(|(index, _)| theirs & (1 << index) != 0)
        .fold(0, |bits, (_, &signal)| bits | bit(signal));
    let given: Option<u64> = load_if(new);
    let asked = given.map(without_ours);
    let asked_place = asked
        .as_ref()
        .map_or(0, |mask| core::ptr::from_ref(mask) as usize);
    let mut before = 0_u64;
    let answer = call!(
        libc::SYS_rt_sigprocmask,
        how,
        asked_place,
        &raw mut before,
        8
    );
    if failed(answer) {
        return Done::With(answer);
    }
    if let Some(given) = given {
        let bits = OURS
            .iter()
            .enumerate()
            .filter(|&(_, &signal)| given & bit(signal) != 0)
            .fold(0, |bits, (index, _)| bits | 1 << index);
        thread.blocked.set(match how as i32 {
            libc::SIG_BLOCK => thread.blocked.get() | bits,
            libc::SIG_UNBLOCK => thread.blocked.get() & !bits,
            _ => bits,
        });
    }
    store_if(old, before | reported);
    Done::With(answer)
}

/// rt_sigprocmask in engine code. What it blocks passes to the threads it
/// starts, and libc blocks everything while it starts one: ours stay open, as
/// what libc reads then (the locale) may be absent. `None`: as it is.
pub(crate) fn engine_mask(args: [usize; 6]) -> Option<Answer> {
    let [how, new, old, bytes, ..] = args;
    let given = load_if::<u64>(new).filter(|_| bytes == 8 && how as i32 != libc::SIG_UNBLOCK)?;
    let asked = without_ours(given);
    let place = core::ptr::from_ref(&asked);
    Some(call!(libc::SYS_rt_sigprocmask, how, place, old, bytes))
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
    let mut now = Stack {
        base: 0,
        flags: 0,
        gap: 0,
        bytes: 0,
    };
    let asked = call!(libc::SYS_sigaltstack, 0, &raw mut now);
    if failed(asked) || now.flags & libc::SS_DISABLE == 0 {
        return;
    }
    if thread.stack.get() == 0 {
        let Some(base) = bounce::map(STACK_BYTES) else {
            return;
        };
        // An overflow is to be a fault.
        let _cannot_fail = call!(libc::SYS_mprotect, base, 4096, libc::PROT_NONE);
        thread.stack.set(base);
    }
    let ours = Stack {
        base: thread.stack.get() + 4096,
        flags: 0,
        gap: 0,
        bytes: STACK_BYTES - 4096,
    };
    let _refused_on_it = call!(libc::SYS_sigaltstack, &raw const ours, 0);
}

/// Takes the stack back at the thread's end.
pub(crate) fn take_stack() {
    let thread = thread::current();
    let base = thread.stack.replace(0);
    if base == 0 {
        return;
    }
    if thread.own_stack.get() == 0 {
        let none = Stack {
            base: 0,
            flags: libc::SS_DISABLE,
            gap: 0,
            bytes: 0,
        };
        if failed(call!(libc::SYS_sigaltstack, &raw const none, 0)) {
            // In use at this moment: it stays.
            thread.stack.set(base);
            return;
        }
    }
    let _gone = call!(libc::SYS_munmap, base, STACK_BYTES);
}

/// sigaltstack: the program's own goes in place of ours, and is held resident
/// if it is ghost memory.
pub(crate) fn stack(args: [usize; 6]) -> Done {
    let [new, old, ..] = args;
    let thread = thread::current();
    let given: Option<Stack> = load_if(new);
    let had_own = thread.own_stack.get() != 0;
    let mut before = Stack {
        base: 0,
        flags: 0,
        gap: 0,
        bytes: 0,
    };
    let asked = call!(libc::SYS_sigaltstack, 0, &raw mut before);
    if failed(asked) {
        return Done::With(asked);
    }
    if let Some(given) = given {
        if given.flags & libc::SS_DISABLE != 0 {
            if had_own {
                let none = given;
                let answer = call!(libc::SYS_sigaltstack, &raw const none, 0);
                if failed(answer) {
                    return Done::With(answer);
                }
                thread.own_stack.set(0);
                give_stack();
            }
        } else {
            if let Some(heap) = ghost::owner(given.base)
                && given.bytes < usize::MAX / 2
            {
                let start = given.base & !4095;
                let end = (given.base + given.bytes).next_multiple_of(4096);
                if !holds::hold(heap, start, end - start, false) {
                    return error(libc::ENOMEM);
                }
            }
            let answer = call!(libc::SYS_sigaltstack, &raw const given, 0);
            if failed(answer) {
                return Done::With(answer);
            }
            thread.own_stack.set(1);
        }
    }
    if old != 0 {
        if !had_own {
            before = Stack {
                base: 0,
                flags: libc::SS_DISABLE | (before.flags & libc::SS_ONSTACK),
                gap: 0,
                bytes: 0,
            };
        }
        store(old, before);
    }
    Done::With(0)
}

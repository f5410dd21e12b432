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
//!
//! A touch of ghost memory that is not the program's (freed, unmapped, mapped without
//! access) is told as the kernel tells of such memory: by SIGSEGV, whatever signal the
//! backend met it by.
//!
//! What the program blocks is kept for each thread and acted on as the kernel
//! does it: a blocked fault ends the process, a blocked signal that was sent
//! waits until it is unblocked, and a handler runs with its signal blocked.

use core::ffi::c_void;
use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_os::{doorway, told};

use crate::calls::{Done, load_if, store_if};
use crate::guarded::Touch;
use crate::raw::{Answer, call, failed, own};
use crate::{endings, ghost, objects, start, thread};
use front::front;
use masks::ours_of;

mod actions;
mod deliver;
mod front;
pub(crate) mod inherited;
mod masks;
pub(crate) mod sent;
mod stacks;

pub(crate) use actions::{
    Action, Blocked, DEFAULT, SavedAction, handler_is_set, kernel_action, without_own_signals,
};
pub(crate) use front::{Handler, passed_on};
pub(crate) use masks::{engine_mask, mask, pending, wait, with_mask, without_ours};
pub(crate) use stacks::{WithoutStack, give_stack, is_on_signal_stack, stack, take_stack};

/// The signals that a touch of ghost memory can raise.
pub(crate) const OURS: [i32; 2] = [libc::SIGBUS, libc::SIGSEGV];

pub(crate) const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

const OUR_BITS: u64 = bit(OURS[0]) | bit(OURS[1]);

/// What the program believes to be installed.
static THEIRS: [SavedAction; 2] = [const { SavedAction::new() }; 2];
/// The engine's own handlers, as it installed them.
static ENGINE: [SavedAction; 2] = [const { SavedAction::new() }; 2];
/// Set once `front` is in the kernel.
static FRONT: AtomicUsize = AtomicUsize::new(0);

fn place_of(signal: usize) -> Option<usize> {
    OURS.iter().position(|&ours| ours as usize == signal)
}

/// Before the engine is built: the handlers found become the program's, and
/// the engine will find one that passes on to them.
pub(crate) fn stand_behind() {
    for (saved, signal) in THEIRS.iter().zip(OURS) {
        let mut found = DEFAULT;
        let _cannot_fail = kernel_action(signal, None, Some(&mut found));
        saved.set(found);
        // SAFETY: all zero is an empty mask and no flags.
        let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
        action.sa_sigaction = passed_on as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: a complete action; `passed_on` takes three arguments.
        unsafe { libc::sigaction(signal, &raw const action, core::ptr::null_mut()) };
    }
    // Blocked signals come with exec, or the program blocked them before now; ours
    // must not be.
    let (bits, mut before) = (OUR_BITS, 0_u64);
    let _cannot_fail = own!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_UNBLOCK,
        &raw const bits,
        &raw mut before,
        8
    );
    thread::current().blocked.set(ours_of(before));
    open_in_handlers();
}

/// Handlers that the program set before now are known from now on, and block ours no longer
/// while they run: what they touch may be missing.
fn open_in_handlers() {
    for signal in (1..=LAST).filter(|&signal| place_of(signal).is_none()) {
        let mut found = DEFAULT;
        let asked = kernel_action(signal as i32, None, Some(&mut found));
        if failed(asked) || found.handler <= libc::SIG_IGN {
            continue;
        }
        handler_is_set(signal);
        if found.mask & OUR_BITS != 0 {
            found.mask = without_ours(found.mask);
            let _cannot_fail = kernel_action(signal as i32, Some(&found), None);
        }
    }
}

/// Whether a handler of the program's for one of our signals may be running on this
/// thread: there is one, and its signal is blocked.
pub(crate) fn may_be_handling() -> bool {
    let mut blocked = 0_u64;
    let _cannot_fail = own!(
        libc::SYS_rt_sigprocmask,
        libc::SIG_BLOCK,
        0,
        &raw mut blocked,
        8
    );
    OURS.iter().any(|&signal| {
        let mut found = DEFAULT;
        let _cannot_fail = kernel_action(signal, None, Some(&mut found));
        blocked & bit(signal) != 0 && found.handler > libc::SIG_IGN
    })
}

/// Once the engine has its handlers in place and libc is patched: stands in
/// front of them.
pub(crate) fn stand_in_front() {
    for (saved, signal) in ENGINE.iter().zip(OURS) {
        let mut found = DEFAULT;
        let _cannot_fail = kernel_action(signal, None, Some(&mut found));
        saved.set(found);
        let _cannot_fail = kernel_action(signal, Some(&as_front(found)), None);
    }
    FRONT.store(1, Ordering::Release);
    told::by_signals();
}

/// In a forked child: whoever was setting an action in the parent is not there.
pub(crate) fn forget_others() {
    let saved = THEIRS.iter().chain(&ENGINE);
    saved.for_each(SavedAction::forget_others);
}

/// The engine's action, with ours in front of it.
fn as_front(engine: Action) -> Action {
    Action {
        handler: front as *const () as usize,
        restorer: restorer(engine),
        ..engine
    }
}

/// Where a handler of the program's returns to.
fn restorer_of(place: usize, theirs: Action) -> usize {
    match theirs.flags & HAS_RESTORER {
        0 => restorer(ENGINE[place].get()),
        _ => theirs.restorer,
    }
}

/// The kernel's sign that an action has a restorer.
const HAS_RESTORER: u64 = 0x0400_0000;

/// Where a handler of ours returns to.
fn restorer(engine: Action) -> usize {
    match doorway::doorway() {
        Some(doorway) if doorway::is_confined() => doorway.restorer,
        _ => engine.restorer,
    }
}

/// An action of ours for another signal, but for its handler and mask: with three
/// arguments, on the alternate stack.
pub(crate) fn ours_to_return_from() -> Action {
    let engine = ENGINE[0].get();
    Action {
        handler: libc::SIG_DFL,
        flags: engine.flags & HAS_RESTORER | (libc::SA_SIGINFO | libc::SA_ONSTACK) as u64,
        restorer: restorer(engine),
        mask: 0,
    }
}

/// When this handler returns, nothing but this signal and ours can be delivered. It may have
/// come while the program had another mask for the time of a call: the one that the handler
/// returns to may block it.
pub(crate) fn let_in_only(signal: i32, context: *mut c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel's own structure, which it reads when the handler returns.
    let mask = unsafe { &raw mut (*context).uc_sigmask };
    // SAFETY: a mask of the kernel's is one word, of those that there is room for.
    unsafe { mask.cast::<u64>().write(without_ours(!bit(signal))) };
}

/// From now on our handlers return by the engine's doorway: a filter that lets
/// nobody return from a handler is about to be in force.
pub(crate) fn return_by_doorway() {
    if FRONT.load(Ordering::Acquire) == 0 {
        return;
    }
    for (saved, signal) in ENGINE.iter().zip(OURS) {
        let _cannot_fail = kernel_action(signal, Some(&as_front(saved.get())), None);
    }
}

/// Sends this thread a signal once more, with all that came with it; without, where that is
/// refused.
pub(crate) fn send_again(signal: i32, info: *const libc::siginfo_t) -> Answer {
    let (pid, tid) = (own!(libc::SYS_getpid), own!(libc::SYS_gettid));
    let sent = call!(libc::SYS_rt_tgsigqueueinfo, pid, tid, signal, info);
    if failed(sent) {
        return call!(libc::SYS_tgkill, pid, tid, signal);
    }
    sent
}

/// A child of vfork(2) has its parent's memory but handlers of its own, until
/// it executes a program or ends.
pub(crate) fn in_vfork_child() -> bool {
    own!(libc::SYS_getpid) != start::process() as Answer || start::is_first_elsewhere()
}

/// rt_sigaction.
pub(crate) fn action(args: [usize; 6]) -> Touch<Done> {
    let [signal, new, old, bytes, ..] = args;
    if bytes != 8 || FRONT.load(Ordering::Acquire) == 0 {
        return Ok(Done::Asis);
    }
    let given: Option<Action> = load_if(new)?;
    if let Some(place) = place_of(signal) {
        let before = THEIRS[place].get();
        if let Some(given) = given {
            // What a child of vfork sets is not its parent's, and goes with exec, but for
            // what it ignores.
            if in_vfork_child() {
                let thread = thread::current();
                let [blocked, ignored] = inherited::of(thread);
                let ignores = u32::from(given.handler == libc::SIG_IGN);
                let ignored = ignored & !(1 << place) | ignores << place;
                inherited::note(thread, [blocked, ignored]);
            } else {
                THEIRS[place].set(given);
            }
        }
        store_if(old, before)?;
        return Ok(Done::With(0));
    }
    let given = given.map(|action| Action {
        mask: without_ours(action.mask),
        ..action
    });
    if given.is_some_and(|action| action.handler > libc::SIG_IGN) {
        handler_is_set(signal);
    }
    if let Some(done) = endings::action(signal, given, old)? {
        return Ok(done);
    }
    let mut before = DEFAULT;
    let place = given
        .as_ref()
        .map_or(0, |action| core::ptr::from_ref(action) as usize);
    let answer = call!(libc::SYS_rt_sigaction, signal, place, &raw mut before, 8);
    if !failed(answer) {
        store_if(old, before)?;
    }
    Ok(Done::With(answer))
}

/// In a child that asked for it (`CLONE_CLEAR_SIGHAND`): no handler of the program's is set
/// any more, and what is ignored stays so.
pub(crate) fn clear() {
    for signal in 1..=LAST {
        let mut now = DEFAULT;
        let place = (&raw mut now) as usize;
        let asked = set_or_ask([signal, 0, place, 8, 0, 0]);
        if asked && now.handler > libc::SIG_IGN {
            let default = DEFAULT;
            set_or_ask([signal, (&raw const default) as usize, 0, 8, 0, 0]);
        }
    }
}

/// Signals have numbers up to here.
const LAST: usize = 64;

/// rt_sigaction in the program's name; whether it was done.
fn set_or_ask(args: [usize; 6]) -> bool {
    match action(args) {
        Ok(Done::With(answer)) => answer == 0,
        Ok(Done::Asis) => crate::raw::syscall(13, args) == 0,
        Err(_) => false,
    }
}

/// Whether a call of rt_sigaction in the midst of engine code is a handler's of the
/// program's. The engine's own set handlers of ours, or ask.
pub(crate) fn is_programs(args: [usize; 6]) -> bool {
    let [_, new, old, ..] = args;
    match load_if::<Action>(new) {
        Ok(Some(given)) => !objects::is_ours(given.handler),
        _ => ghost::is_ghost(old),
    }
}

/// The engine's calls about these signals must find the engine's handlers.
pub(crate) fn engine_action(args: [usize; 6]) -> Option<Answer> {
    let [signal, new, old, ..] = args;
    let place = place_of(signal)?;
    if FRONT.load(Ordering::Acquire) == 0 {
        return None;
    }
    let before = ENGINE[place].get();
    if let Some(given) = load_if::<Action>(new).ok()? {
        // The default action is put in place for good, see `chain`.
        if given.handler == libc::SIG_DFL {
            return None;
        }
        ENGINE[place].set(given);
    }
    store_if(old, before).ok()?;
    Some(0)
}

//! Signals that end the program where it owes a report, which is made before they do.
//!
//! ```text
//!   the program's action     the kernel has     what comes of the signal
//!   default                  `ends`             the report; then the default action
//!   a handler, for once      `once`             `ends` from now on; then the handler
//!   ignored, a handler       the same           what the program makes of it
//! ```
//! The program sees the actions it set, and dies by the signal: the report made, `ends` puts
//! the default action in place, sends the signal to its own thread with all that came with
//! it, and returns. It is delivered on the way back, so that a core dump names the
//! program's instruction.
//!
//! exec puts the default back by itself, and what is ignored was never changed. A child of
//! vfork(2) has actions of its own, and its parent's memory: nothing is noted for it. The
//! first process of a namespace of processes ignores signals whose action is the default,
//! and is not watched. Under a filter that the program installs nobody may send a signal,
//! so the actions become the kernel's again before that.
//!
//! A report for a signal has a second: then it is given up, as it may be that nobody reads it.
//!
//! SIGBUS and SIGSEGV are not among them (see [`crate::signals`]), nor is what no process
//! handles, and what does not end one.

use core::ffi::c_void;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use ghostmem_os::doorway;
use ghostmem_os::stack::OwnStack;

use crate::calls::{Done, store_if};
use crate::guarded::Touch;
use crate::raw::{call, failed, own};
use crate::signals::{
    self, Action, DEFAULT, Handler, SavedAction, WithoutStack, bit, kernel_action, without_ours,
};
use crate::thread::{self, EngineScope};
use crate::{ordinary, report};

/// Signals have numbers up to here.
const LAST: usize = 64;

/// The program's actions where the kernel has another.
static THEIRS: [SavedAction; LAST + 1] = [const { SavedAction::new() }; LAST + 1];
/// Signals are watched.
static ON: AtomicBool = AtomicBool::new(false);
/// Where the report is made: the program's stack for signals may be tiny, and address space
/// limited by then. Null: nowhere, or taken by who makes it.
static STACK: AtomicPtr<OwnStack> = AtomicPtr::new(ptr::null_mut());

/// A signal is reported for.
static REPORTING: AtomicBool = AtomicBool::new(false);
/// The signals that end the process, while one of them is reported for.
static IMPATIENT: AtomicU64 = AtomicU64::new(0);
/// When a report for a signal is given up, in milliseconds of the clock that only goes on.
static DEADLINE: AtomicU64 = AtomicU64::new(0);

/// So long may a report for a signal take: whoever sent it waits for the process to end.
const REPORT_MS: u64 = 1000;

/// Whether a signal ends a process that has not said otherwise (signal(7)).
fn is_ending(signal: usize) -> bool {
    const OTHERS: [i32; 13] = [
        libc::SIGKILL,
        libc::SIGBUS,
        libc::SIGSEGV,
        libc::SIGCHLD,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGURG,
        libc::SIGWINCH,
        // Of libc's threads.
        32,
        33,
    ];
    (1..=LAST).contains(&signal) && !OTHERS.iter().any(|&other| other as usize == signal)
}

fn endings() -> impl Iterator<Item = usize> {
    (1..=LAST).filter(|&signal| is_ending(signal))
}

/// Watches signals from now on: the process owes a report. Before the program runs.
pub(crate) fn watch() {
    if is_first_of_namespace() {
        return;
    }
    let Ok(stack) = OwnStack::new() else {
        return;
    };
    STACK.store(Box::into_raw(Box::new(stack)), Ordering::Release);
    ordinary::map_ahead();
    report::know_program();
    put_in_place();
}

/// Puts an action of ours in the kernel for each signal that would end the process.
fn put_in_place() {
    ON.store(true, Ordering::Release);
    signals::handler_is_set(libc::SIGTERM as usize);
    for signal in endings() {
        let mut found = DEFAULT;
        let _cannot_fail = kernel_action(signal as i32, None, Some(&mut found));
        let put = in_place_of(found);
        if put.handler != found.handler {
            THEIRS[signal].set(found);
            let _cannot_fail = kernel_action(signal as i32, Some(&put), None);
        }
    }
}

/// Watches none any more: the program's actions become the kernel's. Whether any were
/// watched.
pub(crate) fn let_be() -> bool {
    // What a child of vfork does here goes with it.
    let was_on = if signals::in_vfork_child() {
        ON.load(Ordering::Acquire)
    } else {
        ON.swap(false, Ordering::AcqRel)
    };
    if !was_on {
        return false;
    }
    for signal in endings() {
        let mut found = DEFAULT;
        let _cannot_fail = kernel_action(signal as i32, None, Some(&mut found));
        if is_ours(found) {
            let theirs = THEIRS[signal].get();
            let _cannot_fail = kernel_action(signal as i32, Some(&theirs), None);
        }
    }
    true
}

/// Watches again what was let be for nothing.
pub(crate) fn watch_again() {
    // A child of vfork executes a program, or ends: its parent is watched as before.
    if !signals::in_vfork_child() {
        put_in_place();
    }
}

/// In a forked child, which may be the first of a namespace. What another thread of its
/// parent was about is not the child's.
pub(crate) fn look_in_child() {
    THEIRS.iter().for_each(SavedAction::forget_others);
    REPORTING.store(false, Ordering::Relaxed);
    if is_first_of_namespace() {
        let_be();
    }
}

fn is_first_of_namespace() -> bool {
    own!(libc::SYS_getpid) == 1
}

/// Whether the kernel's action is one of ours.
fn is_ours(action: Action) -> bool {
    [ends as *const () as usize, once as *const () as usize].contains(&action.handler)
}

/// What the kernel gets where the program asks for an action.
fn in_place_of(given: Action) -> Action {
    let resets = given.flags & libc::SA_RESETHAND as u64 != 0;
    match given.handler {
        libc::SIG_DFL => ending(),
        libc::SIG_IGN => given,
        _ if resets => Action {
            handler: once as *const () as usize,
            flags: given.flags & !(libc::SA_RESETHAND as u64) | libc::SA_SIGINFO as u64,
            ..given
        },
        _ => given,
    }
}

/// The action that reports first.
fn ending() -> Action {
    Action {
        handler: ends as *const () as usize,
        mask: without_ours(u64::MAX),
        ..signals::ours_to_return_from()
    }
}

/// rt_sigaction of a signal that may be watched; `None`: nothing of ours is about it.
pub(crate) fn action(signal: usize, given: Option<Action>, old: usize) -> Touch<Option<Done>> {
    if !ON.load(Ordering::Acquire) || !is_ending(signal) {
        return Ok(None);
    }
    let theirs = THEIRS[signal].get();
    let is_noted = !signals::in_vfork_child();
    let put = given.map(|given| if is_noted { in_place_of(given) } else { given });
    if let (Some(given), Some(put)) = (given, put)
        && is_ours(put)
    {
        // Not later: `once` looks here for the handler.
        THEIRS[signal].set(given);
    }
    let mut before = DEFAULT;
    let place = put
        .as_ref()
        .map_or(0, |action| core::ptr::from_ref(action) as usize);
    let answer = call!(libc::SYS_rt_sigaction, signal, place, &raw mut before, 8);
    if !failed(answer) {
        store_if(old, if is_ours(before) { theirs } else { before })?;
    }
    Ok(Some(Done::With(answer)))
}

/// A signal came whose action is the default: it ends the process.
extern "C-unwind" fn ends(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let thread = thread::current();
    // The engine ends a process by abort(3) where something is wrong with it.
    let is_engines = signal == libc::SIGABRT && thread.inside.get() != 0 && is_own(info);
    if !signals::in_vfork_child() && !is_engines {
        let _inside = EngineScope::new(thread);
        report_aside();
    }
    let _cannot_fail = kernel_action(signal, Some(&DEFAULT), None);
    signals::let_in_only(signal, context);
    if failed(signals::send_again(signal, info)) {
        // A filter from before the start: as a shell would tell of it.
        let _ends = own!(libc::SYS_exit_group, 128 + signal);
    }
}

/// Whether a thread of this process sent the signal to this one, as raise(3) does.
fn is_own(info: *const libc::siginfo_t) -> bool {
    // SAFETY: the kernel's structure, which lives as long as the handler runs.
    let info = unsafe { &*info };
    // SAFETY: a signal that was sent to a thread has the sender's number.
    info.si_code == libc::SI_TKILL && unsafe { info.si_pid() } as isize == own!(libc::SYS_getpid)
}

/// Makes the report on a stack that is long enough.
fn report_aside() {
    let stack = STACK.swap(ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: null, or a box that `watch` gave up, taken by this thread alone and for good.
    let Some(stack) = (unsafe { stack.as_mut() }) else {
        report::wait_until_made();
        return;
    };
    // A fault would begin where this handler began.
    let is_on_signal_stack = signals::is_on_signal_stack();
    let _made = stack.run(move || {
        let without = is_on_signal_stack.then(WithoutStack::new);
        let impatient = endings()
            .map(|signal| signal as i32)
            .filter(|&signal| has_ending(signal))
            .fold(0, |mask, signal| mask | bit(signal));
        IMPATIENT.store(impatient, Ordering::Relaxed);
        DEADLINE.store(now_ms() + REPORT_MS, Ordering::Relaxed);
        REPORTING.store(true, Ordering::Release);
        report::at_exit();
        drop(without);
    });
}

fn has_ending(signal: i32) -> bool {
    let mut found = DEFAULT;
    let _cannot_fail = kernel_action(signal, None, Some(&mut found));
    found.handler == ends as *const () as usize
}

/// A signal is being reported for.
pub(crate) fn is_reporting() -> bool {
    REPORTING.load(Ordering::Acquire)
}

/// Milliseconds of the clock that only goes on.
fn now_ms() -> u64 {
    let mut now = [0_u64; 2];
    let _cannot_fail = own!(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut now);
    let [seconds, nanoseconds] = now;
    seconds * 1000 + nanoseconds / 1_000_000
}

/// Waits until a file takes more: a pipe may be full and nobody read it. `false`: a signal is
/// reported for, and the time for it is over. Whoever will not wait so long sends a signal
/// once more, and the process ends here. Signals that came together do not end it: they are
/// let in only while there is a wait.
pub(crate) fn wait_to_write(file: isize) -> bool {
    if doorway::is_confined() {
        // Only what the filter in front lets by may be asked.
        return true;
    }
    let mut asked = libc::pollfd {
        fd: file as i32,
        events: libc::POLLOUT,
        revents: 0,
    };
    let others = without_ours(!IMPATIENT.load(Ordering::Relaxed));
    loop {
        let left = DEADLINE.load(Ordering::Relaxed).saturating_sub(now_ms());
        let time = [left / 1000, left % 1000 * 1_000_000];
        let (time, others) = match is_reporting() {
            true => (time.as_ptr(), &raw const others),
            false => (ptr::null(), ptr::null()),
        };
        let ready = own!(libc::SYS_ppoll, &raw mut asked, 1, time, others, 8);
        if ready != -(libc::EINTR as isize) {
            return ready != 0;
        }
    }
}

/// A signal came whose handler is for one time: from now on the default is its action.
extern "C-unwind" fn once(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    let theirs = THEIRS[signal as usize].get();
    if theirs.handler <= libc::SIG_IGN {
        // Another thread changed it at this moment.
        return ends(signal, info, context);
    }
    if signals::in_vfork_child() {
        let _cannot_fail = kernel_action(signal, Some(&DEFAULT), None);
    } else {
        // As the kernel does it: flags and mask stay what they were.
        THEIRS[signal as usize].set(Action {
            handler: libc::SIG_DFL,
            ..theirs
        });
        let _cannot_fail = kernel_action(signal, Some(&ending()), None);
    }
    // SAFETY: a handler that the program installed; with one argument or three, the calling
    // convention is the same for both.
    let handler = unsafe { core::mem::transmute::<usize, Handler>(theirs.handler) };
    handler(signal, info, context);
}

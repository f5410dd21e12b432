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

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::bounce;
use crate::calls::{Done, error, load_if, store_if};
use crate::family::set_errno;
use crate::guarded::{self, Touch};
use ghostmem::{Backend, Hole};
use ghostmem_os::{doorway, told};

use crate::raw::{Answer, call, failed, own};
use crate::thread::{self, EngineScope, INFO_WORDS, Thread};
use crate::{endings, ghost, holds, start, taken};

/// The signals that a touch of ghost memory can raise.
pub(crate) const OURS: [i32; 2] = [libc::SIGBUS, libc::SIGSEGV];

pub(crate) const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

const OUR_BITS: u64 = bit(OURS[0]) | bit(OURS[1]);

/// `struct kernel_sigaction` of x86-64.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Action {
    pub(crate) handler: usize,
    pub(crate) flags: u64,
    pub(crate) restorer: usize,
    pub(crate) mask: u64,
}

pub(crate) const DEFAULT: Action = Action {
    handler: libc::SIG_DFL,
    flags: 0,
    restorer: 0,
    mask: 0,
};

/// An action that signal handlers read while another thread may set it: read
/// again until the version stood still.
pub(crate) struct SavedAction {
    version: AtomicU32,
    action: UnsafeCell<Action>,
}

// SAFETY: written under an odd version by one thread at a time, read as
// volatile words and used only when the version did not change.
unsafe impl Sync for SavedAction {}

impl SavedAction {
    pub(crate) const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            action: UnsafeCell::new(DEFAULT),
        }
    }

    pub(crate) fn get(&self) -> Action {
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

    pub(crate) fn set(&self, action: Action) {
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
pub(crate) struct Blocked(u64);

impl Blocked {
    pub(crate) fn new() -> Self {
        let (all, mut before) = (!OUR_BITS, 0_u64);
        let _fits = own!(
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
        // Ours are never blocked from when they are ours, which may be since.
        let before = match FRONT.load(Ordering::Acquire) {
            0 => self.0,
            _ => without_ours(self.0),
        };
        let _fits = own!(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const before,
            0,
            8
        );
    }
}

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

/// Whether this thread is on an alternate signal stack.
pub(crate) fn is_on_signal_stack() -> bool {
    let mut now = NO_STACK;
    let _cannot_fail = own!(libc::SYS_sigaltstack, 0, &raw mut now);
    now.flags & libc::SS_ONSTACK != 0
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

/// The engine's action, with ours in front of it.
fn as_front(engine: Action) -> Action {
    Action {
        handler: front as *const () as usize,
        restorer: restorer(engine),
        ..engine
    }
}

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
    /// The kernel's sign that there is a restorer.
    const HAS_RESTORER: u64 = 0x0400_0000;
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

pub(crate) fn kernel_action(signal: i32, new: Option<&Action>, old: Option<&mut Action>) -> Answer {
    let new = new.map_or(0, |action| core::ptr::from_ref(action) as usize);
    let old = old.map_or(0, |action| core::ptr::from_mut(action) as usize);
    own!(libc::SYS_rt_sigaction, signal, new, old, 8)
}

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
extern "C-unwind" fn front(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
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
    if told.si_code > 0 && is_never_ours(signal, told.si_code, address, context) {
        // The engine would open the page, over and over.
        passed_on(signal, info, context);
        return;
    }
    let engine = ENGINE[place].get().handler;
    // SAFETY: the engine installed a handler of three arguments.
    let engine = unsafe { core::mem::transmute::<usize, Handler>(engine) };
    let inside = EngineScope::new(thread::current());
    engine(signal, info, context);
    drop(inside);
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
extern "C-unwind" fn passed_on(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
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
        if !is_remade && is_kept_back(signal, address_of(unsafe { &*info })) {
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
    if sent && is_blocked {
        keep(thread, place, info);
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
    let (inside, blocked) = (thread.inside.replace(0), thread.blocked.get());
    let own = if action.flags & libc::SA_NODEFER as u64 == 0 {
        1 << place
    } else {
        0
    };
    thread.blocked.set(blocked | own | ours_of(action.mask));
    let mask = without_ours(action.mask);
    let _cannot_fail = own!(
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

/// Keeps a signal that was sent while the program has it blocked; one of a
/// kind, as the kernel does.
fn keep(thread: &Thread, place: usize, info: *const libc::siginfo_t) {
    if thread.pending.get() & 1 << place != 0 {
        return;
    }
    for (index, word) in thread.pending_info[place].iter().enumerate() {
        // SAFETY: the kernel's structure has that many words.
        let from = unsafe { info.cast::<u64>().add(index) };
        // SAFETY: one of its words, plain bytes.
        word.set(unsafe { from.read() });
    }
    thread.pending.set(thread.pending.get() | 1 << place);
}

/// Which of our signals the program believes to be blocked, from now on; those
/// that waited for it come now.
fn set_blocked(thread: &Thread, bits: u32) {
    thread.blocked.set(bits);
    let due = thread.pending.get() & !bits;
    if due == 0 {
        return;
    }
    for (place, signal) in OURS.iter().enumerate() {
        if due & 1 << place == 0 {
            continue;
        }
        thread.pending.set(thread.pending.get() & !(1 << place));
        let mut info = [0_u64; INFO_WORDS];
        for (word, kept) in info.iter_mut().zip(&thread.pending_info[place]) {
            *word = kept.get();
        }
        let (pid, tid) = (own!(libc::SYS_getpid), own!(libc::SYS_gettid));
        let sent = call!(
            libc::SYS_rt_tgsigqueueinfo,
            pid,
            tid,
            *signal,
            info.as_ptr()
        );
        if failed(sent) {
            let _sent = call!(libc::SYS_tgkill, pid, tid, *signal);
        }
    }
}

/// Which of our signals a mask has, one bit for each.
fn ours_of(mask: u64) -> u32 {
    let signals = OURS.iter().enumerate();
    signals
        .filter(|&(_, &signal)| mask & bit(signal) != 0)
        .fold(0, |bits, (place, _)| bits | 1 << place)
}

/// The same as a mask of the kernel's.
fn as_mask(bits: u32) -> u64 {
    let signals = OURS.iter().enumerate();
    signals
        .filter(|&(place, _)| bits & 1 << place != 0)
        .fold(0, |mask, (_, &signal)| mask | bit(signal))
}

/// A child of vfork(2) has its parent's memory but handlers of its own, until
/// it executes a program or ends.
pub(crate) fn in_vfork_child() -> bool {
    own!(libc::SYS_getpid) != start::process() as Answer
}

/// A mask without our signals.
pub(crate) fn without_ours(mask: u64) -> u64 {
    mask & !OUR_BITS
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
        // What a child of vfork sets is not its parent's, and goes with exec.
        if let Some(given) = given
            && !in_vfork_child()
        {
            THEIRS[place].set(given);
        }
        store_if(old, before)?;
        return Ok(Done::With(0));
    }
    let given = given.map(|action| Action {
        mask: without_ours(action.mask),
        ..action
    });
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

/// rt_sigprocmask: our signals are never blocked, and reported as the program
/// set them.
pub(crate) fn mask(args: [usize; 6]) -> Touch<Done> {
    let [how, new, old, bytes, ..] = args;
    if bytes != 8 {
        return Ok(Done::Asis);
    }
    let thread = thread::current();
    let theirs = thread.blocked.get();
    let given: Option<u64> = load_if(new)?;
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
        return Ok(Done::With(answer));
    }
    // As the kernel does it: the mask is set even where `old` cannot be.
    let stored = store_if(old, before | as_mask(theirs));
    if let Some(given) = given {
        let bits = ours_of(given);
        let bits = match how as i32 {
            libc::SIG_BLOCK => theirs | bits,
            libc::SIG_UNBLOCK => theirs & !bits,
            _ => bits,
        };
        if bits != theirs && !in_vfork_child() {
            set_blocked(thread, bits);
        }
    }
    stored?;
    Ok(Done::With(answer))
}

/// rt_sigpending: what waits here, too.
pub(crate) fn pending(args: [usize; 6]) -> Touch<Done> {
    let [place, bytes, ..] = args;
    let waiting = as_mask(thread::current().pending.get());
    if bytes != 8 || (waiting == 0 && !ghost::is_ghost(place)) {
        return Ok(Done::Asis);
    }
    let mut mask = 0_u64;
    let answer = call!(libc::SYS_rt_sigpending, &raw mut mask, 8);
    if !failed(answer) {
        guarded::store(place, mask | waiting)?;
    }
    Ok(Done::With(answer))
}

/// rt_sigtimedwait: what was sent while it was blocked is taken from here.
pub(crate) fn wait(args: [usize; 6]) -> Touch<Done> {
    let [set, info, timeout, bytes, ..] = args;
    if set == 0 || bytes != 8 {
        return Ok(Done::Asis);
    }
    let mask: u64 = guarded::load(set)?;
    let time: Option<[u64; 2]> = load_if(timeout)?;
    let thread = thread::current();
    let wanted = ours_of(mask);
    if wanted == 0 && ![set, info, timeout].into_iter().any(ghost::is_ghost) {
        return Ok(Done::Asis);
    }
    if let Some(signal) = taken(thread, wanted, info)? {
        return Ok(Done::With(signal));
    }
    let mut got = [0_u64; INFO_WORDS];
    let time = time
        .as_ref()
        .map_or(0, |time| core::ptr::from_ref(time) as usize);
    let answer = call!(
        libc::SYS_rt_sigtimedwait,
        &raw const mask,
        got.as_mut_ptr(),
        time,
        8
    );
    if failed(answer) {
        // One of ours came: the kernel does not know that it is blocked.
        if let Some(signal) = taken(thread, wanted, info)? {
            return Ok(Done::With(signal));
        }
    } else {
        store_if(info, got)?;
    }
    Ok(Done::With(answer))
}

/// Takes one of the signals that wait here, if it is among these.
fn taken(thread: &Thread, wanted: u32, info: usize) -> Touch<Option<Answer>> {
    let found = thread.pending.get() & wanted;
    if found == 0 {
        return Ok(None);
    }
    let place = found.trailing_zeros() as usize;
    thread.pending.set(thread.pending.get() & !(1 << place));
    let mut words = [0_u64; INFO_WORDS];
    for (word, kept) in words.iter_mut().zip(&thread.pending_info[place]) {
        *word = kept.get();
    }
    store_if(info, words)?;
    Ok(Some(OURS[place] as Answer))
}

/// Another mask for the time of a call, as far as it has our signals. Says whether
/// one that waited came by it: the call is then over before it began.
pub(crate) fn with_mask(mask: u64, call: impl FnOnce() -> Answer) -> Answer {
    let thread = thread::current();
    let before = thread.blocked.get();
    let meanwhile = ours_of(mask);
    let due = thread.pending.get() & !meanwhile != 0;
    set_blocked(thread, meanwhile);
    let answer = if due {
        -(libc::EINTR as Answer)
    } else {
        call()
    };
    set_blocked(thread, before);
    answer
}

/// rt_sigprocmask in engine code. What it blocks passes to the threads it
/// starts, and libc blocks everything while it starts one: ours stay open, as
/// what libc reads then (the locale) may be absent. `None`: as it is.
pub(crate) fn engine_mask(args: [usize; 6]) -> Option<Answer> {
    let [how, new, old, bytes, ..] = args;
    let given = load_if::<u64>(new).ok()?;
    let given = given.filter(|_| bytes == 8 && how as i32 != libc::SIG_UNBLOCK)?;
    let asked = without_ours(given);
    let place = core::ptr::from_ref(&asked);
    Some(own!(libc::SYS_rt_sigprocmask, how, place, old, bytes))
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
        let _gone = own!(libc::SYS_munmap, base, STACK_BYTES);
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

//! fork(3) in a signal handler that came in the midst of libc's malloc, or of a fork.
//!
//! For a fork libc takes the locks of its malloc where the process has several threads, and
//! the engine has one. The handler would wait for what the thread has that it interrupted. A
//! child without those locks might never get them. So such a fork is refused, as fork(2) is
//! where the system is short of something.
//!
//! In a fork libc has a lock of its own then, too, which the handler's would wait for, and what
//! the thread does there counts as the engine's. So a handler comes before a fork or behind it.
//! What the program has done before and behind it (pthread_atfork(3)) is the program's: there
//! signals come as ever, since another thread may wait for its signal to be handled.

use core::ffi::{c_int, c_void};
use core::hint::black_box;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ghostmem::Backend;
use ghostmem_os::error::set_errno;

use crate::signals::Blocked;
use crate::thread::{self, Thread};
use crate::{ghost, names, signals, start};

type Fork = unsafe extern "C" fn() -> libc::pid_t;

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Finds libc's own. Not in a handler: the loader has locks, too.
pub(crate) fn prepare() {
    NEXT.store(start::next(c"fork"), Ordering::Release);
}

/// The thread is in libc's malloc while this is there.
pub(crate) struct InLibc {
    thread: &'static Thread,
    outer: usize,
}

impl InLibc {
    #[inline]
    pub(crate) fn new() -> Self {
        let thread = thread::current();
        let here = here();
        let outer = thread.in_libc.replace(here);
        let outer = if outer != 0 && was_left(outer, here) {
            0
        } else {
            outer
        };
        Self { thread, outer }
    }
}

/// Whether a thread that went into libc's malloc is there no more: a handler left it by a jump,
/// so that the stack in use ends above that. (A handler may be on another stack.)
#[cold]
fn was_left(since: usize, here: usize) -> bool {
    since < here && !signals::is_on_signal_stack()
}

impl Drop for InLibc {
    #[inline]
    fn drop(&mut self) {
        self.thread.in_libc.set(self.outer);
    }
}

/// An address on the stack in use.
#[inline]
fn here() -> usize {
    let here = 0_u8;
    black_box(&raw const here).addr()
}

/// Whether the calling handler came in the midst of libc's malloc. What one left by a jump is
/// known by the stack, unless the thread is further down on it than it was: until it allocates
/// or forks further up.
fn is_amid_malloc() -> bool {
    let thread = thread::current();
    let since = thread.in_libc.get();
    if since != 0 && was_left(since, here()) {
        thread.in_libc.set(0);
    }
    thread.in_libc.get() != 0
}

/// Whether a child that is made past libc would wait for libc's malloc: a monitor has threads,
/// which are made before the child goes on.
pub(crate) fn is_refused_past_libc() -> bool {
    let has_threads = ghost::heap().is_some_and(|heap| heap.backend() == Backend::Monitor);
    has_threads && is_amid_malloc()
}

/// fork(3).
#[unsafe(no_mangle)]
pub(crate) extern "C" fn fork() -> libc::pid_t {
    if NEXT.load(Ordering::Acquire) == 0 {
        prepare();
    }
    let next = NEXT.load(Ordering::Acquire);
    let refused = match next {
        0 => libc::ENOSYS,
        _ if ghost::is_on() && is_amid_malloc() => libc::EAGAIN,
        _ => 0,
    };
    if refused != 0 {
        set_errno(refused);
        return -1;
    }
    // SAFETY: libc's function of that name.
    let next = unsafe { core::mem::transmute::<usize, Fork>(next) };
    let is_whole = ghost::is_on() && !HAS_PARTS.load(Ordering::Acquire);
    let _blocked = is_whole.then(Blocked::if_handled);
    // SAFETY: as the program called it.
    unsafe { next() }
}

type Part = Option<unsafe extern "C" fn()>;
type Register = unsafe extern "C" fn(Part, Part, Part, *const c_void) -> c_int;

/// The program has parts of its own in a fork, so that signals are held only between these.
static HAS_PARTS: AtomicBool = AtomicBool::new(false);

/// What pthread_atfork(3) calls in libc. (What this library registers goes to libc at once, by
/// [`names`].) The program's parts come behind ours in libc's list, even those of libraries that
/// are loaded before this one, so that before a fork they run first, and behind it last.
///
/// # Safety
/// As there.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __register_atfork(
    prepare: Part,
    parent: Part,
    child: Part,
    object: *const c_void,
) -> c_int {
    names::settle();
    let Some(next) = names::in_libc(c"__register_atfork") else {
        return libc::ENOMEM;
    };
    let failed = start::take_part_in_forks();
    if failed != 0 {
        return failed;
    }
    HAS_PARTS.store(true, Ordering::Release);
    // SAFETY: libc's function of that name.
    let next = unsafe { core::mem::transmute::<usize, Register>(next) };
    // SAFETY: the caller's promise.
    unsafe { next(prepare, parent, child, object) }
}

/// Behind the program's parts before a fork: libc's begins.
pub(crate) fn hold_signals() {
    if ghost::is_on() {
        let before = Blocked::if_handled().map_or(0, Blocked::keep);
        thread::current().before_fork.set(before);
    }
}

/// Before the program's parts behind it, in parent and child.
pub(crate) fn let_signals() {
    drop(Blocked::kept(thread::current().before_fork.take()));
}

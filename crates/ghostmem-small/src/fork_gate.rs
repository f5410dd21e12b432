//! The gate before mimalloc's slow paths, so that `fork` finds them empty.
//!
//! mimalloc takes mutexes, and waits for other threads' half-done bitmap
//! changes, only off its fast paths. A child of `fork` has none of those other
//! threads: a mutex held by one stays held, a wait for one never ends. So
//! every slow call of this crate passes this gate; [`prepare`] closes it and
//! waits until nobody is inside.
//!
//! ```text
//!   enter:  count += 1 ─► closed? ─no─► inside          prepare: close ─► sum of counts == own ?
//!              ▲             │yes                                  then the teardown lock,
//!              └── wait ◄── count -= 1                             then every heap's theap list
//! ```
//! The counts are spread over cache lines by thread, so that threads do not
//! slow each other down. Never entered by a fault handler; faults raised by
//! threads inside it are resolved as any others.
//!
//! A signal handler may interrupt a thread inside mimalloc, and other
//! libraries' fork handlers may run while the gate is closed. What these call
//! enters by [`try_enter`], which refuses where mimalloc's structures may be
//! half changed: an allocation is then refused, a free put off.
//!
//! What it cannot cover: threads inside mimalloc on the *program's* behalf,
//! when the program uses mimalloc itself. Such a program has, for its own
//! blocks, whatever mimalloc promises about `fork` (nothing).

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use crate::arena;
use crate::ffi;

/// How many counters the threads are spread over.
const STRIPES: usize = 32;

/// One counter on cache lines of its own (two: the neighbour is prefetched).
#[repr(align(128))]
struct Stripe(AtomicUsize);

static INSIDE: [Stripe; STRIPES] = [const { Stripe(AtomicUsize::new(0)) }; STRIPES];
static CLOSED: AtomicBool = AtomicBool::new(false);
static AT_THE_CALL: AtomicBool = AtomicBool::new(false);
/// Some heap was made, and with it mimalloc is in use.
static USED: AtomicBool = AtomicBool::new(false);
/// [`prepare`] took mimalloc's locks; changed only while the gate is closed.
static HELD: AtomicBool = AtomicBool::new(false);
/// How many times this process is a `fork` away from the first one.
static EPOCH: AtomicUsize = AtomicUsize::new(0);
static NEXT_STRIPE: AtomicUsize = AtomicUsize::new(0);

/// No stripe chosen yet.
const UNASSIGNED: usize = usize::MAX;

thread_local! {
    // Constant and without destructor: plain thread-local memory, usable
    // before main, while a thread ends, and without any allocation.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    // How many of those are inside mimalloc.
    static BUSY: Cell<usize> = const { Cell::new(0) };
    // This thread closed the gate, for a fork that is not over.
    static FORKING: Cell<bool> = const { Cell::new(false) };
    // The handler before this thread's fork closed it: those after it open it,
    // whatever was said meanwhile.
    static CLOSED_BY_HANDLER: Cell<bool> = const { Cell::new(false) };
    static STRIPE: Cell<usize> = const { Cell::new(UNASSIGNED) };
}

fn stripe() -> &'static AtomicUsize {
    let mut index = STRIPE.get();
    if index == UNASSIGNED {
        index = NEXT_STRIPE.fetch_add(1, Ordering::Relaxed) % STRIPES;
        STRIPE.set(index);
    }
    &INSIDE[index].0
}

/// Being inside the gate; leaves it when dropped.
#[must_use]
pub struct NoFork {
    /// For mimalloc, rather than to keep forks out.
    busy: bool,
    /// Entering is counted by thread: keep the value on it.
    not_send: core::marker::PhantomData<*const ()>,
}

/// Waits a little for another thread, which may be of lower priority.
pub(crate) fn pause(tries: &mut u32) {
    ghostmem_os::futex::pause(*tries);
    *tries = tries.saturating_add(1);
}

/// Enters to call mimalloc's slow paths, waiting while another thread forks.
pub(crate) fn enter() -> NoFork {
    BUSY.set(BUSY.get() + 1);
    go_in(true)
}

/// As [`enter`]; `None` where this thread is in mimalloc already, which then is
/// code that a signal interrupted, or holds mimalloc's locks for a fork.
pub(crate) fn try_enter() -> Option<NoFork> {
    (BUSY.get() == 0 && !FORKING.get()).then(enter)
}

fn go_in(busy: bool) -> NoFork {
    let depth = DEPTH.get();
    DEPTH.set(depth + 1);
    if depth == 0 {
        let stripe = stripe();
        loop {
            stripe.fetch_add(1, Ordering::SeqCst);
            // SeqCst on both sides: either prepare sees our count, or we see
            // the gate closed.
            if !CLOSED.load(Ordering::SeqCst) {
                break;
            }
            stripe.fetch_sub(1, Ordering::SeqCst);
            let mut tries = 0;
            while CLOSED.load(Ordering::Relaxed) {
                pause(&mut tries);
            }
        }
    }
    NoFork {
        busy,
        not_send: core::marker::PhantomData,
    }
}

impl Drop for NoFork {
    fn drop(&mut self) {
        let depth = DEPTH.get() - 1;
        DEPTH.set(depth);
        if depth == 0 {
            stripe().fetch_sub(1, Ordering::Release);
        }
        if self.busy {
            BUSY.set(BUSY.get() - 1);
        }
    }
}

/// Keeps fork(2) from happening on other threads until the value is dropped:
/// for what a child must find done or not begun. Waits while one is under way.
/// May be nested; not for signal handlers.
pub fn keep_out() -> NoFork {
    go_in(false)
}

/// Exclusion of a thread's farewell from the destruction of a heap.
pub(crate) struct Teardown;

/// Takes the teardown lock. Call inside the gate only.
pub(crate) fn teardown(_inside: &NoFork) -> Teardown {
    ffi::gm_teardown_lock();
    Teardown
}

impl Drop for Teardown {
    fn drop(&mut self) {
        // SAFETY: this value exists, so this thread holds the lock.
        unsafe { ffi::gm_teardown_unlock() };
    }
}

/// Called on every thread that used a heap, when it ends.
pub(crate) extern "C" fn thread_ends() {
    let inside = enter();
    let _teardown = teardown(&inside);
    ffi::gm_leave_thread();
}

/// Inside the gate: from now on a fork has mimalloc's locks to take.
pub(crate) fn note_use(_inside: &NoFork) {
    USED.store(true, Ordering::Release);
}

/// Registers the handlers while the program is loaded: after the pager's (see
/// `ghostmem-fault`, whose priority is lower), so that [`prepare`] runs before
/// those, and before the program's own, so that these may allocate.
extern "C" fn hook_at_load() {
    extern "C" fn before() {
        if !AT_THE_CALL.load(Ordering::Acquire) {
            prepare();
            CLOSED_BY_HANDLER.set(true);
        }
    }
    extern "C" fn in_parent() {
        if CLOSED_BY_HANDLER.replace(false) {
            parent();
        }
    }
    extern "C" fn in_child() {
        if CLOSED_BY_HANDLER.replace(false) {
            child();
        }
    }
    // A constructor of the program's may have made a heap before.
    let first = HOOKED.compare_exchange(0, UNDER_WAY, Ordering::AcqRel, Ordering::Relaxed);
    if first.is_ok() {
        let hooked = ghostmem_os::thread::at_fork(before, in_parent, in_child);
        let outcome = if hooked.is_ok() { DONE } else { REFUSED };
        HOOKED.store(outcome, Ordering::Release);
    }
}

#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array.00060")]
static HOOK_AT_LOAD: extern "C" fn() = hook_at_load;

static HOOKED: AtomicU8 = AtomicU8::new(0);
/// Some thread is registering them.
const UNDER_WAY: u8 = 1;
const DONE: u8 = 2;
const REFUSED: u8 = 3;

/// Whether forks are taken care of; sees to it when no constructor ran yet.
pub(crate) fn is_hooked() -> bool {
    if HOOKED.load(Ordering::Acquire) == 0 {
        hook_at_load();
    }
    let mut tries = 0;
    while HOOKED.load(Ordering::Acquire) == UNDER_WAY {
        pause(&mut tries);
    }
    HOOKED.load(Ordering::Acquire) == DONE
}

/// The number of this process in its line of forks.
pub(crate) fn epoch() -> usize {
    EPOCH.load(Ordering::Relaxed)
}

/// From now on the handlers do nothing, and [`before`] and [`after`] stand around the
/// system call: libc takes locks of its own between the handlers and the call, and
/// another thread may hold one of those while it waits at the gate.
pub fn close_at_the_call() {
    AT_THE_CALL.store(true, Ordering::Release);
}

/// What the fork handlers do before a fork, for one that runs none; [`after`]
/// is to follow on the same thread, whose signals are blocked: a handler that forks,
/// too, would wait for the fork it interrupted.
pub fn before() {
    prepare();
}

/// What the fork handlers do after a fork, in parent (whether it worked or not)
/// and child.
pub fn after(in_child: bool) {
    if in_child {
        child();
    } else {
        parent();
    }
}

/// Before `fork`: closes the gate, waits
/// until no thread is inside mimalloc on our behalf and holds what a child
/// must find free.
///
/// It runs **before** the pager is frozen: threads it waits for may be in the
/// middle of a page fault. It is paired with [`parent`] or [`child`] on the
/// same thread. In a signal handler that interrupted this crate it holds back
/// only what the interrupted code does not hold itself.
fn prepare() {
    let mut tries = 0;
    while CLOSED.swap(true, Ordering::SeqCst) {
        pause(&mut tries);
    }
    FORKING.set(true);
    let own = usize::from(DEPTH.get() > 0);
    loop {
        let inside: usize = INSIDE.iter().map(|s| s.0.load(Ordering::SeqCst)).sum();
        if inside <= own {
            break;
        }
        pause(&mut tries);
    }
    if own == 0 && USED.load(Ordering::Acquire) {
        ffi::gm_teardown_lock();
        arena::lock_theaps();
        HELD.store(true, Ordering::Relaxed);
    }
}

/// After `fork`, in the parent: opens everything again.
fn parent() {
    if HELD.swap(false, Ordering::Relaxed) {
        arena::unlock_theaps();
        // SAFETY: `prepare` took it on this thread.
        unsafe { ffi::gm_teardown_unlock() };
    }
    FORKING.set(false);
    CLOSED.store(false, Ordering::SeqCst);
}

/// After `fork`, in the child: as [`parent`], and forgets the threads that are
/// not here.
///
/// Heaps made before the fork go on working; dropping one in the child gives
/// its memory back but keeps its arena's address space and its mimalloc
/// bookkeeping, since the threads that would have to agree do not exist.
fn child() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
    for stripe in &INSIDE {
        stripe.0.store(0, Ordering::SeqCst);
    }
    if DEPTH.get() > 0 {
        stripe().store(1, Ordering::SeqCst);
    }
    arena::forget_callbacks();
    if USED.load(Ordering::Acquire) {
        arena::disown_pages();
    }
    parent();
}

//! The gate before mimalloc's slow paths, so that `fork` finds them empty.
//!
//! mimalloc takes mutexes, and waits for other threads' half-done bitmap
//! changes, only off its fast paths. A child of `fork` has none of those other
//! threads: a mutex held by one stays held, a wait for one never ends. So
//! every slow call of this crate passes this gate; [`prepare`] closes it and
//! waits until nobody is inside.
//!
//! ```text
//!   enter:  set own bit ─► closed? ─no─► inside         prepare: close ─► no bit but of threads
//!              ▲             │yes                      that are stopped, itself one of them?
//!              └── wait ◄── clear it                   then the teardown lock, then every
//!                                                      heap's theap list
//! ```
//! Each thread has a bit, its seat, and the seats are spread over cache lines, so that
//! threads do not slow each other down. Never entered by a fault handler; faults raised
//! by threads inside it are resolved as any others.
//!
//! A signal handler may interrupt a thread inside mimalloc, and other
//! libraries' fork handlers may run while the gate is closed. What these call
//! enters by [`try_enter`], which refuses where mimalloc's structures may be
//! half changed: an allocation is then refused, a free put off.
//!
//! A handler may fork as well, wherever it comes: between any two instructions here. So
//! being inside is one bit that one instruction changes, and to set or to clear it twice
//! does no harm. A count beside a flag of the thread's would differ from it for an
//! instruction, and a fork there would wait for its own thread, or for one too few.
//!
//! What it cannot cover: threads inside mimalloc on the *program's* behalf,
//! when the program uses mimalloc itself. Such a program has, for its own
//! blocks, whatever mimalloc promises about `fork` (nothing).

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ghostmem_os::thread::SignalsBlocked;

use crate::arena;
use crate::ffi;

/// How many rows the seats are spread over, and how many are in each.
const ROWS: usize = 32;
const SEATS: usize = u64::BITS as usize;

/// Some seats, on cache lines of their own (two: the neighbour is prefetched).
#[repr(align(128))]
struct Row {
    /// Whose thread is inside.
    inside: AtomicU64,
    /// Which belong to a thread.
    taken: AtomicU64,
}

static SEATED: [Row; ROWS] = [const {
    Row {
        inside: AtomicU64::new(0),
        taken: AtomicU64::new(0),
    }
}; ROWS];
/// How many threads without a seat are inside.
static STANDING: AtomicUsize = AtomicUsize::new(0);
/// How many threads are inside and in a handler that forks, or waits to.
static STOPPED: AtomicUsize = AtomicUsize::new(0);
static CLOSED: AtomicBool = AtomicBool::new(false);
static AT_THE_CALL: AtomicBool = AtomicBool::new(false);
/// Some heap was made, and with it mimalloc is in use.
static USED: AtomicBool = AtomicBool::new(false);
/// [`prepare`] took mimalloc's locks; changed only while the gate is closed.
static HELD: AtomicBool = AtomicBool::new(false);
/// How many times this process is a `fork` away from the first one.
static EPOCH: AtomicUsize = AtomicUsize::new(0);
/// The row in which the next seat is looked for.
static NEXT_ROW: AtomicUsize = AtomicUsize::new(0);

/// In place of a seat's number: none was looked for yet; all were taken, or the thread
/// is about to end and gave its own back.
const UNASSIGNED: usize = usize::MAX;
const STANDS: usize = usize::MAX - 1;

thread_local! {
    // Constant and without destructor: plain thread-local memory, usable
    // before main, while a thread ends, and without any allocation.
    // How many values of `NoFork` there are: of those who are inside for certain.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    // How many of those are inside mimalloc.
    static BUSY: Cell<usize> = const { Cell::new(0) };
    // This thread closes the gate, or closed it, for a fork that is not over.
    static FORKING: Cell<bool> = const { Cell::new(false) };
    // It was inside then, and counts as stopped.
    static IS_STOPPED: Cell<bool> = const { Cell::new(false) };
    // The handler before this thread's fork closed it: those after it open it,
    // whatever was said meanwhile.
    static CLOSED_BY_HANDLER: Cell<bool> = const { Cell::new(false) };
    static SEAT: Cell<usize> = const { Cell::new(UNASSIGNED) };
    // A thread without a seat is inside.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// The row of a seat, and its bit there.
fn place_of(seat: usize) -> (&'static Row, u64) {
    (&SEATED[seat / SEATS], 1 << (seat % SEATS))
}

/// A seat that is nobody else's; [`STANDS`] where all are taken.
fn take_seat() -> usize {
    let first = NEXT_ROW.fetch_add(1, Ordering::Relaxed);
    for index in (0..ROWS).map(|next| (first + next) % ROWS) {
        let taken = &SEATED[index].taken;
        let free = |before: u64| (before != u64::MAX).then(|| before | (before + 1));
        if let Ok(before) = taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, free) {
            return index * SEATS + before.trailing_ones() as usize;
        }
    }
    STANDS
}

/// The thread's seat, given back when it ends.
fn seat() -> usize {
    if SEAT.get() == UNASSIGNED {
        // The child of a handler that forked in between would take the seat for nobody's.
        let _signals = SignalsBlocked::all_but_faults();
        if SEAT.get() == UNASSIGNED {
            SEAT.set(take_seat());
            ffi::gm_hear_of_thread_end();
        }
    }
    SEAT.get()
}

/// The thread is about to end: its seat is the next one's. What it calls from now on
/// finds it without one.
fn give_seat_back() {
    let seat = SEAT.replace(STANDS);
    if seat < ROWS * SEATS {
        let (row, bit) = place_of(seat);
        row.taken.fetch_and(!bit, Ordering::AcqRel);
    }
}

/// Whether this thread is inside, as a fork sees it.
fn is_inside() -> bool {
    match SEAT.get() {
        UNASSIGNED => false,
        STANDS => COUNTED.get(),
        seat => {
            let (row, bit) = place_of(seat);
            row.inside.load(Ordering::Relaxed) & bit != 0
        }
    }
}

/// Makes this thread be inside, or not, as a fork sees it; as it is already, too.
fn set_inside(is_inside: bool) {
    let seat = seat();
    if seat != STANDS {
        let (row, bit) = place_of(seat);
        // SeqCst: either prepare sees the bit, or who set it sees the gate closed.
        if is_inside {
            row.inside.fetch_or(bit, Ordering::SeqCst);
        } else {
            row.inside.fetch_and(!bit, Ordering::SeqCst);
        }
        return;
    }
    // Two steps, which no handler may see apart.
    let _signals = SignalsBlocked::all_but_faults();
    match (is_inside, COUNTED.replace(is_inside)) {
        (true, false) => STANDING.fetch_add(1, Ordering::SeqCst),
        (false, true) => STANDING.fetch_sub(1, Ordering::SeqCst),
        _ => 0,
    };
}

/// How many threads are inside.
fn count_inside() -> usize {
    let bits = |row: &Row| row.inside.load(Ordering::SeqCst).count_ones() as usize;
    SEATED.iter().map(bits).sum::<usize>() + STANDING.load(Ordering::SeqCst)
}

/// Being inside the gate; leaves it when dropped. A thread that has several drops the
/// last one first.
#[must_use]
pub struct NoFork {
    /// For mimalloc, rather than to keep forks out.
    busy: bool,
    /// A handler's, that interrupted code on its way in or out: this changes nothing for it.
    was_inside: bool,
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
    let mut was_inside = false;
    if DEPTH.get() == 0 {
        was_inside = is_inside();
        set_inside(true);
        while CLOSED.load(Ordering::SeqCst) {
            set_inside(false);
            let mut tries = 0;
            while CLOSED.load(Ordering::Relaxed) {
                pause(&mut tries);
            }
            set_inside(true);
        }
    }
    DEPTH.set(DEPTH.get() + 1);
    NoFork {
        busy,
        was_inside,
        not_send: core::marker::PhantomData,
    }
}

impl Drop for NoFork {
    fn drop(&mut self) {
        let depth = DEPTH.get() - 1;
        DEPTH.set(depth);
        if depth == 0 && !self.was_inside {
            set_inside(false);
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

/// Exclusion of a thread's farewell from the destruction of a heap. Signals are blocked
/// meanwhile: a handler that forked would wait for others who wait for the lock.
pub(crate) struct Teardown {
    _signals: SignalsBlocked,
}

/// Takes the teardown lock. Call inside the gate only.
pub(crate) fn teardown(_inside: &NoFork) -> Teardown {
    let _signals = SignalsBlocked::all_but_faults();
    ffi::gm_teardown_lock();
    Teardown { _signals }
}

impl Drop for Teardown {
    fn drop(&mut self) {
        // SAFETY: this value exists, so this thread holds the lock.
        unsafe { ffi::gm_teardown_unlock() };
    }
}

/// Called on every thread that used a heap, when it ends.
pub(crate) extern "C" fn thread_ends() {
    {
        let inside = enter();
        let _teardown = teardown(&inside);
        ffi::gm_leave_thread();
    }
    if DEPTH.get() == 0 {
        give_seat_back();
    }
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
            // As it is for who stands at the call.
            let blocked = SignalsBlocked::all_but_faults();
            prepare(|| ());
            *blocked_by_handler() = Some(blocked);
            CLOSED_BY_HANDLER.set(true);
        }
    }
    extern "C" fn in_parent() {
        if CLOSED_BY_HANDLER.replace(false) {
            let _blocked = blocked_by_handler().take();
            parent();
        }
    }
    extern "C" fn in_child() {
        if CLOSED_BY_HANDLER.replace(false) {
            let _blocked = blocked_by_handler().take();
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

/// The mask of the thread whose fork's handlers closed the gate: looked at while it is
/// closed only.
fn blocked_by_handler() -> MutexGuard<'static, Option<SignalsBlocked>> {
    static BLOCKED: Mutex<Option<SignalsBlocked>> = Mutex::new(None);
    BLOCKED.lock().unwrap_or_else(PoisonError::into_inner)
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
///
/// `hold` takes what the child has to find free, before the gate is closed. It runs again
/// where another thread has to fork first, and what it took before is dropped until then.
pub fn before<T>(hold: impl FnMut() -> T) -> T {
    prepare(hold)
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
///
/// A thread that is stopped inside by such a handler does not leave before it has
/// forked: who is not inside lets it go first. Of two that are stopped neither can wait
/// for the other, and the child of one finds what the other holds half changed. As in
/// any child of a process with threads, it may call async-signal-safe functions only.
/// `hold`: as in [`before`].
fn prepare<T>(mut hold: impl FnMut() -> T) -> T {
    FORKING.set(true);
    let own = is_inside();
    IS_STOPPED.set(own);
    STOPPED.fetch_add(usize::from(own), Ordering::SeqCst);
    let held = loop {
        let held = hold();
        if close(own) {
            break held;
        }
        drop(held);
        let mut tries = 0;
        while STOPPED.load(Ordering::SeqCst) > 0 {
            pause(&mut tries);
        }
    };
    if !own && USED.load(Ordering::Acquire) {
        ffi::gm_teardown_lock();
        arena::lock_theaps();
        HELD.store(true, Ordering::Relaxed);
    }
    held
}

/// How often one who is inside itself looks whether others have left: about a second.
const LOOKS: u32 = 20_000;

/// Closes the gate and waits until nobody is inside, or, for one who is (`own`), nobody
/// but those who are stopped there. Opens it again for one of these: false.
///
/// Who is inside does not wait for ever: another may wait there for what the interrupted
/// code holds. The child is then as if that one was stopped, too.
fn close(own: bool) -> bool {
    let mut tries = 0;
    while CLOSED.swap(true, Ordering::SeqCst) {
        pause(&mut tries);
    }
    tries = 0;
    loop {
        // First: who is stopped stays so, and inside, while the gate is closed by us.
        let stopped = STOPPED.load(Ordering::SeqCst);
        if !own && stopped > 0 {
            CLOSED.store(false, Ordering::SeqCst);
            return false;
        }
        if count_inside() <= stopped || (own && tries == LOOKS) {
            return true;
        }
        pause(&mut tries);
    }
}

/// After `fork`, in the parent: opens everything again.
fn parent() {
    if HELD.swap(false, Ordering::Relaxed) {
        arena::unlock_theaps();
        // SAFETY: `prepare` took it on this thread.
        unsafe { ffi::gm_teardown_unlock() };
    }
    let stopped = usize::from(IS_STOPPED.replace(false));
    STOPPED.fetch_sub(stopped, Ordering::SeqCst);
    CLOSED.store(false, Ordering::SeqCst);
    FORKING.set(false);
}

/// After `fork`, in the child: as [`parent`], and forgets the threads that are
/// not here.
///
/// Heaps made before the fork go on working; dropping one in the child gives
/// its memory back but keeps its arena's address space and its mimalloc
/// bookkeeping, since the threads that would have to agree do not exist.
fn child() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
    let seat = SEAT.get();
    for (index, row) in SEATED.iter().enumerate() {
        let own = if seat / SEATS == index {
            place_of(seat).1
        } else {
            0
        };
        row.inside.fetch_and(own, Ordering::SeqCst);
        row.taken.fetch_and(own, Ordering::SeqCst);
    }
    STANDING.store(usize::from(COUNTED.get()), Ordering::SeqCst);
    STOPPED.store(usize::from(IS_STOPPED.get()), Ordering::SeqCst);
    arena::forget_callbacks();
    if USED.load(Ordering::Acquire) {
        arena::disown_pages();
    }
    parent();
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn threads_that_use_no_heap_give_their_seats_back() {
        let _arena = crate::Arena::acquire();
        for _ in 0..2 * ROWS * SEATS {
            let thread = std::thread::spawn(|| {
                let _inside = keep_out();
                assert!(SEAT.get() < ROWS * SEATS, "no seat is left");
            });
            assert!(thread.join().is_ok());
        }
    }
}

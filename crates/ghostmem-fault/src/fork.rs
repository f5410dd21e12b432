//! fork(2): the child gets its memory, and nobody ever saw zeros in its place.
//!
//! ```text
//!   before   signals blocked, locks taken           pthread_atfork handler
//!   freeze   nobody moves pages; what parent and    the same handler, or
//!            child cannot share is copied           [`before_call`]
//!   clone(2)
//!   settle   parent: thaw. Child: new descriptors,  the handlers, or
//!            regions registered again, thaw         [`after_call`]
//!   after    child: engine threads; both: signals   pthread_atfork handlers
//! ```
//! Between its handlers and the call, libc does work of its own, in which it
//! reads and writes what it allocated: locks of open files, the name service's
//! state. That is ghost memory where GhostMem serves malloc. Whoever does, and
//! can run code right around the call, says so by [`freeze_at_the_call`].
//!
//! What the child does before it may start threads has to work on a copy of
//! libc that is not in order yet: system calls and atomics only. A monitor has
//! no threads at that point, so its regions are served by the thread itself, as
//! with the inline backend, until it has: engine threads that start read the
//! program's locale and the loader's lists, which must be there.

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};

use ghostmem_os::lock::Lock;
use ghostmem_os::map::MapArc;
use ghostmem_os::thread::SignalsBlocked;
use ghostmem_os::{OsError, descriptor, futex, lineage, thread};

use crate::die::die;
use crate::once::OPENING;
use crate::open;
use crate::registry::{FaultSink, GATE, SCRATCH, SETUP};

/// How far a fork is.
static STAGE: AtomicU8 = AtomicU8::new(IDLE);
const IDLE: u8 = 0;
/// Locks are taken, by the thread that holds [`SETUP`].
const PREPARED: u8 = 1;
/// Nobody moves pages.
const FROZEN: u8 = 2;
/// Parent or child has its memory; its signals and locks are still held.
const SETTLED: u8 = 3;
/// The freeze is left to [`before_call`].
static AT_THE_CALL: AtomicBool = AtomicBool::new(false);

/// What blocks signals on the thread that forks, while it does: a signal
/// handler that ran in the child before our fork hook would find holes where
/// absent pages are.
static FORK_SIGNALS: Lock<Option<SignalsBlocked>> = Lock::new(None);

/// Sinks to tell about forks. A fixed array, as nothing here may allocate.
static SINKS: Lock<[Option<ForkSink>; SINKS_MAX]> = Lock::new([const { None }; SINKS_MAX]);
const SINKS_MAX: usize = 4096;

#[derive(Clone, Copy)]
struct ForkSink {
    sink: *const (),
    before: unsafe fn(*const ()) -> bool,
    cancel: unsafe fn(*const ()),
    copy: unsafe fn(*const ()) -> Result<(), OsError>,
    parent: unsafe fn(*const ()),
    child: unsafe fn(*const ()),
    monitor: unsafe fn(*const ()),
    threads: unsafe fn(*const ()),
}
// SAFETY: `sink` points to a `FaultSink`, which is Sync, alive while it is
// enrolled.
unsafe impl Send for ForkSink {}

/// Registers the fork hooks while the program is loaded. Handlers of
/// pthread_atfork(3) run in the child in the order in which they were
/// registered, and in the reverse order before the fork: registered first, ours
/// give the child its memory before any handler of the program's runs there,
/// and stop page transitions only after all of theirs have run.
pub extern "C" fn hook_at_load() {
    // A constructor of the program's may have made a heap before.
    let first = HOOK_ERRNO.compare_exchange(
        NOT_HOOKED,
        libc::ENOMEM,
        Ordering::AcqRel,
        Ordering::Relaxed,
    );
    if first.is_err() {
        return;
    }
    let hooked = thread::at_fork(before_fork, after_fork_in_parent, after_fork_in_child);
    HOOK_ERRNO.store(
        hooked.err().map_or(0, |error| error.errno),
        Ordering::Release,
    );
}

/// Runs before `main`, and before constructors of any other priority.
#[used]
#[unsafe(link_section = ".init_array.00050")]
static HOOK_AT_LOAD: extern "C" fn() = hook_at_load;

/// `errno` of registering the fork hooks, 0 when they are in place.
static HOOK_ERRNO: AtomicI32 = AtomicI32::new(NOT_HOOKED);
const NOT_HOOKED: i32 = -1;

/// Makes sure that the process's fork hooks are in place, and claims the
/// process.
///
/// # Errors
/// `ENOMEM`; `EPERM` in a child of a process with heaps that ran no fork hook.
pub(crate) fn hook_forks() -> Result<(), OsError> {
    let _setup = SETUP.lock();
    if HOOK_ERRNO.load(Ordering::Acquire) == NOT_HOOKED {
        // No constructor has run yet.
        hook_at_load();
    }
    match HOOK_ERRNO.load(Ordering::Acquire) {
        0 => lineage::claim_process(),
        errno => Err(OsError::new("pthread_atfork", errno)),
    }
}

/// A sink that hears of forks; no longer when this is dropped.
pub struct Enrolment<S: FaultSink> {
    sink: MapArc<S>,
}

impl<S: FaultSink> Enrolment<S> {
    /// The sink.
    #[must_use]
    pub fn sink(&self) -> &MapArc<S> {
        &self.sink
    }
}

impl<S: FaultSink> Drop for Enrolment<S> {
    fn drop(&mut self) {
        forget_sink(MapArc::as_ptr(&self.sink).cast());
    }
}

/// Makes `sink` hear of forks.
///
/// # Errors
/// `ENOSPC` when far too many sinks exist; a refused fork hook.
pub fn enrol<S: FaultSink>(sink: MapArc<S>) -> Result<Enrolment<S>, OsError> {
    hook_forks()?;
    // A fork under way holds this from before it asks the sinks until they
    // are all released: nobody joins in between.
    let _no_fork = SETUP.lock();
    remember_sink(&sink)?;
    Ok(Enrolment { sink })
}

fn remember_sink<S: FaultSink>(sink: &MapArc<S>) -> Result<(), OsError> {
    unsafe fn before<S: FaultSink>(sink: *const ()) -> bool {
        // SAFETY: enrolled sinks are alive (see `Enrolment`).
        unsafe { &*sink.cast::<S>() }.try_before_fork()
    }
    unsafe fn cancel<S: FaultSink>(sink: *const ()) {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.cancel_fork();
    }
    unsafe fn copy<S: FaultSink>(sink: *const ()) -> Result<(), OsError> {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.copy_for_fork()
    }
    unsafe fn parent<S: FaultSink>(sink: *const ()) {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.after_fork_in_parent();
    }
    unsafe fn child<S: FaultSink>(sink: *const ()) {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.after_fork_in_child();
    }
    unsafe fn monitor<S: FaultSink>(sink: *const ()) {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.give_to_monitor_in_child();
    }
    unsafe fn threads<S: FaultSink>(sink: *const ()) {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.restart_threads_in_child();
    }
    let new = ForkSink {
        sink: MapArc::as_ptr(sink).cast(),
        before: before::<S>,
        cancel: cancel::<S>,
        copy: copy::<S>,
        parent: parent::<S>,
        child: child::<S>,
        monitor: monitor::<S>,
        threads: threads::<S>,
    };
    let mut sinks = SINKS.lock();
    let free = sinks.iter_mut().find(|s| s.is_none());
    *free.ok_or(OsError::new("register", libc::ENOSPC))? = Some(new);
    Ok(())
}

fn forget_sink(sink: *const ()) {
    let mut sinks = SINKS.lock();
    if let Some(entry) = sinks.iter_mut().find(|s| s.is_some_and(|s| s.sink == sink)) {
        *entry = None;
    }
}

fn for_each_sink(sinks: &[Option<ForkSink>; SINKS_MAX], call: impl Fn(&ForkSink)) {
    sinks.iter().flatten().for_each(call);
}

/// Takes the locks of all sinks, or none.
fn try_all(sinks: &[Option<ForkSink>; SINKS_MAX]) -> bool {
    // SAFETY: sinks in the list are alive: an enrolment takes itself off the
    // list, under its lock, before it lets go of its sink.
    let refused = sinks
        .iter()
        .flatten()
        .position(|s| !unsafe { (s.before)(s.sink) });
    let Some(refused) = refused else { return true };
    for sink in sinks.iter().flatten().take(refused) {
        // SAFETY: as above.
        unsafe { (sink.cancel)(sink.sink) };
    }
    false
}

/// Calls `step` of every sink.
fn for_all(step: impl Fn(&ForkSink) -> unsafe fn(*const ())) {
    for_each_sink(&SINKS.lock(), |sink| {
        // SAFETY: as in `try_all`; a child has its own copy of all of it.
        unsafe { step(sink)(sink.sink) };
    });
}

extern "C" fn before_fork() {
    // libc takes locks of its own between here and the call, and another thread may
    // hold one while it waits for a lock of ours.
    if !AT_THE_CALL.load(Ordering::Acquire) {
        prepare(SignalsBlocked::all_but_faults());
        // Handlers cannot refuse a fork. The parent goes on in any case; a child
        // without its copy ends with a message.
        let _copied = freeze();
    }
}

/// Takes the locks that a child must find free. The thread's signals are `blocked` until
/// the fork is over.
fn prepare(blocked: SignalsBlocked) {
    // A thread that adds a region holds a sink's lock and then wants these
    // two: so nobody waits for a sink while holding them.
    let mut tries = 0;
    loop {
        SETUP.take_for_fork();
        // Nobody who has this one waits for anything.
        OPENING.take_for_fork();
        if try_all(&SINKS.lock()) {
            break;
        }
        OPENING.release_after_fork();
        SETUP.release_after_fork();
        futex::pause(tries);
        tries += 1;
    }
    *FORK_SIGNALS.lock() = Some(blocked);
    STAGE.store(PREPARED, Ordering::Release);
}

/// From here on nobody moves pages, whatever the answer.
///
/// # Errors
/// A child could not go on: there is no descriptor or no memory for its copy.
fn freeze() -> Result<(), OsError> {
    SINKS.take_for_fork();
    GATE.freeze();
    SINKS.release_after_fork();
    let sinks = SINKS.lock();
    let copied = sinks.iter().flatten().try_for_each(|sink| {
        // SAFETY: as in `try_all`.
        unsafe { (sink.copy)(sink.sink) }
    });
    drop(sinks);
    SINKS.take_for_fork();
    STAGE.store(FROZEN, Ordering::Release);
    copied
}

fn settle_parent() {
    GATE.thaw();
    SINKS.release_after_fork();
    for_all(|sink| sink.parent);
    STAGE.store(SETTLED, Ordering::Release);
}

fn settle_child() {
    GATE.forget_others_after_fork();
    if let Some(pool) = SCRATCH.get() {
        pool.reset_after_fork();
    }
    lineage::claim_child();
    open::reopen_in_child(AT_THE_CALL.load(Ordering::Relaxed));
    SINKS.release_after_fork();
    for_all(|sink| sink.child);
    GATE.thaw();
    STAGE.store(SETTLED, Ordering::Release);
}

extern "C" fn after_fork_in_parent() {
    // Where the call was never made, nothing is held.
    if !SETUP.is_mine() {
        return;
    }
    match STAGE.load(Ordering::Acquire) {
        FROZEN => settle_parent(),
        // The call was never made.
        PREPARED => for_all(|sink| sink.parent),
        _ => {}
    }
    end_fork();
}

extern "C" fn after_fork_in_child() {
    match STAGE.load(Ordering::Acquire) {
        FROZEN => settle_child(),
        PREPARED | IDLE => die(
            "a fork happened where nobody stood: a system call outside the C library",
            libc::ENOSYS,
        ),
        _ => {}
    }
    if let Some(monitor) = open::monitor_in_child() {
        // Nobody else runs here but the monitor's threads, which wait.
        monitor.listen_in_child(open::open_monitor);
        for_all(|sink| sink.monitor);
        monitor.open_to_messages();
    }
    for_all(|sink| sink.threads);
    end_fork();
}

fn end_fork() {
    STAGE.store(IDLE, Ordering::Release);
    let blocked = FORK_SIGNALS.lock().take();
    OPENING.release_after_fork();
    SETUP.release_after_fork();
    drop(blocked);
}

/// Leaves stopping all page transitions, and handing a child its memory, to
/// [`before_call`] and [`after_call`] from now on. A fork that runs the
/// handlers but not these two then ends the child with a message. And a child opens what
/// it needs for threads that fault at once in [`before_a_thread`] only.
pub fn freeze_at_the_call() {
    AT_THE_CALL.store(true, Ordering::Release);
}

/// The program is about to make a thread. Not while this thread forks, where nothing
/// happens.
pub fn before_a_thread() {
    if !is_under_way() {
        open::before_a_thread();
    }
}

/// What [`before_call`] says of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// It is no fork of ours: nothing was done.
    Strange,
    /// To be made now, and then [`after_call`].
    Ready,
    /// Not to be made: the child could not go on. It fails with `EAGAIN`, as
    /// fork(2) does where the system is short of something.
    Refused,
}

/// Whether the calling thread forks, and what a child must find free is taken.
#[must_use]
pub fn is_under_way() -> bool {
    SETUP.is_mine()
}

/// Right before the system call of a fork whose handlers have run on the
/// calling thread. From here to [`after_call`] the caller must not touch ghost
/// memory. `blocked`: the signals of whoever has done something for the fork already.
#[must_use]
pub fn before_call(blocked: SignalsBlocked) -> Call {
    if SETUP.is_mine() {
        return Call::Strange;
    }
    prepare(blocked);
    if freeze().is_ok() {
        return Call::Ready;
    }
    settle_parent();
    Call::Refused
}

/// Between [`after_call`] and the end of the fork: `mask` is what the thread's signals were
/// before anybody blocked them for it, as the kernel has them.
pub fn give_back(mask: u64) {
    if SETUP.is_mine()
        && let Some(blocked) = &mut *FORK_SIGNALS.lock()
    {
        blocked.give_back(mask);
    }
}

/// Right after the system call that [`before_call`] spoke of, in parent
/// (whether the call worked or not) and child.
pub fn after_call(in_child: bool) {
    if in_child {
        settle_child();
    } else {
        settle_parent();
    }
}

/// Makes the system call of a fork that runs no handlers of pthread_atfork(3), in
/// between what ours do. `call` answers as the kernel does, 0 in the child, where
/// it must return on the same stack; it must not touch ghost memory. `-EAGAIN`
/// without a call where the child could not go on.
pub fn around_call(call: impl FnOnce() -> isize) -> isize {
    prepare(SignalsBlocked::all_but_faults());
    let refused = freeze().is_err();
    let answer = match refused {
        true => -(libc::EAGAIN as isize),
        false => call(),
    };
    if answer == 0 {
        thread::keep_stacks_in_child();
        after_fork_in_child();
    } else {
        after_fork_in_parent();
    }
    answer
}

/// As [`around_call`], for a child that shares its parent's table of descriptors: what
/// either process closes of the engine's would be closed for both.
pub fn around_sharing_call(call: impl FnOnce() -> isize) -> isize {
    let answer = around_call(|| {
        let before = descriptor::leave_open();
        let answer = call();
        if answer < 0 {
            // There is no child to leave the copies to.
            descriptor::close_again();
            descriptor::was_not_shared(before);
        }
        answer
    });
    if answer > 0 {
        descriptor::close_again();
    }
    answer
}

//! From an address to the heap it belongs to, without a lock.
//!
//! Regions are aligned to [`GRANULE`] bytes, so one array indexed by the upper
//! bits of an address answers in one load. The array is zero-initialised and
//! only the pages used of it exist.

use core::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::sync::OnceLock;

use ghostmem_os::lock::Lock;
use ghostmem_os::map::{MapArc, PAGE_SIZE, Span};
use ghostmem_os::scratch::{Scratch, ScratchPool};
use ghostmem_os::signal::{self, AccessKind, SignalFault};
use ghostmem_os::thread::SignalsBlocked;
use ghostmem_os::{OsError, lineage, thread};

use crate::backend::{OPENING, get_or_open};
use crate::gate::Gate;

/// Regions do not share a granule of this many bytes of address space.
pub(crate) const GRANULE: usize = 1 << 26;
/// User address space on x86-64 and AArch64 with 48-bit addresses.
const ADDRESS_BITS: u32 = 48;
const GRANULES: usize = (1 << ADDRESS_BITS) / GRANULE;

/// A touch that needs the engine.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Which of the sink's regions.
    pub region: u32,
    /// Page within the region.
    pub page: usize,
    /// Load or store.
    pub access: AccessKind,
    /// The page is mapped but protected.
    pub present: bool,
    /// Identifies the faulting thread.
    pub thread: u64,
    /// Equal for retries of one instruction, different otherwise; 0 when
    /// unknown.
    pub instant: u64,
}

/// What became of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A page was put in place or opened: the instruction can go on.
    Resolved,
    /// Nothing was done; the instruction is to be tried again.
    Retry,
    /// The page cannot be brought back, or is not part of any block: the
    /// program gets the signal.
    Refused,
}

/// Takes faults. Implemented by the pager.
pub trait FaultSink: Send + Sync + 'static {
    /// Resolves one fault. Runs in the closed world: see the crate's
    /// documentation.
    fn on_fault(&self, fault: &Fault, scratch: &mut Scratch) -> Verdict;
    /// Before fork(2), first: take every lock that the child must find open,
    /// without waiting for any; `false` when one is held, with none taken.
    /// Pages may still be moving.
    fn try_before_fork(&self) -> bool;
    /// Gives back what [`FaultSink::try_before_fork`] took: another sink was
    /// not ready, and all will be asked again.
    fn cancel_fork(&self);
    /// Before fork(2), last: nothing is in transition and nobody else can
    /// begin; copy what parent and child cannot share.
    fn copy_for_fork(&self);
    /// After fork(2), in the parent.
    fn after_fork_in_parent(&self);
    /// After fork(2), in the child: only the calling thread exists, and no
    /// region is registered with any kernel mechanism yet.
    fn after_fork_in_child(&self);
}

struct Entry {
    base: usize,
    len: usize,
    region: u32,
    sink: *const (),
    on_fault: unsafe fn(*const (), &Fault, &mut Scratch) -> Verdict,
}

// SAFETY: `sink` points to a `FaultSink`, which is Sync, kept alive by the
// `Registration` that owns the entry.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

static TABLE: [AtomicPtr<Entry>; GRANULES] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; GRANULES];
static GATE: Gate = Gate::new();
static SCRATCH: OnceLock<ScratchPool> = OnceLock::new();
/// Serialises what a fork must not meet half done: changes of the signal
/// handlers and of the lists here.
static SETUP: Lock<()> = Lock::new(());
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
    copy: unsafe fn(*const ()),
    parent: unsafe fn(*const ()),
    child: unsafe fn(*const ()),
}
// SAFETY: as for `Entry`.
unsafe impl Send for ForkSink {}

/// The gate every page transition passes.
#[must_use]
pub fn gate() -> &'static Gate {
    &GATE
}

/// The process's working memory for transitions.
///
/// # Errors
/// The kernel's refusal to map it, at the first call.
pub fn scratch() -> Result<&'static ScratchPool, OsError> {
    get_or_open(&SCRATCH, ScratchPool::new)
}

/// A region known to the fault handlers; unknown again when dropped.
pub struct Registration<S: FaultSink> {
    entry: MapArc<Entry>,
    sink: MapArc<S>,
}

impl<S: FaultSink> Registration<S> {
    /// The sink that gets the faults.
    #[must_use]
    pub fn sink(&self) -> &MapArc<S> {
        &self.sink
    }
}

impl<S: FaultSink> Drop for Registration<S> {
    fn drop(&mut self) {
        for granule in granules(self.entry.base, self.entry.len) {
            TABLE[granule].store(core::ptr::null_mut(), Ordering::Release);
        }
        // A handler that found the entry just before may still be using it.
        GATE.synchronize();
    }
}

fn granules(base: usize, len: usize) -> core::ops::RangeInclusive<usize> {
    base / GRANULE..=(base + len - 1) / GRANULE
}

/// Registers the fork hooks while the program is loaded. Handlers of
/// pthread_atfork(3) run in the child in the order in which they were
/// registered, and in the reverse order before the fork: registered first, ours
/// give the child its memory before any handler of the program's runs there,
/// and stop page transitions only after all of theirs have run.
extern "C" fn hook_at_load() {
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

/// Makes faults in `span` go to `sink`, as region number `region`.
///
/// # Errors
/// A refused signal handler or fork hook; `ENOSPC` when far too many regions
/// are registered.
///
/// # Panics
/// When the span shares a granule with another registered region.
pub fn register<S: FaultSink>(
    span: Span,
    region: u32,
    sink: MapArc<S>,
) -> Result<Registration<S>, OsError> {
    unsafe fn on_fault<S: FaultSink>(
        sink: *const (),
        fault: &Fault,
        scratch: &mut Scratch,
    ) -> Verdict {
        // SAFETY: the entry's pointer was made from a `MapArc<S>` that its
        // registration keeps alive until no handler uses it.
        let sink = unsafe { &*sink.cast::<S>() };
        sink.on_fault(fault, scratch)
    }
    scratch()?;
    let setup = SETUP.lock();
    signal::install(on_signal)?;
    let entry = MapArc::new(Entry {
        base: span.base(),
        len: span.len(),
        region,
        sink: MapArc::as_ptr(&sink).cast(),
        on_fault: on_fault::<S>,
    })?;
    for granule in granules(span.base(), span.len()) {
        let before = TABLE[granule].swap(MapArc::as_ptr(&entry).cast_mut(), Ordering::AcqRel);
        assert!(
            before.is_null(),
            "two regions in one granule of address space"
        );
    }
    drop(setup);
    Ok(Registration { entry, sink })
}

/// Puts our signal handlers back in place after the program installed its own
/// over them; the program's then get what is not ours.
///
/// # Errors
/// A refused sigaction(2).
pub fn rearm() -> Result<(), OsError> {
    let _setup = SETUP.lock();
    signal::install(on_signal)
}

fn find(address: usize) -> Option<&'static Entry> {
    let entry = TABLE.get(address / GRANULE)?.load(Ordering::Acquire);
    // SAFETY: entries stay alive until the gate has drained after their
    // removal, and callers are inside the gate or only compare addresses of
    // memory they own a part of.
    let entry = unsafe { entry.as_ref() }?;
    (address.wrapping_sub(entry.base) < entry.len).then_some(entry)
}

/// The sink and region number an address belongs to; lock-free. The pointer
/// is for comparison only.
#[must_use]
pub fn lookup(address: usize) -> Option<(*const (), u32)> {
    let _inside = GATE.enter();
    find(address).map(|entry| (entry.sink, entry.region))
}

struct Dispatch {
    fault: Fault,
    entry: &'static Entry,
    verdict: Verdict,
}

fn resolve(dispatch: &mut Dispatch, scratch: &mut Scratch) {
    // SAFETY: the entry pairs the pointer with the function made for it, and
    // we are inside the gate.
    dispatch.verdict =
        unsafe { (dispatch.entry.on_fault)(dispatch.entry.sink, &dispatch.fault, scratch) };
}

/// The signal handlers' hook: `true` when the fault was ours.
fn on_signal(signal: &SignalFault) -> bool {
    // In a child that ran no fork hook, the tables lie and the descriptors
    // act on the parent: the touch of a hole stays what it is, a crash.
    if !lineage::is_ours() {
        return false;
    }
    let inside = GATE.enter();
    let Some(entry) = find(signal.address) else {
        return false;
    };
    let Some(pool) = SCRATCH.get() else {
        return false;
    };
    let mut dispatch = Dispatch {
        fault: Fault {
            region: entry.region,
            page: (signal.address - entry.base) / PAGE_SIZE,
            access: signal.access,
            present: signal.present,
            thread: thread::key() as u64,
            instant: signal.instant,
        },
        entry,
        verdict: Verdict::Retry,
    };
    let mut lease = pool.lease();
    lease.on_own_stack(&mut dispatch, resolve);
    drop(lease);
    drop(inside);
    dispatch.verdict != Verdict::Refused
}

/// Resolves a fault reported by a message, on an engine thread.
pub(crate) fn on_message(address: usize, write: bool, present: bool, thread: u32) -> Verdict {
    let _inside = GATE.enter();
    let Some(entry) = find(address) else {
        return Verdict::Retry;
    };
    let Some(pool) = SCRATCH.get() else {
        return Verdict::Retry;
    };
    let mut dispatch = Dispatch {
        fault: Fault {
            region: entry.region,
            page: (address - entry.base) / PAGE_SIZE,
            access: if write {
                AccessKind::Write
            } else {
                AccessKind::Read
            },
            present,
            thread: u64::from(thread),
            instant: 0,
        },
        entry,
        verdict: Verdict::Retry,
    };
    let mut lease = pool.lease();
    resolve(&mut dispatch, &mut lease);
    dispatch.verdict
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
    unsafe fn copy<S: FaultSink>(sink: *const ()) {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.copy_for_fork();
    }
    unsafe fn parent<S: FaultSink>(sink: *const ()) {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.after_fork_in_parent();
    }
    unsafe fn child<S: FaultSink>(sink: *const ()) {
        // SAFETY: as in `before`.
        unsafe { &*sink.cast::<S>() }.after_fork_in_child();
    }
    let new = ForkSink {
        sink: MapArc::as_ptr(sink).cast(),
        before: before::<S>,
        cancel: cancel::<S>,
        copy: copy::<S>,
        parent: parent::<S>,
        child: child::<S>,
    };
    let mut sinks = SINKS.lock();
    let free = sinks.iter_mut().find(|s| s.is_none());
    *free.ok_or(OsError::new("register", libc::ENOSPC))? = Some(new);
    Ok(())
}

fn forget_sink(sink: *const ()) {
    let mut sinks = SINKS.lock();
    if let Some(slot) = sinks.iter_mut().find(|s| s.is_some_and(|s| s.sink == sink)) {
        *slot = None;
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

extern "C" fn before_fork() {
    // A thread that adds a region holds a sink's lock and then wants these
    // two: so nobody waits for a sink while holding them.
    let blocked = SignalsBlocked::all_but_faults();
    loop {
        SETUP.take_for_fork();
        // Nobody who has this one waits for anything.
        OPENING.take_for_fork();
        if try_all(&SINKS.lock()) {
            break;
        }
        OPENING.release_after_fork();
        SETUP.release_after_fork();
        thread::yield_now();
    }
    *FORK_SIGNALS.lock() = Some(blocked);
    SINKS.take_for_fork();
    GATE.freeze();
    SINKS.release_after_fork();
    for_each_sink(&SINKS.lock(), |sink| {
        // SAFETY: as above.
        unsafe { (sink.copy)(sink.sink) };
    });
    SINKS.take_for_fork();
}

extern "C" fn after_fork_in_parent() {
    GATE.thaw();
    SINKS.release_after_fork();
    for_each_sink(&SINKS.lock(), |sink| {
        // SAFETY: as in `try_all`.
        unsafe { (sink.parent)(sink.sink) };
    });
    end_fork();
}

fn end_fork() {
    let blocked = FORK_SIGNALS.lock().take();
    OPENING.release_after_fork();
    SETUP.release_after_fork();
    drop(blocked);
}

extern "C" fn after_fork_in_child() {
    GATE.forget_others_after_fork();
    if let Some(pool) = SCRATCH.get() {
        pool.reset_after_fork();
    }
    lineage::claim_child();
    crate::backend::after_fork_in_child();
    SINKS.release_after_fork();
    for_each_sink(&SINKS.lock(), |sink| {
        // SAFETY: as in `try_all`; the child has its own copy of all of it.
        unsafe { (sink.child)(sink.sink) };
    });
    GATE.thaw();
    end_fork();
}

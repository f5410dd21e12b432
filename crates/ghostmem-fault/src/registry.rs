//! From an address to the heap it belongs to, without a lock.
//!
//! Regions are aligned to [`GRANULE`] bytes, so one array indexed by the upper
//! bits of an address answers in one load. The array is zero-initialised and
//! only the pages used of it exist.

use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use core::time::Duration;
use std::sync::OnceLock;

use ghostmem_os::error::ENOMEM;
use ghostmem_os::lock::Lock;
use ghostmem_os::map::{MapArc, PAGE_SIZE, Span};
use ghostmem_os::scratch::{Lease, Scratch, ScratchPool};
use ghostmem_os::signal::{self, AccessKind, Sign, SignalFault};
#[cfg(not(windows))]
use ghostmem_os::uffd::{FaultMessage, Uffd};
use ghostmem_os::{OsError, clock, futex, lineage, thread};

#[cfg(not(windows))]
use crate::gate::Inside;
use crate::gate::TransitionGate;
use crate::once::get_or_open;

/// Regions do not share a granule of this many bytes of address space.
pub(crate) const GRANULE: usize = 1 << 26;
/// User address space on x86-64 and AArch64 with 48-bit addresses; Windows
/// keeps one bit more for itself, and counts all of the array as memory in use.
const ADDRESS_BITS: u32 = if cfg!(windows) { 47 } else { 48 };
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
    /// What it waited for already.
    pub waits: Waits,
}

/// How often a fault had to wait, and since when.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waits {
    /// Waits so far.
    pub count: u32,
    /// Of these, the ones after which no page could be evicted.
    pub barren: u32,
    /// The first one's beginning, nanoseconds; 0 before it.
    pub since_ns: u64,
}

/// What became of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A page was put in place or opened: the instruction can go on.
    Resolved,
    /// Nothing was done; the instruction is to be tried again.
    Retry,
    /// Nothing was done, and the fault is to be handed over again, with one
    /// wait more, after `most` at the latest. Meanwhile it keeps nothing that
    /// another thread may need: no buffers, and no place inside the gate.
    Wait {
        /// No page could be evicted.
        barren: bool,
        /// Zero: as soon as other threads have had a turn.
        most: Duration,
    },
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
    /// begin; copy what parent and child cannot share. Undone by
    /// [`FaultSink::after_fork_in_parent`], in whatever state it failed.
    ///
    /// # Errors
    /// No memory or descriptor for a copy: a child could not go on.
    fn copy_for_fork(&self) -> Result<(), OsError>;
    /// After fork(2), in the parent.
    fn after_fork_in_parent(&self);
    /// After fork(2), in the child: only the calling thread exists, and no
    /// region is registered with any kernel mechanism yet. It may be in the
    /// middle of libc's fork: start no thread.
    fn after_fork_in_child(&self);
    /// After fork(2), in the child, when the fault monitor can hear again:
    /// its regions are registered with nothing any more, as before
    /// [`FaultSink::after_fork_in_child`].
    fn give_to_monitor_in_child(&self);
    /// After fork(2), in the child, last: threads may be started.
    fn restart_threads_in_child(&self);
}

pub(crate) struct Entry {
    base: usize,
    len: usize,
    region: u32,
    signs: &'static [Sign],
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
pub(crate) static GATE: TransitionGate = TransitionGate::new();
pub(crate) static SCRATCH: OnceLock<ScratchPool> = OnceLock::new();
/// Serialises what a fork must not meet half done: changes of the signal
/// handlers and of the lists here.
pub(crate) static SETUP: Lock<()> = Lock::new(());
/// The gate every page transition passes.
#[must_use]
pub fn gate() -> &'static TransitionGate {
    &GATE
}

/// The process's working memory for transitions, with at least `state_words` words
/// of eight bytes for a codec in each set. The first call decides how many there are.
///
/// # Errors
/// The kernel's refusal to map it, at the first call; `ENOMEM` at a later one that
/// wants more words than there are.
pub fn scratch_with(state_words: usize) -> Result<&'static ScratchPool, OsError> {
    let pool = get_or_open(&SCRATCH, || ScratchPool::new(state_words))?;
    if pool.state_words() < state_words {
        return Err(OsError::new("codec state", ENOMEM));
    }
    Ok(pool)
}

/// The same for those who bring no codec.
///
/// # Errors
/// As of [`scratch_with`].
pub fn scratch() -> Result<&'static ScratchPool, OsError> {
    scratch_with(0)
}

/// Raised when those who wait may have something to do.
static NEWS: AtomicU64 = AtomicU64::new(0);

/// Ends the waits of all faults of the process. Async-signal-safe.
pub fn tell_news() {
    NEWS.fetch_add(1, Ordering::Release);
    futex::wake_all(&NEWS);
}

impl Waits {
    /// Hands a fault over by `attempt` until the verdict is not to wait.
    pub fn through(mut attempt: impl FnMut(Self) -> Verdict) -> Verdict {
        let mut waits = Self::default();
        loop {
            let news = NEWS.load(Ordering::Acquire);
            let verdict = attempt(waits);
            let Verdict::Wait { barren, most } = verdict else {
                return verdict;
            };
            if waits.count == 0 {
                waits.since_ns = clock::now_ns();
            }
            if most.is_zero() {
                futex::pause(waits.count);
            } else {
                futex::wait(&NEWS, news as u32, most);
            }
            waits.count = waits.count.saturating_add(1);
            waits.barren = waits.barren.saturating_add(u32::from(barren));
        }
    }
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

/// Makes faults in `span` that the system reports by one of `signs` go to
/// `sink`, as region number `region`. All others stay the program's.
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
    signs: &'static [Sign],
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
    // Nothing to be told by signals.
    if !signs.is_empty() {
        signal::install(on_signal)?;
    }
    let entry = MapArc::new(Entry {
        base: span.base(),
        len: span.len(),
        region,
        signs,
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

/// Whether an address may lie in a region: all of a granule counts. One load,
/// outside the gate.
#[must_use]
#[inline]
pub fn may_be_ghost(address: usize) -> bool {
    TABLE
        .get(address / GRANULE)
        .is_some_and(|entry| !entry.load(Ordering::Acquire).is_null())
}

/// The sink and region number an address belongs to; lock-free. The pointer
/// is for comparison only.
#[must_use]
pub fn lookup(address: usize) -> Option<(*const (), u32)> {
    let _inside = GATE.enter();
    find(address).map(|entry| (entry.sink, entry.region))
}

pub(crate) struct Dispatch {
    fault: Fault,
    entry: &'static Entry,
    verdict: Verdict,
}

pub(crate) fn resolve(dispatch: &mut Dispatch, scratch: &mut Scratch) {
    // SAFETY: the entry pairs the pointer with the function made for it, and
    // we are inside the gate.
    dispatch.verdict =
        unsafe { (dispatch.entry.on_fault)(dispatch.entry.sink, &dispatch.fault, scratch) };
}

/// Hands a fault at `address` to its sink, with a loan of buffers; the caller is
/// inside the gate. `None` when it is nobody's. `refine` completes the fault, or disowns it.
pub(crate) fn attempt(
    address: usize,
    refine: impl FnOnce(&Entry, Fault) -> Option<Fault>,
    run: impl FnOnce(&mut Lease<'_>, &mut Dispatch),
) -> Option<Verdict> {
    let entry = find(address)?;
    let pool = SCRATCH.get()?;
    let fault = Fault {
        region: entry.region,
        page: (address - entry.base) / PAGE_SIZE,
        access: AccessKind::Unknown,
        present: false,
        thread: 0,
        instant: 0,
        waits: Waits::default(),
    };
    let mut dispatch = Dispatch {
        fault: refine(entry, fault)?,
        entry,
        verdict: Verdict::Retry,
    };
    // Given back before any wait.
    run(&mut pool.lease(), &mut dispatch);
    Some(dispatch.verdict)
}

/// The signal handlers' hook: `true` when the fault was ours.
fn on_signal(signal: &SignalFault) -> bool {
    // In a child that ran no fork hook, the tables lie and the descriptors
    // act on the parent: the touch of a hole stays what it is, a crash.
    if !lineage::is_ours() {
        return false;
    }
    let verdict = Waits::through(|waits| {
        let refine = |entry: &Entry, fault| {
            entry.signs.contains(&signal.sign).then_some(Fault {
                access: signal.access,
                present: signal.present,
                thread: thread::key() as u64,
                instant: signal.instant,
                waits,
                ..fault
            })
        };
        let _inside = GATE.enter();
        attempt(signal.address, refine, |lease, dispatch| {
            lease.on_own_stack(dispatch, resolve);
        })
        .unwrap_or(Verdict::Refused)
    });
    verdict != Verdict::Refused
}

/// Resolves a fault reported by a message of `uffd`, on an engine thread that went
/// `inside` before it read the message, unless the gate was frozen.
///
/// A signal takes a thread out of its wait, and it may go on to fork: who serves it
/// with its message in hand must be seen by the fork, and be waited for. Once it has
/// frozen the gate its signals are blocked, so that a message read from then on is of
/// a thread that waits.
#[cfg(not(windows))]
pub(crate) fn on_message(
    uffd: &Uffd,
    message: &FaultMessage,
    mut inside: Option<Inside<'_>>,
) -> Verdict {
    // Its thread keeps the gate frozen, and waits.
    let mut forks = false;
    Waits::through(|waits| {
        let entered = match inside.take() {
            Some(inside) => Some((inside, false)),
            // Never waits long at a frozen gate: behind this message may be one of
            // the thread that froze it, and there are few threads to read them.
            None if waits.count == 0 || forks => GATE.enter_for(message.thread),
            // It may have been frozen while the message waited.
            None => GATE.try_enter().map(|inside| (inside, false)),
        };
        let Some((inside, frozen)) = entered else {
            return Verdict::Retry;
        };
        forks = frozen;
        let refine = |_: &Entry, fault| {
            Some(Fault {
                access: if message.write {
                    AccessKind::Write
                } else {
                    AccessKind::Read
                },
                present: message.protected,
                thread: u64::from(message.thread),
                waits,
                ..fault
            })
        };
        // The thread that froze the gate is about to fork: it must not go on
        // before all is done here, with the page in place and its word not.
        let held = frozen.then(|| uffd.hold_wakes());
        let before = uffd.wakes();
        let verdict = attempt(message.address, refine, |lease, dispatch| {
            resolve(dispatch, lease);
        });
        // What others hold for that thread keeps this one's asleep, too.
        let woken = before.are_free() && uffd.wakes() == before;
        drop(held);
        drop(inside);
        match verdict {
            // Woken once more, by the caller.
            Some(Verdict::Resolved) if !woken => Verdict::Retry,
            verdict => verdict.unwrap_or(Verdict::Retry),
        }
    })
}

#[cfg(all(test, not(windows)))]
mod tests {
    use super::*;
    use ghostmem_os::map::{Access, Reservation};

    /// Resolves each fault, that on page 1 while another thread serves the one that
    /// forks, and that on page 2 after a wait.
    struct Beside {
        uffd: &'static Uffd,
        faults: AtomicU64,
    }

    impl FaultSink for Beside {
        fn on_fault(&self, fault: &Fault, _: &mut Scratch) -> Verdict {
            self.faults.fetch_add(1, Ordering::SeqCst);
            let held = (fault.page == 1).then(|| self.uffd.hold_wakes());
            drop(held);
            if fault.page == 2 && fault.waits.count == 0 {
                return Verdict::Wait {
                    barren: false,
                    most: Duration::from_secs(10),
                };
            }
            Verdict::Resolved
        }

        fn try_before_fork(&self) -> bool {
            true
        }

        fn cancel_fork(&self) {}

        fn copy_for_fork(&self) -> Result<(), OsError> {
            Ok(())
        }

        fn after_fork_in_parent(&self) {}

        fn after_fork_in_child(&self) {}

        fn give_to_monitor_in_child(&self) {}

        fn restart_threads_in_child(&self) {}
    }

    #[test]
    fn buffers_are_refused_to_a_codec_that_needs_more_than_they_have() {
        let pool = scratch().unwrap();
        let words = pool.state_words();
        assert!(core::ptr::eq(scratch_with(words).unwrap(), pool));
        let refused = scratch_with(words + 1).map(drop);
        assert_eq!(refused, Err(OsError::new("codec state", ENOMEM)));
    }

    // One test, as there is one gate.
    #[test]
    fn a_monitor_wakes_whom_others_may_have_left_asleep_and_serves_no_stale_message() {
        static UFFD: OnceLock<Uffd> = OnceLock::new();
        let Ok(opened) = crate::open::open_monitor() else {
            eprintln!("SKIPPED: this machine gives no userfaultfd");
            return;
        };
        let uffd = UFFD.get_or_init(|| opened);
        let home = Reservation::new(GRANULE, GRANULE, Access::ReadWrite).unwrap();
        let span = home.span(0, GRANULE).unwrap();
        let faults = AtomicU64::new(0);
        let sink = MapArc::new(Beside { uffd, faults }).unwrap();
        let registration = register(span, 0, &[], sink.clone()).unwrap();
        let on_page = |page: usize, thread: u32| {
            let message = FaultMessage {
                address: span.base() + page * PAGE_SIZE,
                write: false,
                protected: false,
                thread,
            };
            on_message(uffd, &message, GATE.try_enter())
        };
        let me = thread::tid();
        assert_eq!(on_page(0, me), Verdict::Resolved);
        // Its page may have been put in place by a call that wakes nobody.
        assert_eq!(on_page(1, me), Verdict::Retry);
        // Two threads serve the one that forks: the first to end wakes nobody.
        let (first, second) = (uffd.hold_wakes(), uffd.hold_wakes());
        drop(first);
        assert!(!uffd.wakes().are_free());
        assert_eq!(on_page(0, me), Verdict::Retry);
        drop(second);
        assert_eq!(on_page(0, me), Verdict::Resolved);

        // A thread forks whose message is in hand: a signal ended its wait.
        let before = sink.faults.load(Ordering::SeqCst);
        let (id, served) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                id.store(u64::from(thread::tid()), Ordering::SeqCst);
                while sink.faults.load(Ordering::SeqCst) == before {
                    std::thread::yield_now();
                }
                GATE.freeze();
                tell_news();
                while served.load(Ordering::SeqCst) == 0 {
                    std::thread::yield_now();
                }
                // Now for one that waits, and for a frame.
                while sink.faults.load(Ordering::SeqCst) == before + 1 {
                    std::thread::yield_now();
                }
                tell_news();
                while served.load(Ordering::SeqCst) == 1 {
                    std::thread::yield_now();
                }
                GATE.thaw();
            });
            while id.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            let verdict = on_page(2, id.load(Ordering::SeqCst) as u32);
            let faults = sink.faults.load(Ordering::SeqCst) - before;
            served.store(1, Ordering::SeqCst);
            let forker = id.load(Ordering::SeqCst) as u32;
            let last = on_page(2, forker);
            let all = sink.faults.load(Ordering::SeqCst) - before;
            served.store(2, Ordering::SeqCst);
            assert_eq!((verdict, faults), (Verdict::Retry, 1), "while it forks");
            assert_eq!((last, all), (Verdict::Retry, 3), "served to the end");
        });
        drop(registration);
    }
}

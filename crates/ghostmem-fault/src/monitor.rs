//! The monitor backend's engine threads.
//!
//! They own no ghost memory (stacks of our own, nothing allocated), so they
//! can never fault on what they serve. Several of them, since one may have to
//! wait for a page that another thread is moving. While a fork keeps pages still
//! they serve the thread that forks, and put off all others.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_os::thread::{self, EngineThread};
use ghostmem_os::uffd::Uffd;
use ghostmem_os::{OsError, PAGE_SIZE, calls, clock, futex, machine, told};

use crate::die::die;
use crate::registry::{GATE, Verdict, on_message};

/// The process's fault monitor: one descriptor, a few threads.
pub(crate) struct Monitor {
    uffd: Uffd,
    started: AtomicBool,
    /// How many threads wait to begin, or [`OPEN`].
    parked: AtomicU64,
}

const THREADS_MAX: usize = 4;
/// Threads need not wait: there is something to listen to.
const OPEN: u64 = u32::MAX as u64;

impl Monitor {
    /// A monitor of `uffd`, whose faults are messages.
    pub(crate) const fn new(uffd: Uffd) -> Self {
        Self {
            uffd,
            started: AtomicBool::new(false),
            parked: AtomicU64::new(OPEN),
        }
    }

    /// The descriptor. The threads start with the first region, when the
    /// monitor has its final address.
    pub(crate) fn uffd(&'static self) -> &'static Uffd {
        if !self.started.swap(true, Ordering::AcqRel)
            && let Err(error) = self.spawn()
        {
            die("the fault monitor's thread cannot start", error.errno);
        }
        &self.uffd
    }

    fn spawn(&'static self) -> Result<(), OsError> {
        for _ in 0..threads() {
            let thread = EngineThread::spawn(serve, core::ptr::from_ref(self) as usize)?;
            // It runs for as long as the process.
            core::mem::forget(thread);
        }
        Ok(())
    }

    /// Whether any region is, or was, its.
    pub(crate) fn was_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// In a forked child, which has none of the threads: the descriptor, to be
    /// replaced by one that needs none.
    pub(crate) fn uffd_in_child(&'static self) -> &'static Uffd {
        self.parked.store(0, Ordering::Release);
        &self.uffd
    }

    /// In a forked child whose regions are served by the faulting threads:
    /// starts the threads, and takes the regions away from their descriptor, whose
    /// place the one that `open` makes takes.
    /// Nobody may touch ghost memory until they are registered again and
    /// [`Monitor::open_to_messages`] was called.
    pub(crate) fn listen_in_child(&'static self, open: impl FnOnce() -> Result<Uffd, OsError>) {
        let started = self.spawn().and_then(|()| {
            // What libc reads when a thread starts may be absent, and is served
            // by that thread itself, now.
            let (threads, mut tries) = (threads(), 0);
            while self.parked.load(Ordering::Acquire) < threads {
                futex::pause(tries);
                tries = tries.saturating_add(1);
            }
            // The last of a descriptor ends all of its registrations
            // (userfaultfd(2)). Its number may be the only one to be had.
            self.uffd.close();
            open().map(|fresh| self.uffd.replace(fresh))
        });
        if let Err(error) = started {
            die(
                "a forked child cannot restart the fault monitor",
                error.errno,
            );
        }
    }

    /// Waits, on one of its threads, until there is something to listen to.
    fn park(&self) {
        let count = |parked: u64| (parked != OPEN).then_some(parked + 1);
        let mut seen = self
            .parked
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, count)
            .map_or(OPEN, |before| before + 1);
        while seen != OPEN {
            futex::wait(&self.parked, seen as u32, Duration::from_millis(100));
            seen = self.parked.load(Ordering::Acquire);
        }
    }

    /// Lets the threads that wait in a forked child begin.
    pub(crate) fn open_to_messages(&self) {
        self.parked.store(OPEN, Ordering::Release);
        futex::wake_all(&self.parked);
    }
}

fn threads() -> u64 {
    machine::cpus().clamp(2, THREADS_MAX) as u64
}

/// How often in a row a thread's faults on one page were refused.
///
/// One refusal proves nothing. A signal takes a thread out of its wait, and
/// when it comes back it faults again: two messages about one touch. While one
/// of our threads still holds the first, another may serve the second, and the
/// program may have freed the page by the time the first is looked at. Whoever
/// really touches a page that is not to be had does it again at once, for ever.
struct Refusals([AtomicU64; Self::ENTRIES]);

impl Refusals {
    const ENTRIES: usize = 64;
    /// So many, each within [`Self::APART_MS`] of the one before, are no
    /// accident.
    const MOST: u64 = 32;
    const APART_MS: u64 = 1000;

    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Self::ENTRIES])
    }

    /// Counts a refusal at `now_ms`; `true` when it is one too many. Threads
    /// that share an entry forget each other's.
    ///
    /// ```text
    ///   63        29 28       5 4     0
    ///  ┌────────────┬──────────┬───────┐
    ///  │ page       │ time, ms │ count │
    ///  └────────────┴──────────┴───────┘
    /// ```
    fn one_more(&self, thread: u32, address: usize, now_ms: u64) -> bool {
        const TIME_MASK: u64 = (1 << 24) - 1;
        let entry = &self.0[thread as usize % Self::ENTRIES];
        let page = (address / PAGE_SIZE) as u64 & ((1 << 35) - 1);
        let now_ms = now_ms & TIME_MASK;
        let before = entry.load(Ordering::Relaxed);
        let apart = now_ms.wrapping_sub(before >> 5 & TIME_MASK) & TIME_MASK;
        let again = before >> 29 == page && apart < Self::APART_MS;
        let count = if again { (before & 31) + 1 } else { 1 };
        // The count never reaches 32 but to say so.
        entry.store(page << 29 | now_ms << 5 | count & 31, Ordering::Relaxed);
        count >= Self::MOST
    }
}

static REFUSALS: Refusals = Refusals::new();

extern "C" fn serve(monitor: *mut libc::c_void) -> *mut libc::c_void {
    // SAFETY: `spawn` passes a `&'static Monitor`.
    let monitor = unsafe { &*monitor.cast::<Monitor>() };
    thread::closed_to_signals(|| {
        thread::name_this(c"ghost-fault");
        answer(monitor)
    })
}

/// Answers messages for as long as the process runs.
fn answer(monitor: &Monitor) -> ! {
    monitor.park();
    loop {
        let inside = GATE.try_enter();
        match monitor.uffd.read_message() {
            Ok(Some(message)) => {
                let verdict = on_message(&monitor.uffd, &message, inside);
                match verdict {
                    Verdict::Resolved => {}
                    Verdict::Refused
                        if REFUSALS.one_more(
                            message.thread,
                            message.address,
                            clock::now_ns() / 1_000_000,
                        ) =>
                    {
                        // The program's own mistake, if somebody hears it.
                        if !told::tell(message.thread, message.address, message.write) {
                            die("a ghost page cannot be brought back", libc::EIO)
                        }
                    }
                    Verdict::Retry | Verdict::Wait { .. } | Verdict::Refused => {
                        let page = message.address & !(PAGE_SIZE - 1);
                        let _nobody = monitor.uffd.wake_unless_held(page, PAGE_SIZE);
                    }
                }
            }
            Ok(None) => {
                drop(inside);
                let _ready = calls::poll(monitor.uffd.fd(), libc::POLLIN, true);
            }
            Err(error) => die("the fault monitor cannot read its messages", error.errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_message_is_forgiven_and_a_wild_touch_is_not() {
        let refusals = Refusals::new();
        // One now and then, on the same page by the same thread, for hours.
        for second in 0..40_000 {
            assert!(!refusals.one_more(7, 0x7000, second * 1500));
        }
        // Other pages in between.
        for _ in 0..1000 {
            assert!(!refusals.one_more(7, 0x7000, 1));
            assert!(!refusals.one_more(7, 0x9000, 1));
        }
        let refused = (1..100).find(|_| refusals.one_more(8, 0x7fff_ffff_f000, 5));
        assert_eq!(refused, Some(Refusals::MOST));
    }
}

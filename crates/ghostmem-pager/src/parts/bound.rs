//! The bound on everything a process takes: what was asked for, and what the last look
//! found. Read by those who need a frame, written by one looker at a time.

use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;

use ghostmem_os::PAGE_SIZE;
use ghostmem_policy::bound::{self, Strain};

/// Fewest pages that stay resident under a bound: 1 MiB.
pub(crate) const LEAST_PAGES: i64 = 256;

/// The clock follows when the limit is off by this part.
const CLOCK_STEP: i64 = 4;

/// A bound on the whole process.
#[derive(Debug)]
pub(crate) struct ProcessBound {
    /// The bound, bytes.
    pub(crate) bytes: usize,
    /// Most pages that may be resident, whatever the bound leaves.
    most_pages: AtomicI64,
    /// Memory of the process that is not the heap's, bytes, by the last measurement.
    other_bytes: AtomicUsize,
    /// When that was, nanoseconds.
    measured_ns: AtomicU64,
    /// The most that was measured, bytes.
    peak_bytes: AtomicUsize,
    /// Pages that could be resident if the heap took all that is left.
    reach_pages: AtomicI64,
    /// The resident limit that turnovers are counted by: it follows in large steps, as
    /// each makes the epochs of pages that are away mean something else.
    clock_pages: AtomicI64,
    /// What the bound has no place for: a [`Strain`].
    strain: AtomicU8,
    /// A touch was refused since the strain began.
    refusing: AtomicBool,
    /// Somebody looks.
    looking: AtomicBool,
}

impl ProcessBound {
    pub(crate) const fn new(bytes: usize, most_pages: i64) -> Self {
        Self {
            bytes,
            most_pages: AtomicI64::new(most_pages),
            other_bytes: AtomicUsize::new(0),
            measured_ns: AtomicU64::new(0),
            peak_bytes: AtomicUsize::new(0),
            reach_pages: AtomicI64::new(0),
            clock_pages: AtomicI64::new(LEAST_PAGES),
            strain: AtomicU8::new(0),
            refusing: AtomicBool::new(false),
            looking: AtomicBool::new(false),
        }
    }

    /// What stays free below it: what evictions store before their frames come free.
    pub(crate) fn headroom_bytes(&self) -> usize {
        bound::headroom_bytes(self.bytes)
    }

    pub(crate) fn most_pages(&self) -> i64 {
        self.most_pages.load(Ordering::Relaxed)
    }

    pub(crate) fn set_most_pages(&self, pages: i64) {
        self.most_pages.store(pages, Ordering::Relaxed);
    }

    pub(crate) fn other_bytes(&self) -> usize {
        self.other_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn peak_bytes(&self) -> usize {
        self.peak_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn reach_pages(&self) -> i64 {
        self.reach_pages.load(Ordering::Relaxed)
    }

    pub(crate) fn clock_pages(&self) -> i64 {
        self.clock_pages.load(Ordering::Relaxed)
    }

    pub(crate) fn strain(&self) -> Strain {
        Strain::from_bits(self.strain.load(Ordering::Relaxed))
    }

    /// Whether a touch was refused since the strain began: others are refused at once.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    /// Notes that a touch is refused; whether it is the first one.
    pub(crate) fn begin_to_refuse(&self) -> bool {
        !self.refusing.swap(true, Ordering::Relaxed)
    }

    /// How long the memory that is not the heap's may be left unwatched: as long as a
    /// program that fills fresh memory without pause takes for half of what is left.
    pub(crate) fn unwatched(&self, used_pages: i64) -> Duration {
        const BYTES_PER_MS: usize = 2 << 20;
        let left = (self.reach_pages() - used_pages).max(0) as usize * PAGE_SIZE;
        let ms = (left + self.headroom_bytes()) / 2 / BYTES_PER_MS;
        Duration::from_millis(ms.clamp(2, 50) as u64)
    }

    /// The right to look, unless somebody has it: a thread that holds it and is
    /// interrupted by a fault of its own does not wait for itself.
    pub(crate) fn try_look(&self) -> Option<Looking<'_>> {
        let free = !self.looking.swap(true, Ordering::Acquire);
        free.then_some(Looking(self))
    }

    /// In a forked child: whoever looked is not there, and what was measured was the
    /// parent's.
    pub(crate) fn after_fork_in_child(&self) {
        self.looking.store(false, Ordering::Relaxed);
        self.measured_ns.store(0, Ordering::Relaxed);
        self.peak_bytes.store(0, Ordering::Relaxed);
    }
}

/// The right to look.
pub(crate) struct Looking<'a>(&'a ProcessBound);

impl Looking<'_> {
    /// Whether the last measurement is older than `ns` at the moment `now`.
    pub(crate) fn is_due(&self, now: u64, ns: u64) -> bool {
        let measured = self.0.measured_ns.load(Ordering::Relaxed);
        measured == 0 || now.saturating_sub(measured) >= ns
    }

    /// Notes that at the moment `now` the process took `total` bytes, of which `ours`
    /// are the heap's.
    pub(crate) fn measured(&self, now: u64, total: usize, ours: usize) {
        self.0.measured_ns.store(now.max(1), Ordering::Relaxed);
        self.0
            .other_bytes
            .store(total.saturating_sub(ours), Ordering::Relaxed);
        self.0.peak_bytes.fetch_max(total, Ordering::Relaxed);
    }

    /// Notes what follows from the look.
    pub(crate) fn found(&self, limit_pages: i64, reach_pages: i64, strain: Strain) {
        let clock = self.0.clock_pages();
        if (limit_pages - clock).abs() > clock / CLOCK_STEP {
            self.0.clock_pages.store(limit_pages, Ordering::Relaxed);
        }
        self.0.reach_pages.store(reach_pages, Ordering::Relaxed);
        self.0.strain.store(strain as u8, Ordering::Relaxed);
        if strain == Strain::None && self.0.is_refusing() {
            self.0.refusing.store(false, Ordering::Relaxed);
        }
    }
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.looking.store(false, Ordering::Release);
    }
}

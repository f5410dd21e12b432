//! What the kernel says about this process's memory, sampled while the work runs.
//!
//! The rule of the demo: resident memory of the whole process never exceeds the heap's limit plus
//! its compressed store, plus 5 % for bookkeeping, plus 16 MiB for the program itself, plus 8 MiB
//! where there is a file. Because the
//! store grows and shrinks, the rule is checked at every sample with the store of that moment; the
//! kernel's own high-water mark catches what falls between samples.
//!
//! With a bound on the whole process the rule is that bound, on what the kernel charges the
//! process for: of `/proc/PID/status` `RssAnon`, `RssShmem`, `VmPTE` and `VmSwap`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ghostmem_os::report::{Reports, field_bytes, process_bytes_in};
use serde::{Deserialize, Serialize};

use crate::engine::HeapBytes;

/// Allowance for program, stacks and buffers beside the heap.
const FIXED_BYTES: u64 = 16 << 20;
/// The same for what a file takes: its tables, what is written together, and what
/// each thread reads into.
const FILE_BYTES: u64 = 8 << 20;
/// Most that a heap may exceed its limit by so that an instruction which needs more pages than a
/// tiny limit holds can go on: 68 pages, as ARCHITECTURE.md says under "Budget".
const OVERDRAFT_MAX_BYTES: u64 = 68 * 4096;
/// Time between samples.
const PERIOD: Duration = Duration::from_millis(5);

/// Resident memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Now (`VmRSS`).
    pub(crate) now_bytes: u64,
    /// Most since the last [`reset_peak`] (`VmHWM`).
    pub(crate) peak_bytes: u64,
    /// What a bound on the process counts, now.
    pub(crate) charged_bytes: u64,
}

/// Reads resident memory without allocating.
pub(crate) struct Meter(File);

impl Meter {
    /// Opens the kernel's report.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub(crate) fn open() -> std::io::Result<Self> {
        File::open("/proc/self/status").map(Self)
    }

    /// Reads it; zeros when the kernel does not answer.
    pub(crate) fn read(&self) -> Resident {
        let mut buffer = [0; 4096];
        let length = self.0.read_at(&mut buffer, 0).unwrap_or(0);
        let text = &buffer[..length];
        Resident {
            now_bytes: field_bytes(text, "VmRSS").unwrap_or(0),
            peak_bytes: field_bytes(text, "VmHWM").unwrap_or(0),
            charged_bytes: process_bytes_in(text).unwrap_or(0),
        }
    }
}

/// Sets the high-water mark back to what is resident now (`proc_pid_clear_refs(5)`, value 5).
/// False when the kernel refuses; the mark then includes the time before.
pub(crate) fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Memory that the machine can give without swapping, bytes.
pub(crate) fn available_bytes() -> Option<u64> {
    Reports::of_this_machine().meminfo_bytes("MemAvailable")
}

/// Bytes the process may use when the heap has this limit and store.
fn allowed_bytes(limit_bytes: u64, heap: HeapBytes) -> u64 {
    if let Some(bytes) = heap.bound_bytes {
        return bytes;
    }
    let file = if heap.has_file { FILE_BYTES } else { 0 };
    (limit_bytes + heap.store_bytes) / 20 * 21 + FIXED_BYTES + file
}

/// What was seen while the work ran.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Resident before the heap was made.
    pub(crate) before_bytes: u64,
    /// The kernel's high-water mark.
    pub(crate) peak_bytes: u64,
    /// The mark does not count: it has pages of files, which a bound on the process has not.
    pub(crate) bounded: bool,
    /// Whether that mark was reset before the work.
    pub(crate) peak_reset: bool,
    /// Samples taken.
    pub(crate) samples: u64,
    /// Most that was allowed at any sample; 0 without a heap.
    pub(crate) allowed_bytes: u64,
    /// Least distance between what was allowed and what was resident; negative is a violation.
    pub(crate) headroom_bytes: i64,
    /// Resident when the distance was least.
    pub(crate) tightest_bytes: u64,
    /// Most uncompressed ghost memory seen resident.
    pub(crate) ghost_resident_bytes: u64,
    /// Largest store seen.
    pub(crate) store_bytes: u64,
    /// Frames taken beyond the limit so that a thread could go on.
    pub(crate) overdrafts: u64,
}

impl Memory {
    /// Whether the rule held at every sample and at the kernel's mark, and ghost pages stayed
    /// within the limit or, if the heap says that it took frames beyond it, within
    /// [`OVERDRAFT_MAX_BYTES`] of it.
    pub(crate) fn rule_held(&self, limit_bytes: u64) -> bool {
        let allowance = if self.overdrafts > 0 {
            OVERDRAFT_MAX_BYTES
        } else {
            0
        };
        self.samples > 0
            && self.headroom_bytes >= 0
            && (self.bounded || self.peak_bytes <= self.allowed_bytes)
            && self.ghost_resident_bytes <= limit_bytes + allowance
    }

    /// Bytes of ghost pages seen above the limit.
    pub(crate) fn beyond_limit_bytes(&self, limit_bytes: u64) -> u64 {
        self.ghost_resident_bytes.saturating_sub(limit_bytes)
    }

    /// Takes a sample.
    fn sample(&mut self, limit_bytes: u64, meter: &Meter, heap: impl Fn() -> HeapBytes) {
        // The store may shrink or grow while the kernel is asked; what was allowed just before or
        // just after counts.
        let before = heap();
        let resident = meter.read();
        let after = heap();
        let most = HeapBytes {
            resident_bytes: before.resident_bytes.max(after.resident_bytes),
            store_bytes: before.store_bytes.max(after.store_bytes),
            overdrafts: after.overdrafts,
            bound_bytes: after.bound_bytes,
            has_file: after.has_file,
        };
        let taken = match most.bound_bytes {
            Some(_) => resident.charged_bytes,
            None => resident.now_bytes,
        };
        self.note(limit_bytes, most, taken);
    }

    fn note(&mut self, limit_bytes: u64, heap: HeapBytes, resident_bytes: u64) {
        let allowed = allowed_bytes(limit_bytes, heap);
        let headroom = allowed as i64 - resident_bytes as i64;
        if self.samples == 0 || headroom < self.headroom_bytes {
            self.headroom_bytes = headroom;
            self.tightest_bytes = resident_bytes;
        }
        self.samples += 1;
        self.bounded = heap.bound_bytes.is_some();
        self.allowed_bytes = self.allowed_bytes.max(allowed);
        self.ghost_resident_bytes = self.ghost_resident_bytes.max(heap.resident_bytes);
        self.store_bytes = self.store_bytes.max(heap.store_bytes);
        self.overdrafts = heap.overdrafts;
    }
}

/// A thread that samples until it is stopped.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Memory>,
}

impl Sampler {
    /// Resets the high-water mark and starts to sample; `heap` reads the heap, if there is one.
    ///
    /// # Errors
    /// No thread could be started or `/proc` is not mounted.
    pub(crate) fn start(
        before_bytes: u64,
        limit_bytes: u64,
        heap: Option<impl Fn() -> HeapBytes + Send + 'static>,
    ) -> std::io::Result<Self> {
        let meter = Meter::open()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let peak_reset = reset_peak();
        let thread = std::thread::Builder::new()
            .name("sampler".into())
            .spawn(move || {
                let mut memory = Memory {
                    before_bytes,
                    peak_reset,
                    ..Memory::default()
                };
                loop {
                    let last = stopped.load(Ordering::Acquire);
                    let begin = Instant::now();
                    if let Some(heap) = &heap {
                        memory.sample(limit_bytes, &meter, heap);
                    }
                    if last {
                        memory.peak_bytes = meter.read().peak_bytes;
                        return memory;
                    }
                    std::thread::park_timeout(PERIOD.saturating_sub(begin.elapsed()));
                }
            })?;
        Ok(Self { stop, thread })
    }

    /// Takes a last sample and reports.
    ///
    /// # Panics
    /// When the sampling thread panicked.
    pub(crate) fn stop(self) -> Memory {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_follows_memory_that_is_touched() {
        let sampler = Sampler::start(0, 0, None::<fn() -> HeapBytes>).unwrap();
        let block = std::hint::black_box(vec![7u8; 64 << 20]);
        drop(block);
        let memory = sampler.stop();
        assert!(memory.peak_bytes >= 64 << 20, "{memory:?}");
    }

    #[test]
    fn the_rule_is_broken_by_one_sample_or_by_the_mark() {
        let heap = |ghost_mib: u64, store_mib: u64| HeapBytes {
            resident_bytes: ghost_mib << 20,
            store_bytes: store_mib << 20,
            overdrafts: 0,
            bound_bytes: None,
            has_file: false,
        };
        let mut memory = Memory::default();
        let allowed = allowed_bytes(100 << 20, heap(100, 200));
        assert_eq!(allowed, (315 << 20) + FIXED_BYTES);
        memory.note(100 << 20, heap(100, 200), allowed);
        memory.peak_bytes = allowed;
        assert!(memory.rule_held(100 << 20));
        assert!(
            !memory.rule_held((100 << 20) - 1),
            "more ghost memory than the limit"
        );
        memory.peak_bytes += 1;
        assert!(
            !memory.rule_held(100 << 20),
            "mark above what was ever allowed"
        );
        memory.peak_bytes = allowed;
        memory.note(100 << 20, heap(0, 20), allowed);
        assert!(
            !memory.rule_held(100 << 20),
            "too much for the store of that moment"
        );
        assert!(!Memory::default().rule_held(1), "nothing was measured");
    }

    #[test]
    fn a_bound_on_the_process_is_the_rule_at_every_sample() {
        let heap = HeapBytes {
            store_bytes: 900 << 20,
            bound_bytes: Some(200 << 20),
            ..HeapBytes::default()
        };
        let mut memory = Memory::default();
        memory.note(100 << 20, heap, 200 << 20);
        // Pages of files.
        memory.peak_bytes = 230 << 20;
        assert!(memory.rule_held(100 << 20), "{memory:?}");
        memory.note(100 << 20, heap, (200 << 20) + 1);
        assert!(!memory.rule_held(100 << 20), "{memory:?}");
    }

    #[test]
    fn overdrafts_excuse_68_pages_and_no_more() {
        let limit = 5 * 4096;
        let seen = |pages: u64, overdrafts| {
            let mut memory = Memory::default();
            let heap = HeapBytes {
                resident_bytes: pages * 4096,
                store_bytes: 0,
                overdrafts,
                bound_bytes: None,
                has_file: false,
            };
            memory.note(limit, heap, 1 << 20);
            memory
        };
        assert!(seen(5, 0).rule_held(limit));
        assert!(!seen(6, 0).rule_held(limit), "not declared as an overdraft");
        assert!(seen(73, 9).rule_held(limit));
        assert!(!seen(74, 9).rule_held(limit));
        assert_eq!(seen(73, 9).beyond_limit_bytes(limit), 68 * 4096);
        assert_eq!(seen(4, 0).beyond_limit_bytes(limit), 0);
    }
}

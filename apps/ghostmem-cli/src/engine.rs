//! The one place where the command meets the `ghostmem` crate.
//!
//! What `--json` says of the machine comes from the plain structure defined here, so that it
//! does not change when the library's type does. A heap's figures have the library's names; the
//! ones promised so far are listed in a test.

use std::ops::Deref;

use ghostmem::{Backend, Heap, Spill, Stats};
use serde::{Serialize, Serializer};

use crate::cli::SpillArgs;
use crate::failure::Failure;

/// A heap.
#[derive(Clone)]
pub(crate) struct Engine {
    heap: Heap,
    bound_bytes: Option<u64>,
    has_file: bool,
}

/// The heap's figures at one moment; sizes in bytes, times in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot(Stats);

impl Deref for Snapshot {
    type Target = Stats;

    fn deref(&self) -> &Stats {
        &self.0
    }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let figures = self.figures().map(|figure| (figure.name, figure.value));
        // What `--json` has called the two since before they were figures.
        serializer.collect_map(figures.chain([
            ("fault_latency_p50_ns", self.fault_p50_ns()),
            ("fault_latency_p99_ns", self.fault_p99_ns()),
        ]))
    }
}

impl Engine {
    /// Makes a heap, with a bound on the whole process if there is to be one.
    ///
    /// # Errors
    /// The limit is too small or the machine offers no way to learn of faults.
    pub(crate) fn start(
        limit_bytes: u64,
        bound_bytes: Option<u64>,
        backend: Backend,
        spill: &SpillArgs,
    ) -> Result<Self, Failure> {
        let limit = usize::try_from(limit_bytes).map_err(Failure::new)?;
        // What is refused is said by the one whose data it is, with the number that would do.
        let mut builder = Heap::builder()
            .resident_limit(limit)
            .backend(backend)
            .report_denied(false);
        if let Some(bytes) = bound_bytes {
            builder = builder.memory(usize::try_from(bytes).map_err(Failure::new)?);
        }
        if let Some(folder) = &spill.spill {
            let mut file = Spill::dir(folder);
            if let Some(bytes) = spill.spill_limit {
                file = file.limit(bytes);
            }
            if let Some(bytes) = spill.spill_store {
                file = file.store_limit(usize::try_from(bytes).map_err(Failure::new)?);
            }
            builder = builder.spill(file);
        }
        builder
            .build()
            .map(|heap| Self {
                heap,
                bound_bytes,
                has_file: spill.spill.is_some(),
            })
            .map_err(Failure::new)
    }

    /// Where collections take their memory from.
    pub(crate) fn allocator(&self) -> &Heap {
        &self.heap
    }

    /// The backend in use.
    pub(crate) fn backend(&self) -> String {
        self.heap.backend().to_string()
    }

    /// Faults so far.
    pub(crate) fn faults(&self) -> u64 {
        self.heap.stats().faults
    }

    /// Bytes of resident ghost pages and bytes the store holds, cheap enough to be read often.
    pub(crate) fn bytes(&self) -> HeapBytes {
        let stats = self.heap.stats();
        HeapBytes {
            resident_bytes: stats.resident_bytes as u64,
            store_bytes: stats.store_held_bytes as u64,
            overdrafts: stats.overdrafts,
            bound_bytes: self.bound_bytes,
            has_file: self.has_file,
        }
    }

    /// All figures.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot(self.heap.stats())
    }
}

/// What a heap holds at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HeapBytes {
    /// Uncompressed ghost pages.
    pub(crate) resident_bytes: u64,
    /// Memory of the compressed store.
    pub(crate) store_bytes: u64,
    /// Frames ever taken beyond the limit because a thread could not go on otherwise.
    pub(crate) overdrafts: u64,
    /// The bound on the whole process.
    pub(crate) bound_bytes: Option<u64>,
    /// There is a file for cold pages.
    pub(crate) has_file: bool,
}

/// A limit on what a process may take here.
#[derive(Debug, Serialize)]
pub(crate) struct FoundLimit {
    pub(crate) source: String,
    pub(crate) limit_bytes: u64,
    pub(crate) left_bytes: u64,
}

/// What the machine allows.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel_release: String,
    pub(crate) page_size_ok: bool,
    pub(crate) cpus: u64,
    pub(crate) ram_bytes: u64,
    pub(crate) cgroup_limit_bytes: Option<u64>,
    /// What `--memory auto` stands for now; null where the kernel does not say.
    pub(crate) auto_bytes: Option<u64>,
    /// The limit that it comes from.
    pub(crate) auto_from: String,
    pub(crate) limits: Vec<FoundLimit>,
    pub(crate) address_space_limit_bytes: Option<u64>,
    pub(crate) seccomp_mode: Option<u64>,
    pub(crate) max_map_count: Option<u64>,
    pub(crate) unprivileged_userfaultfd: Option<u64>,
    /// Ways to userfaultfd; a refusal is the error's text, null means that it works.
    pub(crate) userfaultfd_user_mode_refusal: Option<String>,
    pub(crate) userfaultfd_syscall_refusal: Option<String>,
    pub(crate) userfaultfd_device_refusal: Option<String>,
    /// A file for cold pages can be had in /var/tmp; a refusal is its text.
    pub(crate) spill_refusal: Option<String>,
    pub(crate) spill_direct: bool,
    pub(crate) spill_key_locked: bool,
    pub(crate) userfaultfd_move: bool,
    pub(crate) guard_pages: bool,
    pub(crate) inline_works: bool,
    pub(crate) monitor_works: bool,
    pub(crate) guard_works: bool,
    /// The backend that `auto` takes; null when no backend works.
    pub(crate) backend: Option<String>,
    pub(crate) reason: String,
    pub(crate) hints: Vec<String>,
}

/// Asks the machine.
pub(crate) fn probe() -> Machine {
    let report = ghostmem::doctor::probe();
    Machine {
        kernel_release: report.kernel_release,
        page_size_ok: report.page_size_ok,
        cpus: report.cpus as u64,
        ram_bytes: report.ram_bytes,
        cgroup_limit_bytes: report.cgroup_limit_bytes,
        auto_bytes: report.auto_bytes,
        auto_from: report.auto_from,
        limits: report
            .limits
            .into_iter()
            .map(|limit| FoundLimit {
                source: limit.source,
                limit_bytes: limit.limit_bytes,
                left_bytes: limit.left_bytes,
            })
            .collect(),
        address_space_limit_bytes: report.address_space_limit_bytes,
        seccomp_mode: report.seccomp_mode,
        max_map_count: report.max_map_count,
        unprivileged_userfaultfd: report.sysctl_unprivileged_userfaultfd,
        userfaultfd_user_mode_refusal: report.userfaultfd_user_mode.err(),
        userfaultfd_syscall_refusal: report.userfaultfd_syscall.err(),
        userfaultfd_device_refusal: report.userfaultfd_device.err(),
        spill_direct: report.spill.as_ref().is_ok_and(|spill| spill.direct),
        spill_key_locked: report.spill.as_ref().is_ok_and(|spill| spill.key_locked),
        spill_refusal: report.spill.err(),
        userfaultfd_move: report.uffd_move,
        guard_pages: report.guard_pages,
        inline_works: report.inline_works,
        monitor_works: report.monitor_works,
        guard_works: report.guard_works,
        backend: report.chosen.map(|backend| backend.to_string()),
        reason: report.reason,
        hints: report.hints,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What programs that read `--json` may count on; the list only grows.
    const PROMISED: [&str; 33] = [
        "resident_bytes",
        "allocated_bytes",
        "stored_pages",
        "store_data_bytes",
        "store_held_bytes",
        "metadata_bytes",
        "file_pages",
        "file_data_bytes",
        "file_bytes",
        "pages_spilled",
        "spills_in_vain",
        "spilled_reads",
        "spilled_read_errors",
        "spill_write_errors",
        "spill_waits",
        "raw_pages",
        "same_filled_pages",
        "faults",
        "refaults",
        "write_faults",
        "evictions_clean",
        "evictions_dirty",
        "evictions_cancelled",
        "readahead_pages",
        "readahead_hits",
        "direct_reclaims",
        "overdrafts",
        "compress_ns",
        "compressed_pages",
        "decompress_ns",
        "decompress_samples",
        "fault_latency_p50_ns",
        "fault_latency_p99_ns",
    ];

    #[test]
    fn the_figures_have_the_promised_names_and_each_is_there_once() {
        let json = serde_json::to_string(&Snapshot::default()).unwrap();
        for name in PROMISED {
            assert!(json.contains(&format!("\"{name}\":0")), "{name}: {json}");
        }
        for figure in Stats::default().figures() {
            let key = format!("\"{}\":", figure.name);
            assert_eq!(json.matches(&key).count(), 1, "{key} in {json}");
        }
    }
}

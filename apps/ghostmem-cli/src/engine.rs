//! The one place where the command meets the `ghostmem` crate.
//!
//! Everything the commands print comes from the plain structures defined here, so that what
//! `--json` promises does not change when the library's types do.

use serde::Serialize;

use crate::failure::Failure;
use crate::ghostmem::{self, Backend, Heap};

/// A heap and what was asked of it.
#[derive(Clone)]
pub(crate) struct Engine {
    heap: Heap,
}

/// The heap's counters at one moment; sizes in bytes, times in nanoseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Snapshot {
    pub(crate) resident_bytes: u64,
    pub(crate) allocated_bytes: u64,
    pub(crate) stored_pages: u64,
    pub(crate) store_data_bytes: u64,
    pub(crate) store_held_bytes: u64,
    pub(crate) metadata_bytes: u64,
    pub(crate) same_filled_pages: u64,
    pub(crate) raw_pages: u64,
    pub(crate) faults: u64,
    pub(crate) refaults: u64,
    pub(crate) evictions_clean: u64,
    pub(crate) evictions_dirty: u64,
    pub(crate) readahead_pages: u64,
    pub(crate) readahead_hits: u64,
    pub(crate) compress_ns: u64,
    pub(crate) decompress_ns: u64,
    pub(crate) fault_latency_p50_ns: u64,
    pub(crate) fault_latency_p99_ns: u64,
}

impl Engine {
    /// Makes a heap.
    ///
    /// # Errors
    /// The limit is too small or the machine offers no way to learn of faults.
    pub(crate) fn start(limit_bytes: u64, backend: Backend) -> Result<Self, Failure> {
        let limit = usize::try_from(limit_bytes).map_err(Failure::new)?;
        let builder = Heap::builder().resident_limit(limit).backend(backend);
        builder
            .build()
            .map(|heap| Self { heap })
            .map_err(Failure::new)
    }

    /// Where collections take their memory from.
    pub(crate) fn allocator(&self) -> &ghostmem::Memory {
        self.heap.memory()
    }

    /// The backend in use.
    pub(crate) fn backend(&self) -> &'static str {
        backend_name(self.heap.backend())
    }

    /// Faults so far.
    pub(crate) fn faults(&self) -> u64 {
        self.heap.stats().faults
    }

    /// All counters.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let stats = self.heap.stats();
        Snapshot {
            resident_bytes: stats.resident_bytes,
            allocated_bytes: stats.allocated_bytes,
            stored_pages: stats.stored_pages,
            store_data_bytes: stats.store_data_bytes,
            store_held_bytes: stats.store_held_bytes,
            metadata_bytes: stats.metadata_bytes,
            same_filled_pages: stats.same_filled_pages,
            raw_pages: stats.raw_pages,
            faults: stats.faults,
            refaults: stats.refaults,
            evictions_clean: stats.evictions_clean,
            evictions_dirty: stats.evictions_dirty,
            readahead_pages: stats.readahead_pages,
            readahead_hits: stats.readahead_hits,
            compress_ns: stats.compress_ns,
            decompress_ns: stats.decompress_ns,
            fault_latency_p50_ns: stats.fault_latency.percentile(50.0),
            fault_latency_p99_ns: stats.fault_latency.percentile(99.0),
        }
    }
}

/// A backend's name as the command line spells it.
pub(crate) fn backend_name(backend: Backend) -> &'static str {
    match backend {
        Backend::Auto => "auto",
        Backend::Inline => "inline",
        Backend::Monitor => "monitor",
        Backend::Guard => "guard",
    }
}

/// What the machine allows.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel_release: String,
    pub(crate) page_size_bytes: u64,
    pub(crate) cpus: u64,
    pub(crate) ram_bytes: u64,
    pub(crate) cgroup_limit_bytes: Option<u64>,
    pub(crate) userfaultfd: Userfaultfd,
    pub(crate) unprivileged_userfaultfd: Option<u64>,
    pub(crate) madv_guard_shmem: bool,
    pub(crate) max_map_count: Option<u64>,
    pub(crate) rlimit_as_bytes: Option<u64>,
    pub(crate) seccomp_mode: Option<u64>,
    /// The backend that `auto` takes; none when no backend works.
    pub(crate) backend: Option<&'static str>,
    pub(crate) reason: String,
    pub(crate) hints: Vec<String>,
}

/// What userfaultfd offers; a refusal is the error's text, nothing means it works.
#[derive(Debug, Serialize)]
pub(crate) struct Userfaultfd {
    pub(crate) dev_refusal: Option<String>,
    pub(crate) syscall_refusal: Option<String>,
    pub(crate) user_mode_only_refusal: Option<String>,
    pub(crate) sigbus: bool,
    pub(crate) write_protect: bool,
    pub(crate) move_pages: bool,
}

/// Asks the machine.
pub(crate) fn probe() -> Machine {
    let report = ghostmem::doctor::probe();
    Machine {
        kernel_release: report.kernel_release,
        page_size_bytes: report.page_size,
        cpus: report.cpus,
        ram_bytes: report.ram_bytes,
        cgroup_limit_bytes: report.cgroup_limit_bytes,
        userfaultfd: Userfaultfd {
            dev_refusal: report.userfaultfd.dev.err(),
            syscall_refusal: report.userfaultfd.syscall_full.err(),
            user_mode_only_refusal: report.userfaultfd.user_mode_only.err(),
            sigbus: report.features.sigbus,
            write_protect: report.features.wp,
            move_pages: report.features.r#move,
        },
        unprivileged_userfaultfd: report.unprivileged_userfaultfd,
        madv_guard_shmem: report.madv_guard_shmem,
        max_map_count: report.max_map_count,
        rlimit_as_bytes: report.rlimit_as_bytes,
        seccomp_mode: report.seccomp_mode,
        backend: report.chosen.map(backend_name),
        reason: report.reason,
        hints: report.hints,
    }
}

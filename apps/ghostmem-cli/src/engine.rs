//! The one place where the command meets the `ghostmem` crate.
//!
//! Everything the commands print comes from the plain structures defined here, so that what
//! `--json` promises does not change when the library's types do.

use ghostmem::{Backend, Heap, Spill};
use serde::Serialize;

use crate::cli::SpillArgs;
use crate::failure::Failure;

/// A heap.
#[derive(Clone)]
pub(crate) struct Engine {
    heap: Heap,
    has_file: bool,
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
    pub(crate) file_pages: u64,
    pub(crate) file_data_bytes: u64,
    pub(crate) file_bytes: u64,
    pub(crate) pages_spilled: u64,
    pub(crate) spills_in_vain: u64,
    pub(crate) spilled_reads: u64,
    pub(crate) spilled_read_errors: u64,
    pub(crate) spill_write_errors: u64,
    pub(crate) spill_waits: u64,
    pub(crate) raw_pages: u64,
    pub(crate) same_filled_pages: u64,
    pub(crate) faults: u64,
    pub(crate) refaults: u64,
    pub(crate) write_faults: u64,
    pub(crate) evictions_clean: u64,
    pub(crate) evictions_dirty: u64,
    pub(crate) evictions_cancelled: u64,
    pub(crate) readahead_pages: u64,
    pub(crate) readahead_hits: u64,
    pub(crate) direct_reclaims: u64,
    pub(crate) overdrafts: u64,
    pub(crate) compress_ns: u64,
    pub(crate) compressed_pages: u64,
    pub(crate) decompress_ns: u64,
    pub(crate) decompress_samples: u64,
    pub(crate) fault_latency_p50_ns: u64,
    pub(crate) fault_latency_p99_ns: u64,
}

impl Engine {
    /// Makes a heap.
    ///
    /// # Errors
    /// The limit is too small or the machine offers no way to learn of faults.
    pub(crate) fn start(
        limit_bytes: u64,
        backend: Backend,
        spill: &SpillArgs,
    ) -> Result<Self, Failure> {
        let limit = usize::try_from(limit_bytes).map_err(Failure::new)?;
        let mut builder = Heap::builder().resident_limit(limit).backend(backend);
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
            has_file: self.has_file,
        }
    }

    /// All counters.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let stats = self.heap.stats();
        Snapshot {
            resident_bytes: stats.resident_bytes as u64,
            allocated_bytes: stats.allocated_bytes as u64,
            stored_pages: stats.stored_pages as u64,
            store_data_bytes: stats.store_data_bytes as u64,
            store_held_bytes: stats.store_held_bytes as u64,
            metadata_bytes: stats.metadata_bytes as u64,
            file_pages: stats.file_pages as u64,
            file_data_bytes: stats.file_data_bytes,
            file_bytes: stats.file_bytes,
            pages_spilled: stats.pages_spilled,
            spills_in_vain: stats.spills_in_vain,
            spilled_reads: stats.spilled_reads,
            spilled_read_errors: stats.spilled_read_errors,
            spill_write_errors: stats.spill_write_errors,
            spill_waits: stats.spill_waits,
            raw_pages: stats.raw_pages as u64,
            same_filled_pages: stats.same_filled_pages,
            faults: stats.faults,
            refaults: stats.refaults,
            write_faults: stats.write_faults,
            evictions_clean: stats.evictions_clean,
            evictions_dirty: stats.evictions_dirty,
            evictions_cancelled: stats.evictions_cancelled,
            readahead_pages: stats.readahead_pages,
            readahead_hits: stats.readahead_hits,
            direct_reclaims: stats.direct_reclaims,
            overdrafts: stats.overdrafts,
            compress_ns: stats.compress_ns,
            compressed_pages: stats.compressed_pages,
            decompress_ns: stats.decompress_ns,
            decompress_samples: stats.decompress_samples,
            fault_latency_p50_ns: stats.fault_latency.percentile(50.0),
            fault_latency_p99_ns: stats.fault_latency.percentile(99.0),
        }
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
    /// There is a file for cold pages.
    pub(crate) has_file: bool,
}

/// What the machine allows.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel_release: String,
    pub(crate) page_size_ok: bool,
    pub(crate) cpus: u64,
    pub(crate) ram_bytes: u64,
    pub(crate) cgroup_limit_bytes: Option<u64>,
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

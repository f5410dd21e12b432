//! What this machine allows, which backend that makes, and what would unlock
//! more.

use ghostmem_fault::Probe;
use ghostmem_file::Options;
use ghostmem_os::found::{self, Source};
use ghostmem_os::{machine, trial};

use crate::Backend;

/// The findings of [`probe`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Kernel release.
    pub kernel_release: String,
    /// The base page is 4096 bytes.
    pub page_size_ok: bool,
    /// Processors this process may use.
    pub cpus: usize,
    /// Installed memory, bytes.
    pub ram_bytes: u64,
    /// The control group's memory limit, bytes.
    pub cgroup_limit_bytes: Option<u64>,
    /// Each limit on what a process may take here, inner levels of its control groups
    /// first, the machine last.
    pub limits: Vec<FoundLimit>,
    /// What [`MemorySize::Auto`](crate::MemorySize::Auto) stands for now, bytes: what a
    /// process takes, and what is left of the limit that leaves least. `None` where the
    /// kernel does not say what a process takes.
    pub auto_bytes: Option<u64>,
    /// The source of that limit.
    pub auto_from: String,
    /// `RLIMIT_AS`, bytes.
    pub address_space_limit_bytes: Option<u64>,
    /// Seccomp mode: 0 none, 2 filter.
    pub seccomp_mode: Option<u64>,
    /// `vm.unprivileged_userfaultfd`.
    pub sysctl_unprivileged_userfaultfd: Option<u64>,
    /// `vm.max_map_count`.
    pub max_map_count: Option<u64>,
    /// Opening `/dev/userfaultfd`: the error if refused.
    pub userfaultfd_device: Result<u64, String>,
    /// userfaultfd(2) in full mode: features, or the error.
    pub userfaultfd_syscall: Result<u64, String>,
    /// userfaultfd(2) for user mode only: features, or the error.
    pub userfaultfd_user_mode: Result<u64, String>,
    /// SIGBUS delivery and write protection are there.
    pub inline_works: bool,
    /// A full-mode descriptor can be had: system calls see ghost memory.
    pub monitor_works: bool,
    /// A memory file can be made.
    pub guard_works: bool,
    /// Why none can be made.
    pub guard_refusal: Option<String>,
    /// Guard pages work on memory files (no mapping is split).
    pub guard_pages: bool,
    /// A file for cold pages in [`SPILL_DIR`]: what it is like, or why there can be
    /// none.
    pub spill: Result<SpillReport, String>,
    /// Filters of system calls in force: what they might end the process for was tried
    /// in children. `None` where that cannot be told.
    pub filters: Option<u64>,
    /// Such a filter lets userfaultfd(2) by.
    pub calls_userfaultfd: bool,
    /// Such a filter lets the call by that gives many pages back at once.
    pub drops_vectored: bool,
    /// `UFFDIO_MOVE` is offered.
    pub uffd_move: bool,
    /// The backend `Backend::Auto` takes; `None` when nothing works.
    pub chosen: Option<Backend>,
    /// Why.
    pub reason: String,
    /// What would unlock more.
    pub hints: Vec<String>,
}

/// A limit on what a process may take.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FoundLimit {
    /// Where it comes from: `RLIMIT_AS`, `RLIMIT_DATA`, `available memory`, or the file of
    /// a control group that says it (`memory.high`, say).
    pub source: String,
    /// Most that may be taken, bytes.
    pub limit_bytes: u64,
    /// What is left of it now, bytes.
    pub left_bytes: u64,
}

/// Each limit, and the source of the one that leaves this process least.
fn limits() -> (Vec<FoundLimit>, String) {
    let taken = machine::process_bytes().unwrap_or(0);
    let (mut limits, mut least) = (Vec::new(), (u64::MAX, String::new()));
    found::each_limit(|limit| {
        let source = match limit.source {
            Source::Group { folder, file } => folder.join(file).display().to_string(),
            Source::AddressSpace => "RLIMIT_AS".to_owned(),
            Source::Data => "RLIMIT_DATA".to_owned(),
            Source::Machine => "available memory".to_owned(),
        };
        let reach = limit.bytes.min(taken.saturating_add(limit.left_bytes));
        if reach < least.0 {
            least = (reach, source.clone());
        }
        limits.push(FoundLimit {
            source,
            limit_bytes: limit.bytes,
            left_bytes: limit.left_bytes,
        });
    });
    (limits, least.1)
}

/// Where [`probe`] tries a file for cold pages: a folder that is kept on a disk.
pub const SPILL_DIR: &str = "/var/tmp";

/// What a file for cold pages is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpillReport {
    /// Reads and writes go around the page cache.
    pub direct: bool,
    /// Its keys are never swapped out.
    pub key_locked: bool,
}

/// Whether the monitor hears of system calls that touch ghost memory: what
/// [`probe`] calls `monitor_works`.
#[must_use]
pub fn monitor_works() -> bool {
    Probe::run().allows(ghostmem_fault::BackendKind::Monitor)
}

fn probe_spill() -> Result<SpillReport, String> {
    if trial::is_needed() {
        return Err("not tried under a filter of system calls".to_owned());
    }
    let found = Options::unnamed(SPILL_DIR).try_out();
    let found = found.map_err(|error| error.to_string())?;
    Ok(SpillReport {
        direct: found.is_direct,
        key_locked: found.is_key_locked,
    })
}

/// Tries everything once and reports.
#[must_use]
pub fn probe() -> Report {
    let probed = Probe::run();
    let mut release = [0; 65];
    let text = |probe: &ghostmem_fault::UserfaultfdProbe| probe.features.map_err(|e| e.to_string());
    let chosen = probed.choice().map(|kind| match kind {
        ghostmem_fault::BackendKind::Inline => Backend::Inline,
        ghostmem_fault::BackendKind::Monitor => Backend::Monitor,
        ghostmem_fault::BackendKind::Guard if probed.guard_pages => Backend::Guard,
        ghostmem_fault::BackendKind::Guard => Backend::GuardMprotect,
        ghostmem_fault::BackendKind::Veh => Backend::Veh,
    });
    let (limits, auto_from) = limits();
    let monitor_works = probed.allows(ghostmem_fault::BackendKind::Monitor);
    let seccomp_mode = machine::seccomp_mode();
    let reason = match chosen {
        Some(Backend::Inline) => {
            "userfaultfd delivers faults as signals: resolved on the faulting thread, fastest"
        }
        Some(_) => "userfaultfd is refused here; guard pages on a memory file work",
        None => "neither userfaultfd nor memory files can be had",
    };
    let mut hints = Vec::new();
    if !probed.allows(ghostmem_fault::BackendKind::Inline) {
        if seccomp_mode == Some(2) {
            hints.push(
                "a seccomp filter is active: allow the userfaultfd system call in the container's \
                 profile for the inline backend"
                    .to_owned(),
            );
        } else {
            hints.push(
                "a kernel of 5.11 or later built with CONFIG_USERFAULTFD gives the inline backend"
                    .to_owned(),
            );
        }
    }
    if !monitor_works {
        hints.push(
            "sysctl vm.unprivileged_userfaultfd=1, or read and write access to /dev/userfaultfd, \
             gives the monitor backend (system calls then see ghost memory without pinning)"
                .to_owned(),
        );
    }
    if !probed.guard_pages {
        hints.push(
            "a kernel of 6.15 or later has guard pages for memory files: a faster guard backend"
                .to_owned(),
        );
    }
    Report {
        kernel_release: machine::kernel_release(&mut release).to_owned(),
        page_size_ok: probed.page_size_ok,
        cpus: machine::cpus(),
        ram_bytes: machine::ram_bytes(),
        cgroup_limit_bytes: machine::cgroup_limit_bytes(),
        limits,
        auto_bytes: found::within_reach_bytes(),
        auto_from,
        address_space_limit_bytes: machine::address_space_limit(),
        seccomp_mode,
        sysctl_unprivileged_userfaultfd: machine::number_in(
            "/proc/sys/vm/unprivileged_userfaultfd",
        ),
        max_map_count: machine::number_in("/proc/sys/vm/max_map_count"),
        userfaultfd_device: text(&probed.device),
        userfaultfd_syscall: text(&probed.syscall),
        userfaultfd_user_mode: text(&probed.user_mode_only),
        inline_works: probed.allows(ghostmem_fault::BackendKind::Inline),
        monitor_works,
        guard_works: probed.allows(ghostmem_fault::BackendKind::Guard),
        guard_refusal: probed.memory_file.err().map(|error| error.to_string()),
        guard_pages: probed.guard_pages,
        spill: probe_spill(),
        filters: probed.filters,
        calls_userfaultfd: probed.calls_userfaultfd,
        drops_vectored: probed.drops_vectored,
        uffd_move: probed.user_mode_only.has_move() || probed.syscall.has_move(),
        chosen,
        reason: reason.to_owned(),
        hints,
    }
}

//! Stand-in with the shape of the `ghostmem` crate, until that crate can be used: a heap that
//! keeps nothing compressed and enforces nothing. To be deleted together with its `mod` line.
#![allow(dead_code, missing_docs)]

pub(crate) use allocator_api2::alloc::Global as Memory;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Auto,
    Inline,
    Monitor,
    Guard,
}

pub(crate) struct HeapBuilder(usize);

impl HeapBuilder {
    pub(crate) fn resident_limit(self, bytes: usize) -> Self {
        Self(bytes)
    }
    pub(crate) fn backend(self, _: Backend) -> Self {
        self
    }
    pub(crate) fn readahead(self, _: bool) -> Self {
        self
    }
    pub(crate) fn build(self) -> Result<Heap, String> {
        if self.0 < 5 * 4096 {
            return Err(format!(
                "a resident limit of {} bytes is too small (at least 20480)",
                self.0
            ));
        }
        Ok(Heap)
    }
}

#[derive(Clone)]
pub(crate) struct Heap;

impl Heap {
    pub(crate) fn builder() -> HeapBuilder {
        HeapBuilder(0)
    }
    pub(crate) fn backend(&self) -> Backend {
        Backend::Auto
    }
    pub(crate) fn memory(&self) -> &Memory {
        &Memory
    }
    pub(crate) fn stats(&self) -> Stats {
        Stats::default()
    }
}

#[derive(Default)]
pub(crate) struct LatencyHistogram;

impl LatencyHistogram {
    pub(crate) fn percentile(&self, _: f64) -> u64 {
        0
    }
}

#[derive(Default)]
pub(crate) struct Stats {
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
    pub(crate) fault_latency: LatencyHistogram,
}

pub(crate) mod doctor {
    use super::Backend;

    pub(crate) struct Userfaultfd {
        pub(crate) dev: Result<(), String>,
        pub(crate) syscall_full: Result<(), String>,
        pub(crate) user_mode_only: Result<(), String>,
    }

    pub(crate) struct Features {
        pub(crate) sigbus: bool,
        pub(crate) wp: bool,
        pub(crate) r#move: bool,
    }

    pub(crate) struct Report {
        pub(crate) kernel_release: String,
        pub(crate) page_size: u64,
        pub(crate) cpus: u64,
        pub(crate) ram_bytes: u64,
        pub(crate) cgroup_limit_bytes: Option<u64>,
        pub(crate) userfaultfd: Userfaultfd,
        pub(crate) features: Features,
        pub(crate) unprivileged_userfaultfd: Option<u64>,
        pub(crate) madv_guard_shmem: bool,
        pub(crate) max_map_count: Option<u64>,
        pub(crate) rlimit_as_bytes: Option<u64>,
        pub(crate) seccomp_mode: Option<u64>,
        pub(crate) chosen: Option<Backend>,
        pub(crate) reason: String,
        pub(crate) hints: Vec<String>,
    }

    pub(crate) fn probe() -> Report {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_string()
        };
        Report {
            kernel_release: read("/proc/sys/kernel/osrelease"),
            page_size: 4096,
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            ram_bytes: 24 << 30,
            cgroup_limit_bytes: None,
            userfaultfd: Userfaultfd {
                dev: Err("EACCES (permission denied)".into()),
                syscall_full: Err("EPERM (operation not permitted)".into()),
                user_mode_only: Ok(()),
            },
            features: Features {
                sigbus: true,
                wp: true,
                r#move: true,
            },
            unprivileged_userfaultfd: read("/proc/sys/vm/unprivileged_userfaultfd").parse().ok(),
            madv_guard_shmem: true,
            max_map_count: read("/proc/sys/vm/max_map_count").parse().ok(),
            rlimit_as_bytes: None,
            seccomp_mode: Some(0),
            chosen: Some(Backend::Inline),
            reason: "stand-in: nothing was probed".into(),
            hints: vec![
                "sysctl vm.unprivileged_userfaultfd=1 would allow the monitor backend".into(),
            ],
        }
    }
}

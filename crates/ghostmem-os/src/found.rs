//! How much memory a process may have here: what each limit on it says, and what the
//! machine has to spare.
//!
//! ```text
//!   each level of the memory groups   its limit, less what is charged but for clean cache;
//!                                     of version 2 the smaller of memory.max and memory.high
//!   RLIMIT_AS, RLIMIT_DATA            the limit, less what is mapped
//!   the machine                       what is available, and what this process takes
//! ```
//! The smallest is what `auto` means, and what a percentage is of. A report that cannot
//! be read is no limit.

use std::path::Path;

use crate::machine;
use crate::report::Reports;

/// Where a limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// A level of the memory groups.
    Group {
        /// The level's folder.
        folder: &'a Path,
        /// The name of the file in it that says the limit.
        file: &'static str,
    },
    /// `RLIMIT_AS`.
    AddressSpace,
    /// `RLIMIT_DATA`.
    Data,
    /// What the machine has to spare.
    Machine,
}

/// A limit on what this process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit<'a> {
    /// Where it comes from.
    pub source: Source<'a>,
    /// Most bytes that this process, with all others it is on, may have.
    pub bytes: u64,
    /// Bytes that are left of it now.
    pub left_bytes: u64,
}

/// Tells each limit that this process meets, inner levels of its groups first.
pub fn each_limit(each: impl FnMut(&Limit<'_>)) {
    each_limit_of(&Reports::of_this_machine(), machine::process_bytes(), each);
}

fn each_limit_of(reports: &Reports<'_>, taken: Option<u64>, mut each: impl FnMut(&Limit<'_>)) {
    if let Some(group) = reports.memory_group() {
        for level in group.levels() {
            if let Some((bytes, file)) = level.limit() {
                let cache = level.clean_cache_bytes().unwrap_or(0);
                let charged = level.usage_bytes().unwrap_or(0).saturating_sub(cache);
                each(&Limit {
                    source: Source::Group {
                        folder: level.folder(),
                        file,
                    },
                    bytes,
                    left_bytes: bytes.saturating_sub(charged),
                });
            }
        }
    }
    let limits = [
        (
            Source::AddressSpace,
            machine::address_space_limit(),
            "VmSize",
        ),
        (Source::Data, machine::data_limit(), "VmData"),
    ];
    for (source, limit, mapped) in limits {
        if let Some(bytes) = limit {
            let mapped = reports.status_bytes(mapped).unwrap_or(0);
            each(&Limit {
                source,
                bytes,
                left_bytes: bytes.saturating_sub(mapped),
            });
        }
    }
    let all = machine::ram_bytes();
    let available = reports.meminfo_bytes("MemAvailable").unwrap_or(all);
    each(&Limit {
        source: Source::Machine,
        bytes: available.saturating_add(taken.unwrap_or(0)).min(all),
        left_bytes: available,
    });
}

/// The smallest of all limits, bytes: what a percentage is of.
#[must_use]
pub fn limit_bytes() -> u64 {
    let mut least = u64::MAX;
    each_limit(|limit| least = least.min(limit.bytes));
    least
}

/// Most that this process can take without passing any limit, bytes: what it takes, and
/// what is left of the limit that leaves least. `None` where the kernel does not say what
/// it takes.
#[must_use]
pub fn within_reach_bytes() -> Option<u64> {
    let taken = machine::process_bytes()?;
    let mut least = u64::MAX;
    each_limit(|limit| {
        let reach = taken.saturating_add(limit.left_bytes);
        least = least.min(limit.bytes.min(reach));
    });
    Some(least)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A tree of reports: a process in `/a/b`, both with limits.
    fn tree(name: &str) -> std::path::PathBuf {
        let root = std::env::temp_dir().join(format!("ghostmem-{name}-{}", std::process::id()));
        let _from_before = fs::remove_dir_all(&root);
        let files = [
            ("proc/self/cgroup", "0::/a/b\n"),
            (
                "proc/self/mountinfo",
                "30 20 0:26 / /groups rw - cgroup2 cgroup2 rw\n",
            ),
            ("proc/meminfo", "MemTotal: 8000 kB\nMemAvailable: 1000 kB\n"),
            ("groups/cgroup.controllers", "cpu memory\n"),
            ("groups/a/memory.max", "500000\n"),
            ("groups/a/memory.current", "450000\n"),
            (
                "groups/a/memory.stat",
                "inactive_file 30000\nactive_file 10000\nfile_dirty 5000\nfile_writeback 0\n",
            ),
            ("groups/a/memory.high", "max\n"),
            ("groups/a/b/memory.max", "600000\n"),
            ("groups/a/b/memory.high", "550000\n"),
            ("groups/a/b/memory.current", "100000\n"),
        ];
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn every_level_is_told_with_what_is_left_of_it() {
        let root = tree("found");
        let mut told = Vec::new();
        each_limit_of(&Reports::below(&root), Some(24), |limit| {
            let source = match limit.source {
                Source::Group { folder, file } => {
                    let level = folder.strip_prefix(&root).unwrap();
                    level.join(file).display().to_string()
                }
                other => format!("{other:?}"),
            };
            told.push((source, limit.bytes, limit.left_bytes));
        });
        fs::remove_dir_all(&root).unwrap();
        told.retain(|(source, ..)| source != "AddressSpace" && source != "Data");
        assert_eq!(
            told,
            [
                // The smaller of its two files.
                ("groups/a/b/memory.high".to_owned(), 550_000, 450_000),
                // The clean part of its cache can go.
                ("groups/a/memory.max".to_owned(), 500_000, 85_000),
                ("Machine".to_owned(), 1_024_024, 1_024_000),
            ]
        );
    }

    #[test]
    fn this_process_has_a_limit_that_leaves_it_something() {
        for bytes in [limit_bytes(), within_reach_bytes().unwrap()] {
            assert!(bytes >= 1 << 20 && bytes <= machine::ram_bytes(), "{bytes}");
        }
    }
}

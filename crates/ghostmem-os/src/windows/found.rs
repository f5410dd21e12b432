//! How much memory a process may have here: what its job says, and the machine.

use crate::machine;

/// The smaller of the job's limit and the machine's memory, bytes: what a percentage is
/// of.
#[must_use]
pub fn limit_bytes() -> u64 {
    let job = machine::cgroup_limit_bytes().unwrap_or(u64::MAX);
    machine::ram_bytes().min(job)
}

/// What this process can take: not measured on Windows.
#[must_use]
pub const fn within_reach_bytes() -> Option<u64> {
    None
}

//! What this machine allows, and which backend that makes.

use ghostmem_fault::Probe;
use ghostmem_os::machine;

use crate::Backend;

/// The findings of [`probe`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// The page is 4096 bytes.
    pub page_size_ok: bool,
    /// Processors this process may use.
    pub cpus: usize,
    /// Installed memory, bytes.
    pub ram_bytes: u64,
    /// The memory limit of the job this process is in, bytes.
    pub job_limit_bytes: Option<u64>,
    /// Placeholders can be reserved: the error if not.
    pub placeholders: Result<(), String>,
    /// The backend `Backend::Auto` takes; `None` when nothing works.
    pub chosen: Option<Backend>,
    /// Why.
    pub reason: String,
    /// What would unlock more.
    pub hints: Vec<String>,
}

/// Tries everything once and reports.
#[must_use]
pub fn probe() -> Report {
    let found = Probe::run();
    let chosen = found.choice().map(|_| Backend::Veh);
    let (reason, hints) = if chosen.is_some() {
        (
            "touches raise access violations, resolved on the faulting thread",
            Vec::new(),
        )
    } else {
        let hint = "Windows 10 version 1803, Server 2019 or later has placeholders";
        ("no placeholders can be had", vec![hint.to_owned()])
    };
    Report {
        page_size_ok: found.page_size_ok,
        cpus: machine::cpus(),
        ram_bytes: machine::ram_bytes(),
        job_limit_bytes: machine::cgroup_limit_bytes(),
        placeholders: found.placeholders.map_err(|error| error.to_string()),
        chosen,
        reason: reason.to_owned(),
        hints,
    }
}

//! `ghostmem doctor`: what this machine allows, which backend is used and why, what unlocks more.

use std::io::Write;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::DoctorArgs;
use crate::engine::{Machine, probe};
use crate::failure::Failure;
use crate::size::Bytes;

/// Everything `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    exit_code: u8,
    #[serde(flatten)]
    machine: &'a Machine,
}

/// Probes the machine and prints what was found.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let machine = probe();
    let exit_code = exit_code(machine.backend.as_deref());
    let text = if args.json {
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            exit_code,
            machine: &machine,
        };
        serde_json::to_string_pretty(&report).map_err(Failure::new)?
    } else {
        describe(&machine)
    };
    writeln!(std::io::stdout(), "{text}").map_err(Failure::new)?;
    Ok(ExitCode::from(exit_code))
}

/// 0 for a fast backend, 1 for the slow one, 2 for none.
fn exit_code(backend: Option<&str>) -> u8 {
    match backend {
        Some("inline" | "monitor") => 0,
        Some(_) => 1,
        None => 2,
    }
}

fn describe(machine: &Machine) -> String {
    let verdict = match exit_code(machine.backend.as_deref()) {
        0 => "fast",
        1 => "works, slower than it could be",
        _ => "does not work",
    };
    let backend = machine.backend.as_deref().unwrap_or("none");
    let mut lines = vec![
        format!(
            "GhostMem {} on this machine: {verdict}",
            env!("CARGO_PKG_VERSION")
        ),
        format!("Backend: {backend} ({})", machine.reason),
        table(machine).to_string(),
    ];
    if machine.hints.is_empty() {
        lines.push("Nothing is left to unlock.".to_string());
    } else {
        lines.push("To unlock more:".to_string());
        lines.extend(machine.hints.iter().map(|hint| format!("  - {hint}")));
    }
    lines.join("\n")
}

fn table(machine: &Machine) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["", "found", "why it matters"]);
    let bytes = |value: Option<u64>| value.map_or("none".to_string(), |b| Bytes(b).to_string());
    let number = |value: Option<u64>| value.map_or("not there".to_string(), |n| n.to_string());
    let present = |there: bool| if there { "yes" } else { "no" }.to_string();
    let seccomp = match machine.seccomp_mode {
        Some(0) => "off".to_string(),
        Some(1) => "strict".to_string(),
        Some(2) => "a filter is set".to_string(),
        _ => "unknown".to_string(),
    };
    let works = |refusal: &Option<String>| match refusal {
        None => "works".to_string(),
        Some(errno) => format!("refused: {errno}"),
    };
    let page_size = if machine.page_size_ok {
        "4 KiB"
    } else {
        "not 4 KiB"
    };
    let user_mode = works(&machine.userfaultfd_user_mode_refusal);
    let syscall = works(&machine.userfaultfd_syscall_refusal);
    let device = works(&machine.userfaultfd_device_refusal);
    let spill = match (&machine.spill_refusal, machine.spill_direct) {
        (Some(why), _) => format!("refused: {why}"),
        (None, true) => "works, around the page cache".to_string(),
        (None, false) => "works, by way of the page cache".to_string(),
    };
    let keys = if machine.spill_key_locked {
        "locked in memory"
    } else {
        "may be swapped out"
    };
    let rows = [
        (
            "inline backend",
            present(machine.inline_works),
            "fast: faults stay on their thread",
        ),
        (
            "monitor backend",
            present(machine.monitor_works),
            "system calls see ghost memory too",
        ),
        (
            "run: raw system calls",
            present(machine.monitor_works),
            "Go, io_uring and the like under 'ghostmem run', by monitor",
        ),
        (
            "guard backend",
            present(machine.guard_works),
            "slower, works nearly everywhere",
        ),
        (
            "a file in /var/tmp",
            spill,
            "--spill: pages that memory has no room for",
        ),
        (
            "keys of such a file",
            keys.to_string(),
            "RLIMIT_MEMLOCK allows it",
        ),
        (
            "userfaultfd, user mode",
            user_mode,
            "inline; no privilege needed",
        ),
        ("userfaultfd, full", syscall, "inline and monitor"),
        ("/dev/userfaultfd", device, "the same, through a device"),
        (
            "vm.unprivileged_userfaultfd",
            number(machine.unprivileged_userfaultfd),
            "1 gives everybody the full mode",
        ),
        (
            "page moving",
            present(machine.userfaultfd_move),
            "UFFDIO_MOVE, Linux 6.8",
        ),
        (
            "guard pages in files",
            present(machine.guard_pages),
            "guard without mprotect, Linux 6.15",
        ),
        (
            "vm.max_map_count",
            number(machine.max_map_count),
            "guard: how finely mprotect may split",
        ),
        ("seccomp", seccomp, "a filter may refuse userfaultfd"),
        (
            "kernel",
            machine.kernel_release.clone(),
            "inline needs Linux 5.11",
        ),
        ("page size", page_size.to_string(), "must be 4 KiB"),
        (
            "processors",
            machine.cpus.to_string(),
            "reclaim runs beside the program",
        ),
        (
            "memory",
            Bytes(machine.ram_bytes).to_string(),
            "auto never has more",
        ),
        (
            "memory limit of the cgroup",
            bytes(machine.cgroup_limit_bytes),
            "nor more than this",
        ),
        (
            "address space limit",
            bytes(machine.address_space_limit_bytes),
            "heaps reserve more than they use",
        ),
    ];
    for (name, found, why) in rows {
        table.add_row([name, &found, why]);
    }
    for limit in &machine.limits {
        let decides = limit.source == machine.auto_from && machine.auto_bytes.is_some();
        let left = Bytes(limit.left_bytes);
        let why = if decides {
            "auto comes from here"
        } else {
            "auto looks at it"
        };
        table.add_row([
            format!("limit: {}", limit.source),
            format!("{}, {left} left", Bytes(limit.limit_bytes)),
            why.to_owned(),
        ]);
    }
    table.add_row([
        "auto, a process's memory",
        &bytes(machine.auto_bytes),
        "what a library's heap may take, with all else of its process",
    ]);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FoundLimit;

    #[test]
    fn exit_codes_are_as_documented() {
        assert_eq!(exit_code(Some("inline")), 0);
        assert_eq!(exit_code(Some("monitor")), 0);
        assert_eq!(exit_code(Some("guard")), 1);
        assert_eq!(exit_code(Some("guard-mprotect")), 1);
        assert_eq!(exit_code(None), 2);
    }

    #[test]
    fn what_auto_finds_is_shown_with_where_it_comes_from() {
        let mut machine = probe();
        let sources: Vec<_> = machine.limits.iter().map(|limit| &limit.source).collect();
        assert!(
            sources.contains(&&"available memory".to_owned()),
            "{sources:?}"
        );
        assert!(sources.contains(&&machine.auto_from), "{sources:?}");
        machine.limits = vec![FoundLimit {
            source: "/groups/a/memory.high".to_owned(),
            limit_bytes: 300 << 20,
            left_bytes: 280 << 20,
        }];
        machine.auto_from = "/groups/a/memory.high".to_owned();
        machine.auto_bytes = Some(283 << 20);
        let text = describe(&machine);
        for part in [
            "limit: /groups/a/memory.high",
            "300 MiB, 280 MiB left",
            "comes from here",
            "283 MiB",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn refusals_and_hints_are_shown() {
        let mut machine = probe();
        machine.userfaultfd_user_mode_refusal = Some("EPERM (operation not permitted)".into());
        machine.hints = vec!["try another kernel".into()];
        machine.backend = Some("guard".to_string());
        let text = describe(&machine);
        assert!(
            text.contains("refused: EPERM (operation not permitted)"),
            "{text}"
        );
        assert!(text.contains("  - try another kernel"), "{text}");
        assert!(text.contains("Backend: guard"), "{text}");
    }
}

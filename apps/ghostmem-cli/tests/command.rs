//! The built command as a script meets it: exit codes, what goes to which stream, one line per
//! mistake.

use std::process::{Command, Output};

use common::{scratch, text};
use serde_json::Value;

mod common;

fn ghostmem(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .args(arguments)
        .output()
        .expect("the built command")
}

/// Exit code 2, nothing on standard output, one line on standard error that contains `expected`.
fn refused(arguments: &[&str], expected: &str) {
    let output = ghostmem(arguments);
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {line}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    assert_eq!(line.lines().count(), 1, "{arguments:?}: {line}");
    assert!(line.starts_with("ghostmem: "), "{line}");
    assert!(line.contains(expected), "{arguments:?}: {line}");
}

#[test]
fn help_names_commands_and_exit_codes() {
    let output = ghostmem(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    assert!(help.contains("demo") && help.contains("doctor"), "{help}");
    assert!(
        !help.contains("demo-baseline"),
        "internal command shown: {help}"
    );
    for command in ["demo", "doctor"] {
        let output = ghostmem(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("Exit code:"), "{command}");
    }
}

#[test]
fn version_is_one_line() {
    let output = ghostmem(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stdout),
        format!("ghostmem {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn without_a_command_the_help_is_an_error() {
    let output = ghostmem(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("Usage:"));
}

#[test]
fn bad_sizes_are_refused() {
    refused(&["demo", "--limit", "12Q"], "unknown unit 'Q'");
    refused(&["demo", "--limit", "0"], "more than 0");
    refused(&["demo", "--limit", "0%"], "more than 0%");
    refused(&["demo", "--limit", "-4M"], "-4");
    refused(&["demo", "--size", "lots"], "not a size");
    refused(&["demo", "--size", "0"], "more than 0");
    refused(
        &["demo", "--limit", "99999999T"],
        "more than this machine can address",
    );
    refused(&["demo", "--limit", "4K"], "too small");
}

#[test]
fn bad_words_are_refused() {
    refused(&["demo", "--threads", "0"], "0");
    refused(&["demo", "--backend", "magic"], "inline");
    refused(&["dmeo"], "demo");
    refused(&["demo", "--fast"], "--fast");
}

#[test]
fn files_that_cannot_be_used_are_refused() {
    let folder = scratch("unusable");
    let empty = folder.join("empty");
    std::fs::write(&empty, "").expect("a file");
    let missing = folder.join("missing");
    refused(
        &["demo", missing.to_str().expect("UTF-8")],
        "missing': No such file",
    );
    refused(&["demo", empty.to_str().expect("UTF-8")], "is empty");
    refused(
        &["demo", folder.to_str().expect("UTF-8")],
        "no readable files",
    );
    refused(&["demo", "/dev/null"], "neither a file nor a folder");
}

#[test]
fn a_folder_without_permission_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = scratch("locked");
    let mode = |mode| {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode))
            .expect("own folder")
    };
    mode(0o000);
    let privileged = std::fs::read_dir(&folder).is_ok();
    let path = folder.to_str().expect("UTF-8");
    // Root may read every folder; then there is nothing in it.
    refused(
        &["demo", path],
        if privileged {
            "no readable files"
        } else {
            "Permission denied"
        },
    );
    mode(0o755);
}

#[test]
fn the_internal_command_wants_a_job() {
    refused(&["demo-baseline"], "expected a job on standard input");
}

/// A small demo; `--json` leaves nothing but one object on standard output.
fn small_demo(arguments: &[&str]) -> (Option<i32>, Value) {
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let all = [&["demo", sources, "--json", "--size", "1M"], arguments].concat();
    let output = ghostmem(&all);
    assert_eq!(
        text(&output.stderr),
        "",
        "no progress bar without a terminal"
    );
    let value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    (output.status.code(), value)
}

#[test]
fn a_small_demo_verifies_and_agrees_with_the_run_without_ghostmem() {
    let (code, report) = small_demo(&["--limit", "256K", "--threads", "3"]);
    assert_eq!(report["verified"], true, "{report:#}");
    assert_eq!(report["same_results"], true);
    assert_eq!(report["memory_rule_held"], true, "{report:#}");
    assert_eq!(code, Some(0));
    assert_eq!(report["limit_bytes"], 256 << 10);
    assert!(report["data"]["bytes"].as_u64() >= Some(1 << 20));
    assert!(
        report["ghost"]["end"]["faults"].as_u64() > Some(100),
        "nothing was paged"
    );
    assert!(
        report["ghost"]["full"]["stored_pages"].as_u64() > Some(100),
        "nothing was stored"
    );
    assert!(report["baseline"]["memory"]["peak_bytes"].as_u64() > Some(1 << 20));
}

#[test]
fn a_demo_can_be_held_by_one_number() {
    let sized = ["--size", "32M", "--threads", "2"];
    let held = ["--memory", "44M", "--no-baseline"];
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
    let all = [&["demo", sources, "--json"], &sized[..], &held[..]].concat();
    let output = ghostmem(&all);
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["memory_rule_held"], true, "{report:#}");
    assert_eq!(report["memory_bytes"], 44 << 20);
    assert!(report["ghost"]["memory"]["headroom_bytes"].as_i64() >= Some(0));
    assert!(
        report["ghost"]["full"]["stored_pages"].as_u64() > Some(1000),
        "{report:#}"
    );
}

/// Data that does not compress, and a number that is too small for it: no abort, and the number
/// that the one line names does.
#[test]
fn a_demo_that_memory_does_not_hold_names_a_number_that_would() {
    let folder = scratch("too-large");
    let mut state = 7_u64;
    let noise = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let bytes: Vec<u8> = (0..48 << 17).flat_map(noise).collect();
    for (number, part) in bytes.chunks(1 << 18).enumerate() {
        std::fs::write(folder.join(number.to_string()), part).expect("own folder");
    }
    let demo = |memory: &str| {
        let path = folder.to_str().expect("UTF-8");
        ghostmem(&[
            "demo",
            path,
            "--json",
            "--no-baseline",
            "--threads",
            "2",
            "--memory",
            memory,
        ])
    };
    let output = demo("40M");
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_eq!(text(&output.stdout), "");
    let named = line
        .strip_prefix("ghostmem: --memory 40M does not hold the demo's 48.0 MiB of data: --memory ")
        .and_then(|rest| rest.strip_suffix(" would\n"))
        .unwrap_or_else(|| panic!("{line}"));
    let output = demo(named);
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(output.status.code(), Some(0), "{named}: {report:#}");
    assert_eq!(report["verified"], true, "{named}: {report:#}");
}

#[test]
fn a_demo_of_five_pages_needs_no_baseline() {
    let (code, report) = small_demo(&["--limit", "20K", "--no-baseline"]);
    assert_eq!(
        (code, &report["ok"]),
        (Some(0), &Value::Bool(true)),
        "{report:#}"
    );
    assert_eq!(report["baseline"], Value::Null);
    assert_eq!(report["slowdown"], Value::Null);
}

#[test]
fn doctor_says_the_same_to_people_machines_and_scripts() {
    let people = ghostmem(&["doctor"]);
    let machines = ghostmem(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&machines.stdout).expect("one JSON object");
    let code = people.status.code();
    assert_eq!(code, machines.status.code());
    assert_eq!(report["exit_code"].as_i64(), code.map(i64::from));
    let expected = match report["backend"].as_str() {
        Some("inline" | "monitor") => 0,
        Some(backend) => {
            assert!(backend.starts_with("guard"), "{backend}");
            1
        }
        None => 2,
    };
    assert_eq!(code, Some(expected));
    let backend = report["backend"].as_str().unwrap_or("none");
    assert!(text(&people.stdout).contains(&format!("Backend: {backend}")));
}

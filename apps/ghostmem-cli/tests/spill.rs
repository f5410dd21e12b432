//! `--spill`: programs and the demo with a file for what memory has no room for.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Instant;

use common::{assert_ok, compile, scratch, text};
use serde_json::Value;

mod common;

fn ghostmem() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ghostmem"))
}

/// The program beside this file, compiled once.
fn program() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = scratch("spill-program").join("spill");
        compile(&[], "spill.c", &built, &[]);
        built
    })
}

/// The program under `ghostmem run` with 8 MiB for everything, its cold pages in
/// `folder`.
fn under_run(folder: &Path, options: &[&str], arguments: &[&str]) -> Command {
    let mut command = ghostmem();
    command
        .args(["run", "--limit", "4M", "--spill-store", "4M", "--spill"])
        .arg(folder)
        .args(options)
        .arg("--")
        .arg(program())
        .args(arguments)
        .stdin(Stdio::null());
    command
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

#[test]
fn a_program_with_ten_times_the_memory_it_may_have_runs_right() {
    let folder = scratch("spill-whole");
    let report = scratch("spill-report").join("report.json");
    // 80 MiB, of which 40 do not compress.
    let json = ["--stats", "--stats-json", report.to_str().unwrap()];
    let output = under_run(&folder, &json, &["80", "whole"])
        .output()
        .unwrap();
    assert_ok(&output, "spill");
    let table = text(&output.stderr);
    assert!(table.contains("pages moved to the file"), "{table}");
    let figures: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    let figure = |name: &str| figures[name].as_u64().unwrap();
    assert!(figure("pages_spilled") > 10_000, "{figures}");
    assert!(figure("spilled_reads") > 10_000, "{figures}");
    assert_eq!(figure("spilled_read_errors"), 0);
    assert!(figure("file_bytes") > 40 << 20, "{figures}");
    // Limit and share, what being behind allows, and the program, libc and the
    // engine's own memory.
    let most = (4 << 20) + (4 << 20) + (6 << 20) + (16 << 20);
    assert!(figure("peak_rss_bytes") < most, "{figures}");
    assert!(is_empty(&folder));
}

#[test]
fn parent_and_forked_children_go_on_with_what_is_in_the_file() {
    let folder = scratch("spill-fork");
    for backend in ["inline", "guard"] {
        let options = ["--backend", backend];
        let output = under_run(&folder, &options, &["24", "fork"])
            .output()
            .unwrap();
        assert_ok(&output, "spill");
    }
    assert!(is_empty(&folder));
}

#[test]
fn a_program_that_closes_everything_does_not_close_the_file() {
    let folder = scratch("spill-close");
    let output = under_run(&folder, &[], &["24", "close"]).output().unwrap();
    assert_ok(&output, "spill");
}

#[test]
fn a_full_file_keeps_pages_in_memory() {
    let folder = scratch("spill-full");
    let report = scratch("spill-full-report").join("report.json");
    let json = [
        "--spill-limit",
        "8M",
        "--stats-json",
        report.to_str().unwrap(),
    ];
    let output = under_run(&folder, &json, &["48", "whole"])
        .output()
        .unwrap();
    assert_ok(&output, "spill");
    let figures: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    assert!(
        figures["spill_write_errors"].as_u64() > Some(0),
        "{figures}"
    );
    assert!(figures["file_bytes"].as_u64() <= Some(8 << 20), "{figures}");
}

/// A disk without a free byte and one with less than a file's least: a line, and
/// everything stays in memory; so do the pages of a forked child.
#[test]
fn a_disk_without_room_is_said_and_nothing_is_lost() {
    let control = fs::OpenOptions::new().write(true).open("/dev/loop-control");
    if let Err(error) = control {
        eprintln!("SKIPPED: a disk of any size takes root and a loop device: {error}");
        return;
    }
    let folder = scratch("spill-no-room");
    let image = scratch("spill-no-room-image").join("disk");
    let (name, image) = (folder.display(), image.display());
    for is_full in [true, false] {
        let fill = if is_full {
            format!("head -c 8M /dev/zero >{name}/rest 2>{image}.log; true")
        } else {
            String::from("true")
        };
        let disk = format!(
            "mkfs.ext4 -q -F -O ^has_journal -m 0 {image} 4m >{image}.log 2>&1 && mount -o loop {image} {name} && {fill}"
        );
        for arguments in [["24", "whole"], ["24", "fork"]] {
            let run = under_run(&folder, &[], &arguments);
            let output = Command::new("unshare")
                .args(["-m", "sh", "-c"])
                .arg(format!("{disk} && exec \"$@\""))
                .arg("sh")
                .arg(run.get_program())
                .args(run.get_args())
                .stdin(Stdio::null())
                .output()
                .expect("unshare(1)");
            assert_ok(&output, &fill);
            let said = text(&output.stderr);
            let line = format!("ghostmem: --spill {name}: ");
            let mut rooms = said.lines().filter_map(|said| said.strip_prefix(&line));
            let (left, _) = rooms.next().unwrap().split_once(" bytes").unwrap();
            // Less than a block of the file's.
            let is_nothing = left.parse::<u64>().unwrap() < 4096;
            assert_eq!(is_nothing, is_full, "{said}");
            assert_eq!(rooms.next(), None, "{said}");
        }
    }
}

#[test]
fn nothing_is_left_on_the_disk_by_processes_that_were_killed() {
    let folder = scratch("spill-killed");
    let endless = || under_run(&folder, &[], &["24", "endless"]).spawn().unwrap();
    let mut first = endless();
    let begun = Instant::now();
    while !uses_file(first.id(), &folder) {
        thread::yield_now();
    }
    // However busy the machine is: from before the library starts to long after the file
    // is in use.
    let longest = begun.elapsed() * 2;
    first.kill().unwrap();
    first.wait().unwrap();
    let mut spilled = 0;
    for round in 0..200 {
        let mut child = endless();
        thread::sleep(longest * (round * 797 % 1000) / 1000);
        let in_use = uses_file(child.id(), &folder);
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "round {round}: {status}");
        assert!(is_empty(&folder), "round {round}");
        spilled += u32::from(in_use);
    }
    // The moments were not all too early.
    assert!(spilled > 20, "only {spilled} of 200 had opened their file");
}

/// Whether a process has a file without a name open in a folder.
fn uses_file(process: u32, folder: &Path) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    open.flatten()
        .any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(folder) && to != folder))
}

#[test]
fn the_demo_verifies_every_byte_through_the_file() {
    let folder = scratch("spill-demo");
    let output = ghostmem()
        .args([
            "demo",
            "--size",
            "64M",
            "--limit",
            "4M",
            "--no-baseline",
            "--json",
        ])
        .args(["--spill-store", "4M", "--spill"])
        .arg(&folder)
        .output()
        .unwrap();
    let report = text(&output.stdout);
    assert!(
        output.status.success(),
        "{report}\n{}",
        text(&output.stderr)
    );
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["verified"], true, "{report}");
    assert_eq!(report["memory_rule_held"], true, "{report}");
    let end = &report["ghost"]["end"];
    assert!(end["pages_spilled"].as_u64() > Some(5000), "{report}");
    assert!(end["spilled_reads"].as_u64() > Some(5000), "{report}");
    assert!(is_empty(&folder));
}

#[test]
fn what_cannot_work_is_refused_in_one_line() {
    let refused = |arguments: &[&str], code: i32, expected: &str| {
        let output = ghostmem().args(arguments).output().unwrap();
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
        assert_eq!(line.lines().count(), 1, "{arguments:?}: {line}");
        assert!(line.contains(expected), "{arguments:?}: {line}");
    };
    refused(
        &["run", "--spill", "/no/such/folder", "--", "true"],
        125,
        "/no/such/folder",
    );
    refused(
        &["run", "--spill-limit", "1G", "--", "true"],
        125,
        "--spill",
    );
    // A folder that takes no files.
    refused(
        &["run", "--spill", "/proc/self", "--", "true"],
        126,
        "/proc/",
    );
    refused(
        &[
            "demo",
            "--size",
            "1M",
            "--limit",
            "1M",
            "--spill",
            "/proc/self",
        ],
        2,
        "/proc/self",
    );
}

#[test]
fn a_folder_in_memory_is_refused_before_the_program_starts() {
    // Its name is no promise: what mountinfo(5) says is.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_tmpfs = |line: &str| line.contains(" /dev/shm ") && line.contains(" - tmpfs ");
    if !mounts.lines().any(is_tmpfs) {
        eprintln!("SKIPPED: no tmpfs on /dev/shm");
        return;
    }
    let output = under_run(Path::new("/dev/shm"), &[], &[]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in ["/dev/shm", "a tmpfs keeps files in memory", "/var/tmp"] {
        assert!(said.contains(part), "{said}");
    }
}

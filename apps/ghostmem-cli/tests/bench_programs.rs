//! `ghostmem bench programs`, on programs so small that they take a second.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs the command, with a record in a file of its own.
fn bench(name: &str, arguments: &[&str]) -> (Output, PathBuf) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-programs");
    fs::create_dir_all(&folder).unwrap();
    let record = folder.join(name).with_extension("csv");
    let _none_before = fs::remove_file(&record);
    let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .args(["bench", "programs", "--csv"])
        .arg(&record)
        .args(arguments)
        .output()
        .unwrap();
    (output, record)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The rows of a record, by column.
fn rows(record: &Path) -> Vec<BTreeMap<String, String>> {
    let text = fs::read_to_string(record).unwrap();
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines
        .map(|line| {
            let cells = line.split(',').map(str::to_owned);
            header
                .iter()
                .map(|&name| name.to_owned())
                .zip(cells)
                .collect()
        })
        .collect()
}

fn number(row: &BTreeMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap()
}

/// What every row must have, and that the evicting contender evicted.
fn check(rows: &[BTreeMap<String, String>], contender: &str, repetitions: usize) {
    let of = |contender: &str| {
        rows.iter()
            .filter(|row| row["contender"] == contender)
            .collect::<Vec<_>>()
    };
    let (plain, squeezed) = (of("plain"), of(contender));
    assert_eq!(plain.len(), repetitions, "{rows:?}");
    assert_eq!(squeezed.len(), repetitions, "{rows:?}");
    for row in rows {
        assert_eq!(row["program"], "dictionary");
        assert!(number(row, "seconds") > 0.0, "{row:?}");
        assert!(number(row, "user_s") > 0.0, "{row:?}");
        let peak = number(row, "peak_rss_bytes");
        assert!(peak > f64::from(4 << 20), "{row:?}");
        assert!(number(row, "total_bytes") >= peak, "{row:?}");
    }
    for row in plain {
        assert_eq!(
            (row["limit_percent"].as_str(), row["limit_bytes"].as_str()),
            ("", "0")
        );
    }
    for row in squeezed {
        assert_eq!(row["limit_percent"], "40");
        assert!(number(row, "limit_bytes") > 0.0, "{row:?}");
        assert!(number(row, "faults") > 0.0, "nothing left: {row:?}");
    }
}

#[test]
fn a_small_program_is_measured_with_ghostmem_and_without() {
    let (output, record) = bench(
        "ghost",
        &[
            "--programs",
            "dictionary",
            "--scale",
            "0.05",
            "--limit-percent",
            "40",
            "--repetitions",
            "2",
            "--contenders",
            "ghost",
        ],
    );
    let (table, messages) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{messages}");
    assert!(table.contains("times plain"), "{table}");
    assert!(!table.contains("left out"), "{table}");
    check(&rows(&record), "ghost", 2);
    // Every second repetition runs in reverse order.
    let order: Vec<&str> = messages
        .lines()
        .filter(|line| line.starts_with(['1', '2']))
        .map(|line| {
            if line.contains("plain") {
                "plain"
            } else {
                "ghost"
            }
        })
        .collect();
    assert_eq!(order, ["plain", "ghost", "ghost", "plain"], "{messages}");
    let facts = fs::read_to_string(&record).unwrap();
    assert!(facts.contains("# kernel: \""), "{facts}");
    assert!(facts.contains("# left_out: []\n"), "{facts}");
}

#[test]
#[ignore = "needs root, zram and a memory control group: scripts/test runs it where they are"]
fn a_small_program_is_measured_swapping_to_zram() {
    let (output, record) = bench(
        "zram",
        &[
            "--programs",
            "dictionary",
            "--scale",
            "0.05",
            "--limit-percent",
            "40",
            "--repetitions",
            "1",
            "--contenders",
            "zram",
        ],
    );
    let messages = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{messages}");
    let rows = rows(&record);
    check(&rows, "zram", 1);
    let swapped = rows.iter().find(|row| row["contender"] == "zram").unwrap();
    let zram = number(swapped, "zram_bytes");
    assert!(zram > 0.0, "{swapped:?}");
    // What the group has, what is compressed, and files that others read before.
    let most = number(swapped, "limit_bytes") + zram + f64::from(12 << 20);
    assert!(number(swapped, "total_bytes") < most, "{swapped:?}");
    let swaps = fs::read_to_string("/proc/swaps").unwrap();
    assert!(!swaps.contains("zram"), "{swaps}");
}

/// Exit code and messages when this script stands in for the `ghostmem` command.
fn with_command(name: &str, script: &str) -> (Option<i32>, String) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-programs");
    fs::create_dir_all(&folder).unwrap();
    let command = folder.join(name);
    fs::write(&command, script).unwrap();
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
    let (output, _) = bench(
        name,
        &[
            "--programs",
            "dictionary",
            "--scale",
            "0.01",
            "--contenders",
            "ghost",
            "--ghostmem",
            command.to_str().unwrap(),
        ],
    );
    (output.status.code(), text(&output.stderr))
}

#[test]
fn another_output_ends_the_bench_and_so_does_a_run_without_ghostmem() {
    let statistics = "#!/bin/sh\nwhile [ \"$1\" != --stats-json ]; do shift; done\n\
        echo '{\"refaults\": 1}' >\"$2\"\necho another output\n";
    let (code, messages) = with_command("wrong", statistics);
    assert_eq!(code, Some(1), "{messages}");
    assert!(
        messages.contains("its output is not that of the plain program"),
        "{messages}"
    );

    let bare = "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n";
    let (code, messages) = with_command("bare", bare);
    assert_eq!(code, Some(1), "{messages}");
    assert!(messages.contains("ran without GhostMem"), "{messages}");
}

#[test]
fn a_program_that_cannot_run_is_named_with_its_package() {
    let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .args(["bench", "programs", "--programs", "buffers"])
        .env("PATH", env!("CARGO_TARGET_TMPDIR"))
        .output()
        .unwrap();
    let messages = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{messages}");
    assert!(
        messages.contains("LEFT OUT: buffers: node is missing: apt-get install nodejs"),
        "{messages}"
    );
    assert!(text(&output.stdout).contains("left out: buffers"));
}

#[test]
fn a_program_that_is_not_known_is_refused() {
    let (output, _) = bench("unknown", &["--programs", "dictionary,fortran"]);
    assert_eq!(output.status.code(), Some(1));
    let messages = text(&output.stderr);
    assert!(
        messages.contains("no program named fortran: all, dictionary"),
        "{messages}"
    );
    let (output, _) = bench("percent", &["--limit-percent", "0"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn a_run_that_takes_too_long_is_stopped_and_named() {
    let (output, _) = bench(
        "late",
        &[
            "--programs",
            "dictionary",
            "--scale",
            "5",
            "--timeout",
            "1",
            "--contenders",
            "ghost",
        ],
    );
    let messages = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{messages}");
    assert!(messages.contains("took more than 1 s"), "{messages}");
}

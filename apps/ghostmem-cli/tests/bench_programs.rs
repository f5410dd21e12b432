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
        // What the looks saw, files included, is what the kernel saw, but for what came
        // and went between two looks, and for 8 MiB of each loan, which are not looked at.
        let lent = number(row, "lent") * f64::from(8 << 20);
        let seen = number(row, "total_bytes") + number(row, "file_bytes") + lent;
        assert!(seen + f64::from(4 << 20) >= peak, "{row:?}");
    }
    for row in plain {
        assert_eq!(
            (row["limit_percent"].as_str(), row["limit_bytes"].as_str()),
            ("", "0")
        );
    }
    for row in squeezed {
        assert_eq!(row["limit_percent"], "60");
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
            "0.1",
            "--limit-percent",
            "60",
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
    // Alone it is compared with nothing, and that is said.
    let why = r#"# not_counted: [{"limit_percent":60,"program":"dictionary","why":"zram was"#;
    assert!(facts.contains(why), "{facts}");
    assert!(table.contains("not counted: dictionary, 60 %"), "{table}");
    // The first guess of the whole time, and the next after a round.
    assert!(messages.contains("minutes for 2 rounds"), "{messages}");
    assert!(messages.contains("minutes are left"), "{messages}");
}

/// A program whose children hold its memory with it: 40 MB, by four.
const SHARING: &str = "python3 -c '
import os, time
held = b\"x\" * 40_000_000
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        time.sleep(0.4)
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
print(len(held))
'";

#[test]
fn a_command_of_the_user_counts_with_its_children_and_shared_pages_once() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-programs-plots");
    let _none_before = fs::remove_dir_all(&folder);
    let (output, record) = bench(
        "command",
        &[
            "--command",
            SHARING,
            "--command",
            "(v=$(head -c 24000000 /dev/zero | tr '\\0' x); sleep 0.2; echo ${#v}) | cat",
            "--repetitions",
            "1",
            "--limit-percent",
            "100",
            "--contenders",
            "ghost",
            "--plots",
            folder.to_str().unwrap(),
        ],
    );
    let messages = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{messages}");
    let rows = rows(&record);
    let total = |program: &str| {
        let row = rows
            .iter()
            .find(|row| row["program"] == program && row["contender"] == "plain");
        number(row.unwrap(), "total_bytes")
    };
    // Four processes of 40 MB each would be 160.
    let shared = total("command-1");
    assert!(shared > 40e6 && shared < 80e6, "{rows:?}");
    // The first process holds next to nothing: what the other has counts.
    let apart = total("command-2");
    assert!(apart > 24e6, "{rows:?}");
    for program in ["command-1", "command-2"] {
        let svg = fs::read_to_string(folder.join(program).with_extension("svg")).unwrap();
        assert!(
            svg.contains("total MiB at the peak") && svg.contains("ghost"),
            "{svg}"
        );
    }
}

#[test]
fn a_program_that_fails_in_so_little_memory_does_not_count() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-programs");
    fs::create_dir_all(&folder).unwrap();
    let command = folder.join("refuses");
    fs::write(&command, "#!/bin/sh\necho MemoryError >&2\nexit 1\n").unwrap();
    fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).unwrap();
    let (output, record) = bench(
        "refused",
        &[
            "--command",
            "echo done",
            "--limit-percent",
            "50",
            "--contenders",
            "ghost",
            "--ghostmem",
            command.to_str().unwrap(),
        ],
    );
    let messages = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{messages}");
    assert!(
        messages.contains("LEFT OUT: command-1, ghost, limit 50 %: exit status: 1: MemoryError"),
        "{messages}"
    );
    let facts = fs::read_to_string(&record).unwrap();
    assert!(
        facts.contains(r#""why":"ghost: exit status: 1: MemoryError""#),
        "{facts}"
    );
    // It ran once and was not tried again.
    assert_eq!(rows(&record).len(), 3, "{facts}");
}

#[test]
#[ignore = "needs root, zram and a memory control group: scripts/test runs it where they are"]
fn a_small_program_has_the_total_of_zram_and_counts_where_it_kept_to_it() {
    // By device: how much of each is used changes by itself.
    let swaps = || -> Vec<String> {
        let swaps = fs::read_to_string("/proc/swaps").unwrap();
        let names = swaps
            .lines()
            .filter_map(|line| line.split_whitespace().next());
        names.map(str::to_owned).collect()
    };
    let before = swaps();
    let (output, record) = bench(
        "zram",
        &[
            "--programs",
            "dictionary",
            "--scale",
            "0.1",
            "--limit-percent",
            "60",
            "--repetitions",
            "2",
        ],
    );
    let (table, messages) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{messages}");
    let rows = rows(&record);
    let of = |contender: &str| {
        let of = rows.iter().filter(|row| row["contender"] == contender);
        of.cloned().collect::<Vec<_>>()
    };
    let (zram, ghost) = (of("zram"), of("ghost"));
    check(&[of("plain"), zram.clone()].concat(), "zram", 2);
    check(&[of("plain"), ghost.clone()].concat(), "ghost", 2);
    for row in &zram {
        let held = number(row, "zram_bytes");
        assert!(held > 0.0, "{row:?}");
        // What the group has, and what is compressed, at one moment.
        let most = number(row, "limit_bytes") + held + f64::from(12 << 20);
        assert!(number(row, "total_bytes") < most, "{row:?}");
    }
    // T is the total of zram's first run, in every round.
    for row in &ghost {
        assert_eq!(row["limit_bytes"], zram[0]["total_bytes"], "{rows:?}");
    }
    // The mean of two is their median.
    let totals = |rows: &[BTreeMap<String, String>]| {
        rows.iter()
            .map(|row| number(row, "total_bytes"))
            .sum::<f64>()
            / 2.0
    };
    let (first, ours) = (number(&zram[0], "total_bytes"), totals(&ghost));
    let within = ours <= first.min(totals(&zram)) * 1.02;
    assert_eq!(!table.contains("not counted"), within, "{table}");
    assert_eq!(swaps(), before);
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

//! `ghostmem run --slowdown`: no number of bytes, but a share of time.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use common::{scratch, text};

mod common;

/// Data that nobody uses leaves while the program computes, and is there when it is read.
const IDLE: &str = "\
import sys, time
def resident_mib():
    with open('/proc/self/status') as status:
        lines = [line.split() for line in status]
    return sum(int(line[1]) for line in lines if line[0] in ('RssAnon:', 'RssShmem:')) >> 10
kept = [('record %d ' % i) * 40 for i in range(160_000)]
size = sum(map(len, kept))
most = resident_mib()
end = time.monotonic() + 100
while resident_mib() > most * 2 // 3:
    if time.monotonic() > end:
        sys.exit('%d of %d MiB stay' % (resident_mib(), most))
    sum(range(300_000))
print(size == sum(map(len, kept)), kept[77_777][:13])
";

#[test]
fn idle_data_leaves_and_the_report_says_what_was_reached() {
    let json = scratch("reached").join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .args(["run", "--slowdown", "5%", "--stats", "--stats-json"])
        .arg(&json)
        .args(["--", "python3", "-c", IDLE])
        .output()
        .unwrap();
    let table = text(&output.stderr);
    assert!(output.status.success(), "{}: {table}", output.status);
    assert_eq!(text(&output.stdout), "True record 77777 \n", "{table}");
    let row = table.lines().find(|line| line.contains("slowdown asked"));
    let row = row.unwrap_or_else(|| panic!("{table}"));
    assert!(
        row.contains("asked for, reached") && row.contains("5.00 %, "),
        "{row}"
    );
    let figures: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let figure = |name: &str| figures[name].as_u64().unwrap();
    assert_eq!(figure("slowdown_asked_ppm"), 50_000);
    assert!(figure("slowdown_reached_ppm") > 0, "{figures}");
    assert!(figure("evictions_dirty") > 1000, "{figures}");
}

#[test]
fn a_share_that_makes_no_sense_is_one_line() {
    for share in ["5", "60%", "0%", "-5", "much"] {
        let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
            .args(["run", "--slowdown", share, "--", "true"])
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{share}: {said}");
        assert!(said.contains("write a share from 0.5% to 50%"), "{said}");
        assert_eq!(said.lines().count(), 1, "{share}: {said}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .args([
            "run",
            "--slowdown",
            "5%",
            "--trace",
            "/dev/null",
            "--",
            "true",
        ])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("--slowdown and --trace"), "{said}");
}

//! `ghostmem run --trace`: the record of an unmodified program, and its replay.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Command, Stdio};

use common::{built, scratch};
use ghostmem_lab::recorded::Recorded;

mod common;

fn ghostmem() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ghostmem"));
    command.stdin(Stdio::null());
    command
}

/// A program touches 1024 pages in three orders under a window of 64: the
/// record has each of these touches, in order, with its kind; the exit code is
/// the program's. The replay counts what arithmetic says: every touch of a
/// block four times the limit in these orders misses under LRU.
#[test]
fn a_known_program_gives_the_known_trace() {
    let folder = scratch("trace-known");
    let program = built("touches", "trace-programs");
    let file = folder.join("known.trace");
    let output = ghostmem()
        .args(["run", "--trace"])
        .arg(&file)
        .arg("--")
        .arg(&program)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains("ghostmem: recorded "), "{said}");
    let first: u64 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    let bytes = fs::read(&file).unwrap();
    let recorded = Recorded::parse(&bytes).unwrap();
    assert_eq!(recorded.header.window_pages, 64);
    assert!(recorded.header.command.ends_with("touches"));
    let seen: Vec<(u64, bool)> = recorded
        .touches()
        .map(|touch| touch.unwrap())
        .filter(|touch| (first..first + 1024).contains(&touch.page))
        .map(|touch| (touch.page - first, touch.write))
        .collect();
    let made: Vec<(u64, bool)> = [(1, true), (389, false), (601, true)]
        .into_iter()
        .flat_map(|(stride, write)| (0..1024).map(move |at| (at * stride % 1024, write)))
        .collect();
    assert!(
        seen == made,
        "{} touches seen of {}",
        seen.len(),
        made.len()
    );

    // Twice, and the same figures both times.
    let json = folder.join("lab.json");
    let replay = || -> serde_json::Value {
        let output = ghostmem()
            .args(["bench", "lab", "--limits", "1M", "--trace"])
            .arg(&file)
            .arg("--json")
            .arg(&json)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        serde_json::from_slice::<serde_json::Value>(&fs::read(&json).unwrap()).unwrap()["rows"]
            .take()
    };
    let rows = replay();
    assert_eq!(rows, replay());
    let lru = rows[0]["restores_per_touch"]["LRU"].as_f64().unwrap();
    assert!(lru > 0.99, "{rows}");
}

/// A signal sent to the command reaches the program, and what was recorded
/// until then is kept.
#[test]
fn a_signal_goes_on_to_the_program() {
    let folder = scratch("trace-signal");
    let file = folder.join("signal.trace");
    let mut child = ghostmem()
        .args(["run", "--trace"])
        .arg(&file)
        .args(["--", "sleep", "600"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The file is there before the handlers are; the program is after them.
    let pid = child.id();
    let children = format!("/proc/{pid}/task/{pid}/children");
    while fs::read_to_string(&children).unwrap_or_default().is_empty() {
        std::thread::yield_now();
    }
    let sent = Command::new("kill").arg(pid.to_string()).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(Recorded::parse(&fs::read(&file).unwrap()).is_ok());
}

/// Files that cannot be written or are no traces are refused in one line.
#[test]
fn mistakes_are_one_line() {
    let folder = scratch("trace-mistakes");
    let nowhere = folder.join("no/such/folder/t");
    let output = ghostmem()
        .args(["run", "--trace"])
        .arg(&nowhere)
        .args(["--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    let text = folder.join("text");
    fs::write(&text, "hello\n").unwrap();
    let output = ghostmem()
        .args(["bench", "lab", "--trace"])
        .arg(&text)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.lines().count(), 1);
    assert!(said.contains("ghostmem run --trace FILE"), "{said}");
}

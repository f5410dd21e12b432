//! Proves that a run stopped by SIGINT leaves nothing behind: swap is off, the
//! zram device and the swap file are gone, zswap is as it was, no cgroup is left,
//! and no measured process lives on: neither one of the bench nor a program with what it
//! started. Needs root, zram and zswap: `scripts/test`
//! runs it where they are and says so where they are not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Everything that a run could leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    swaps: BTreeSet<String>,
    disksizes: Vec<(String, String)>,
    zswap: String,
    cgroups: BTreeSet<String>,
    files: BTreeSet<String>,
}

fn names(directory: &str, prefix: &str) -> BTreeSet<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn traces() -> Traces {
    let swaps = fs::read_to_string("/proc/swaps").unwrap();
    let disksizes = names("/sys/block", "zram").into_iter().map(|name| {
        let size = fs::read_to_string(format!("/sys/block/{name}/disksize")).unwrap();
        (name, size)
    });
    let mut cgroups = names("/sys/fs/cgroup/memory", "ghostmem-bench-");
    cgroups.extend(names("/sys/fs/cgroup", "ghostmem-bench-"));
    Traces {
        swaps: swaps
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect(),
        disksizes: disksizes.collect(),
        zswap: fs::read_to_string("/sys/module/zswap/parameters/enabled").unwrap_or_default(),
        cgroups,
        files: names("/var/tmp", "ghostmem-bench-"),
    }
}

/// Interrupts the bench when a process swaps. `name` of none of them may be left.
fn interrupt_while_swapping(what: &str, arguments: &[&str], names: &[&str]) {
    let before = traces();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_ghostmem-bench"))
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // The order of set-up: swap first, the cgroup next, then the process in it.
    let mut members = String::new();
    while members.split_whitespace().count() < names.len() {
        assert_eq!(
            bench.try_wait().unwrap(),
            None,
            "ended before it was stopped"
        );
        std::thread::sleep(Duration::from_millis(20));
        members.clear();
        for root in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
            let group = format!("{root}/ghostmem-bench-{}/cgroup.procs", bench.id());
            members += &fs::read_to_string(group).unwrap_or_default();
        }
    }
    let during = traces();
    assert_eq!(during.swaps.len(), before.swaps.len() + 1, "{during:?}");

    let id = libc::pid_t::try_from(bench.id()).unwrap();
    // SAFETY: the process is our child and has not been waited for.
    assert_eq!(unsafe { libc::kill(id, libc::SIGINT) }, 0);
    let status = bench.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{what}: {status}");
    assert_eq!(traces(), before, "{what}");
    for member in members.split_whitespace() {
        let path = format!("/proc/{member}/comm");
        let name = fs::read_to_string(path).unwrap_or_default();
        assert!(
            !names.contains(&name.trim()),
            "{what}: process {member} lives on: {name}"
        );
    }
}

fn interrupt_the_comparison(contender: &str) {
    let folder = env!("CARGO_MANIFEST_DIR");
    let mut arguments = vec!["--size", "32M", "--no-warm", "--threads", "1"];
    arguments.extend(["--scale", "1000", "--workload", "fill,zipf-read"]);
    arguments.extend(["--contenders", contender, "--from", folder]);
    interrupt_while_swapping(contender, &arguments, &["ghostmem-bench"]);
}

#[test]
#[ignore = "needs root, zram and zswap: scripts/test runs it where they are"]
fn sigint_leaves_nothing_behind() {
    interrupt_the_comparison("zram-lz4");
    interrupt_the_comparison("zswap");
    // A program that holds 30 MB, and waits for what it started where it swaps.
    let program = "v=$(head -c 30000000 /dev/zero | tr '\\0' x); \
        if grep -q zram /proc/swaps; then sleep 60; fi; echo ${#v}";
    let arguments = ["programs", "--command", program, "--contenders", "zram"];
    let ghostmem = ["--ghostmem", "/bin/true"];
    let arguments: Vec<&str> = arguments.into_iter().chain(ghostmem).collect();
    interrupt_while_swapping("programs", &arguments, &["sh", "sleep"]);
}

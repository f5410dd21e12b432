//! No point of thread cancellation where the engine runs on the program's threads:
//! a cancelled thread would end in it, with a page claimed or a lock held. The
//! engine's rooms call the kernel by `ghostmem_os::calls` instead.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a test ends at the first failure

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms whose code runs in fault handlers, or under the engine's locks.
const ROOMS: [&str; 5] = ["os", "fault", "file", "store", "pager"];

/// Functions of libc that pthreads(7) lists as cancellation points, and those that
/// glibc makes some beyond it (fallocate, sync_file_range), as far as an engine
/// could want them.
const POINTS: [&str; 40] = [
    "accept",
    "clock_nanosleep",
    "close",
    "connect",
    "copy_file_range",
    "creat",
    "epoll_wait",
    "fallocate",
    "fallocate64",
    "fdatasync",
    "fsync",
    "lockf",
    "msync",
    "nanosleep",
    "open",
    "open64",
    "openat",
    "pause",
    "poll",
    "ppoll",
    "pread",
    "pread64",
    "preadv",
    "pselect",
    "pthread_cond_wait",
    "pwrite",
    "pwrite64",
    "pwritev",
    "read",
    "readv",
    "recv",
    "select",
    "send",
    "sigsuspend",
    "sigwait",
    "sync_file_range",
    "usleep",
    "waitpid",
    "write",
    "writev",
];

/// What calls some of them in the standard library, as far as an engine could want it.
const STD: [&str; 4] = ["fs::", "process::Command", "sleep(", "OpenOptions"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // What stands in for Linux' modules elsewhere calls no libc, and the simulation is
        // in no build that ships.
        let is_left_out = path.ends_with("windows") || path.ends_with("sim");
        if path.is_dir() && !is_left_out {
            sources(&path, found);
        } else if path.ends_with("medium.rs") {
            // Asked before a heap is made: nobody holds anything that a thread which is
            // cancelled there would keep.
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The calls of cancellation points in a source, tests left out.
fn points_in(source: &str) -> Vec<String> {
    let code = source.split("\nmod tests {").next().unwrap();
    code.lines()
        .map(|line| line.split("//").next().unwrap())
        .filter(|line| {
            POINTS.iter().any(|name| {
                let call = format!("libc::{name}(");
                line.contains(&call)
            }) || STD.iter().any(|call| line.contains(call))
                || line.trim_start().starts_with("use libc")
        })
        .map(|line| line.trim().to_owned())
        .collect()
}

#[test]
fn the_engine_calls_no_cancellation_point() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for room in ROOMS {
        sources(&crates.join(format!("ghostmem-{room}/src")), &mut found);
    }
    assert!(found.len() > 60, "only {} sources", found.len());
    for path in found {
        let points = points_in(&fs::read_to_string(&path).unwrap());
        assert!(points.is_empty(), "{}: {points:?}", path.display());
    }
}

#[test]
fn the_check_finds_one() {
    let bad = "fn f() {\n    // libc::write(\n    unsafe { libc::pread(1, p, 2, 3) };\n}\n";
    assert_eq!(points_in(bad), ["unsafe { libc::pread(1, p, 2, 3) };"]);
    let sleeps = "fn f() {\n    thread::sleep(PAUSE);\n}\n";
    assert_eq!(points_in(sleeps), ["thread::sleep(PAUSE);"]);
    let tests = format!("fn g() {{}}\n#[cfg(test)]\nmod tests {{\n{bad} }}");
    assert!(points_in(&tests).is_empty());
}

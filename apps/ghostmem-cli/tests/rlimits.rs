//! Low limits of the process (setrlimit(2)), at the start and set by the program, under
//! `ghostmem run`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{assert_ok, built, text};

mod common;

/// The backends that work here, faults by messages left out.
fn backends() -> Vec<&'static str> {
    let mut works = common::backends();
    works.retain(|&name| name != "monitor");
    assert!(!works.is_empty(), "no backend works here");
    works
}

/// A program under `ulimit`, its output in pipes; `options` of `ghostmem run`, or natively.
fn limited(ulimit: &str, options: Option<&[&str]>, program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        &format!("{ulimit}; exec \"$@\""),
        "sh",
        "timeout",
        "-s",
        "KILL",
        "60",
    ]);
    if let Some(options) = options {
        command.args([env!("CARGO_BIN_EXE_ghostmem"), "run", "--limit", "4M"]);
        command.args(options).arg("--");
    }
    let command = command.arg(program).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

/// At limits where the program runs by itself it runs on ghost memory too.
fn runs_at(ulimits: &[&str], test: &str) {
    let program = built("limits", test);
    for ulimit in ulimits {
        let natively = limited(ulimit, None, &program, &["40"]);
        assert_ok(&natively, &format!("{ulimit} natively"));
        for backend in backends() {
            let output = limited(ulimit, Some(&["--backend", backend]), &program, &["40"]);
            assert_ok(&output, &format!("{ulimit} on {backend}"));
        }
    }
}

#[test]
fn programs_run_with_little_address_space() {
    runs_at(
        &["ulimit -v 4000000", "ulimit -v 1000000", "ulimit -v 400000"],
        "space",
    );
}

#[test]
fn programs_run_with_a_small_data_segment() {
    runs_at(&["ulimit -d 2000000", "ulimit -d 400000"], "data");
}

/// Proves that blocks for which small objects have no room are known as the heap's.
#[test]
fn small_blocks_have_pages_of_their_own_where_address_space_is_scarce() {
    let program = built("beyond", "scarce");
    for ulimit in ["ulimit -d 85000", "ulimit -v 300000"] {
        assert_ok(&limited(ulimit, None, &program, &[]), ulimit);
        for backend in backends() {
            let output = limited(ulimit, Some(&["--backend", backend]), &program, &[]);
            assert_ok(&output, &format!("{ulimit} on {backend}"));
        }
    }
}

/// The rest of an arena that libc makes for a thread, once the engine's threads ran: its end is a
/// multiple of its 64 MiB, and most of it has no access.
const ARENAS: &str = r#"
import re, time
blocks = [bytearray(1 << 20) for _ in range(64)]
time.sleep(0.3)
for line in open("/proc/self/maps"):
    start, end, rest = re.match("([0-9a-f]+)-([0-9a-f]+) (.*)", line).groups()
    length = int(end, 16) - int(start, 16)
    if rest.startswith("---p") and int(end, 16) % (64 << 20) == 0 and 32 << 20 < length < 64 << 20:
        print(line)
print("ok")
"#;

#[test]
fn the_engine_s_threads_take_no_arenas_where_address_space_is_scarce() {
    for backend in backends() {
        let options = ["--backend", backend];
        let python = Path::new("python3");
        let output = limited("ulimit -v 800000", Some(&options), python, &["-c", ARENAS]);
        assert_ok(&output, backend);
    }
}

/// Where there is room for the program's blocks only, they are ordinary memory, and a line says
/// so.
#[test]
fn without_room_for_regions_blocks_are_ordinary_memory() {
    let program = built("limits", "least");
    let ulimit = "ulimit -v 300000";
    assert_ok(&limited(ulimit, None, &program, &["70"]), "natively");
    let output = limited(ulimit, Some(&[]), &program, &["70"]);
    assert_ok(&output, ulimit);
    let bounded = limited(ulimit, Some(&["--memory-limit", "64M"]), &program, &["70"]);
    assert!(!bounded.status.success(), "a bound on all memory is kept");
}

#[test]
fn limits_set_meanwhile_leave_the_data_alone() {
    let program = built("limits", "meanwhile");
    for which in ["fsize", "memlock", "data", "as"] {
        assert_ok(&limited("true", None, &program, &["20", which]), which);
        for backend in backends() {
            let options = ["--backend", backend];
            let output = limited("true", Some(&options), &program, &["20", which]);
            assert_ok(&output, &format!("{which} on {backend}"));
        }
    }
}

#[test]
fn a_small_limit_on_files_ends_nobody() {
    let program = built("limits", "files");
    for ulimit in ["ulimit -f 0", "ulimit -f 2000"] {
        for backend in backends() {
            let output = limited(ulimit, Some(&["--backend", backend]), &program, &["20"]);
            let said = String::from_utf8_lossy(&output.stderr);
            if backend == "inline" {
                assert_ok(&output, ulimit);
            } else {
                let code = output.status.code();
                assert!(
                    code.is_some_and(|code| code == 125 || code == 126),
                    "{code:?} {said}"
                );
                assert!(
                    said.lines().count() == 1 && said.contains("ulimit -f"),
                    "{said}"
                );
            }
        }
    }
    // A soft limit is lifted for the moment that the file is made in.
    for backend in backends() {
        let options = ["--backend", backend];
        let output = limited("ulimit -S -f 2000", Some(&options), &program, &["20"]);
        assert_ok(&output, &format!("a soft limit on {backend}"));
    }
}

/// A number of a user who has no other process, and no folder.
const NOBODY: u32 = 65_521;

/// The same as [`limited`] by a user without privileges, where this one is root. `None`: that
/// user may not read the command.
fn limited_nobody(ulimit: &str, options: Option<&[&str]>, arguments: &[&str]) -> Option<Output> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{ulimit}; exec \"$@\""), "sh"]);
    if let Some(options) = options {
        command.args([env!("CARGO_BIN_EXE_ghostmem"), "run"]);
        command.args(options).arg("--");
    }
    command.args(arguments).stdin(Stdio::null());
    // As a user of its own nobody else's threads count.
    command.uid(NOBODY).gid(NOBODY);
    match command.output() {
        Ok(output) if output.status.code() == Some(126) && output.stderr.starts_with(b"sh:") => {
            println!("SKIPPED: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Ok(output) => Some(output),
        Err(error) => {
            println!("SKIPPED: no other user can be had: {error}");
            None
        }
    }
}

/// One line that names a limit, and the code of what is refused at the start.
fn assert_refused(output: &Output, limit: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{said}");
    let one = said.lines().count() == 1 && said.contains(limit);
    assert!(one && output.stdout.is_empty(), "{said}");
}

/// Proves that a soft limit on open files, found at the start or set meanwhile, is in the way of
/// no heap, thread or child, and is what the program set.
#[test]
fn a_soft_limit_on_open_files_is_in_nobodys_way() {
    let program = built("openfiles", "openfiles");
    let check = |ulimit: &str, arguments: &[&str]| {
        let natively = limited(ulimit, None, &program, arguments);
        assert_ok(&natively, &format!("{ulimit} {arguments:?} natively"));
        for backend in common::backends() {
            let output = limited(ulimit, Some(&["--backend", backend]), &program, arguments);
            assert_ok(&output, &format!("{ulimit} {arguments:?} on {backend}"));
        }
    };
    check("ulimit -S -n 4", &["none", "0", "0"]);
    for soft in ["0", "1", "3", "5"] {
        check("true", &["first", soft, "0"]);
        check("true", &["later", soft, "0"]);
    }
}

/// Proves that a hard limit on open files ends in one line where the engine needs more, and that
/// no program runs without the bound that it was to have.
#[test]
fn a_hard_limit_on_open_files_is_met_or_said() {
    let program = built("openfiles", "openfiles-hard");
    let program = program.to_str().unwrap();
    let run = |options: &[&str]| {
        limited_nobody("ulimit -n 5", Some(options), &[program, "none", "0", "0"])
    };
    let Some(natively) = limited_nobody("ulimit -n 5", None, &[program, "none", "0", "0"]) else {
        return;
    };
    assert_ok(&natively, "natively");
    for options in [
        &[][..],
        &["--memory", "256M"],
        &["--memory-each", "256M"],
        &["--limit", "4M", "--backend", "guard-mprotect"],
    ] {
        assert_refused(&run(options).unwrap(), "ulimit -n");
    }
    // A program that leaves its children none: it goes on, and a line tells of them.
    for backend in backends() {
        let options = ["--limit", "4M", "--backend", backend];
        let later = [program, "later", "0", "1"];
        let output = limited_nobody("true", Some(&options), &later).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let told = said.matches("ghostmem: ").count() == 1 && said.contains("wrong: the child");
        assert!(told || output.stdout == b"ok\n", "{backend}: {said}");
    }
    if common::backends().contains(&"inline") {
        let options = ["--limit", "4M", "--backend", "inline"];
        assert_ok(&run(&options).unwrap(), "inline");
    }
}

/// Proves that where a user's limit leaves the engine no thread a program runs without, and that
/// the limit is named where there must be one: for the monitor, and for the file.
#[test]
fn a_limit_on_threads_that_leaves_none_is_borne_or_said() {
    let program = built("limits", "threads");
    let arguments = [program.to_str().unwrap(), "20", "memlock"];
    // Not every sh has this limit of its own.
    let lower = |limit: &str| format!("prlimit --pid $$ --nproc={limit}");
    let Some(natively) = limited_nobody(&lower("1:1"), None, &arguments) else {
        return;
    };
    assert_ok(&natively, "natively");
    for backend in backends() {
        let options = ["--limit", "4M", "--backend", backend];
        let output = limited_nobody(&lower("1:1"), Some(&options), &arguments).unwrap();
        match backend {
            "monitor" => assert_refused(&output, "ulimit -u"),
            _ => assert_ok(&output, backend),
        }
        let options_of_file = [&options[..], &["--spill", "/var/tmp"]].concat();
        let output = limited_nobody(&lower("1:1"), Some(&options_of_file), &arguments).unwrap();
        assert_refused(&output, "ulimit -u");
        // A soft one is raised for the moment in which the thread is made.
        let output = limited_nobody(&lower("1:"), Some(&options), &arguments).unwrap();
        assert_ok(&output, backend);
    }
}

/// Proves that what the limits on address space and data have no room for is said, under a bound
/// on all memory too: a program that lives natively does not get null without a word.
#[test]
fn a_block_that_has_no_room_is_refused_with_a_line() {
    let program = built("limits", "refused");
    for ulimit in ["ulimit -d 80000", "ulimit -v 90000"] {
        assert_ok(&limited(ulimit, None, &program, &["30"]), ulimit);
        for options in [&[][..], &["--memory", "64M"]] {
            let output = limited(ulimit, Some(options), &program, &["30"]);
            let said = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code();
            let told = said.contains("ulimit -v") && said.contains("-d");
            assert!(
                code == Some(0) || told,
                "{ulimit} {options:?}: {code:?} {said}"
            );
        }
    }
}

/// Proves that threads have stacks where the limit that the program set has room for them; and
/// that a stack which is too long for the limit is refused as natively.
#[test]
fn threads_have_stacks_as_far_as_the_limit_has_room() {
    let program = built("lowered", "lowered");
    for which in ["data", "as"] {
        let run = |stack: &str, options: Option<&[&str]>| {
            limited("true", options, &program, &[which, stack])
        };
        assert_ok(&run("1", None), which);
        let long = text(&run("400", None).stdout);
        assert_eq!(long, "no thread\n", "{which}");
        for backend in backends() {
            let options = ["--backend", backend];
            assert_ok(&run("1", Some(&options)), &format!("{which} on {backend}"));
            let output = run("400", Some(&options));
            assert_eq!(text(&output.stdout), "no thread\n", "{which} on {backend}");
            assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        }
    }
}

/// Proves that a bound which the first process passes as it starts is refused before anybody
/// waits for others to give back.
#[test]
fn a_bound_that_is_passed_already_is_said_at_once() {
    let log = common::scratch("at-once").join("calls");
    for bound in ["1M", "2M"] {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qq", "-e", "trace=futex", "-o"])
            .arg(&log);
        command.args([
            env!("CARGO_BIN_EXE_ghostmem"),
            "run",
            "--memory",
            bound,
            "--",
            "true",
        ]);
        let Ok(output) = command.stdin(Stdio::null()).output() else {
            println!("SKIPPED: there is no strace");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("less than 1 MiB left"), "{said}");
        let calls = std::fs::read_to_string(&log).unwrap();
        // Each wait is one of 20 ms.
        assert!(!calls.contains("tv_nsec=20000000"), "{bound}: {calls}");
    }
}

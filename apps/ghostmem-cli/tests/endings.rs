//! Programs that a signal ends, under `ghostmem run`: they die by it, and report before.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use common::{backends, built, scratch, text};
use serde_json::Value;

mod common;

const TABLE: &str = "ghostmem: what the program used";

/// signal(7).
const SIGINT: i32 = 2;
const SIGABRT: i32 = 6;
const SIGALRM: i32 = 14;
const SIGTERM: i32 = 15;

/// A program of `ended.c` by `run` with `options`; ended when it hangs.
fn command(options: &[&str], program: &Path, way: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_ghostmem"), "run"]);
    command.args(["--limit", "4M"]).args(options).arg("--");
    command.arg(program).args(way).stdin(Stdio::null());
    command
}

/// timeout(1) ends as its command did, or by its code.
fn signal_of(status: ExitStatus) -> Option<i32> {
    let by_code = status.code().filter(|code| *code > 128);
    status.signal().or(by_code.map(|code| code - 128))
}

fn figures(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// How the program ends by itself: what every run of it has to show.
fn natively(program: &Path, way: &[&str]) -> Output {
    let output = Command::new(program).args(way).output().unwrap();
    let said = text(&output.stdout);
    assert!(
        !said.contains("wrong") && !said.contains("not ended"),
        "{way:?}: {said}"
    );
    output
}

/// A program that ends by itself, natively and on each backend: it prints and ends alike, and
/// makes one report, in both forms.
fn ends(way: &[&str], expected: i32) {
    let program = built("ended", &way.join("-"));
    let by_itself = natively(&program, way);
    assert_eq!(
        by_itself.status.signal(),
        Some(expected),
        "{way:?} natively"
    );
    let report = program.with_extension("json");
    for backend in backends() {
        let _fresh = fs::remove_file(&report);
        let options = [
            "--backend",
            backend,
            "--stats",
            "--stats-json",
            report.to_str().unwrap(),
        ];
        let output = command(&options, &program, way).output().unwrap();
        let said = text(&output.stderr);
        let what = format!("{way:?} on {backend}: {:?} {said}", output.status);
        assert_eq!(signal_of(output.status), Some(expected), "{what}");
        assert_eq!(text(&output.stdout), text(&by_itself.stdout), "{what}");
        assert_eq!(said.matches(TABLE).count(), 1, "{what}");
        assert!(figures(&report)["faults"].as_u64() > Some(0), "{what}");
    }
}

/// The parent learns the number, whatever it is, and both reports are there.
#[test]
fn a_signal_ends_the_program_and_the_report_is_made() {
    // Of the terminal, a supervisor, a limit, a timer, a broken pipe, and real-time.
    for signal in [1, 2, 3, 4, 8, 10, 13, 14, 15, 24, 25, 34, 64] {
        let program = built("ended", "plain");
        let report = program.with_extension("json");
        let way = ["plain", &signal.to_string()];
        natively(&program, &way);
        let _fresh = fs::remove_file(&report);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ghostmem"));
        command.args(["run", "--limit", "4M", "--stats", "--stats-json"]);
        let output = command
            .arg(&report)
            .arg("--")
            .arg(&program)
            .args(way)
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.signal(), Some(signal), "{said}");
        assert_eq!(text(&output.stdout), format!("{signal}\n"), "{said}");
        assert_eq!(said.matches(TABLE).count(), 1, "{signal}: {said}");
        assert!(figures(&report)["evictions_dirty"].as_u64() > Some(0));
    }
    ends(&["plain"], SIGTERM);
    ends(&["abort"], SIGABRT);
}

/// sigaction(2), signal(3) and system(3) find and set the actions of a process that nobody
/// watches.
#[test]
fn the_program_sees_the_actions_it_set() {
    ends(&["asked"], SIGTERM);
    ends(&["once"], SIGTERM);
    ends(&["jumps"], SIGINT);
}

/// A signal that is let in for the time of a call, and one on a short stack in use.
#[test]
fn masks_and_stacks_of_the_programs_own_change_nothing() {
    ends(&["masked"], SIGTERM);
    ends(&["stack"], SIGTERM);
}

/// Children of fork, vfork and posix_spawn die by the signal and do not report for their
/// parent; what exec leaves is what it leaves.
#[test]
fn children_and_programs_executed_end_as_ever() {
    ends(&["children"], SIGTERM);
    ends(&["exec"], SIGTERM);
}

/// Each process of a run has a report of its own where the name asks for it, and makes it
/// when a signal ends it.
#[test]
fn every_process_reports_where_each_has_a_file() {
    let folder = scratch("each");
    let program = built("ended", "each-program");
    let name = folder.join("report-%p");
    let options = ["--stats-json", name.to_str().unwrap()];
    let script = format!(
        "{0} plain 15; {0} exits; cd /; {0} plain 1; kill -TERM $$",
        program.display()
    );
    let output = command(&options, Path::new("/bin/sh"), &["-c", &script])
        .output()
        .unwrap();
    assert_eq!(
        signal_of(output.status),
        Some(SIGTERM),
        "{}",
        text(&output.stderr)
    );
    let reports: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    let programs: Vec<String> = reports
        .iter()
        .map(|path| figures(path)["program"].to_string())
        .collect();
    let ended = programs
        .iter()
        .filter(|name| name.contains("ended"))
        .count();
    assert_eq!((ended, programs.len()), (3, 4), "{programs:?}");
}

/// The report finds its file though the program went to another folder.
#[test]
fn a_name_that_is_relative_is_of_the_folder_of_the_start() {
    let folder = scratch("relative");
    let mut command = command(
        &["--stats-json", "here.json"],
        Path::new("/bin/sh"),
        &["-c", "cd /; kill -TERM $$"],
    );
    let output = command.current_dir(&folder).output().unwrap();
    assert_eq!(
        signal_of(output.status),
        Some(SIGTERM),
        "{}",
        text(&output.stderr)
    );
    assert!(figures(&folder.join("here.json"))["process_id"].as_u64() > Some(0));
}

/// A program's own handler that exits: by its code, with one report.
#[test]
fn a_handler_of_the_programs_own_is_left_alone() {
    let program = built("ended", "exits");
    let output = command(&["--stats"], &program, &["exits"])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert_eq!(said.matches(TABLE).count(), 1, "{said}");
}

/// Nobody may send a signal under a filter of the program's: it dies by the signal, and says
/// nothing. Its actions are the kernel's from then on.
#[test]
fn under_a_filter_of_the_programs_own_it_dies_as_ever() {
    let program = built("ended", "filter");
    let by_itself = natively(&program, &["filter"]);
    assert_eq!(by_itself.status.signal(), Some(SIGTERM));
    let output = command(&["--stats"], &program, &["filter"])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert_eq!(signal_of(output.status), Some(SIGTERM), "{said}");
    assert_eq!(text(&output.stdout), "filter\n", "{said}");
    assert!(!said.contains(TABLE), "{said}");
}

/// In a namespace of its own the first process goes on where its action is the default.
#[test]
fn the_first_process_of_a_namespace_ignores_it_as_ever() {
    let program = built("ended", "first");
    let by_itself = Command::new(&program).arg("first").output().unwrap();
    if by_itself.status.code() == Some(77) {
        println!("SKIPPED: no namespace of processes can be made here");
        return;
    }
    ends(&["first"], SIGTERM);
}

/// Without a report nothing stands between the program and the signal.
#[test]
fn without_a_report_the_actions_are_the_kernels() {
    let caught = "import re\n\
        print(int(re.search('SigCgt:\\\\s*(\\\\S+)', open('/proc/self/status').read()).group(1), 16) >> 14 & 1)";
    for (options, expected) in [(&[][..], "0\n"), (&["--stats"][..], "1\n")] {
        let output = command(options, Path::new("python3"), &["-c", caught])
            .output()
            .unwrap();
        assert_eq!(
            text(&output.stdout),
            expected,
            "{options:?} {}",
            text(&output.stderr)
        );
    }
}

/// Reads a line, so that the program is where it says.
fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let pipe = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while pipe.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
        line.push(char::from(byte[0]));
    }
    line
}

fn send(signal: &str, child: &Child) {
    let number = child.id().to_string();
    let sent = Command::new("kill")
        .args(["-s", signal, &number])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// A service whose threads are in malloc, in free or in a fault when the signal comes: it
/// reports, whatever it was about, and dies by the signal.
#[test]
fn a_service_that_is_stopped_reports_wherever_the_signal_came() {
    let program = built("ended", "serves");
    let report = program.with_extension("json");
    let mut rounds = 0;
    for (options, times) in [
        (&["--limit", "1M"][..], 6),
        (&["--limit", "1M", "--small", "off"][..], 2),
        (&["--memory-each", "48M"][..], 2),
    ] {
        for backend in backends() {
            for round in 0..times {
                let _fresh = fs::remove_file(&report);
                let mut command = Command::new(env!("CARGO_BIN_EXE_ghostmem"));
                command.args(["run", "--stats", "--backend", backend, "--stats-json"]);
                command
                    .arg(&report)
                    .args(options)
                    .arg("--")
                    .arg(&program)
                    .arg("serves");
                command.stdout(Stdio::piped()).stderr(Stdio::piped());
                let mut child = command.spawn().unwrap();
                assert_eq!(first_line(&mut child), "serves");
                thread::sleep(Duration::from_micros(rounds * 331 % 5000));
                // Two at once end it by one of them.
                send(["TERM", "INT"][round % 2], &child);
                send("TERM", &child);
                let output = child.wait_with_output().unwrap();
                let said = text(&output.stderr);
                let what = format!("{options:?} {backend} {round}: {:?} {said}", output.status);
                assert!(
                    [Some(SIGTERM), Some(SIGINT)].contains(&output.status.signal()),
                    "{what}"
                );
                assert_eq!(said.matches(TABLE).count(), 1, "{what}");
                assert!(figures(&report)["faults"].as_u64() > Some(0), "{what}");
                rounds += 1;
            }
        }
    }
}

/// A program whose standard output and standard error nobody reads beyond its first line.
fn unread(way: &str, options: &[&str], input: Stdio) -> Child {
    let program = built("ended", way);
    // Not by timeout(1), which would get the signal.
    let mut command = Command::new(env!("CARGO_BIN_EXE_ghostmem"));
    command.args(["run", "--limit", "4M"]).args(options);
    command.arg("--").arg(&program).arg(way).stdin(input);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    assert_eq!(first_line(&mut child), way);
    child
}

/// How it ends; it is ended where it does not.
fn ended(mut child: Child) -> ExitStatus {
    for _ in 0..3000 {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("the program does not end");
}

/// Standard error is full and nobody reads it: one signal ends the program, whatever it made
/// of the others.
#[test]
fn a_report_that_nobody_reads_holds_nobody_up() {
    for (way, signal, number) in [("stuck", "TERM", SIGTERM), ("handles", "ALRM", SIGALRM)] {
        let child = unread(way, &["--stats"], Stdio::null());
        send(signal, &child);
        assert_eq!(ended(child).signal(), Some(number), "{way}");
    }
}

/// Nor does a named pipe that has no reader.
#[test]
fn a_report_to_a_named_pipe_holds_nobody_up() {
    let pipe = scratch("pipe").join("report");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let options = ["--stats-json", pipe.to_str().unwrap()];
    let child = unread("handles", &options, Stdio::null());
    send("ALRM", &child);
    assert_eq!(ended(child).signal(), Some(SIGALRM));
}

/// Nobody reads the report of a program that exits: it exits, and its write to standard
/// error is not the program's.
#[test]
fn a_report_to_a_broken_pipe_ends_nobody() {
    let mut child = unread("broken", &["--stats"], Stdio::piped());
    drop(child.stderr.take());
    drop(child.stdin.take());
    assert_eq!(ended(child).code(), Some(0));
}

/// A filter that the kernel refuses: the signal is reported for as before.
#[test]
fn a_filter_that_is_refused_changes_nothing() {
    ends(&["refused"], SIGTERM);
}

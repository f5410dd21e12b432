//! Tools that stand between a program and the kernel, under `ghostmem run` and around it:
//! debuggers, tracers, counters, a file system in user space, a virtual machine for Java.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{assert_ok, backends, compile, scratch, text};

mod common;

const PRESSURE: &str = "12000000";

/// Whether a tool is there; scripts/test installs gdb and strace.
fn has(tool: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .any(|folder| folder.join(tool).is_file());
    if !found {
        println!("SKIPPED: there is no {tool} here");
    }
    found
}

/// `ghostmem run` with a limit.
fn run(limit: &str, backend: &str) -> Vec<String> {
    let command = env!("CARGO_BIN_EXE_ghostmem");
    let words = [command, "run", "--limit", limit, "--backend", backend, "--"];
    words.map(str::to_owned).to_vec()
}

/// Runs a command, ended when it hangs.
fn output<S: AsRef<str>>(words: &[S]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "120"]);
    command.args(words.iter().map(AsRef::as_ref));
    command.stdin(Stdio::null()).output().unwrap()
}

fn program(name: &str, test: &str) -> String {
    let built = scratch(test).join(name);
    compile(&["-O0"], format!("{name}.c"), &built, &[]);
    built.to_str().unwrap().to_owned()
}

/// What a debugger is asked for, and says: a breakpoint where a record was brought back, what
/// is in it, and who changes it.
fn debugger(words: &[String]) -> Vec<String> {
    let mut all: Vec<String> = ["gdb", "-nx", "-q", "-batch"].map(str::to_owned).to_vec();
    for command in [
        "set breakpoint pending on",
        "set debuginfod enabled off",
        "set width 0",
        // As docs/limits.md says; both are the engine's.
        "handle SIGBUS nostop noprint pass",
        "handle SIGSEGV nostop noprint pass",
        "break record_found",
        "run",
        "print record->number",
        "print record->name",
        "info args",
        "up",
        "info locals",
        "info symbol main",
        "down",
        "watch -l record->number",
        "continue",
        "backtrace 2",
        "delete",
        "break record_found",
        "continue",
        "print record->number",
        "print changes",
        "continue",
    ] {
        all.extend(["-ex".to_owned(), command.to_owned()]);
    }
    all.push("--args".to_owned());
    all.extend_from_slice(words);
    all
}

fn assert_debugged(output: &Output, what: &str) {
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    for line in [
        "Breakpoint 1, record_found",
        "$1 = 31000",
        "$2 = \"record 31000\"",
        "Old value = 31000",
        "New value = 31001",
        "record_changes (record=0x",
        "$3 = 31001",
        "$4 = 31000",
        "\nok\n",
        "exited normally",
    ] {
        assert!(said.contains(line), "{what}: no {line:?} in\n{said}");
    }
}

/// Proves that a debugger around a program finds records that were brought back, sees a store
/// to a page that came and went, and leaves the program to its end.
#[test]
fn a_debugger_stops_where_a_page_came_back() {
    if !has("gdb") {
        return;
    }
    let program = program("debugged", "gdb");
    let words = [program, PRESSURE.to_owned()];
    assert_debugged(&output(&debugger(&words)), "natively");
    // Those whose faults are signals of the program's.
    let mut with_signals = backends();
    with_signals.retain(|name| ["inline", "guard"].contains(name));
    for backend in with_signals {
        let mut under = run("4M", backend);
        under.extend_from_slice(&words);
        assert_debugged(&output(&debugger(&under)), backend);
    }
    // The debugger's memory is ghost memory as well.
    let mut both = run("1M", "auto");
    both.extend(debugger(&words));
    assert_debugged(&output(&both), "under run");
}

/// Proves that each system call of a program and its children can be traced while pages come
/// and go, and that the tracer itself may run on ghost memory.
#[test]
fn a_tracer_of_system_calls_changes_nothing() {
    if !has("strace") {
        return;
    }
    let program = program("limits", "strace");
    let log = scratch("strace-log").join("calls");
    let name = log.to_str().unwrap();
    let words = [&program, "6"].map(ToString::to_string);
    let tracer = ["strace", "-f", "-o", name].map(str::to_owned);
    for backend in backends() {
        let all = [&tracer[..], &run("4M", backend), &words].concat();
        assert_ok(&output(&all), backend);
        let calls = fs::read_to_string(&log).unwrap();
        assert!(calls.contains("execve(") && calls.contains("write(1, \"ok\\n\""));
        assert!(calls.contains("+++ exited with 0 +++"));
    }
    let all = [&run("1M", "auto"), &tracer[..], &words].concat();
    assert_ok(&output(&all), "under run");
    assert!(
        fs::read_to_string(&log)
            .unwrap()
            .contains("write(1, \"ok\\n\"")
    );
}

/// Proves that faults can be counted and sampled around a program and under it: the rings
/// that perf reads are mappings of its own.
#[test]
fn counters_and_samples_can_be_had() {
    if !has("perf") {
        return;
    }
    let program = program("limits", "perf");
    let folder = scratch("perf-data");
    let (counts, samples) = (folder.join("counts"), folder.join("samples"));
    let words = [&program, "12"].map(ToString::to_string);
    let count = [
        "perf",
        "stat",
        "-e",
        "page-faults",
        "-o",
        counts.to_str().unwrap(),
        "--",
    ];
    let sample = [
        "perf",
        "record",
        "-q",
        "-e",
        "page-faults",
        "-o",
        samples.to_str().unwrap(),
        "--",
    ];
    let (count, sample) = (count.map(str::to_owned), sample.map(str::to_owned));
    let natively = output(&[&count[..], &words].concat());
    if !natively.status.success() {
        println!("SKIPPED: no counters here: {}", text(&natively.stderr));
        return;
    }
    for (tool, file) in [(&count[..], &counts), (&sample[..], &samples)] {
        for (all, what) in [
            ([tool, &run("4M", "auto"), &words].concat(), "around"),
            ([&run("1M", "auto"), tool, &words].concat(), "under run"),
        ] {
            let _fresh = fs::remove_file(file);
            let output = output(&all);
            assert!(output.status.success(), "{what}: {}", text(&output.stderr));
            assert!(text(&output.stdout).contains("ok\n"), "{what}: {output:?}");
            assert!(fs::metadata(file).unwrap().len() > 0, "{what}");
        }
    }
    assert!(fs::read_to_string(&counts).unwrap().contains("page-faults"));
    let report = output(&["perf", "script", "-i", samples.to_str().unwrap()]);
    assert!(text(&report.stdout).contains("page-faults"), "{report:?}");
}

/// Proves that a file system in user space, and the one who uses it, have each block of 1 MiB
/// in one request, with all of its bytes, in memory that comes and goes.
#[test]
fn a_file_system_in_user_space_gets_whole_blocks() {
    let program = program("served", "served");
    let folder = scratch("served-folder");
    let words = [&program, folder.to_str().unwrap(), "20000000"].map(ToString::to_string);
    let natively = output(&words);
    if natively.status.code() == Some(77) {
        println!("SKIPPED: nothing can be mounted here: no root, or no /dev/fuse");
        return;
    }
    assert_ok(&natively, "natively");
    for backend in backends() {
        let all = [&run("4M", backend)[..], &words].concat();
        assert_ok(&output(&all), backend);
    }
}

fn classes() -> PathBuf {
    let folder = scratch("java");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/Shops.java");
    let status = Command::new("javac")
        .arg("-d")
        .arg(&folder)
        .arg(source)
        .status();
    assert!(status.unwrap().success());
    folder
}

/// Proves that a JVM's handlers live through its subprocesses: checks for null, which it makes
/// by faults, come out right before and after, with a heap that is evicted.
#[test]
fn a_jvm_has_subprocesses_and_checks_for_null() {
    if !(has("java") && has("javac")) {
        return;
    }
    let classes = classes();
    let words = [
        "java",
        "-Xmx96m",
        "-Xshare:auto",
        "-cp",
        classes.to_str().unwrap(),
        "Shops",
    ]
    .map(str::to_owned);
    assert_ok(&output(&words), "natively");
    for backend in ["auto", "guard"] {
        let all = [&run("24M", backend)[..], &words].concat();
        assert_ok(&output(&all), backend);
    }
}

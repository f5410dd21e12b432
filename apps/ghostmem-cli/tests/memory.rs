//! `ghostmem run --memory-each`: one number for all that a process takes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::built;

mod common;

const MIB: u64 = 1 << 20;
/// signal(7).
const SIGBUS: i32 = 7;

/// Runs a Python program under a bound; what it said, and the figures.
fn python(name: &str, memory: &str, program: &str) -> (Output, serde_json::Value) {
    python_with(name, &["--memory-each", memory], &[program])
}

/// The same, with options of `run`, and with arguments after the program.
fn python_with(name: &str, options: &[&str], program: &[&str]) -> (Output, serde_json::Value) {
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("memory-{name}.json"));
    let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .arg("run")
        .args(options)
        .arg("--stats-json")
        .arg(&json)
        .args(["--", "python3", "-c"])
        .args(program)
        .output()
        .unwrap();
    let figures = fs::read(&json).unwrap_or_default();
    (output, serde_json::from_slice(&figures).unwrap_or_default())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A dictionary that takes 300 MiB of plain Python: nobody says how much of it may stay
/// uncompressed.
#[test]
fn a_program_fits_in_half_of_what_it_needs_by_one_number() {
    let program = "d = {i: str(i) * 9 for i in range(1_400_000)}; print(sum(map(len, d.values())))";
    let (output, figures) = python("half", "140M", program);
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    assert_eq!(text(&output.stdout), "78200010\n", "{errors}");
    let figure = |name: &str| {
        figures[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {figures}"))
    };
    assert_eq!(figure("process_bound_bytes"), 140 * MIB);
    assert_eq!(figure("bound_overruns"), 0, "{figures}");
    let peak = figure("process_peak_bytes");
    assert!(peak <= 140 * MIB && peak > 100 * MIB, "{peak}");
    assert!(figure("evictions_dirty") > 10_000, "{figures}");
}

/// What does not compress gets the language's own error, at the allocation.
#[test]
fn what_does_not_fit_is_refused_where_it_is_asked_for() {
    let program = "\
import os
kept = []
try:
    for _ in range(400):
        kept.append(os.urandom(1 << 20))
    print('all of it')
except MemoryError:
    count = len(kept)
    kept.clear()
    print('refused', 60 < count < 160)
";
    let (output, figures) = python("refused", "160M", program);
    let errors = text(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    assert_eq!(text(&output.stdout), "refused True\n", "{errors}");
    assert_eq!(figures["bound_overruns"].as_u64(), Some(0), "{figures}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    let says = errors.contains("refused") && errors.contains("memory of 160 MiB");
    assert!(says && errors.contains("allow more"), "{errors}");
}

/// What would be refused without GhostMem as well needs no line.
#[test]
fn what_no_machine_holds_is_refused_without_a_word() {
    let program = "\
try:
    bytearray(1 << 50)
except MemoryError:
    print('refused')
kept = bytearray(1 << 20)
";
    let (output, _figures) = python("never", "160M", program);
    assert_eq!(text(&output.stdout), "refused\n");
    assert_eq!(text(&output.stderr), "");
}

/// Zeros are granted by the compression hoped for. What is then read into them and fits
/// nowhere ends the process: an error could be taken for "try again", and the bytes are gone.
#[test]
fn what_a_call_read_and_memory_does_not_hold_ends_the_program() {
    let program = "\
import os
kept = bytearray(150 << 20)
view = memoryview(kept)
print('granted', flush=True)
with open('/dev/urandom', 'rb', buffering=0) as source:
    for at in range(0, len(kept), 1 << 20):
        try:
            source.readinto(view[at:at + (1 << 20)])
        except OSError as error:
            print(error)
            break
print('not ended')
";
    let (output, _) = python("call", "96M", program);
    let errors = text(&output.stderr);
    assert_eq!(text(&output.stdout), "granted\n", "{errors}");
    assert_eq!(output.status.signal(), Some(SIGBUS), "{errors}");
    assert!(errors.contains("memory of 96 MiB is full"), "{errors}");
}

/// A child may write all that it shares with its parent, but one of posix_spawn(3) nothing;
/// and a bound on each process charges both for what they share.
#[test]
fn pages_leave_before_a_fork_where_one_number_holds_parent_and_child() {
    let program = "\
import os, sys
kept = (os.urandom(512) + bytes(3584)) * (64 << 8)
def resident_mib():
    with open('/proc/self/status') as status:
        return int(status.read().split('RssAnon:')[1].split()[0]) >> 10
if sys.argv[1] == 'fork':
    child = os.fork()
    if child == 0:
        os._exit(resident_mib())
else:
    child = os.posix_spawn('/bin/sh', ['sh', '-c', 'exit'], os.environ)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(kept) >> 20)
";
    let run = |option: &str, way: &str| {
        let name = format!("{way}{option}");
        let (output, figures) = python_with(&name, &[option, "96M"], &[program, way]);
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        let code = said
            .strip_suffix(" 64\n")
            .unwrap_or_else(|| panic!("{name}: {said}{errors}"));
        let evictions = figures["evictions_dirty"].as_u64().unwrap();
        (code.parse::<u64>().unwrap(), evictions)
    };
    // The child began with what was resident: 76 MiB where no pages leave for it.
    let (begun_mib, _) = run("--memory", "fork");
    assert!(begun_mib < 66, "{begun_mib} MiB");
    let (begun_mib, _) = run("--memory-each", "fork");
    assert!(begun_mib > 64, "{begun_mib} MiB");
    // Of 16384 pages; some leave while the bound is granted in pieces.
    let (code, evictions) = run("--memory", "spawn");
    assert!(code == 0 && evictions < 8000, "{code}, {evictions} pages");
}

#[test]
fn too_little_for_the_program_is_said_in_one_line() {
    let (output, _none) = python("little", "4M", "print(1)");
    let errors = text(&output.stderr);
    assert_eq!(text(&output.stdout), "", "{errors}");
    assert_eq!(output.status.code(), Some(125), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("use at least"), "{errors}");
}

/// The page that all processes of a run share is not there for the program, from its first
/// instruction on, whether it ever has a heap or not.
#[test]
fn the_descriptor_of_all_processes_is_not_the_programs_to_see_or_to_close() {
    let program = built("closes", "closes");
    // The first process has a heap at once, those that it starts when they need one.
    let starts = ["exec \"$0\" \"$1\"", "\"$0\" \"$1\"; exit $?"];
    let ways = ["range", "one by one"].map(|how| starts.map(|start| (start, how)));
    for (start, how) in ways.into_iter().flatten() {
        // Descriptors that this test came with are the program's, too.
        let (mut alone, _, found_alone) =
            closes(Command::new("sh").args(["-c", start]), &program, how);
        let (mut child, process, found) = closes(
            Command::new(env!("CARGO_BIN_EXE_ghostmem"))
                .args(["run", "--memory", "300M", "--", "sh", "-c", start]),
            &program,
            how,
        );
        assert_eq!(found, found_alone, "{start} {how}");
        assert!(found.ends_with(", 0 seen\n"), "{found}");
        // Those it has, as others see them.
        let pages = fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .filter(|file| file.to_string_lossy().contains("ghostmem-shared"))
            .count();
        assert_eq!(pages, 1, "{start} {how}");
        for child in [&mut alone, &mut child] {
            child.stdin.take().unwrap().write_all(b"\n").unwrap();
            assert!(child.wait().unwrap().success());
        }
    }
}

/// Starts the program that closes all it did not open: its number, and what it found.
fn closes(command: &mut Command, program: &Path, how: &str) -> (Child, String, String) {
    let mut child = command
        .arg(program)
        .arg(how)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let (process, found) = line.split_once(' ').unwrap();
    (child, process.to_owned(), found.to_owned())
}

/// Programs that are none of ours find nothing of it, and those that are find it.
#[test]
fn programs_without_the_library_do_not_get_the_descriptor() {
    let list = |script: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
            .args(["run", "--memory", "300M", "--", "sh", "-c", script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    // By a process that looks at another's, and at its own.
    let others = list("sleep 60 & ls -l /proc/$!/fd; kill $!");
    assert!(others.contains("ghostmem-shared"), "{others}");
    let own = list("env -i /bin/ls -l /proc/self/fd");
    assert!(!own.contains("ghostmem"), "{own}");
}

/// A forked child has no thread that would say what it gave back: others measure that, and take
/// it. Proves that it asks before it takes as much again, though it was granted that once.
#[test]
fn what_an_idle_child_gave_back_is_not_taken_twice() {
    let program = built("regrow", "regrow");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ghostmem"));
    command.args(["run", "--memory", "200M", "--"]);
    let output = command.arg(&program).args(["90", "300"]).output().unwrap();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{errors}");
    let taken = said.strip_suffix(" KiB\n").and_then(|kib| kib.parse().ok());
    let taken: u64 = taken.unwrap_or_else(|| panic!("{said}{errors}"));
    // The two are asked one after the other.
    assert!(taken << 10 <= 212 * MIB, "{taken} KiB of 200 MiB");
    assert!(taken << 10 > 120 * MIB, "{taken} KiB: nobody grew");
}

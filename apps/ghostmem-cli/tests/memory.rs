//! `ghostmem run --memory-each`: one number for all that a process takes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

const MIB: u64 = 1 << 20;
/// signal(7).
const SIGBUS: i32 = 7;

/// Runs a Python program under a bound; what it said, and the figures.
fn python(name: &str, memory: &str, program: &str) -> (Output, serde_json::Value) {
    let json = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("memory-{name}.json"));
    let output = Command::new(env!("CARGO_BIN_EXE_ghostmem"))
        .args(["run", "--memory-each", memory, "--stats-json"])
        .arg(&json)
        .args(["--", "python3", "-c", program])
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

#[test]
fn too_little_for_the_program_is_said_in_one_line() {
    let (output, _none) = python("little", "4M", "print(1)");
    let errors = text(&output.stderr);
    assert_eq!(text(&output.stdout), "", "{errors}");
    assert_eq!(output.status.code(), Some(125), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("use at least"), "{errors}");
}

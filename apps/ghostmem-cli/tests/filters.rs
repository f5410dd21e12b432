//! Programs that confine themselves, and programs that are confined, under `ghostmem run`.
//!
//! The C programs install their filters by hand, each of a kind, with data that has to leave and
//! come back afterwards; they run by themselves first.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use common::{assert_ok, backends, built, scratch, text};

mod common;

/// signal(7).
const SIGTERM: i32 = 15;

/// Whether a report is there, whole, of a program that had to bring pages back.
fn has_faulted(report: &Path) -> bool {
    let text = fs::read(report).unwrap_or_default();
    let figures = serde_json::from_slice::<serde_json::Value>(&text).ok();
    figures.is_some_and(|figures| figures["refaults"].as_u64() > Some(0))
}

/// `ghostmem run` with a limit far below what the programs use; ended when it hangs.
fn ghostmem(options: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_ghostmem"), "run"]);
    command.args(["--limit", "4M"]).args(options).arg("--");
    command
}

/// A program that confines itself, natively and on each backend.
fn confined(how: &str, actions: &[&str]) {
    let program = built("confined", how);
    for action in actions {
        let arguments = [how, action];
        let output = Command::new(&program).args(arguments).output().unwrap();
        assert_ok(&output, &format!("{how} {action} natively"));
        for backend in backends() {
            let mut command = ghostmem(&["--backend", backend]);
            let output = command.arg(&program).args(arguments).output().unwrap();
            assert_ok(&output, &format!("{how} {action} on {backend}"));
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(said, "", "{how} {action} on {backend}");
        }
    }
}

#[test]
fn a_filter_by_prctl_lets_the_engine_by() {
    confined("prctl", &["kill", "errno", "trap"]);
}

#[test]
fn a_filter_by_seccomp_lets_the_engine_by() {
    confined("seccomp", &["kill"]);
}

#[test]
fn a_filter_for_all_threads_lets_the_engine_by() {
    confined("sync", &["kill"]);
}

#[test]
fn a_second_filter_lets_the_engine_by() {
    confined("two", &["kill"]);
}

#[test]
fn strict_mode_lets_the_engine_by() {
    confined("strict", &["kill"]);
}

#[test]
fn a_confined_process_has_children() {
    confined("fork", &["kill"]);
}

/// Proves that a confined process has children where the soft limit on open files is as low as
/// most systems have it, and the hard one is not: the filter kills for setting a limit.
#[test]
fn a_confined_process_with_few_files_has_children() {
    let program = built("confined", "fewfiles");
    let output = Command::new(&program).args(["limits", "kill"]).output();
    assert_ok(&output.unwrap(), "natively");
    for backend in backends() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            r#"ulimit -Sn 1024; exec timeout -s KILL 60 "$@""#,
            "sh",
        ]);
        command.arg(env!("CARGO_BIN_EXE_ghostmem"));
        command.args(["run", "--limit", "4M", "--backend", backend, "--"]);
        let output = command.arg(&program).args(["limits", "kill"]).output();
        assert_ok(&output.unwrap(), &format!("few files on {backend}"));
    }
}

#[test]
fn a_program_executed_under_a_filter_works() {
    confined("exec", &["kill", "errno"]);
}

#[test]
fn a_filter_before_any_data_lets_the_engine_by() {
    confined("first", &["kill", "errno"]);
}

#[test]
fn a_program_executed_by_a_child_that_confined_itself_works() {
    confined("vfork", &["kill", "errno"]);
}

#[test]
fn a_filter_that_the_kernel_refuses_is_refused() {
    confined("bad", &["kill"]);
}

/// Proves that a line about the report, which this process can have no file for, ends nobody:
/// neither where the line goes to a file and no file may get longer, nor where nobody reads it.
#[test]
fn what_cannot_be_said_ends_no_program() {
    let program = built("confined", "mute");
    let arguments = ["mute", "kill"];
    let folder = scratch("mute-reports");
    let said = folder.join("said");
    let natively = Command::new(&program).args(arguments).output().unwrap();
    assert_ok(&natively, "natively");
    for backend in backends() {
        let report = folder.join(format!("{backend}-%p.json"));
        for heard in ["a file", "nobody"] {
            let options = [
                "--backend",
                backend,
                "--stats-json",
                report.to_str().unwrap(),
            ];
            let mut command = ghostmem(&options);
            match heard {
                "a file" => command.stderr(File::create(&said).unwrap()),
                _ => command.stderr(io::pipe().unwrap().1),
            };
            let output = command.arg(&program).args(arguments).output().unwrap();
            assert_ok(&output, &format!("{backend}, said to {heard}"));
        }
        assert_eq!(text(&fs::read(&said).unwrap()), "", "{backend}");
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// Proves that a filter for all threads that the kernel did not install, as one of them has
/// another, is known for none: the program learns which thread it is, and a signal that ends it
/// is reported for.
#[test]
fn a_filter_that_not_all_threads_can_have_is_none() {
    let program = built("confined", "diverged");
    let arguments = ["diverged", "kill"];
    let natively = Command::new(&program).args(arguments).output().unwrap();
    assert_eq!(text(&natively.stdout), "ok\n", "{natively:?}");
    assert_eq!(natively.status.signal(), Some(SIGTERM));
    let report = program.with_extension("json");
    for backend in backends() {
        let _fresh = fs::remove_file(&report);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ghostmem"));
        command.args(["run", "--limit", "4M", "--backend", backend, "--stats-json"]);
        command.arg(&report).arg("--").arg(&program);
        let output = command.args(arguments).output().unwrap();
        assert_eq!(text(&output.stdout), "ok\n", "{backend}: {output:?}");
        assert_eq!(output.status.signal(), Some(SIGTERM), "{backend}");
        assert!(has_faulted(&report), "{backend}");
    }
}

#[test]
fn a_process_that_gives_up_making_code_goes_on() {
    confined("mdwe", &["kill"]);
}

/// The program's own calls meet its filter as they are: what lets the engine by opens nothing
/// to it.
#[test]
fn a_filter_still_forbids_what_it_forbids() {
    let program = built("confined", "forbids");
    let output = ghostmem(&[])
        .arg(&program)
        .args(["forbidden", "errno"])
        .output()
        .unwrap();
    assert_ok(&output, "calls that the filter refuses");
}

#[test]
fn what_a_confined_program_used_is_reported() {
    let program = built("confined", "reported");
    let report = program.with_extension("json");
    let name = report.to_str().unwrap();
    let output = ghostmem(&["--stats", "--stats-json", name])
        .arg(&program)
        .args(["sync", "kill"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("ghostmem: what the program used"), "{said}");
    let json = fs::read_to_string(&report).unwrap();
    assert!(
        json.contains("confined") && json.contains("\"refaults\":"),
        "{json}"
    );
}

#[test]
fn a_filter_without_room_in_front_is_one_line_and_the_end() {
    let program = built("confined", "long");
    let output = ghostmem(&[])
        .arg(&program)
        .args(["long", "kill"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(126), "{said}");
    assert!(
        said.lines().count() == 1 && said.contains("so many instructions"),
        "{said}"
    );
}

/// Filters that end the process for what the engine would try first.
#[test]
fn a_filter_found_at_the_start_is_met_by_what_works() {
    let (program, under) = (built("confined", "found"), built("under", "found"));
    for what in ["userfaultfd", "vectored", "guard"] {
        let mut asked = vec!["auto"];
        if what != "guard" {
            asked.push("guard");
        }
        for backend in asked {
            let mut command = Command::new("timeout");
            command.args(["-s", "KILL", "60"]).arg(&under).arg(what);
            command.args([env!("CARGO_BIN_EXE_ghostmem"), "run", "--limit", "4M"]);
            command.args(["--backend", backend, "--"]).arg(&program);
            let output = command.args(["work", "kill"]).output().unwrap();
            assert_ok(&output, &format!("{what} forbidden, {backend}"));
        }
    }
}

#[test]
fn a_backend_that_a_filter_forbids_is_refused_in_one_line() {
    let (program, under) = (built("confined", "refused"), built("under", "refused"));
    let mut command = Command::new(&under);
    command.args([
        "guard",
        env!("CARGO_BIN_EXE_ghostmem"),
        "run",
        "--limit",
        "4M",
    ]);
    command.args(["--backend", "guard", "--"]).arg(&program);
    let output = command.args(["work", "kill"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code().is_some_and(|code| code != 0),
        "{:?}",
        output.status
    );
    assert!(
        said.lines().count() == 1 && said.contains("guard backend"),
        "{said}"
    );
}

/// Proves that a report is made under a filter that was there before: the command's and the
/// program's, whether it ends who makes a call that it does not know or not; and one that came
/// with the program alone.
#[test]
fn a_report_is_made_under_a_filter_that_was_there_before() {
    let (program, under) = (built("confined", "early"), built("under", "early"));
    let report = program.with_extension("json");
    let ghostmem = env!("CARGO_BIN_EXE_ghostmem");
    let options = ["run", "--limit", "4M", "--stats", "--stats-json"];
    for what in ["container", "unnamed", "inside"] {
        for backend in ["auto", "guard"] {
            let _fresh = fs::remove_file(&report);
            let mut command = Command::new("timeout");
            command.args(["-s", "KILL", "60"]);
            if what != "inside" {
                command.arg(&under).arg(what);
            }
            command.arg(ghostmem).args(options).arg(&report);
            command.args(["--backend", backend, "--"]);
            if what == "inside" {
                command.arg(&under).arg("container");
            }
            command.arg(&program).args(["work", "kill"]);
            let output = command.output().unwrap();
            let said = text(&output.stderr);
            let what = format!("{what}, {backend}: {said}");
            assert_ok(&output, &what);
            assert!(said.contains("ghostmem: what the program used"), "{what}");
            assert!(!said.contains("cannot write"), "{what}");
            assert!(has_faulted(&report), "{what}");
        }
    }
}

/// Proves that forked children under a container's filter open files of their own, as without:
/// each moves pages to one, and each writes its report.
#[test]
fn children_under_a_containers_filter_open_files_as_without() {
    let (program, under) = (built("spill", "boxed"), built("under", "boxed"));
    let (folder, reports) = (scratch("boxed-spill"), scratch("boxed-reports"));
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", "120"]).arg(&under);
    command.args(["container", env!("CARGO_BIN_EXE_ghostmem"), "run"]);
    command.args(["--limit", "4M", "--spill-store", "4M", "--spill"]);
    command
        .arg(&folder)
        .arg("--stats-json")
        .arg(reports.join("%p"));
    let output = command.arg("--").arg(&program).args(["24", "fork"]);
    assert_ok(&output.output().unwrap(), "spill");
    let written: Vec<_> = fs::read_dir(&reports).unwrap().collect();
    // The program and its three children.
    assert_eq!(written.len(), 4, "{written:?}");
    for report in written {
        let figures = fs::read(report.unwrap().path()).unwrap();
        let figures: serde_json::Value = serde_json::from_slice(&figures).unwrap();
        assert!(figures["pages_spilled"].as_u64() > Some(100), "{figures}");
    }
}

/// Proves that a filter which ends who would write the report ends nobody: one line says that
/// there is none.
#[test]
fn a_report_that_a_filter_forbids_is_one_line() {
    let (program, under) = (built("confined", "mute"), built("under", "mute"));
    let report = program.with_extension("json");
    let mut command = ghostmem(&["--stats-json", report.to_str().unwrap()]);
    command.arg(&under).arg("readonly").arg(&program);
    let output = command.args(["work", "kill"]).output().unwrap();
    assert_ok(&output, "files may not be made");
    let said = text(&output.stderr);
    assert!(
        said.lines().count() == 1 && said.contains("no report is made"),
        "{said}"
    );
}

#[test]
fn a_process_that_may_not_make_code_runs() {
    let (program, under) = (built("confined", "inherited"), built("under", "inherited"));
    let run = |command: &mut Command| command.args(["work", "kill"]).output().unwrap();
    let natively = run(Command::new(&under).arg("mdwe").arg(&program));
    if natively.status.code() == Some(99) {
        println!("the kernel has no PR_SET_MDWE: not tested");
        return;
    }
    for backend in backends() {
        let mut command = Command::new(&under);
        command.args([
            "mdwe",
            env!("CARGO_BIN_EXE_ghostmem"),
            "run",
            "--limit",
            "4M",
        ]);
        command.args(["--backend", backend, "--"]).arg(&program);
        assert_ok(&run(&mut command), backend);
    }
}

/// Proves that one number for all holds a program that confines itself: by each way of doing
/// so it goes through more than that, the child of one that forks as well, and takes no more.
#[test]
fn a_bound_on_memory_holds_under_a_filter() {
    const MIB: u64 = 1 << 20;
    let program = built("confined", "bounded");
    let report = program.with_extension("json");
    for how in ["seccomp", "fork", "first"] {
        for backend in backends() {
            let mut command = Command::new("timeout");
            command.args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_ghostmem"), "run"]);
            command.args(["--memory", "28M", "--backend", backend, "--stats-json"]);
            command.arg(&report).arg("--").arg(&program);
            // 48 MiB.
            let output = command.args([how, "kill", "12288"]).output().unwrap();
            let what = format!("{how} on {backend}");
            assert_ok(&output, &what);
            let figures = fs::read(&report).unwrap();
            let figures: serde_json::Value = serde_json::from_slice(&figures).unwrap();
            let peak = figures["process_peak_bytes"].as_u64().unwrap();
            // Less where it shares that with a child.
            let bound = figures["process_bound_bytes"].as_u64().unwrap();
            assert!(bound > 0 && bound <= 28 * MIB, "{what}: {figures}");
            assert!(peak > 10 * MIB && peak <= 28 * MIB, "{what}: {peak}");
            assert_eq!(
                figures["bound_overruns"].as_u64(),
                Some(0),
                "{what}: {figures}"
            );
            assert!(
                figures["evictions_dirty"].as_u64() > Some(10_000),
                "{what}: {figures}"
            );
        }
    }
}

/// Proves that memory which does not compress is refused under a filter as without one: where
/// it is asked for, or, what was hoped to compress, when it is touched, with a line.
#[test]
fn what_does_not_fit_is_refused_under_a_filter() {
    let program = built("confined", "full");
    let pages = |output: &Output| text(&output.stdout).trim().parse::<u64>().ok();
    let arguments = ["full", "kill", "51200"];
    let natively = Command::new(&program).args(arguments).output().unwrap();
    assert_eq!(pages(&natively), Some(51200), "{natively:?}");
    for backend in backends() {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_ghostmem"), "run"]);
        command.args(["--memory", "96M", "--backend", backend, "--"]);
        let output = command.arg(&program).args(arguments).output().unwrap();
        let is_refused = match pages(&output) {
            Some(got) => got > 30 * 256 && got < 96 * 256,
            None => text(&output.stderr).contains("memory of 96 MiB is full"),
        };
        assert!(is_refused, "{backend}: {output:?}");
    }
}

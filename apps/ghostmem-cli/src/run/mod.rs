//! `ghostmem run`: starts a program with the preload library and a limit.
//!
//! It becomes the program (execve(2)), so exit code, signals, terminal and standard streams are
//! the program's own; under `--trace` it stays behind, to keep the record. What cannot work is
//! refused before that, in one line.

mod elf;
mod library;
mod limit;
mod program;
mod trace;
mod words;

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use ghostmem::{Backend, doctor};

use crate::cli::{BackendName, RunArgs, SmallBlocks};
use crate::failure::{EXIT_NOT_FOUND, EXIT_NOT_RUN, Failure};

pub(crate) use limit::{Limit, parse_limit};
pub(crate) use words::join_sizes;

/// Runs the program; returns only when that is not possible.
///
/// # Errors
/// One line that says what was wrong and what to do.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    let (name, rest) = args
        .program
        .split_first()
        .ok_or_else(|| Failure::new("no program was given: ghostmem run [OPTIONS] -- PROGRAM"))?;
    let library = library::find()?;
    let found = program::find(name)?;
    let needs = program::inspect(&found)?;
    let mut block = settings(args, needs.raw_system_calls)?;
    let recording = trace::prepare(args, &mut block)?;
    let mut command = if needs.shell {
        // As shells do with a file of commands that names no interpreter.
        let mut command = Command::new(program::SHELL);
        command.arg(&found);
        command
    } else {
        let mut command = Command::new(&found);
        command.arg0(name);
        command
    };
    command.args(rest);
    command.env("GHOSTMEM_RUN", block);
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    command.env("LD_PRELOAD", preload);
    if let Some(recording) = recording {
        return trace::record(args, recording, &mut command);
    }
    Err(cannot_start(&found, &command.exec()))
}

fn cannot_start(program: &Path, error: &std::io::Error) -> Failure {
    let code = match error.kind() {
        std::io::ErrorKind::NotFound => EXIT_NOT_FOUND,
        _ => EXIT_NOT_RUN,
    };
    Failure::new(format!("cannot start {}: {error}", program.display())).ending_with(code)
}

/// The limit, bytes.
fn limit_bytes(args: &RunArgs) -> Result<u64, Failure> {
    match args.limit {
        Limit::Auto if args.trace.is_some() => Ok(trace::WINDOW_BYTES),
        limit => limit.bytes(),
    }
}

/// The settings as the library reads them.
fn settings(args: &RunArgs, raw_system_calls: Option<&str>) -> Result<OsString, Failure> {
    let mut block = Vec::new();
    let mut put = |name: &str, value: &[u8]| {
        block.extend_from_slice(name.as_bytes());
        block.push(b'=');
        block.extend_from_slice(value);
        block.push(b';');
    };
    let mut number = |name: &str, value: u64| put(name, value.to_string().as_bytes());
    number("limit", limit_bytes(args)?);
    let follow = matches!(args.limit, Limit::Auto) && args.trace.is_none();
    number("follow", u64::from(follow));
    if let Some(bytes) = args.memory_limit {
        number("memory", bytes);
    }
    if let Some(bytes) = args.spill.spill_limit {
        number("spill-limit", bytes);
    }
    if let Some(bytes) = args.spill.spill_store {
        number("spill-store", bytes);
    }
    number(
        "ghost-from",
        match args.small {
            SmallBlocks::Ghost => 0,
            SmallBlocks::Ordinary => 32 << 10,
            SmallBlocks::GhostFrom(bytes) => bytes,
        },
    );
    if let Some(bytes) = args.mmap {
        number("mmap-from", bytes.max(4096));
    }
    number("reporter", u64::from(std::process::id()));
    number("stats", u64::from(args.stats));
    number("verbose", u64::from(args.verbose));
    number("children", u64::from(!args.no_children));
    if let Some(folder) = &args.spill.spill {
        if !folder.is_dir() {
            return Err(Failure::new(format!(
                "--spill {}: this is no folder",
                folder.display()
            )));
        }
        put("spill", &escape(&absolute(folder)?));
    }
    if let Some(path) = &args.stats_json {
        let path = absolute(path)?;
        try_to_write(&path)?;
        put("stats-json", &escape(&path));
    }
    put("backend", backend(args, raw_system_calls)?.as_bytes());
    Ok(OsString::from_vec(block))
}

/// The backend's name, after a look whether it can be had.
fn backend(args: &RunArgs, raw_system_calls: Option<&str>) -> Result<&'static str, Failure> {
    let asked = args.backend;
    let report = doctor::probe();
    if let Some(why) = raw_system_calls.filter(|_| !report.monitor_works) {
        eprintln!(
            "ghostmem: this program makes system calls outside the C library ({why}): they fail \
             on memory that is not there, as no monitor can be had here; see 'ghostmem doctor'"
        );
    }
    let refuse = |what: &str| {
        Err(Failure::new(format!(
            "the {what} backend cannot work here; see 'ghostmem doctor', or leave --backend out"
        )))
    };
    match asked {
        BackendName::Auto if raw_system_calls.is_some() && report.monitor_works => Ok("monitor"),
        BackendName::Auto if report.chosen.is_none() => Err(Failure::new(format!(
            "no fault backend works here: {}; see 'ghostmem doctor'",
            report.reason
        ))),
        BackendName::Auto => {
            if matches!(report.chosen, Some(Backend::Guard | Backend::GuardMprotect))
                && (args.verbose || args.stats || std::io::stderr().is_terminal())
            {
                eprintln!(
                    "ghostmem: userfaultfd cannot be had here, so faults are taken by guard pages, \
                     which is slower; see 'ghostmem doctor'"
                );
            }
            Ok("auto")
        }
        BackendName::Inline if !report.inline_works => refuse("inline"),
        BackendName::Inline => Ok("inline"),
        BackendName::Monitor if !report.monitor_works => refuse("monitor"),
        BackendName::Monitor => Ok("monitor"),
        BackendName::Guard if !report.guard_works => refuse("guard"),
        BackendName::Guard => Ok("guard"),
        BackendName::GuardMprotect if !report.guard_works => refuse("guard-mprotect"),
        BackendName::GuardMprotect => Ok("guard-mprotect"),
    }
}

fn absolute(path: &Path) -> Result<Vec<u8>, Failure> {
    let path = std::path::absolute(path)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok(path.into_os_string().into_vec())
}

/// Says before the program starts that its report cannot be written.
fn try_to_write(path: &[u8]) -> Result<(), Failure> {
    // The library's sign for the process's number; this one's stands for any.
    let number = std::process::id().to_string();
    let mut name = Vec::new();
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        if rest.starts_with(b"%p") {
            name.extend_from_slice(number.as_bytes());
            rest = &tail[1..];
        } else {
            name.push(first);
            rest = tail;
        }
    }
    let path = PathBuf::from(OsString::from_vec(name));
    let was_there = path.exists();
    let opened = OpenOptions::new().append(true).create(true).open(&path);
    opened.map_err(|error| Failure::new(format!("--stats-json {}: {error}", path.display())))?;
    if !was_there {
        let _as_before = std::fs::remove_file(&path);
    }
    Ok(())
}

/// Escapes what separates settings.
fn escape(value: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in value {
        if byte == b';' || byte == b'%' || byte < b' ' {
            escaped.extend_from_slice(format!("%{byte:02x}").as_bytes());
        } else {
            escaped.push(byte);
        }
    }
    escaped
}

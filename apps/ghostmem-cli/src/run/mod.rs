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

use std::ffi::{CString, OsStr, OsString};
use std::fs::OpenOptions;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use ghostmem::settings::{RunSettings, VARIABLE};
use ghostmem::{Backend, Spill, doctor};
use ghostmem_os::tree::Tree;
use ghostmem_os::{descriptor, machine, trial};

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
    refuse_little_room()?;
    let library = library::find()?;
    let found = program::find(name)?;
    let needs = program::inspect(&found)?;
    let mut settings = settings(args, needs.raw_system_calls)?;
    let recording = trace::prepare(args, &mut settings)?;
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
    command.env(OsStr::from_bytes(VARIABLE.to_bytes()), settings.write());
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

/// Where the limits on address space and data leave this command next to nothing, the program
/// would have as little beside the library: neither could say so later.
fn refuse_little_room() -> Result<(), Failure> {
    const LEAST_BYTES: u64 = 512 << 10;
    match machine::address_space_left() {
        Some(left) if left < LEAST_BYTES => Err(Failure::new(format!(
            "the limits on address space and data (ulimit -v and -d) leave {left} bytes: too little \
             to run a program on ghost memory, allow more"
        ))),
        _ => Ok(()),
    }
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
        limit => limit.bytes("--limit"),
    }
}

/// The settings that the library reads.
fn settings(args: &RunArgs, raw_system_calls: Option<&str>) -> Result<RunSettings, Failure> {
    let mut settings = args.plain.settings();
    if settings.slowdown > 0 && args.trace.is_some() {
        return Err(Failure::new(
            "--slowdown and --trace: a program is recorded under a limit that stays, leave one of \
             them out",
        ));
    }
    settings.limit = fits(limit_bytes(args)?)?;
    // Whatever else was said: what there is not cannot be had.
    settings.memory_auto = args.trace.is_none();
    if let bytes @ 1.. = args.memory.bytes("--memory")? {
        share_memory(&mut settings, bytes)?;
    }
    settings.spill_limit = args.spill.spill_limit;
    settings.spill_store = args.spill.spill_store.map(fits).transpose()?;
    settings.ghost_from = match args.small {
        SmallBlocks::Ghost => 0,
        SmallBlocks::Ordinary => 32 << 10,
        SmallBlocks::GhostFrom(bytes) => fits(bytes)?,
    };
    settings.mmap_from = match args.mmap {
        0 => 0,
        bytes => fits(bytes.max(4096))?,
    };
    settings.reporter = i32::try_from(std::process::id()).unwrap_or(0);
    settings.children = !args.no_children;
    settings.doorway = fits(doorway_place())?;
    if let Some(folder) = &args.spill.spill {
        if !folder.is_dir() {
            return Err(Failure::new(format!(
                "--spill {}: this is no folder",
                folder.display()
            )));
        }
        Spill::refuse_memory(folder).map_err(Failure::new)?;
        settings.spill = Some(absolute(folder)?);
        say_little_room(folder);
    }
    if let Some(path) = settings.stats_json.take() {
        try_to_write(path.as_os_str().as_bytes())?;
        // A service changes its folder.
        settings.stats_json = Some(absolute(&path)?);
    }
    let report = doctor::probe();
    if report.filters.is_some() {
        // What was tried under these need not be tried there again.
        settings.filters = report.filters;
        settings.answered = machine::counts_filters() && trial::is_answered();
        settings.spares = report.guard_works;
        settings.vectored = report.drops_vectored;
        settings.calls_userfaultfd = report.calls_userfaultfd;
    }
    settings.backend = backend(args, &settings, raw_system_calls, &report)?;
    Ok(settings)
}

/// Says that a disk has next to no room: pages stay in memory then, which is not what
/// `--spill` is given for.
fn say_little_room(folder: &Path) {
    /// The least that `--spill-limit` takes.
    const LEAST_BYTES: u64 = 8 << 20;
    let name = CString::new(folder.as_os_str().as_bytes());
    let room = name.ok().and_then(|name| machine::disk_room_bytes(&name));
    if let Some(room) = room.filter(|room| *room < LEAST_BYTES) {
        eprintln!(
            "ghostmem: --spill {}: {room} bytes are free there; pages that find no room in the \
             file stay in memory",
            folder.display()
        );
    }
}

/// Makes the page of all processes of this run, which have so many bytes together. Its
/// descriptor goes to the program.
fn share_memory(settings: &mut RunSettings, bytes: u64) -> Result<(), Failure> {
    // Seeded by the kernel's generator.
    let key = RandomState::new().build_hasher().finish();
    let (tree, file) =
        Tree::create(bytes, key).map_err(|error| Failure::new(format!("--memory: {error}")))?;
    // This process becomes the program.
    tree.note_caller();
    std::mem::forget(tree);
    settings.memory = fits(bytes)?;
    settings.tree_file = file;
    settings.tree_key = Some(key);
    Ok(())
}

/// Bytes of this machine's address space.
fn fits(bytes: u64) -> Result<usize, Failure> {
    usize::try_from(bytes).map_err(Failure::new)
}

/// Where the processes of this run have the engine's doorway: a page below all that a
/// loader or the kernel maps, which nobody can guess.
fn doorway_place() -> u64 {
    const LOWEST: u64 = 0x1000_0000_0000;
    const PAGES: u64 = (0x5000_0000_0000 - LOWEST) >> 12;
    // Seeded by the kernel's generator.
    let number = RandomState::new().build_hasher().finish();
    LOWEST + ((number % PAGES) << 12)
}

/// The backend, after a look whether it can be had.
fn backend(
    args: &RunArgs,
    settings: &RunSettings,
    raw_system_calls: Option<&str>,
    report: &doctor::Report,
) -> Result<Backend, Failure> {
    let asked = args.backend;
    let filtered = report.filters != Some(0);
    if let Some(why) = raw_system_calls.filter(|_| !report.monitor_works) {
        eprintln!(
            "ghostmem: this program makes system calls outside the C library ({why}): they fail \
             on memory that is not there, as no monitor can be had here; see 'ghostmem doctor'"
        );
    }
    let refuse = |what: &str| {
        let guard = what.starts_with("guard");
        let why = report.guard_refusal.as_deref().filter(|_| guard);
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        Err(Failure::new(format!(
            "the {what} backend cannot work here{why}; see 'ghostmem doctor', or leave --backend \
             out"
        )))
    };
    match asked {
        BackendName::Auto if raw_system_calls.is_some() && report.monitor_works => {
            Ok(Backend::Monitor)
        }
        BackendName::Auto if report.chosen.is_none() && !can_open() => Err(Failure::new(
            "the limit on open files (ulimit -n) leaves none for the engine: allow more",
        )),
        BackendName::Auto if report.chosen.is_none() => Err(Failure::new(format!(
            "no fault backend works here: {}; see 'ghostmem doctor'",
            report.reason
        ))),
        BackendName::Auto => {
            if matches!(report.chosen, Some(Backend::Guard | Backend::GuardMprotect))
                && (settings.verbose || settings.stats || std::io::stderr().is_terminal())
            {
                eprintln!(
                    "ghostmem: userfaultfd cannot be had here, so faults are taken by guard pages, \
                     which is slower; see 'ghostmem doctor'"
                );
            }
            Ok(match report.chosen {
                // The process is not to try again what a filter may end it for.
                Some(chosen @ (Backend::Inline | Backend::Guard | Backend::GuardMprotect))
                    if filtered =>
                {
                    chosen
                }
                _ => Backend::Auto,
            })
        }
        BackendName::Inline if !report.inline_works => refuse("inline"),
        BackendName::Monitor if !report.monitor_works => refuse("monitor"),
        BackendName::Guard if !report.guard_works => refuse("guard"),
        BackendName::GuardMprotect if !report.guard_works => refuse("guard-mprotect"),
        works => Ok(works.into()),
    }
}

/// Whether this process may open another file.
fn can_open() -> bool {
    std::fs::File::open("/dev/null").is_ok()
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
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
    let found = std::fs::metadata(&path);
    let is_pipe = found
        .as_ref()
        .is_ok_and(|found| found.file_type().is_fifo());
    // Who reads a pipe waits for the report, and would take this look for the end of it. To a
    // descriptor of this process the library writes without a name.
    if is_pipe || found.is_ok() && descriptor::named(path.as_os_str().as_bytes()).is_some() {
        return Ok(());
    }
    let opened = OpenOptions::new().append(true).create(true).open(&path);
    opened.map_err(|error| Failure::new(format!("--stats-json {}: {error}", path.display())))?;
    if found.is_err() {
        // Where it is a link, what it leads to was made.
        let _as_before = path.canonicalize().and_then(std::fs::remove_file);
    }
    Ok(())
}

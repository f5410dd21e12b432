//! `ghostmem run --trace`: the record of what the program touches.
//!
//! The command does not become the program but starts it and stays, as what is left in the ring
//! when the program ends must be written by somebody. Signals go on to the program, and its exit
//! code is the command's.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};

use ghostmem::record::Recording;
use ghostmem::settings::RunSettings;
use ghostmem_bench::recorder::{self, Outcome};
use ghostmem_lab::recorded::Header;

use crate::cli::RunArgs;
use crate::failure::Failure;

use super::{cannot_start, limit_bytes};

/// The limit when none was given: few enough pages to miss little, enough that a program's stack of
/// calls into its own heap goes on.
pub(super) const WINDOW_BYTES: u64 = 64 * 4096;

/// A ring, if a record was asked for, and where it is in the settings.
///
/// # Errors
/// The kernel's refusal of memory.
pub(super) fn prepare(
    args: &RunArgs,
    settings: &mut RunSettings,
) -> Result<Option<Recording>, Failure> {
    if args.trace.is_none() {
        return Ok(None);
    }
    let recording = Recording::new().map_err(|error| Failure::new(format!("--trace: {error}")))?;
    let file = recording.file().unwrap_or(-1);
    let process = std::process::id();
    settings.recorder = i32::try_from(process).unwrap_or(0);
    settings.trace = Some(format!("/proc/{process}/fd/{file}").into());
    Ok(Some(recording))
}

/// Runs the program and keeps the record; the program's exit code.
///
/// # Errors
/// The file cannot be written, or the program cannot be started.
pub(super) fn record(
    args: &RunArgs,
    recording: Recording,
    command: &mut Command,
) -> Result<ExitCode, Failure> {
    let path = args.trace.as_deref().unwrap_or(Path::new(""));
    let words: Vec<_> = args
        .program
        .iter()
        .map(|word| word.to_string_lossy())
        .collect();
    let header = Header {
        window_pages: limit_bytes(args)? / 4096,
        command: words.join(" "),
    };
    let about_file = |error| Failure::new(format!("--trace {}: {error}", path.display()));
    let outcome =
        recorder::record(command, recording, &header, path).map_err(|(file, error)| {
            if file {
                about_file(error)
            } else {
                cannot_start(Path::new(command.get_program()), &error)
            }
        })?;
    let Outcome {
        status,
        touches,
        lost,
        unwritten,
    } = outcome;
    if let Some(error) = unwritten {
        return Err(about_file(error));
    }
    eprintln!("ghostmem: recorded {touches} touches in {}", path.display());
    if lost > 0 {
        return Err(Failure::new(format!(
            "--trace {}: this process was stopped for too long, and the record ends early",
            path.display()
        )));
    }
    Ok(exit_code(status))
}

/// The program's exit code; what shells make of one that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
}

//! The `ghostmem` command: run programs on GhostMem (`run`), see it work on this machine (`demo`),
//! learn what the machine allows (`doctor`), and measure it beside what else there is (`bench`).
//!
//! Results go to standard output, progress and errors to standard error. Every error is one line
//! and exit code 2; exit codes 0 and 1 are the answers of the commands. `bench` has more, see its
//! help.
#![forbid(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("the ghostmem command runs on Linux only; on Windows build ghostmem or ghostmem-c");

mod cli;
mod demo;
mod doctor;
mod engine;
mod failure;
mod run;
mod size;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};
use crate::failure::{EXIT_CANNOT, Failure};

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return usage(&error),
    };
    let result = match command {
        Command::Run(args) => run::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        // It has exit codes of its own.
        Command::Bench(args) => return ghostmem_bench::run(&args, "ghostmem bench", &["bench"]),
        Command::DemoBaseline => demo::baseline::child(),
    };
    result.unwrap_or_else(|failure| complain(&failure))
}

fn complain(failure: &Failure) -> ExitCode {
    eprintln!("ghostmem: {failure}");
    ExitCode::from(EXIT_CANNOT)
}

/// Prints help and version as asked for, and any mistake as a single line.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to tell when standard output is closed.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(EXIT_CANNOT)
        }
        _ => {
            // What is wrong and, if clap has one, what was probably meant; not the usage.
            let kept = text.split("\n\n").enumerate();
            let kept = kept.filter(|(index, part)| *index == 0 || part.trim().starts_with("tip:"));
            let line = kept
                .map(|(_, part)| part.trim())
                .collect::<Vec<_>>()
                .join("; ");
            let line = line.trim_start_matches("error: ");
            complain(&Failure::new(format!("{line} (see 'ghostmem --help')")))
        }
    }
}

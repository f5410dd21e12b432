//! The `ghostmem` command: run programs on GhostMem (`run`), see it work on this machine (`demo`),
//! learn what the machine allows (`doctor`), and measure it beside what else there is (`bench`).
//!
//! Results go to standard output, progress and errors to standard error. Every error is one line
//! and exit code 2 (of `run` 125 to 127); exit codes 0 and 1 are the answers of the commands.
//! `bench` has more, see its help.
#![forbid(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("the ghostmem command runs on Linux only; on Windows build ghostmem or ghostmem-c");

mod cli;
mod demo;
mod doctor;
mod engine;
mod failure;
mod plain;
mod run;
mod size;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::cli::{Cli, Command};
use crate::failure::{EXIT_CANNOT, EXIT_RUN, Failure};

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let runs = words.get(1).is_some_and(|word| word == "run");
    let command = match Cli::try_parse_from(run::join_sizes(words)) {
        Ok(cli) => cli.command,
        Err(error) => return usage(&error, runs),
    };
    let result = match command {
        Command::Run(args) => {
            return run::run(&args).unwrap_or_else(|failure| complain(&failure, EXIT_RUN));
        }
        Command::Demo(args) => demo::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        // It has exit codes of its own.
        Command::Bench(args) => return ghostmem_bench::run(&args, "ghostmem bench", &["bench"]),
        Command::DemoBaseline => demo::baseline::child(),
    };
    result.unwrap_or_else(|failure| complain(&failure, EXIT_CANNOT))
}

fn complain(failure: &Failure, usual: u8) -> ExitCode {
    eprintln!("ghostmem: {failure}");
    ExitCode::from(failure.code_or(usual))
}

/// Prints help and version as asked for, and any mistake as a single line.
fn usage(error: &clap::Error, runs: bool) -> ExitCode {
    let (code, help) = if runs {
        (EXIT_RUN, "ghostmem run --help")
    } else {
        (EXIT_CANNOT, "ghostmem --help")
    };
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to tell when standard output is closed.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(code)
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
            complain(&Failure::new(format!("{line} (see '{help}')")), code)
        }
    }
}

//! What GhostMem costs and saves, measured beside what a user would pick
//! instead, with contents verified while measuring.
//!
//! The library is behind two programs: `ghostmem bench` and `ghostmem-bench`.
//! See `README.md` beside this crate for the method of each command.
//!
//! `unsafe` stands in four files only: `sys` (system calls), `buffer` (the
//! memory under test), `blocks` (allocate and deallocate) and
//! `contenders/peer` (a library loaded at run time).

#[cfg(not(target_os = "linux"))]
compile_error!("the bench measures beside zram and zswap: it runs on Linux only");

mod alloc;
mod blocks;
mod buffer;
mod cgroup;
mod child;
mod codecs;
mod compare;
mod contenders;
mod data;
mod error;
mod faults;
mod lab;
mod line;
mod lz4;
mod options;
mod plot;
mod programs;
pub mod recorder;
mod report;
mod small;
mod store;
mod sys;
mod work;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use error::{Error, Result};

/// What can be measured. Without a command, everything side by side.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: compare::CompareArgs,
}

/// What the exit codes mean, for the help of a program.
pub const EXIT: &str = "\
Exit code:
    0  measured, all contents right
    1  failed, wrong contents included
    2  the command line was wrong
    3  the machine allows nothing of what was asked for
  130  interrupted; swap is off and cgroups are gone";

#[derive(Debug, Subcommand)]
enum Command {
    /// GhostMem and zram alone, under one limit (root, for zram)
    Zram(compare::ZramArgs),
    /// Allocate and deallocate 4 KiB blocks from several threads
    Alloc(alloc::AllocArgs),
    /// Threads faulting on different pages
    Faults(faults::FaultsArgs),
    /// What a cache line costs that moves between two processors
    Line(line::LineArgs),
    /// Overhead of the store, fresh and after long random rewriting
    Store(store::StoreArgs),
    /// Real programs at equal total memory: plain, swapping to zram (root), with GhostMem
    Programs(programs::ProgramsArgs),
    /// Replacement policies on recorded patterns of access, offline
    Lab(lab::LabArgs),
    /// C LZ4 against lz4_flex on 4 KiB pages
    Codecs(codecs::CodecsArgs),
    /// Take down what a killed run left behind: our swap areas and cgroups
    Cleanup,
    /// A measured process
    #[command(hide = true)]
    Child(child::ChildArgs),
}

/// Does what was asked for and says how it ended (see [`EXIT`]). `program` is
/// how the user calls it, for messages; `prefix` are the words between the
/// executable and a command of this crate, as measured processes are started by
/// calling the same executable.
#[must_use]
pub fn run(args: &BenchArgs, program: &str, prefix: &[&str]) -> ExitCode {
    let call: Vec<&str> = prefix.iter().copied().chain(["child"]).collect();
    let outcome = match &args.command {
        None => compare::run(&args.compare, &call),
        Some(Command::Zram(args)) => compare::run_zram(args, &call),
        Some(Command::Alloc(args)) => alloc::run(args),
        Some(Command::Faults(args)) => faults::run(args),
        Some(Command::Line(args)) => line::run(args),
        Some(Command::Store(args)) => store::run(args),
        Some(Command::Programs(args)) => programs::run(args, !prefix.is_empty()),
        Some(Command::Lab(args)) => lab::run(args),
        Some(Command::Codecs(args)) => codecs::run(args),
        Some(Command::Cleanup) => cleanup(),
        Some(Command::Child(args)) => child::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{program}: {err}");
            match err {
                Error::Skipped(_) => ExitCode::from(3),
                Error::Failed(_) | Error::Killed(_) => ExitCode::FAILURE,
                Error::Interrupted => ExitCode::from(130),
            }
        }
    }
}

fn cleanup() -> Result<()> {
    let mut removed = contenders::zram::remove_leftovers()?;
    removed.extend(contenders::swapfile::remove_leftovers()?);
    removed.extend(contenders::zswap::remove_leftovers()?);
    removed.extend(cgroup::remove_leftovers());
    if removed.is_empty() {
        println!("nothing of ours is left");
    }
    for name in removed {
        println!("removed {name}");
    }
    Ok(())
}

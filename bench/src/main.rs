//! `ghostmem-bench`: what GhostMem costs and saves, measured beside what a user
//! would pick instead, with contents verified while measuring.
//!
//! See `README.md` beside this crate for the method of each command.
//!
//! `unsafe` stands in four small files only: `sys` (system calls), `buffer`
//! (the memory under test), `lz4` (foreign functions) and `blocks` (allocate
//! and deallocate).

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
mod lz4;
mod options;
mod report;
mod store;
mod sys;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use error::{Error, Result};

/// Measures GhostMem beside what a user would pick instead.
#[derive(Debug, Parser)]
#[command(name = "ghostmem-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// GhostMem and zram side by side under the same limit (root, for zram).
    Zram(compare::CompareArgs),
    /// Allocate and deallocate 4 KiB blocks from several threads.
    Alloc(alloc::AllocArgs),
    /// Threads faulting on different pages.
    Faults(faults::FaultsArgs),
    /// Overhead of the store, fresh and after long random rewriting.
    Store(store::StoreArgs),
    /// Replacement policies on recorded patterns of access, offline.
    Lab(lab::LabArgs),
    /// C LZ4 against lz4_flex on 4 KiB pages.
    Codecs(codecs::CodecsArgs),
    /// Take down what a killed run left behind: our swap areas and cgroups.
    Cleanup,
    /// The measured process of `zram`.
    #[command(hide = true)]
    Child(child::ChildArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Zram(args) => compare::run(&args),
        Command::Alloc(args) => alloc::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Codecs(args) => codecs::run(&args),
        Command::Cleanup => cleanup(),
        Command::Child(args) => child::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("ghostmem-bench: {err}");
            match err {
                Error::Skipped(_) => ExitCode::from(3),
                Error::Failed(_) => ExitCode::FAILURE,
                Error::Interrupted => ExitCode::from(130),
            }
        }
    }
}

fn cleanup() -> Result<()> {
    let mut removed = contenders::zram::remove_leftovers()?;
    removed.extend(cgroup::remove_leftovers());
    if removed.is_empty() {
        println!("nothing of ours is left");
    }
    for name in removed {
        println!("removed {name}");
    }
    Ok(())
}

//! What can be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ghostmem::Backend;
use ghostmem_bench::{BenchArgs, EXIT as BENCH_EXIT};

use crate::plain::PlainOptions;
use crate::run::{Limit, parse_limit};
use crate::size::{Amount, parse_amount, parse_nonzero_size, parse_size};

/// More memory than there is: cold pages are compressed, in user space, without privileges.
#[derive(Debug, Parser)]
#[command(name = "ghostmem", version, arg_required_else_help = true)]
#[command(after_help = "Run 'ghostmem COMMAND --help' for what a command does and returns.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a program, unchanged, with its memory on GhostMem
    #[command(after_help = RUN_EXIT)]
    Run(RunArgs),
    /// Put real files on a heap with a small limit, work on them, verify every byte, and measure
    #[command(after_help = DEMO_EXIT)]
    Demo(DemoArgs),
    /// Say what this machine allows, which fault backend is used and why, and what unlocks more
    #[command(after_help = DOCTOR_EXIT)]
    Doctor(DoctorArgs),
    /// Measure GhostMem beside zram, zswap, swap on disk, mapped files and plain memory
    #[command(after_help = BENCH_EXIT)]
    Bench(Box<BenchArgs>),
    /// The demo's work on the ordinary allocator: job on standard input, result on standard output
    #[command(hide = true)]
    DemoBaseline,
}

const RUN_EXIT: &str = "\
Examples:
  ghostmem run --memory 300M -- python3 train.py
  ghostmem run --memory 25% --stats -- sort -S 2G big.txt
  ghostmem run --no-children -- make
  ghostmem run --limit 1G --spill /var/tmp --spill-limit 20G -- ./solver

--memory holds the program and all it starts together, with everything they take of the machine.
--limit is for the uncompressed ghost pages of each process alone. Programs started by the program
run in the same way, unless --no-children is given.

Exit code:
  the program's own, as it becomes the program; 125 when an option or the machine stands against
  it, 126 when the program cannot be run with GhostMem or the library refused to start inside it,
  127 when there is no such program. A line on standard error says why.";

const DEMO_EXIT: &str = "\
Examples:
  ghostmem demo                             1 GiB of this machine's files, limit 128 MiB
  ghostmem demo --limit 4M                  the same under 4 MiB
  ghostmem demo --size 4M --limit 20K       five pages
  ghostmem demo --size 256M --memory 400M   400 MiB for the whole process, however they are used
  ghostmem demo ~/src --limit 10% --json    your own files, result for machines

Exit code:
  0  everything verified, memory within limit + store + 5 % + 16 MiB (24 MiB with --spill), or
     within --memory, and ghost pages within the limit (a tiny limit may be exceeded by 68 pages
     for a stuck thread; the report says so)
  1  a checksum was wrong or memory exceeded that
  2  the demo could not run: bad input, unreadable file, no usable fault backend, or more data
     than --memory holds, with a number that would";

const DOCTOR_EXIT: &str = "\
Exit code:
  0  a fast backend works: inline or monitor (userfaultfd)
  1  only guard works (SIGSEGV and a second mapping): correct, but slower
  2  nothing works here";

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The most that the program and all it starts take of the machine together: bytes, K, M, G,
    /// a percentage of the machine's memory (or of the control group's limit), or auto: what
    /// control groups and the machine leave, which counts in any case
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = parse_limit,
        allow_negative_numbers = true)]
    pub(crate) memory: Limit,
    /// Uncompressed ghost memory each process may keep: a size as for --memory, or auto: what the
    /// memory leaves
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = parse_limit,
        allow_negative_numbers = true)]
    pub(crate) limit: Limit,
    #[command(flatten)]
    pub(crate) plain: PlainOptions,
    #[command(flatten)]
    pub(crate) spill: SpillArgs,
    /// How faults are noticed
    #[arg(long, value_enum, default_value_t = BackendName::Auto)]
    pub(crate) backend: BackendName,
    /// Small blocks too: on, off (below 32K), or the size from which on blocks are ghost memory
    #[arg(long, value_name = "on|off|SIZE", default_value = "on", value_parser = parse_small)]
    pub(crate) small: SmallBlocks,
    /// Take over private anonymous mappings too, those of at least this size, or none (off)
    // A size after a space is joined to it before: see `run::join_sizes`.
    #[arg(long, value_name = "SIZE|off", num_args = 0..=1, require_equals = true,
        default_value = "64K", default_missing_value = "64K", value_parser = parse_mmap)]
    pub(crate) mmap: u64,
    /// Programs started by the program run without GhostMem
    #[arg(long)]
    pub(crate) no_children: bool,
    /// Record which pages the program touches, for `ghostmem bench lab --trace FILE`; the limit is
    /// how many pages go unseen at a time [default with this: 256K]. Programs started by the
    /// program run without GhostMem
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

/// A file for what memory has no room for.
#[derive(Args, Debug)]
pub(crate) struct SpillArgs {
    /// Move cold compressed pages to a nameless, encrypted file in this folder when memory has its
    /// share of them
    #[arg(long, value_name = "DIR")]
    pub(crate) spill: Option<PathBuf>,
    /// Most bytes of the file of each process [default: what the disk allows]
    #[arg(long, value_name = "SIZE", requires = "spill", value_parser = parse_nonzero_size,
        allow_negative_numbers = true)]
    pub(crate) spill_limit: Option<u64>,
    /// Compressed pages that stay in memory before the coldest go to the file; 0: none [default:
    /// what --memory-limit leaves, else as many bytes as may be uncompressed]
    #[arg(long, value_name = "SIZE", requires = "spill", value_parser = parse_size,
        allow_negative_numbers = true)]
    pub(crate) spill_store: Option<u64>,
}

/// Which small blocks are ghost memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SmallBlocks {
    /// All.
    Ghost,
    /// None.
    Ordinary,
    /// Those of at least this many bytes.
    GhostFrom(u64),
}

/// A size, or 0 for none.
fn parse_mmap(text: &str) -> Result<u64, String> {
    if text == "off" {
        return Ok(0);
    }
    parse_nonzero_size(text).map_err(|why| format!("{why}; or write off"))
}

fn parse_small(text: &str) -> Result<SmallBlocks, String> {
    match text {
        "on" => Ok(SmallBlocks::Ghost),
        "off" => Ok(SmallBlocks::Ordinary),
        _ => parse_size(text)
            .map(SmallBlocks::GhostFrom)
            .map_err(|why| format!("{why}; or write on or off")),
    }
}

#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Files and folders to load [default: text, source and binaries found on this machine]
    pub(crate) paths: Vec<PathBuf>,
    /// Uncompressed memory the heap may keep: bytes, K, M, G, or a percentage of the data [default:
    /// 12.5%, or what --memory leaves]
    #[arg(long, value_name = "SIZE", value_parser = parse_amount)]
    pub(crate) limit: Option<Amount>,
    /// The most that the demo takes of the machine: uncompressed and compressed pages, tables, and
    /// memory that is not the heap's
    #[arg(long, value_name = "SIZE", value_parser = parse_nonzero_size,
        allow_negative_numbers = true)]
    pub(crate) memory: Option<u64>,
    /// Data to load at least; files are repeated, rotated, to reach it [default: 1G, or the files
    /// named]
    #[arg(long, value_name = "SIZE", value_parser = parse_nonzero_size)]
    pub(crate) size: Option<u64>,
    /// Threads that work [default: one per processor, at least 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: Option<u16>,
    #[command(flatten)]
    pub(crate) spill: SpillArgs,
    /// How faults are noticed
    #[arg(long, value_enum, default_value_t = BackendName::Auto)]
    pub(crate) backend: BackendName,
    /// Leave out the same work without GhostMem
    #[arg(long)]
    pub(crate) no_baseline: bool,
    /// Seed of look-ups and updates
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Print one JSON object and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum BackendName {
    /// The best that works here
    Auto,
    /// userfaultfd, resolved on the faulting thread
    Inline,
    /// userfaultfd, resolved by engine threads
    Monitor,
    /// Guard pages and SIGSEGV
    Guard,
    /// The same by mprotect alone, as on kernels before 6.15
    GuardMprotect,
}

impl From<BackendName> for Backend {
    fn from(name: BackendName) -> Self {
        match name {
            BackendName::Auto => Self::Auto,
            BackendName::Inline => Self::Inline,
            BackendName::Monitor => Self::Monitor,
            BackendName::Guard => Self::Guard,
            BackendName::GuardMprotect => Self::GuardMprotect,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use clap::CommandFactory;
    use ghostmem::settings::SETTINGS;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// The options of a command, without the dashes.
    fn options(command: &str) -> Vec<String> {
        let cli = Cli::command();
        let command = cli.find_subcommand(command).unwrap();
        let names = command.get_opts().filter_map(clap::Arg::get_long);
        names.map(str::to_owned).collect()
    }

    #[test]
    fn the_options_of_run_are_those_of_the_table_and_of_its_page() {
        let page = include_str!("../../../docs/run.md");
        let table: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `--"))
            .collect();
        let written = |option: &str| {
            let name = format!("`--{option}");
            let ends = |rest: &str| rest.starts_with(['`', ' ', '[']);
            let mut cells = table.iter().flat_map(|line| line.split('|').nth(1));
            cells.any(|cell| cell.split(&name).skip(1).any(ends))
        };
        let said = SETTINGS.iter().filter_map(|setting| setting.option);
        let mut said: Vec<String> = said.map(str::to_owned).collect();
        let mut there = options("run");
        said.sort();
        there.sort();
        assert_eq!(there, said, "the options of run, those of the table");
        for option in there {
            assert!(
                written(&option),
                "docs/run.md has no --{option} in its table"
            );
        }
    }

    #[test]
    fn the_options_of_demo_mean_what_they_mean_for_run() {
        let own = ["size", "threads", "no-baseline", "seed", "json"];
        for option in options("demo") {
            let shared = SETTINGS.iter().any(|row| row.option == Some(&option));
            assert!(shared != own.contains(&option.as_str()), "--{option}");
        }
    }
}

//! What can be said to the command.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::list::{PROGRAMS, Program};
use crate::error::{Error, Result};

/// Who runs the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Contender {
    /// The program as it is, without a limit; always measured
    Plain,
    /// The program in a control group that swaps to zram, compressed by lz4
    Zram,
    /// The program under `ghostmem run --memory`, with the total of zram
    Ghost,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Zram => "zram",
            Self::Ghost => "ghost",
        })
    }
}

/// Arguments of `programs`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProgramsArgs {
    /// `all`, or some of dictionary, records, database, arrays, noise, buffers, redis, gxx,
    /// node, ruby, postgresql, git [default: all, or none where there is a --command]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    programs: Vec<String>,
    /// A program of yours, for /bin/sh; it must print the same in each run. As often as you
    /// like: they are named command-1, command-2 and so on
    #[arg(long = "command", value_name = "COMMAND")]
    pub(super) commands: Vec<String>,
    /// Limits of the group that swaps, as percentages of the program's plain total
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', default_value = "50,30",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) limit_percent: Vec<u32>,
    /// Whom to measure beside the plain program
    #[arg(
        long,
        value_enum,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "zram,ghost"
    )]
    contenders: Vec<Contender>,
    /// Repetitions of each contender at each limit
    #[arg(long, default_value_t = 3)]
    pub(super) repetitions: u32,
    /// Factor on how much the programs work on; commands take none
    #[arg(long, default_value_t = 1.0)]
    pub(super) scale: f64,
    /// Seconds after which a run is stopped and its contender left out at this limit
    #[arg(long, default_value_t = 180)]
    pub(super) timeout: u64,
    /// One row per run, as CSV
    #[arg(long, value_name = "FILE")]
    pub(super) csv: Option<PathBuf>,
    /// A picture of each program, DIR/NAME.svg: overhead over total memory
    #[arg(long, value_name = "DIR")]
    pub(super) plots: Option<PathBuf>,
    /// The command to run programs with [default: this one, or the one beside it]
    #[arg(long, value_name = "FILE")]
    ghostmem: Option<PathBuf>,
    /// An option of `ghostmem run` beside --memory, as often as you like:
    /// --run-option=--backend=guard
    #[arg(long = "run-option", value_name = "OPTION", allow_hyphen_values = true)]
    pub(super) run_options: Vec<String>,
}

impl ProgramsArgs {
    /// Those beside plain, each once.
    pub(super) fn contenders(&self) -> Vec<Contender> {
        let mut contenders = self.contenders.clone();
        contenders.retain(|&contender| contender != Contender::Plain);
        contenders.sort_unstable();
        contenders.dedup();
        contenders
    }

    /// The programs asked for, in the order of their list.
    pub(super) fn programs(&self) -> Result<Vec<&'static Program>> {
        let all = self.programs.iter().any(|name| name == "all")
            || self.programs.is_empty() && self.commands.is_empty();
        let names = || PROGRAMS.iter().map(|program| program.name);
        if let Some(unknown) = self
            .programs
            .iter()
            .find(|&name| name != "all" && !names().any(|known| known == name))
        {
            let names: Vec<&str> = names().collect();
            return Err(Error::Failed(format!(
                "--programs: no program named {unknown}: all, {}",
                names.join(", ")
            )));
        }
        Ok(PROGRAMS
            .iter()
            .filter(|program| all || self.programs.iter().any(|name| name == program.name))
            .collect())
    }

    /// The `ghostmem` command.
    pub(super) fn ghostmem(&self, inside: bool) -> Result<PathBuf> {
        if let Some(path) = &self.ghostmem {
            return Ok(path.clone());
        }
        let own = std::env::current_exe().map_err(|err| Error::io("own executable", &err))?;
        if inside {
            return Ok(own);
        }
        let beside = own.parent().unwrap_or(Path::new(".")).join("ghostmem");
        if beside.is_file() {
            return Ok(beside);
        }
        Err(Error::Failed(format!(
            "there is no {}: build the ghostmem command, or name one with --ghostmem",
            beside.display()
        )))
    }
}

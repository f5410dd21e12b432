//! `ghostmem bench`: GhostMem and what a user would pick instead, side by side.
//!
//! Every repetition measures every contender once, in an order that is turned
//! round each time, so that a machine that warms up or slows down treats all
//! alike. Each ratio in the tables is the median of the ratios within
//! repetitions. What the machine does not allow is left out and listed, with
//! the reason.

mod args;
mod charts;
mod measure;
mod page;
mod progress;
mod records;
mod rig;
mod tables;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::child::Run;
use crate::contenders::{BACKENDS, Kind, peer};
use crate::data::Mix;
use crate::error::{Error, Result};
use crate::options::DataArgs;
use crate::small;
use crate::work::Pattern;
use args::Common;
pub(crate) use args::{CompareArgs, ZramArgs};
use measure::measure_all;
use rig::Rig;

/// What is to be measured.
struct Setup {
    data: DataArgs,
    /// Resident limits, bytes, largest first.
    limits: Vec<u64>,
    repetitions: u32,
    contenders: Vec<Kind>,
    patterns: Vec<Pattern>,
    /// What children load for the peer.
    peer: Vec<PathBuf>,
    common: Common,
}

/// Everything measured, as `--json` has it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Machine, kernel, command, revision.
    machine: Value,
    /// What the data set was made of.
    mix: Value,
    /// Bytes of the data set.
    data_bytes: u64,
    /// Each repetition of each contender under each limit.
    runs: Vec<Run>,
    /// The small patterns: contender, repetition, outcome.
    small: Vec<(Kind, u32, small::Outcome)>,
    /// Who was left out under which limit, and why.
    skipped: Vec<(Kind, u64, String)>,
}

impl Record {
    /// The limits measured, largest first.
    fn limits(&self) -> Vec<u64> {
        let mut limits: Vec<u64> = self.runs.iter().map(|run| run.resident_limit).collect();
        limits.sort_unstable_by(|a, b| b.cmp(a));
        limits.dedup();
        limits
    }

    /// How many repetitions it has.
    fn repetitions(&self) -> u32 {
        let runs = self.runs.iter().map(|run| run.repetition + 1);
        runs.max().unwrap_or(0)
    }

    /// Data over a limit.
    fn ratio(&self, limit: u64) -> f64 {
        self.data_bytes as f64 / limit as f64
    }

    /// Who was measured, in the order of their names' list.
    fn contenders(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self.runs.iter().map(|run| run.contender.clone()).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }
}

/// Runs the comparison. `call` is how this program is asked for a measured
/// process.
pub(crate) fn run(args: &CompareArgs, call: &[&str]) -> Result<()> {
    let mut contenders = Vec::new();
    for name in &args.contenders {
        match name.as_str() {
            "all" => contenders.extend(Kind::all(args.peer.is_some())),
            name => contenders.push(name.parse().map_err(Error::Failed)?),
        }
    }
    if contenders.contains(&Kind::Peer) && args.peer.is_none() {
        return Err(Error::Failed("the contender peer needs --peer FILE".into()));
    }
    if args.peer.is_some() && !contenders.contains(&Kind::Peer) {
        contenders.push(Kind::Peer);
    }
    if args
        .ratios
        .iter()
        .any(|ratio| !(0.1..=1000.0).contains(ratio))
    {
        return Err(Error::Failed("--ratios: 0.1 to 1000".into()));
    }
    let page = crate::buffer::PAGE_SIZE as u64;
    let mut limits: Vec<u64> = args
        .ratios
        .iter()
        .map(|ratio| (args.data.size.0 as f64 / ratio) as u64 / page * page)
        .collect();
    limits.sort_unstable_by(|a, b| b.cmp(a));
    limits.dedup();
    // Holds the compiled shim until the end.
    let shim = Directory::create()?;
    let mut peer: Vec<PathBuf> = args.peer.iter().cloned().collect();
    if let Some(include) = &args.peer_include {
        peer.push(peer::compile_shim(include, shim.path())?);
    }
    let workload = if args.workload.is_empty() {
        Pattern::ALL.to_vec()
    } else {
        args.workload.clone()
    };
    measure_all(
        &Setup {
            data: args.data.clone(),
            limits,
            repetitions: args.repetitions,
            contenders,
            patterns: in_order(&workload),
            peer,
            common: args.common.clone(),
        },
        call,
    )
}

/// Runs `zram`: GhostMem's backends beside one kind of zram.
pub(crate) fn run_zram(args: &ZramArgs, call: &[&str]) -> Result<()> {
    let mut contenders = Vec::new();
    if !args.no_zram {
        contenders.push(Kind::Zram(args.algorithm.clone()));
    }
    for name in &args.backend {
        match name.as_str() {
            "all" => contenders.extend(BACKENDS.map(Kind::Ghost)),
            "none" => {}
            name if BACKENDS.contains(&name) => {
                contenders.push(name.parse().map_err(Error::Failed)?);
            }
            name => return Err(Error::Failed(format!("no backend named {name}"))),
        }
    }
    // Refuse before spending time on the data.
    for kind in contenders
        .iter()
        .filter(|kind| matches!(kind, Kind::Zram(_)))
    {
        drop(Rig::set_up(kind, args.data.size.0, &args.common.scratch)?);
    }
    measure_all(
        &Setup {
            data: args.data.clone(),
            limits: vec![args.resident.0],
            repetitions: args.pairs,
            contenders,
            patterns: in_order(&args.workload),
            peer: Vec::new(),
            common: args.common.clone(),
        },
        call,
    )
}

fn in_order(asked: &[Pattern]) -> Vec<Pattern> {
    let all = Pattern::ALL.into_iter();
    all.filter(|pattern| asked.contains(pattern)).collect()
}

/// A directory of ours for files of one run, removed on drop.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ghostmem-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|err| Error::io(path.display(), &err))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Prints what the data set is made of.
pub(crate) fn report_mix(mix: &Mix, bytes: u64) {
    eprint!("data set: {} MiB, LZ4 ratio {:.2}:", bytes >> 20, mix.ratio);
    for (name, share, ratio) in &mix.kinds {
        eprint!(" {name} {:.0}% ({ratio:.2})", share * 100.0);
    }
    eprintln!();
}

fn mix_json(mix: &Mix) -> Value {
    serde_json::json!({
        "lz4_ratio": mix.ratio,
        "kinds": mix.kinds.iter().map(|(name, share, ratio)| serde_json::json!({
            "kind": name, "share": share, "lz4_ratio": ratio,
        })).collect::<Vec<_>>(),
    })
}

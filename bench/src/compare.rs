//! `ghostmem bench`: GhostMem and what a user would pick instead, side by side.
//!
//! Every repetition measures every contender once, in an order that is turned
//! round each time, so that a machine that warms up or slows down treats all
//! alike. Each ratio in the tables is the median of the ratios within
//! repetitions. What the machine does not allow is left out and listed, with
//! the reason.

mod charts;
mod page;
mod records;
mod rig;
mod tables;

use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::child::{Job, Line, Run, bound};
use crate::contenders::{BACKENDS, Kind, peer};
use crate::data::{DataSet, Mix};
use crate::error::{Error, Result};
use crate::options::{DataArgs, Size};
use crate::report;
use crate::small;
use crate::sys::{self, Mapping};
use crate::work::Pattern;
use rig::Rig;

/// How the comparison is made and where it goes.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Numbers of touching threads, 1 to 8
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<u32>,
    /// Factor on the number of touches
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Seconds after which a measured process is stopped and its contender left out
    #[arg(long, default_value_t = 300)]
    timeout: u64,
    /// Do not touch the machine's memory first
    #[arg(long)]
    no_warm: bool,
    /// Everything measured, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// One row per measurement, as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Plots, as one HTML page that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Directory on a local disk for swap files and mapped files
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
}

/// Arguments of the comparison.
#[derive(Debug, Clone, Args)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Data over the memory that may be resident
    #[arg(long, value_delimiter = ',', default_value = "4")]
    ratios: Vec<f64>,
    /// Repetitions of each contender
    #[arg(long, default_value_t = 3)]
    repetitions: u32,
    /// `all`, or some of plain, inline, monitor, guard, guard-mprotect, zram-COMPRESSOR, zswap,
    /// disk, file, peer
    #[arg(long, value_delimiter = ',', default_value = "all")]
    contenders: Vec<String>,
    /// Workloads, always run in the order of this list; default: all
    #[arg(long, value_enum, value_delimiter = ',')]
    workload: Vec<Pattern>,
    /// A shared library with the C++ interface of GhostMemoryManager, to compare with
    #[arg(long, value_name = "FILE")]
    peer: Option<PathBuf>,
    /// The directory that has its header ghostmem/GhostMemoryManager.h; without it the
    /// library's limit is what it was built with
    #[arg(long, value_name = "DIR", requires = "peer")]
    peer_include: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `zram`, the shorter comparison.
#[derive(Debug, Clone, Args)]
pub(crate) struct ZramArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Bytes of the buffer that may be resident
    #[arg(long, default_value = "256M")]
    resident: Size,
    /// Repetitions of each contender
    #[arg(long, default_value_t = 3)]
    pairs: u32,
    /// Workloads, always run in the order of this list
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "seq-read,random-read,random-write,zipf-read"
    )]
    workload: Vec<Pattern>,
    /// GhostMem backends: `all`, or some of inline, monitor, guard, guard-mprotect; `none`
    /// measures zram alone
    #[arg(long, value_delimiter = ',', default_value = "all")]
    backend: Vec<String>,
    /// Compression algorithm of zram
    #[arg(long, default_value = "lz4")]
    algorithm: String,
    /// Leave zram out; needs no privilege
    #[arg(long)]
    no_zram: bool,
    #[command(flatten)]
    common: Common,
}

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
    let page = crate::buffer::PAGE as u64;
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

/// A directory of ours for a compiled file, removed on drop.
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ghostmem-bench-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|err| Error::io(path.display(), &err))?;
        Ok(Self(path))
    }

    fn path(&self) -> &std::path::Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How often a contender is started that the kernel kills.
const ATTEMPTS: u32 = 3;
/// Rounds of the small patterns in one repetition.
const SMALL_ROUNDS: u32 = 200;

fn measure_all(setup: &Setup, call: &[&str]) -> Result<()> {
    let common = &setup.common;
    sys::catch_signals().map_err(|err| Error::io("sigaction", &err))?;
    if setup.repetitions == 0 || setup.contenders.is_empty() {
        return Err(Error::Failed("nothing to measure".into()));
    }
    let threads_max = common.threads.iter().copied().max().unwrap_or(1);
    let (data, mix) = setup.data.build(threads_max)?;
    report_mix(&mix, setup.data.size.0);
    if !common.no_warm {
        warm(setup.data.size.0)?;
    }
    let mut record = Record {
        machine: report::machine(),
        mix: mix_json(&mix),
        data_bytes: u64::from(data.pages()) * crate::buffer::PAGE as u64,
        runs: Vec::new(),
        small: Vec::new(),
        skipped: Vec::new(),
    };
    let steps = setup.patterns.len() * common.threads.len() + 1;
    let children = setup.repetitions as usize * setup.limits.len() * setup.contenders.len();
    let progress = Progress::new((steps * children) as u64);
    for repetition in 0..setup.repetitions {
        for &limit in &setup.limits {
            let mut order = setup.contenders.clone();
            if repetition % 2 == 1 {
                order.reverse();
            }
            for kind in order {
                // One limit is all that memory without a limit needs, and one
                // repetition all that the slow ones get.
                let again = kind == Kind::Plain && limit != setup.limits[0];
                let slow = kind.is_slow() && repetition > 0;
                let out = record
                    .skipped
                    .iter()
                    .any(|(skipped, at, _)| *skipped == kind && *at == limit);
                if !(again || slow || out) {
                    let ratio = setup.data.size.0 as f64 / limit as f64;
                    progress.begin(&kind, ratio, repetition);
                    match measure(setup, call, &data, mix.ratio, &kind, limit, &progress) {
                        Ok(mut run) => {
                            run.repetition = repetition;
                            record.runs.push(run);
                        }
                        Err(Error::Skipped(why)) => record.skipped.push((kind, limit, why)),
                        Err(err) => return Err(err),
                    }
                }
                progress.child_done(steps as u64);
            }
        }
        if !setup.peer.is_empty() {
            let mut order = vec![Kind::INLINE, Kind::Peer];
            if repetition % 2 == 1 {
                order.reverse();
            }
            for kind in order {
                let outcome = measure_small(setup, call, &data, &kind, &progress)?;
                record.small.push((kind, repetition, outcome));
            }
        }
    }
    drop(progress);
    tables::print(&record, &setup.patterns);
    if let Some(path) = &common.json {
        let value = serde_json::to_value(&record)
            .map_err(|err| Error::Failed(format!("the record as JSON: {err}")))?;
        report::write_json(path, &value)?;
    }
    if let Some(path) = &common.csv {
        records::write_csv(path, &record)?;
    }
    if let Some(path) = &common.html {
        page::write(path, &record)?;
    }
    if record.runs.is_empty() {
        return Err(Error::Skipped("no contender could be measured".into()));
    }
    Ok(())
}

/// Touches memory the machine may not have used yet: a guest's first touch of
/// a page can cost many times the later ones, and would hit whoever is first.
fn warm(size: u64) -> Result<()> {
    let available = report::meminfo_bytes("MemAvailable");
    let bytes = (size * 3).min(available / 10 * 8) as usize;
    eprintln!("warming {} MiB of the machine's memory", bytes >> 20);
    let mapping = Mapping::anonymous(bytes).map_err(|err| Error::io("mmap", &err))?;
    mapping
        .populate()
        .map_err(|err| Error::io("populating memory", &err))
}

fn job(setup: &Setup, data: &DataSet, kind: &Kind, limit: u64, rig: &Rig) -> Job {
    let slow = if kind.is_slow() { 8.0 } else { 1.0 };
    Job {
        kind: kind.clone(),
        fd: data.fd(),
        pages: data.pages(),
        slots: data.slots(),
        resident: limit,
        bound: 0,
        threads: setup.common.threads.clone(),
        scale: setup.common.scale / slow,
        workloads: setup
            .patterns
            .iter()
            .map(|pattern| pattern.name().to_owned())
            .collect(),
        cgroup: rig.group_dir(),
        device: rig.device(),
        scratch: setup.common.scratch.clone(),
        peer: setup.peer.clone(),
        small_rounds: None,
    }
}

/// Measures one contender in a child process.
fn measure(
    setup: &Setup,
    call: &[&str],
    data: &DataSet,
    lz4_ratio: f64,
    kind: &Kind,
    limit: u64,
    progress: &Progress,
) -> Result<Run> {
    for _ in 0..ATTEMPTS {
        let rig = Rig::set_up(kind, setup.data.size.0, &setup.common.scratch)?;
        let job = Job {
            bound: bound(data.pages(), limit, lz4_ratio),
            ..job(setup, data, kind, limit, &rig)
        };
        match rig.child(call, &job, setup.common.timeout, progress) {
            Ok(Line::Run(run)) => return Ok(*run),
            Ok(_) => return Err(Error::Failed(format!("{kind}: an answer of another kind"))),
            // GhostMem has to keep within its bound; the kernel at times finds
            // nothing to reclaim although most could be swapped out.
            Err(Error::Killed(doing)) if !matches!(kind, Kind::Ghost(_)) => {
                eprintln!("{kind}: killed for lack of memory in its cgroup, at {doing}");
            }
            Err(err) => return Err(err),
        }
    }
    Err(Error::Skipped(format!(
        "the kernel killed it {ATTEMPTS} times for lack of memory in its cgroup"
    )))
}

fn measure_small(
    setup: &Setup,
    call: &[&str],
    data: &DataSet,
    kind: &Kind,
    progress: &Progress,
) -> Result<small::Outcome> {
    let rig = Rig::none();
    let job = Job {
        small_rounds: Some(SMALL_ROUNDS),
        ..job(setup, data, kind, 0, &rig)
    };
    match rig.child(call, &job, setup.common.timeout, progress)? {
        Line::Small(outcome) => Ok(outcome),
        _ => Err(Error::Failed(format!("{kind}: an answer of another kind"))),
    }
}

/// A bar on standard error; on no terminal, a line per measured process.
struct Progress {
    bar: ProgressBar,
    done: std::cell::Cell<u64>,
}

impl Progress {
    fn new(steps: u64) -> Self {
        // Drawing at most 5 times a second keeps the bar out of the measurement.
        let target = ProgressDrawTarget::stderr_with_hz(5);
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let template = "{prefix:<28} {msg:<24} [{bar:30}] {percent:>3} % {elapsed} left {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            done: std::cell::Cell::new(0),
        }
    }

    fn begin(&self, kind: &Kind, ratio: f64, repetition: u32) {
        let text = format!("{}: {kind}, data {ratio:.1}x", repetition + 1);
        if self.bar.is_hidden() {
            eprintln!("{text}");
        }
        self.bar.set_prefix(text);
    }

    fn at(&self, what: String) {
        self.bar.set_message(what);
        self.bar.inc(1);
    }

    fn child_done(&self, steps: u64) {
        self.done.set(self.done.get() + steps);
        self.bar.set_position(self.done.get());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
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

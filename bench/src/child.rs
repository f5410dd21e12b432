//! The measured process: one contender, all workloads, lines of JSON.
//!
//! Every measurement runs in a process of its own, so that peak memory, fault
//! counts and signal handlers belong to one contender. It is told its job as
//! one argument and answers on standard output, one [`Line`] at a time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::buffer::PAGE_SIZE;
use crate::cgroup::Cgroup;
use crate::contenders::ghost::Ghost;
use crate::contenders::kernel::{Beyond, Kernel};
use crate::contenders::peer::Peer;
use crate::contenders::{Contender, Figures, Kind, zswap};
use crate::data::DataSet;
use crate::error::{Error, Result};
use crate::report::status_bytes;
use crate::small;
use crate::sys;
use crate::work::{self, Pattern, Plan, Timing, Versions, objects, words};

/// What the parent passes on the command line.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChildArgs {
    /// A [`Job`] as JSON.
    #[arg(long)]
    job: String,
}

/// What one child is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Who is measured.
    pub(crate) kind: Kind,
    /// Descriptor of the data set.
    pub(crate) fd: i32,
    /// Pages of the data set.
    pub(crate) pages: u32,
    /// Tags per page.
    pub(crate) slots: u32,
    /// Bytes of the buffer that may be resident.
    pub(crate) resident: u64,
    /// Bytes that GhostMem may be charged in all: resident pages, compressed
    /// pages, metadata.
    pub(crate) bound: u64,
    /// Thread counts.
    pub(crate) threads: Vec<u32>,
    /// Factor on the number of touches.
    pub(crate) scale: f64,
    /// Names of the workloads ([`Pattern::name`]).
    pub(crate) workloads: Vec<String>,
    /// Cgroup to join, if there is one.
    pub(crate) cgroup: Option<PathBuf>,
    /// zram device swapped to.
    pub(crate) device: Option<String>,
    /// Directory for files.
    pub(crate) scratch: PathBuf,
    /// The peer's library, and the shim for it if there is one.
    pub(crate) peer: Vec<PathBuf>,
    /// Only the small patterns, so many times each.
    pub(crate) small_rounds: Option<u32>,
}

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// It begins with something.
    At(String),
    /// What it measured; the last line.
    Run(Box<Run>),
    /// The outcome of the small patterns; the last line.
    Small(small::Outcome),
    /// The machine does not allow it; the last line.
    Skipped(String),
    /// Something went wrong; the last line.
    Failed(String),
}

impl Line {
    fn say(&self) -> Result<()> {
        let text = serde_json::to_string(self)
            .map_err(|err| Error::Failed(format!("a result as JSON: {err}")))?;
        println!("{text}");
        Ok(())
    }
}

/// What one child measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Who.
    pub(crate) contender: Kind,
    /// Under which limit, bytes.
    pub(crate) resident_limit: u64,
    /// Which repetition, from 0; set by the parent.
    pub(crate) repetition: u32,
    /// Nanoseconds per page of the first fill.
    pub(crate) fill_ns_per_page: f64,
    /// By thread count and workload, in the order they ran.
    pub(crate) results: Vec<Outcome>,
    /// What was held at the end.
    pub(crate) end: Figures,
    /// Largest resident size of the process, bytes.
    pub(crate) peak_rss: u64,
    /// Its resident size before the buffer was made, bytes.
    pub(crate) baseline_rss: u64,
    /// Memory over time.
    pub(crate) timeline: Vec<Sample>,
    /// Whether a cgroup bounded what GhostMem was charged.
    pub(crate) proved: bool,
}

/// One workload with one thread count.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// [`Pattern::name`].
    pub(crate) workload: String,
    /// Touching threads.
    pub(crate) threads: u32,
    /// Timed touches of all threads.
    pub(crate) touches: u64,
    /// Wall-clock time over touches.
    pub(crate) ns_per_touch: f64,
    /// Processor time of the process over touches.
    pub(crate) cpu_ns_per_touch: f64,
    /// Faults over touches.
    pub(crate) faults_per_touch: f64,
    /// Of single touches, where they were timed.
    pub(crate) latency: Option<Latency>,
    /// Held when the workload ended.
    pub(crate) memory: Figures,
    /// The contender's own counters so far.
    pub(crate) counters_so_far: Value,
}

/// Latencies of single touches, nanoseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Touches timed.
    pub(crate) touches: u64,
    /// Half were faster.
    pub(crate) p50: u64,
    /// 99 of 100 were faster.
    pub(crate) p99: u64,
    /// 999 of 1000 were faster.
    pub(crate) p999: u64,
    /// The slowest.
    pub(crate) max: u64,
    /// Share of the touches that were no slower, and that many nanoseconds.
    pub(crate) curve: Vec<(f64, u64)>,
}

/// Memory at a moment.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Milliseconds since the buffer was made.
    pub(crate) at_ms: u64,
    /// Uncompressed, bytes.
    pub(crate) resident: u64,
    /// For compressed pages and tables, bytes.
    pub(crate) held: u64,
}

/// Milliseconds between two samples.
const SAMPLE_MS: u64 = 50;

/// Runs the child.
pub(crate) fn run(args: &ChildArgs) -> Result<()> {
    sys::die_with_parent().map_err(|err| Error::io("prctl", &err))?;
    let job: Job =
        serde_json::from_str(&args.job).map_err(|err| Error::Failed(format!("--job: {err}")))?;
    let line = match measure(&job) {
        Ok(line) => line,
        Err(Error::Skipped(why)) => Line::Skipped(why),
        Err(Error::Failed(why)) => Line::Failed(why),
        Err(err @ (Error::Interrupted | Error::Killed(_))) => return Err(err),
    };
    line.say()
}

fn measure(job: &Job) -> Result<Line> {
    if let Some(dir) = &job.cgroup {
        // First of all: what is allocated from here on is charged there.
        Cgroup::open(dir.clone()).join()?;
    }
    if let Some(rounds) = job.small_rounds {
        return small::run(&job.kind, &job.peer, rounds).map(Line::Small);
    }
    let data = DataSet::inherit(job.fd, job.pages, job.slots)?;
    let mut versions = Versions::new(job.pages, job.slots);
    let mut steps = Vec::new();
    for &threads in &job.threads {
        for pattern in Pattern::ALL {
            if job.workloads.iter().any(|name| name == pattern.name()) {
                let plan = Plan::new(pattern, job.pages, threads, job.scale);
                steps.push((pattern, threads, plan));
            }
        }
    }
    let sum = if steps.iter().any(|(p, ..)| *p == Pattern::WordCount) {
        Some(words::expected(&data)?)
    } else {
        None
    };
    let baseline_rss = status_bytes("VmRSS");
    let mut contender = open(job)?;
    let mut run = Run {
        contender: job.kind.clone(),
        resident_limit: job.resident,
        repetition: 0,
        fill_ns_per_page: 0.0,
        results: Vec::new(),
        end: Figures::default(),
        peak_rss: 0,
        baseline_rss,
        timeline: Vec::new(),
        proved: job.cgroup.is_some() && job.kind.is_ghost(),
    };
    let over = AtomicBool::new(false);
    let probe = contender.probe();
    let (outcome, timeline) = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let start = Instant::now();
            let mut samples = Vec::new();
            while !over.load(Ordering::Relaxed) {
                if let Ok(figures) = probe() {
                    samples.push(Sample {
                        at_ms: start.elapsed().as_millis() as u64,
                        resident: figures.resident,
                        held: figures.held + figures.metadata,
                    });
                }
                std::thread::sleep(Duration::from_millis(SAMPLE_MS));
            }
            samples
        });
        let outcome = work_through(
            &steps,
            &mut *contender,
            &data,
            &mut versions,
            (sum, job.scale),
            &mut run,
        );
        over.store(true, Ordering::Relaxed);
        (outcome, sampler.join().unwrap_or_default())
    });
    outcome?;
    run.timeline = timeline;
    run.end = contender.probe()()?;
    run.peak_rss = status_bytes("VmHWM");
    Ok(Line::Run(Box::new(run)))
}

fn open(job: &Job) -> Result<Box<dyn Contender>> {
    let group = job.cgroup.clone().map(Cgroup::open);
    let kernel = |beyond, group| -> Result<Box<dyn Contender>> {
        let opened = Kernel::open(beyond, group, job.pages, job.resident, &job.scratch)?;
        Ok(Box::new(opened))
    };
    match &job.kind {
        Kind::Ghost(backend) => Ok(Box::new(match group {
            Some(group) => Ghost::open_in(group, job.bound, backend, job.pages, job.resident)?,
            None => Ghost::open(backend, job.pages, job.resident)?,
        })),
        Kind::Spill | Kind::SpillIdle => Ok(Box::new(Ghost::open_spilling(
            group,
            job.bound,
            job.pages,
            job.resident,
            &job.scratch,
            job.kind == Kind::SpillIdle,
        )?)),
        Kind::Peer => Ok(Box::new(Peer::open(&job.peer, job.pages, job.resident)?)),
        Kind::Plain => kernel(Beyond::Nothing, group),
        Kind::Zram(_) => {
            let device = job
                .device
                .clone()
                .ok_or_else(|| Error::Failed("no device".into()))?;
            kernel(Beyond::Zram(device), group)
        }
        Kind::Zswap => kernel(Beyond::Zswap(zswap::pool_bytes()), group),
        Kind::Disk => kernel(Beyond::Disk, group),
        Kind::File => kernel(Beyond::File, group),
    }
}

type Step = (Pattern, u32, Option<Plan>);

/// Does all workloads. Those that need the data set in the buffer find it
/// there; every byte is compared after each that leaves it there.
fn work_through(
    steps: &[Step],
    contender: &mut dyn Contender,
    data: &DataSet,
    versions: &mut Versions,
    (sum, scale): (Option<words::Sum>, f64),
    run: &mut Run,
) -> Result<()> {
    let first_threads = match steps.first() {
        Some((Pattern::Fill, threads, _)) => *threads,
        _ => 1,
    };
    Line::At("fill".into()).say()?;
    let mut filled = Some(refill(contender, data, versions, first_threads)?);
    run.fill_ns_per_page = filled.as_ref().map_or(0.0, Timing::ns_per_touch);
    contender.settle()?;
    work::verify(contender.buffer(), data, versions)?;
    // Whether the buffer holds what `versions` say.
    let mut holds_data = true;
    for (pattern, threads, plan) in steps {
        Line::At(format!("{}, {threads} thr", pattern.name())).say()?;
        // The first fill is the one that was needed anyway.
        let fresh = filled.take();
        let timing = match (pattern, plan) {
            (Pattern::Fill, _) => match fresh {
                Some(timing) => timing,
                None => {
                    holds_data = true;
                    contender.forget()?;
                    refill(contender, data, versions, *threads)?
                }
            },
            (Pattern::Chase, _) => {
                holds_data = false;
                objects::build(contender.buffer());
                objects::chase(contender.buffer(), *threads, scale, || contender.faults())?
            }
            (Pattern::WordCount, _) => {
                let sum = sum.ok_or_else(|| Error::Failed("no expected sum".into()))?;
                // Written tags would be words.
                refill(contender, data, versions, 1)?;
                holds_data = false;
                words::count(contender.buffer(), *threads, sum, || contender.faults())?
            }
            (_, Some(plan)) => {
                if !holds_data {
                    refill(contender, data, versions, 1)?;
                    holds_data = true;
                }
                work::run(contender.buffer(), plan, versions, || contender.faults())?
            }
            (_, None) => return Err(Error::Failed("a workload without a plan".into())),
        };
        let memory = contender.probe()()?;
        if holds_data {
            work::verify(contender.buffer(), data, versions)?;
        }
        let touches = timing.touches as f64;
        run.results.push(Outcome {
            workload: pattern.name().to_owned(),
            threads: *threads,
            touches: timing.touches,
            ns_per_touch: timing.ns_per_touch(),
            cpu_ns_per_touch: timing.cpu_ns as f64 / touches,
            faults_per_touch: timing.faults as f64 / touches,
            latency: timing.latency.as_ref().map(latency),
            memory,
            counters_so_far: contender.counters(),
        });
    }
    Ok(())
}

/// Puts the data set into the buffer as it was at first.
fn refill(
    contender: &dyn Contender,
    data: &DataSet,
    versions: &mut Versions,
    threads: u32,
) -> Result<Timing> {
    versions.reset();
    work::timed_fill(contender.buffer(), data, threads, || contender.faults())
}

fn latency(histogram: &hdrhistogram::Histogram<u64>) -> Latency {
    let curve = histogram
        .iter_quantiles(4)
        .map(|value| (value.quantile(), value.value_iterated_to()))
        .collect();
    Latency {
        touches: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        p999: histogram.value_at_quantile(0.999),
        max: histogram.max(),
        curve,
    }
}

/// The same for a heap with a limit on everything: besides, a thirty-second and 16 MiB
/// for stacks, what is being written and the kernel's page tables.
pub(crate) const fn bound_of_all(limit: u64) -> u64 {
    limit + limit / 32 + (16 << 20)
}

/// Bytes that a heap may be charged for a buffer: what may be resident, every
/// page compressed at the data set's ratio and a tenth more for slots, tables
/// and buffers of the engine.
pub(crate) fn bound(pages: u32, resident: u64, ratio: f64) -> u64 {
    let bytes = f64::from(pages) * PAGE_SIZE as f64;
    resident + (bytes / ratio * 1.1 + bytes / 64.0) as u64 + (32 << 20)
}

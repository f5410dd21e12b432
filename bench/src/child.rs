//! The measured process: one contender, all workloads, one line of JSON.
//!
//! Every measurement runs in a process of its own, so that peak memory, fault
//! counts and signal handlers belong to one contender.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use crate::cgroup::Cgroup;
use crate::contenders::ghost::Ghost;
use crate::contenders::zram::Zram;
use crate::contenders::{Contender, Figures};
use crate::data::DataSet;
use crate::error::{Error, Result};
use crate::report::status_bytes;
use crate::sys;
use crate::work::{self, Pattern, Plan, Versions};

/// What the parent tells the child.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChildArgs {
    /// `zram` or a GhostMem backend.
    #[arg(long)]
    pub(crate) contender: String,
    /// Descriptor of the data set.
    #[arg(long)]
    pub(crate) fd: i32,
    /// Pages of the data set.
    #[arg(long)]
    pub(crate) pages: u32,
    /// Tags per page.
    #[arg(long)]
    pub(crate) slots: u32,
    /// Bytes of the buffer that may be resident.
    #[arg(long)]
    pub(crate) resident: u64,
    /// Thread counts.
    #[arg(long, value_delimiter = ',')]
    pub(crate) threads: Vec<u32>,
    /// Factor on the number of touches.
    #[arg(long)]
    pub(crate) scale: f64,
    /// Workloads, in order.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) workload: Vec<Pattern>,
    /// Cgroup to join (zram only).
    #[arg(long)]
    pub(crate) cgroup: Option<PathBuf>,
    /// Device swapped to (zram only).
    #[arg(long)]
    pub(crate) device: Option<String>,
}

/// Runs the child and prints its line.
pub(crate) fn run(args: &ChildArgs) -> Result<()> {
    sys::die_with_parent().map_err(|err| Error::io("prctl", &err))?;
    if let Some(dir) = &args.cgroup {
        // First of all: what is allocated from here on is charged there.
        Cgroup::open(dir.clone()).join()?;
    }
    let data = DataSet::inherit(args.fd, args.pages, args.slots)?;
    let mut versions = Versions::new(args.pages, args.slots);
    let plans: Vec<Plan> = args
        .threads
        .iter()
        .flat_map(|&threads| args.workload.iter().map(move |&pattern| (pattern, threads)))
        .map(|(pattern, threads)| Plan::new(pattern, args.pages, threads, args.scale))
        .collect();
    let baseline = status_bytes("VmRSS");

    let mut contender: Box<dyn Contender> = match (&args.cgroup, &args.device) {
        (Some(dir), Some(device)) if args.contender == "zram" => {
            let opened = Zram::open(dir.clone(), device.clone(), args.pages, args.resident)?;
            Box::new(opened)
        }
        _ => Box::new(Ghost::open(&args.contender, args.pages, args.resident)?),
    };

    let start = Instant::now();
    work::fill(contender.buffer(), &data)?;
    let fill_ns = start.elapsed().as_nanos() as f64 / f64::from(args.pages);
    contender.settle()?;
    work::verify(contender.buffer(), &data, &versions)?;
    let filled = contender.figures()?;

    let mut results = Vec::new();
    for plan in &plans {
        let timing = work::run(contender.buffer(), plan, &mut versions, || {
            contender.faults()
        })?;
        let figures = contender.figures()?;
        work::verify(contender.buffer(), &data, &versions)?;
        results.push(json!({
            "workload": plan.pattern.name(),
            "threads": plan.threads(),
            "touches": timing.touches,
            "ns_per_touch": timing.ns_per_touch(),
            "cpu_ns_per_touch": timing.cpu_ns as f64 / timing.touches as f64,
            "faults_per_touch": timing.faults as f64 / timing.touches as f64,
            "memory": figures_json(&figures),
            "counters_so_far": contender.counters(),
        }));
    }
    let line = json!({
        "contender": args.contender,
        "fill_ns_per_page": fill_ns,
        "filled": figures_json(&filled),
        "end": figures_json(&contender.figures()?),
        "peak_rss": status_bytes("VmHWM"),
        "baseline_rss": baseline,
        "workloads": results,
    });
    println!("{line}");
    Ok(())
}

fn figures_json(figures: &Figures) -> serde_json::Value {
    json!({
        "resident": figures.resident,
        "data": figures.data,
        "held": figures.held,
        "metadata": figures.metadata,
        "peak": figures.peak,
    })
}

//! `ghostmem-bench lab`: replacement policies side by side, offline.
//!
//! Nothing is timed and nothing of the engine runs, so the figures are the same
//! on every machine and in every run.

use std::path::{Path, PathBuf};

use clap::Args;
use ghostmem_lab::hand::{Credits, Hand};
use ghostmem_lab::informed::Informed;
use ghostmem_lab::recorded::Recorded;
use ghostmem_lab::total::{Bounded, Prices, Rule};
use ghostmem_lab::trace::{self, BENCH_THETA, BenchPart, Trace};
use ghostmem_lab::{Blind, Contender, Policy, run as measure};

use serde_json::{Value, json};

use crate::buffer::PAGE_SIZE;
use crate::error::{Error, Result};
use crate::options::Size;
use crate::report;

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    /// Pages of each trace but the bench's own; at least 4096.
    #[arg(long, default_value_t = 65_536)]
    pages: u32,
    /// Pages of the bench's own trace; those of `zram --size 1G`.
    #[arg(long, default_value_t = 262_144)]
    bench_pages: u32,
    /// Resident limits, as divisors of the number of pages.
    #[arg(long, value_delimiter = ',', default_value = "8,4,2")]
    parts: Vec<u32>,
    /// Only traces whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Replay a run recorded with `ghostmem run --trace`, in place of the lab's own traces; more
    /// than once for several
    #[arg(long, value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// Resident limits for recorded runs, in place of shares of their pages.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', requires = "trace")]
    limits: Vec<Size>,
    /// At equal total memory, so many percent of a trace's pages, what is compressed
    /// included: the time that rules for copies would take, by prices measured on one
    /// machine, in place of misses.
    #[arg(long, value_name = "PERCENT", value_delimiter = ',')]
    total: Vec<u32>,
    /// Bytes of a compressed page, with --total.
    #[arg(long, default_value_t = 1400, requires = "total")]
    slot_bytes: usize,
    /// Of a hundred pages compared with their copies, those that are unchanged, with
    /// --total.
    #[arg(long, default_value_t = 80, requires = "total")]
    unchanged: u64,
    /// Everything measured, as JSON.
    #[arg(long, conflicts_with = "total")]
    json: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &LabArgs) -> Result<()> {
    if args.pages < 4096 || args.bench_pages < 4096 {
        return Err(Error::Failed(
            "--pages, --bench-pages: at least 4096".into(),
        ));
    }
    if args.parts.iter().any(|part| !(1..=64).contains(part)) {
        return Err(Error::Failed("--parts: 1 to 64".into()));
    }
    if !args.total.is_empty() {
        return at_equal_total(args);
    }
    if !args.trace.is_empty() {
        return replay(args);
    }
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only));
    let traces = trace::all(args.pages);
    let mut rows = Vec::new();
    for trace in traces.iter().filter(|trace| wanted(&trace.name)) {
        for &part in &args.parts {
            rows.push(share(trace, part));
        }
    }
    let bench = [("bench zipf, 1 thread", 1), ("bench zipf, 2 threads", 2)];
    let mut bounds = Vec::new();
    for (name, threads) in bench.into_iter().filter(|(name, _)| wanted(name)) {
        let trace = trace::bench(name, args.bench_pages, threads, BenchPart::ZipfRead);
        rows.push(share(&trace, 4));
        bounds.push((name, informed(&trace, 4)));
    }
    print(&rows);
    for (name, bound) in &bounds {
        println!(
            "{name}: {bound:.4} by faults alone when the law and its start are known (no history)"
        );
    }
    let own = bench.into_iter().any(|(name, _)| wanted(name));
    let engine = if own {
        predict(args.bench_pages)
    } else {
        Vec::new()
    };
    if let Some(path) = &args.json {
        let value = json!({
            "machine": report::machine(),
            "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
            "informed": bounds.iter().map(|(name, bound)| json!({
                "trace": name, "restores_per_touch": bound,
            })).collect::<Vec<_>>(),
            "engine": engine,
        });
        report::write_json(path, &value)?;
    }
    Ok(())
}

/// One trace under one limit.
struct Row {
    trace: String,
    /// The limit, as the table shows it, and in pages.
    resident: String,
    limit: usize,
    /// In the order of [`Contender::ALL`].
    restores_per_touch: Vec<f64>,
    /// Of ours, without the pages that readahead brought in beside them.
    faults_per_touch: f64,
    looks: f64,
    /// Of the frames, the part whose pages keep a copy.
    copies: f64,
}

impl Row {
    fn of(&self, contender: Contender) -> f64 {
        Contender::ALL
            .iter()
            .position(|&other| other == contender)
            .map_or(f64::NAN, |at| self.restores_per_touch[at])
    }

    /// Ours over the best of some rivals.
    fn over_best_of(&self, rivals: &[Contender]) -> f64 {
        let best = rivals
            .iter()
            .map(|&rival| self.of(rival))
            .fold(f64::MAX, f64::min);
        self.of(Contender::Ours) / best
    }

    fn json(&self) -> Value {
        let cells = Contender::ALL
            .iter()
            .map(|&contender| (contender.name().to_owned(), self.of(contender).into()))
            .collect::<serde_json::Map<_, _>>();
        json!({ "trace": self.trace, "resident": self.resident,
                "limit_pages": self.limit, "restores_per_touch": cells,
                "faults_per_touch": self.faults_per_touch,
                "looks_per_eviction": self.looks, "copies_per_frame": self.copies })
    }
}

/// A row for a share of the trace's pages.
fn share(trace: &Trace, part: u32) -> Row {
    row(
        trace,
        (trace.distinct / part).max(1) as usize,
        format!("1/{part}"),
    )
}

fn row(trace: &Trace, limit: usize, resident: String) -> Row {
    let mut ours = Blind(Hand::new(Credits, trace.pages, limit));
    let score = measure(&mut ours, trace);
    Row {
        trace: trace.name.to_string(),
        resident,
        limit,
        restores_per_touch: Contender::ALL
            .iter()
            .map(|contender| {
                measure(&mut *contender.start(trace, limit), trace).restores_per_touch()
            })
            .collect(),
        faults_per_touch: score.faults_per_touch(),
        looks: ours.0.looks_per_eviction(),
        copies: ours.0.copies_per_frame(),
    }
}

/// What faults alone could show at best, on the measured workload without its
/// history.
fn informed(trace: &Trace, part: u32) -> f64 {
    let alone = trace.without_history(trace.measured.len() / 2);
    let limit = (trace.pages / part) as usize;
    let policy = Informed::new(trace.pages, limit, BENCH_THETA, 6.0);
    measure(&mut Blind(policy), &alone).restores_per_touch()
}

fn print(rows: &[Row]) {
    let mut header = vec!["pages brought in per touch", "resident"];
    header.extend(Contender::ALL.map(Contender::name));
    header.extend([
        "ours / best by faults",
        "ours / best that sees all",
        "ours, faults",
        "looks per eviction",
        "copies per frame",
    ]);
    let mut table = report::table(&header);
    for row in rows {
        let mut cells = vec![row.trace.clone(), row.resident.clone()];
        cells.extend(
            row.restores_per_touch
                .iter()
                .map(|rate| format!("{rate:.4}")),
        );
        cells.push(format!("{:.2}", row.over_best_of(&Contender::BLIND)));
        cells.push(format!("{:.2}", row.over_best_of(&Contender::SIGHTED)));
        cells.push(format!("{:.4}", row.faults_per_touch));
        cells.push(format!("{:.1}", row.looks));
        cells.push(format!("{:.2}", row.copies));
        table.add_row(cells);
    }
    println!("{table}");
}

/// Rules for copies side by side: the time that they would take, and the pages that they
/// would bring in.
fn at_equal_total(args: &LabArgs) -> Result<()> {
    const RULES: [Rule; 3] = [Rule::None, Rule::Engine, Rule::All];
    if args.slot_bytes == 0 || args.slot_bytes > PAGE_SIZE || args.unchanged > 100 {
        return Err(Error::Failed(format!(
            "--slot-bytes: 1 to {PAGE_SIZE}; --unchanged: up to 100"
        )));
    }
    let mut traces = Vec::new();
    for path in &args.trace {
        let bytes = std::fs::read(path).map_err(|err| Error::io(path.display(), &err))?;
        traces.push(load(path, &bytes)?.0);
    }
    if traces.is_empty() {
        traces = trace::all(args.pages);
        let only = args.only.as_deref().unwrap_or_default();
        traces.retain(|trace| trace.name.contains(only));
    }
    let mut table = report::table(&[
        "trace",
        "total",
        "no copies: ns a touch",
        "as the engine",
        "all copies",
        "no copies: brought in per touch",
        "as the engine",
        "all copies",
    ]);
    let prices = Prices::measured(args.slot_bytes, args.unchanged);
    for trace in &traces {
        for &percent in &args.total {
            let total = trace.distinct as usize * PAGE_SIZE / 100 * percent as usize;
            let took = RULES.map(|rule| {
                let mut policy = Blind(Bounded::new(trace.pages, total, rule, prices));
                let (history, rest) = trace.touches.split_at(trace.measured.start);
                for &touch in history {
                    policy.touch(touch);
                }
                let before = *policy.0.hand().events();
                for &touch in &rest[..trace.measured.len()] {
                    policy.touch(touch);
                }
                policy.0.hand().events().since(&before)
            });
            let touches = trace.measured.len() as f64;
            let mut cells = vec![trace.name.to_string(), format!("{percent} %")];
            cells.extend(took.map(|took| format!("{:.0}", prices.time_ns(&took) as f64 / touches)));
            cells.extend(took.map(|took| format!("{:.4}", took.restores() as f64 / touches)));
            table.add_row(cells);
        }
    }
    println!("{table}");
    Ok(())
}

/// Recorded runs, each under several limits.
fn replay(args: &LabArgs) -> Result<()> {
    let mut rows = Vec::new();
    for path in &args.trace {
        let bytes = std::fs::read(path).map_err(|err| Error::io(path.display(), &err))?;
        let (trace, window) = load(path, &bytes)?;
        println!(
            "{}: {} touches of {} pages ({} MiB), recorded {window} pages at a time",
            trace.name,
            trace.touches.len(),
            trace.distinct,
            report::mib(u64::from(trace.distinct) * PAGE_SIZE as u64),
        );
        let limits: Vec<(usize, Option<u32>)> = if args.limits.is_empty() {
            let shares = args.parts.iter();
            shares
                .map(|&part| ((trace.distinct / part) as usize, Some(part)))
                .collect()
        } else {
            let limits = args.limits.iter();
            limits
                .map(|limit| (limit.0 as usize / PAGE_SIZE, None))
                .collect()
        };
        for (limit, part) in limits {
            let size = format!("{} MiB", report::mib(limit as u64 * PAGE_SIZE as u64));
            if (limit as u64) < 2 * window.max(1) {
                // What stayed open while it was recorded is not in the record.
                println!("{}: {size} left out, as less than two windows", trace.name);
                continue;
            }
            let resident = match part {
                Some(part) => format!("1/{part}: {size}"),
                None => size,
            };
            rows.push(row(&trace, limit, resident));
        }
    }
    if rows.is_empty() {
        return Err(Error::Failed(
            "no limit is above two windows of its recording: record with a smaller --limit, or \
             give larger --limits"
                .into(),
        ));
    }
    print(&rows);
    match &args.json {
        Some(path) => report::write_json(
            path,
            &json!({
                "machine": report::machine(),
                "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
            }),
        ),
        None => Ok(()),
    }
}

/// A recorded run, and the window it was recorded with, in pages.
fn load(path: &Path, bytes: &[u8]) -> Result<(Trace, u64)> {
    let name = path.file_stem().unwrap_or(path.as_os_str());
    let wrong = |err| Error::Failed(format!("--trace {}: {err}", path.display()));
    let recorded = Recorded::parse(bytes).map_err(wrong)?;
    let trace = recorded.trace(&name.to_string_lossy()).map_err(wrong)?;
    Ok((trace, recorded.header.window_pages))
}

/// Faults per touch that `ghostmem-bench zram` should find.
fn predict(pages: u32) -> Vec<Value> {
    let mut table = report::table(&["what the engine should do", "threads", "faults/touch"]);
    let mut values = Vec::new();
    for threads in [1, 2] {
        for part in BenchPart::ALL {
            let trace = trace::bench("bench", pages, threads, part);
            let mut ours = Contender::Ours.start(&trace, pages as usize / 4);
            let faults = measure(&mut *ours, &trace).faults_per_touch();
            table.add_row([
                format!("{part:?}"),
                threads.to_string(),
                format!("{faults:.4}"),
            ]);
            values.push(json!({ "workload": format!("{part:?}"), "threads": threads,
                                "faults_per_touch": faults }));
        }
    }
    println!("{table}");
    values
}

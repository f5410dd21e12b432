//! The comparison on a terminal.

use std::collections::BTreeMap;

use super::Record;
use super::records::{ratios, series, spread};
use crate::contenders::Kind;
use crate::report::{self, Spread, mib};
use crate::small;
use crate::work::Pattern;

const DASH: &str = "-";

/// Prints everything measured.
pub(super) fn print(record: &Record, patterns: &[Pattern]) {
    for limit in record.limits() {
        print_times(record, patterns, limit);
    }
    for limit in record.limits() {
        print_memory(record, limit);
    }
    print_small(record);
    for (kind, limit, why) in &record.skipped {
        println!("skipped: {kind}, data {:.1} x: {why}", record.ratio(*limit));
    }
    let unproved = record
        .runs
        .iter()
        .any(|run| run.contender.is_ghost() && !run.proved);
    if unproved {
        println!("note: no cgroup bounded GhostMem; its peak is the process's growth");
    }
}

fn or_dash(spread: Option<Spread>, text: impl Fn(Spread) -> String) -> String {
    spread.map_or_else(|| DASH.to_owned(), text)
}

fn print_times(record: &Record, patterns: &[Pattern], limit: u64) {
    let title = format!(
        "data {:.3} x the limit of {} MiB",
        record.ratio(limit),
        mib(limit)
    );
    let mut table = report::table(&[
        &title,
        "threads",
        "contender",
        "ns: median (min-max)",
        "times slower than inline",
        "cpu ns",
        "faults/touch",
        "p50 us",
        "p99 us",
        "p99.9 us",
    ]);
    let mut threads: Vec<u32> = record
        .runs
        .iter()
        .flat_map(|run| run.results.iter().map(|outcome| outcome.threads))
        .collect();
    threads.sort_unstable();
    threads.dedup();
    for pattern in patterns {
        for &threads in &threads {
            let work = (pattern.name(), threads);
            let inline = series(record, &Kind::INLINE, limit, work, |o| Some(o.ns_per_touch));
            for kind in record.contenders() {
                let time = series(record, &kind, limit, work, |o| Some(o.ns_per_touch));
                if time.is_empty() {
                    continue;
                }
                let median = |field: &dyn Fn(&crate::child::Outcome) -> Option<f64>, digits| {
                    or_dash(spread(&series(record, &kind, limit, work, field)), |s| {
                        format!("{:.*}", digits, s.median)
                    })
                };
                let micros = |field: fn(&crate::child::Latency) -> u64| {
                    median(&|o| o.latency.as_ref().map(|l| field(l) as f64 / 1000.0), 1)
                };
                table.add_row([
                    format!("{}, per {}", pattern.name(), pattern.unit()),
                    threads.to_string(),
                    kind.to_string(),
                    or_dash(spread(&time), Spread::text),
                    or_dash(ratios(&time, &inline), |s| {
                        format!("{:.2} ({:.2}-{:.2})", s.median, s.min, s.max)
                    }),
                    median(&|o| Some(o.cpu_ns_per_touch), 0),
                    median(&|o| Some(o.faults_per_touch), 3),
                    micros(|l| l.p50),
                    micros(|l| l.p99),
                    micros(|l| l.p999),
                ]);
            }
        }
    }
    println!("{table}");
}

/// What each contender held, from its last run under a limit.
fn print_memory(record: &Record, limit: u64) {
    let title = format!("memory, MiB, limit {}", mib(limit));
    let mut table = report::table(&[
        &title,
        "resident",
        "compressed",
        "held for it",
        "metadata",
        "peak of all",
        "peak RSS",
        "RSS before",
    ]);
    let mut last = BTreeMap::new();
    for run in record.runs.iter().filter(|run| run.resident_limit == limit) {
        last.insert(run.contender.clone(), run);
    }
    for (kind, run) in last {
        let end = &run.end;
        table.add_row([
            kind.to_string(),
            mib(end.resident),
            mib(end.data),
            mib(end.held),
            mib(end.metadata),
            mib(end.peak),
            mib(run.peak_rss),
            mib(run.baseline_rss),
        ]);
    }
    println!("{table}");
}

fn print_small(record: &Record) {
    if record.small.is_empty() {
        return;
    }
    let mut table = report::table(&[
        "limit of 5 pages, ns each",
        "peer",
        "GhostMem inline",
        "plain memory",
        "times faster",
    ]);
    for (index, name) in small::NAMES.iter().enumerate() {
        let of = |wanted: &Kind| {
            record
                .small
                .iter()
                .filter(|(kind, ..)| kind == wanted)
                .map(|(_, repetition, outcome)| (*repetition, outcome.ns[index]))
                .collect()
        };
        let (peer, ours, plain) = (of(&Kind::Peer), of(&Kind::INLINE), of(&Kind::Plain));
        table.add_row([
            (*name).to_owned(),
            or_dash(spread(&peer), Spread::text),
            or_dash(spread(&ours), Spread::text),
            or_dash(spread(&plain), Spread::text),
            or_dash(ratios(&peer, &ours), |s| {
                format!("{:.2} ({:.2}-{:.2})", s.median, s.min, s.max)
            }),
        ]);
    }
    println!("{table}");
}

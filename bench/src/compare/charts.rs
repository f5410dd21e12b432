//! The plots of the comparison.

use std::ops::Range;

use plotters::prelude::*;

use super::Record;
use super::records::{series, spread};
use crate::child::Outcome;
use crate::contenders::Kind;
use crate::error::Result;
use crate::plot::{Axis, Line, draw, extent, plain};

/// A duration in nanoseconds, for people.
fn duration(ns: &f64) -> String {
    match *ns {
        ns if ns >= 1e9 => format!("{:.0} s", ns / 1e9),
        ns if ns >= 1e6 => format!("{:.0} ms", ns / 1e6),
        ns if ns >= 1e3 => format!("{:.0} us", ns / 1e3),
        ns => format!("{ns:.0} ns"),
    }
}

/// Quantiles as 90 %, 99 %, 99.9 %: `nines` is how many.
fn nines(nines: &f64) -> String {
    match *nines {
        n if n <= 0.0 => "0 %".to_owned(),
        n => format!("{} %", (100.0 - 100.0 * 10_f64.powf(-n)) as f32),
    }
}

/// Latency of single touches by quantile; `None` when none were timed.
pub(super) fn latency(record: &Record, limit: u64, work: (&str, u32)) -> Result<Option<String>> {
    let mut lines: Vec<Line> = Vec::new();
    for (index, kind) in record.contenders().iter().enumerate() {
        let run = record
            .runs
            .iter()
            .rfind(|run| run.contender == *kind && of_limit(kind, run.resident_limit, limit));
        let latency = run
            .and_then(|run| {
                run.results
                    .iter()
                    .find(|outcome| (outcome.workload.as_str(), outcome.threads) == work)
            })
            .and_then(|outcome| outcome.latency.as_ref());
        let Some(latency) = latency else { continue };
        let curve = latency.curve.iter();
        let points: Vec<_> = curve
            .filter(|(quantile, _)| *quantile < 1.0)
            .map(|&(quantile, ns)| (-(1.0 - quantile).log10(), ns.max(1) as f64))
            .filter(|&(nines, _)| nines <= 4.0)
            .collect();
        lines.push((index, points));
    }
    let Some(ns) = extent(&lines, |point| point.1) else {
        return Ok(None);
    };
    draw(
        &lines,
        (0.0..4.0, (ns.start / 1.5..ns.end * 1.5).log_scale()),
        (
            Axis {
                name: "share of touches that were no slower",
                label: &nines,
                labels: 5,
            },
            Axis {
                name: "latency of a touch",
                label: &duration,
                labels: 8,
            },
        ),
    )
    .map(Some)
}

/// Whether a run under `own` belongs into a picture of `limit`.
fn of_limit(kind: &Kind, own: u64, limit: u64) -> bool {
    own == limit || *kind == Kind::Plain
}

fn millions(outcome: &Outcome) -> Option<f64> {
    Some(1000.0 / outcome.ns_per_touch)
}

fn throughput(lines: &[Line], x_name: &str, x: &Range<f64>) -> Result<Option<String>> {
    let Some(y) = extent(lines, |point| point.1) else {
        return Ok(None);
    };
    draw(
        lines,
        (0.0..x.end * 1.1, (y.start / 1.5..y.end * 1.5).log_scale()),
        (
            Axis {
                name: x_name,
                label: &plain,
                labels: 6,
            },
            Axis {
                name: "million touches a second",
                label: &plain,
                labels: 8,
            },
        ),
    )
    .map(Some)
}

/// Medians of throughput over data/limit; `None` without any.
pub(super) fn over_ratio(record: &Record, work: (&str, u32)) -> Result<Option<String>> {
    let mut lines: Vec<Line> = Vec::new();
    for (index, kind) in record.contenders().iter().enumerate() {
        let points = record.limits().into_iter().filter_map(|limit| {
            let median = spread(&series(record, kind, limit, work, millions))?.median;
            Some((record.ratio(limit), median))
        });
        lines.push((index, points.collect()));
    }
    let Some(x) = extent(&lines, |point| point.0) else {
        return Ok(None);
    };
    throughput(&lines, "data / limit", &x)
}

/// Medians of throughput over the number of threads, under one limit.
pub(super) fn over_threads(record: &Record, limit: u64, workload: &str) -> Result<Option<String>> {
    let mut threads: Vec<u32> = record
        .runs
        .iter()
        .flat_map(|run| run.results.iter().map(|outcome| outcome.threads))
        .collect();
    threads.sort_unstable();
    threads.dedup();
    let mut lines: Vec<Line> = Vec::new();
    for (index, kind) in record.contenders().iter().enumerate() {
        let points = threads.iter().filter_map(|&threads| {
            let figures = series(record, kind, limit, (workload, threads), millions);
            Some((f64::from(threads), spread(&figures)?.median))
        });
        lines.push((index, points.collect()));
    }
    let Some(x) = extent(&lines, |point| point.0) else {
        return Ok(None);
    };
    throughput(&lines, "threads", &x)
}

/// Memory that pages, compressed pages and tables took over a run.
pub(super) fn memory(record: &Record, limit: u64) -> Result<Option<String>> {
    let mut lines: Vec<Line> = Vec::new();
    for (index, kind) in record.contenders().iter().enumerate() {
        let run = record
            .runs
            .iter()
            .rfind(|run| run.contender == *kind && of_limit(kind, run.resident_limit, limit));
        let Some(run) = run else { continue };
        let points = run.timeline.iter().map(|sample| {
            let bytes = (sample.resident + sample.held) as f64;
            (sample.at_ms as f64 / 1000.0, bytes / f64::from(1 << 20))
        });
        lines.push((index, points.collect()));
    }
    let (Some(x), Some(y)) = (
        extent(&lines, |point| point.0),
        extent(&lines, |point| point.1),
    ) else {
        return Ok(None);
    };
    draw(
        &lines,
        (0.0..x.end.max(0.1), 0.0..(y.end * 1.05).max(1.0)),
        (
            Axis {
                name: "seconds since the buffer was made",
                label: &plain,
                labels: 8,
            },
            Axis {
                name: "MiB",
                label: &plain,
                labels: 8,
            },
        ),
    )
    .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves the labels that an axis of quantiles gets.
    #[test]
    fn quantiles_are_named() {
        let named: Vec<_> = [0.0, 1.0, 2.0, 3.0, 4.0].iter().map(nines).collect();
        assert_eq!(named, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }
}

//! One row of CSV per measurement, and picking figures out of a record.

use std::collections::BTreeMap;
use std::path::Path;

use super::Record;
use crate::child::Outcome;
use crate::contenders::Kind;
use crate::error::Result;
use crate::report::{self, Spread};

/// Figures of one contender, limit, workload and thread count, by repetition.
pub(super) type Series = BTreeMap<u32, f64>;

/// The figures that `field` picks.
pub(super) fn series(
    record: &Record,
    kind: &Kind,
    limit: u64,
    (workload, threads): (&str, u32),
    field: impl Fn(&Outcome) -> Option<f64>,
) -> Series {
    let mut series = Series::new();
    // Memory without a limit is measured under the first only.
    let runs = record
        .runs
        .iter()
        .filter(|run| run.contender == *kind)
        .filter(|run| run.resident_limit == limit || *kind == Kind::Plain);
    for run in runs {
        let outcome = run
            .results
            .iter()
            .find(|outcome| outcome.workload == workload && outcome.threads == threads);
        if let Some(value) = outcome.and_then(&field) {
            series.insert(run.repetition, value);
        }
    }
    series
}

/// Median and extremes.
pub(super) fn spread(series: &Series) -> Option<Spread> {
    Spread::of(&series.values().copied().collect::<Vec<_>>())
}

/// Ratios within the repetitions that have both. A contender measured once is
/// compared with the median of the other.
pub(super) fn ratios(slow: &Series, fast: &Series) -> Option<Spread> {
    let median = spread(fast)?.median;
    let ratios: Vec<f64> = if slow.len() == 1 {
        slow.values().map(|slow| slow / median).collect()
    } else {
        slow.iter()
            .filter_map(|(repetition, slow)| Some(slow / fast.get(repetition)?))
            .collect()
    };
    Spread::of(&ratios)
}

/// Writes one row per repetition, contender, limit, workload and thread count.
pub(super) fn write_csv(path: &Path, record: &Record) -> Result<()> {
    let header = [
        "contender",
        "data_over_limit",
        "repetition",
        "workload",
        "threads",
        "touches",
        "ns_per_touch",
        "cpu_ns_per_touch",
        "faults_per_touch",
        "latency_p50_ns",
        "latency_p99_ns",
        "latency_p999_ns",
        "resident_bytes",
        "compressed_bytes",
        "held_bytes",
        "metadata_bytes",
        "peak_bytes",
    ];
    let mut rows = Vec::new();
    for run in &record.runs {
        for outcome in &run.results {
            let latency = |field: fn(&crate::child::Latency) -> u64| {
                outcome
                    .latency
                    .as_ref()
                    .map_or_else(String::new, |latency| field(latency).to_string())
            };
            let memory = &outcome.memory;
            rows.push(vec![
                run.contender.to_string(),
                format!("{:.2}", record.ratio(run.resident_limit)),
                run.repetition.to_string(),
                outcome.workload.clone(),
                outcome.threads.to_string(),
                outcome.touches.to_string(),
                format!("{:.1}", outcome.ns_per_touch),
                format!("{:.1}", outcome.cpu_ns_per_touch),
                format!("{:.4}", outcome.faults_per_touch),
                latency(|l| l.p50),
                latency(|l| l.p99),
                latency(|l| l.p999),
                memory.resident.to_string(),
                memory.data.to_string(),
                memory.held.to_string(),
                memory.metadata.to_string(),
                memory.peak.to_string(),
            ]);
        }
    }
    report::write_csv(path, &record.machine, &header, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that ratios are taken within repetitions, and against the median
    /// for a contender that ran once.
    #[test]
    fn ratios_within_repetitions() {
        let fast = Series::from([(0, 1.0), (1, 2.0), (2, 4.0)]);
        let slow = Series::from([(0, 10.0), (1, 10.0)]);
        assert_eq!(ratios(&slow, &fast).unwrap().max, 10.0);
        assert_eq!(ratios(&slow, &fast).unwrap().min, 5.0);
        let once = Series::from([(0, 10.0)]);
        assert_eq!(ratios(&once, &fast).unwrap().median, 5.0);
        assert_eq!(ratios(&once, &Series::new()), None);
    }
}

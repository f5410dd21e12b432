//! What the demo found, as one table for people and one JSON object for machines.

use comfy_table::{CellAlignment, Table, presets};
use ghostmem_os::PAGE_SIZE;
use serde::Serialize;

use super::baseline::Baseline;
use super::data::{Plan, Share};
use super::measure::Memory;
use super::work::{Job, Outcome};
use crate::engine::Snapshot;
use crate::failure::Failure;
use crate::size::Bytes;

/// The data the demo worked on.
#[derive(Serialize)]
pub(crate) struct Data {
    bytes: u64,
    documents: u64,
    texts: u64,
    files: u64,
    real_bytes: u64,
    copied_bytes: u64,
    repeated_bytes: u64,
    skipped: u64,
    sources: Vec<Share>,
}

impl Data {
    /// Sums a plan up.
    pub(crate) fn of(plan: &Plan) -> Self {
        Self {
            bytes: plan.bytes(),
            documents: plan.pieces.len() as u64,
            texts: plan.totals.texts,
            files: plan.files.len() as u64,
            real_bytes: plan.real_bytes,
            copied_bytes: plan.copied_bytes,
            repeated_bytes: plan.repeated_bytes,
            skipped: plan.skipped,
            sources: plan.shares.clone(),
        }
    }
}

/// What the heap, and the process, may take.
pub(crate) struct Limits {
    /// Uncompressed pages.
    pub(crate) resident_bytes: u64,
    /// Everything, if that was said.
    pub(crate) process_bytes: Option<u64>,
}

/// The run on the ghost heap.
#[derive(Serialize)]
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    pub(crate) memory: Memory,
    /// Counters when everything was held and verified.
    pub(crate) full: Snapshot,
    /// Counters after everything was freed.
    pub(crate) end: Snapshot,
}

/// Everything that is printed.
#[derive(Serialize)]
pub(crate) struct Report {
    version: &'static str,
    /// Verified and within the memory rule: the exit code is 0.
    pub(crate) ok: bool,
    /// Every checksum and count was right, in both runs, and both agree.
    verified: bool,
    /// Memory stayed within limit + store + 5 % + 16 MiB (24 with a file), or within the bound on the process, and
    /// ghost pages within the limit but for declared overdrafts (at most 68 pages).
    memory_rule_held: bool,
    backend: String,
    limit_bytes: u64,
    /// The bound on the whole process; null for none.
    memory_bytes: Option<u64>,
    /// Ghost pages seen above the limit; more than 0 only with overdrafts.
    beyond_limit_bytes: u64,
    threads: usize,
    seed: u64,
    /// There was a file for cold pages.
    has_file: bool,
    data: Data,
    /// Uncompressed over compressed bytes of the pages in the store.
    compression_ratio: f64,
    faults_per_second: f64,
    /// Time with GhostMem over time without.
    slowdown: Option<f64>,
    /// Whether both runs came to the same results.
    same_results: Option<bool>,
    ghost: Run,
    baseline: Option<Baseline>,
    /// Why there is no baseline.
    baseline_missing: Option<String>,
}

impl Report {
    /// Judges both runs.
    pub(crate) fn new(
        data: Data,
        backend: String,
        job: &Job,
        limits: Limits,
        ghost: Run,
        baseline: Result<Baseline, String>,
        has_file: bool,
    ) -> Self {
        let (baseline, baseline_missing) = match baseline {
            Ok(baseline) => (Some(baseline), None),
            Err(reason) => (None, Some(reason)),
        };
        let limit_bytes = limits.resident_bytes;
        let seconds = ghost.outcome.seconds();
        let same_results = baseline
            .as_ref()
            .map(|b| b.outcome.digest == ghost.outcome.digest);
        let verified = ghost.outcome.verified()
            && baseline.as_ref().is_none_or(|b| b.outcome.verified())
            && same_results != Some(false);
        let beyond_limit_bytes = ghost.memory.beyond_limit_bytes(limit_bytes);
        let memory_rule_held = ghost.memory.rule_held(limit_bytes);
        let stored = ghost.full.stored_pages as f64 * PAGE_SIZE as f64;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            ok: verified && memory_rule_held,
            verified,
            memory_rule_held,
            backend,
            limit_bytes,
            memory_bytes: limits.process_bytes,
            beyond_limit_bytes,
            threads: job.threads,
            seed: job.seed,
            has_file,
            data,
            compression_ratio: ratio(stored, ghost.full.store_data_bytes as f64).unwrap_or(0.0),
            faults_per_second: ratio(ghost.outcome.faults() as f64, seconds).unwrap_or(0.0),
            slowdown: baseline
                .as_ref()
                .and_then(|b| ratio(seconds, b.outcome.seconds())),
            same_results,
            ghost,
            baseline,
            baseline_missing,
        }
    }

    /// One JSON object.
    ///
    /// # Errors
    /// None in practice: every part can be serialized.
    pub(crate) fn json(&self) -> Result<String, Failure> {
        serde_json::to_string_pretty(self).map_err(Failure::new)
    }

    /// Title, table and verdict.
    pub(crate) fn text(&self) -> String {
        let mut lines = Vec::new();
        self.heading()
            .iter()
            .for_each(|line| wrap(line, &mut lines));
        lines.push(self.table().to_string());
        self.verdict()
            .iter()
            .for_each(|line| wrap(line, &mut lines));
        lines.join("\n")
    }

    fn heading(&self) -> Vec<String> {
        let data = &self.data;
        let held_to = match self.memory_bytes {
            Some(bytes) => format!("in a process bound to {}", Bytes(bytes)),
            None => format!("on a heap limited to {}", Bytes(self.limit_bytes)),
        };
        let mut lines = vec![format!(
            "GhostMem demo: {} of real files {held_to} ({} backend, {} threads)",
            Bytes(data.bytes),
            self.backend,
            self.threads
        )];
        let sources = data
            .sources
            .iter()
            .map(|s| format!("{} {}", s.root, Bytes(s.bytes)));
        let sources: Vec<_> = sources.take(8).collect();
        let more = data.sources.len().saturating_sub(sources.len());
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        lines.push(format!(
            "Data: {} documents ({} text) from {} files: {}{more}",
            grouped(data.documents),
            grouped(data.texts),
            grouped(data.files),
            sources.join(", ")
        ));
        if data.copied_bytes > 0 {
            lines.push(format!(
                "Only {} are files as they are; {} are further copies of them, each rotated by \
                 another distance.",
                Bytes(data.real_bytes),
                Bytes(data.copied_bytes)
            ));
        }
        if data.repeated_bytes > 0 {
            lines.push(format!(
                "The files are so small that {} of the copies repeat others exactly.",
                Bytes(data.repeated_bytes)
            ));
        }
        if data.skipped > 0 {
            lines.push(format!(
                "{} files or folders could not be read.",
                grouped(data.skipped)
            ));
        }
        if let Some(reason) = &self.baseline_missing {
            lines.push(format!("Without GhostMem: not measured, {reason}."));
        }
        lines
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["", "GhostMem", "without", "ratio"]);
        table.add_rows(self.memory_rows());
        table.add_rows(self.fault_rows());
        table.add_rows(self.time_rows());
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn memory_rows(&self) -> Vec<[String; 4]> {
        let (memory, full) = (&self.ghost.memory, &self.ghost.full);
        let bytes = |value: u64| Bytes(value).to_string();
        let plain = self.baseline.as_ref();
        let both = |name, with: u64, without: Option<u64>, ratio: Option<String>| {
            let without = without.map(bytes).unwrap_or_default();
            row(name, bytes(with), without, ratio.unwrap_or_default())
        };
        let held = plain.map(|b| b.outcome.held_bytes);
        let peak = plain.map(|b| b.memory.peak_bytes);
        let before = plain.map(|b| b.memory.before_bytes);
        let share = peak.and_then(|peak| ratio(memory.peak_bytes as f64, peak as f64));
        let share = share.map(|share| format!("{:.0} %", share * 100.0));
        let mut rows = vec![
            both("data held", self.ghost.outcome.held_bytes, held, None),
            both("peak memory of the process", memory.peak_bytes, peak, share),
            both("  before the work", memory.before_bytes, before, None),
            only(
                "  resident pages, at most",
                bytes(memory.ghost_resident_bytes),
            ),
            only("  compressed store, at most", bytes(memory.store_bytes)),
            only(
                "  page words and bookkeeping",
                bytes(full.metadata_bytes as u64),
            ),
            only("compression", format!("{:.2} : 1", self.compression_ratio)),
            only("pages stored uncompressed", grouped(full.raw_pages as u64)),
        ];
        if full.file_pages > 0 {
            rows.push(only("pages in the file", grouped(full.file_pages as u64)));
            rows.push(only("  file on disk", bytes(full.file_bytes)));
        }
        rows
    }

    fn fault_rows(&self) -> Vec<[String; 4]> {
        let end = &self.ghost.end;
        let latency = (end.fault_p50_ns(), end.fault_p99_ns());
        let mut rows = vec![
            only("faults", grouped(self.ghost.outcome.faults())),
            only("  per second", grouped(self.faults_per_second as u64)),
            only(
                "  latency p50 / p99",
                format!("{} / {}", time(latency.0), time(latency.1)),
            ),
            only(
                "read ahead / used",
                pair(end.readahead_pages, end.readahead_hits),
            ),
            only(
                "evicted clean / compressed",
                pair(end.evictions_clean, end.evictions_dirty),
            ),
            only("evicted as one value", grouped(end.same_filled_pages)),
        ];
        if end.pages_spilled > 0 {
            let moved = pair(end.pages_spilled, end.spilled_reads);
            rows.push(only("moved to the file / read back", moved));
        }
        if self.ghost.memory.overdrafts > 0 {
            rows.push(only(
                "frames beyond the limit",
                grouped(self.ghost.memory.overdrafts),
            ));
        }
        rows
    }

    fn time_rows(&self) -> Vec<[String; 4]> {
        let times = |name: &str, with: f64, without: Option<f64>| {
            let factor = slower(with, without).unwrap_or_default();
            row(
                name,
                seconds(with),
                without.map(seconds).unwrap_or_default(),
                factor,
            )
        };
        let plain = self.baseline.as_ref().map(|b| &b.outcome);
        let phases = self.ghost.outcome.phases.iter().enumerate();
        let mut rows: Vec<_> = phases
            .map(|(index, phase)| {
                let plain = plain.and_then(|outcome| outcome.phases.get(index));
                times(&phase.name, phase.seconds, plain.map(|phase| phase.seconds))
            })
            .collect();
        let all = self.ghost.outcome.seconds();
        rows.push(times("all work", all, plain.map(Outcome::seconds)));
        rows
    }

    fn verdict(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let memory = &self.ghost.memory;
        let samples = grouped(memory.samples);
        let fixed = if self.has_file { "24 MiB" } else { "16 MiB" };
        let rule = match self.memory_bytes {
            Some(bytes) => format!("the {} of --memory", Bytes(bytes)),
            None => format!("limit + store + 5 % + {fixed}"),
        };
        if self.memory_rule_held {
            let peak = if memory.bounded {
                ""
            } else {
                " and at the kernel's peak"
            };
            lines.push(format!(
                "Memory: within {rule} at all of {samples} samples{peak}; {} below it at the tightest.",
                Bytes(memory.headroom_bytes.unsigned_abs())
            ));
        } else if memory.headroom_bytes < 0 {
            lines.push(format!(
                "MEMORY RULE BROKEN: {} taken, {} more than {rule}.",
                Bytes(memory.tightest_bytes),
                Bytes(memory.headroom_bytes.unsigned_abs())
            ));
        } else {
            lines.push(format!(
                "MEMORY RULE BROKEN: peak {} of at most {} allowed, ghost pages {} of {}, {samples} \
                 samples.",
                Bytes(memory.peak_bytes),
                Bytes(memory.allowed_bytes),
                Bytes(memory.ghost_resident_bytes),
                Bytes(self.limit_bytes)
            ));
        }
        let beyond = memory.beyond_limit_bytes(self.limit_bytes);
        if beyond > 0 && memory.overdrafts > 0 {
            lines.push(format!(
                "Limit: EXCEEDED by up to {} of ghost pages; {} frames were taken beyond it for \
                 threads that could not go on otherwise (68 pages at a time are allowed).",
                Bytes(beyond),
                grouped(memory.overdrafts)
            ));
        }
        if !memory.peak_reset {
            lines.push("        (the kernel did not reset the peak: it includes the start)".into());
        }
        let outcome = &self.ghost.outcome;
        if self.verified {
            let same = if self.same_results.is_some() {
                ", same results as without GhostMem"
            } else {
                ""
            };
            lines.push(format!(
                "Verified: {} documents, {} records, {} words ({} different), {} look-ups, {} \
                 updates: all as computed from the files{same}.",
                grouped(self.data.documents),
                grouped(outcome.records),
                grouped(outcome.indexed_words),
                grouped(outcome.distinct_words),
                grouped(outcome.lookups),
                grouped(outcome.updates),
            ));
        } else {
            lines.extend(failed("GhostMem", outcome));
            lines.extend(
                self.baseline
                    .iter()
                    .flat_map(|b| failed("without GhostMem", &b.outcome)),
            );
            if self.same_results == Some(false) {
                lines.push("WRONG: the results differ from those without GhostMem.".to_string());
            }
        }
        lines
    }
}

fn row(name: &str, with: String, without: String, ratio: String) -> [String; 4] {
    [name.to_string(), with, without, ratio]
}

fn only(name: &str, with: String) -> [String; 4] {
    row(name, with, String::new(), String::new())
}

fn failed(run: &str, outcome: &Outcome) -> Vec<String> {
    let wrong = outcome.checks.iter().filter(|check| !check.ok);
    wrong
        .map(|check| format!("WRONG ({run}): {}: {}", check.name, check.detail))
        .collect()
}

fn ratio(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole)
}

fn slower(with: f64, without: Option<f64>) -> Option<String> {
    let factor = ratio(with, without?)?;
    Some(if factor < 99.5 {
        format!("{factor:.1}x")
    } else {
        format!("{factor:.0}x")
    })
}

fn seconds(value: f64) -> String {
    match value {
        v if v < 0.001 => format!("{:.0} us", v * 1e6),
        v if v < 0.9995 => format!("{:.0} ms", v * 1e3),
        v if v < 99.95 => format!("{v:.2} s"),
        v => format!("{v:.0} s"),
    }
}

fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        n if n < 1000 => format!("{n} ns"),
        n if n < 1_000_000 => format!("{:.1} us", n as f64 / 1e3),
        n => format!("{:.1} ms", n as f64 / 1e6),
    }
}

fn pair(first: u64, second: u64) -> String {
    format!("{} / {}", grouped(first), grouped(second))
}

/// Breaks a line at spaces; what follows is indented.
fn wrap(line: &str, lines: &mut Vec<String>) {
    const WIDTH: usize = 92;
    let mut current = String::new();
    for word in line.split(' ') {
        if !current.is_empty() && current.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut current, format!("  {word}")));
        } else {
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
        }
    }
    lines.push(current);
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_broken_at_spaces() {
        let line = "word ".repeat(50);
        let mut lines = Vec::new();
        wrap(line.trim(), &mut lines);
        assert!(
            lines.len() == 3 && lines.iter().all(|line| line.len() <= 92),
            "{lines:?}"
        );
        assert_eq!(lines.join("").matches("word").count(), 50);
        assert!(lines[1].starts_with("  word"));
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(time(999), "999 ns");
        assert_eq!(time(4321), "4.3 us");
        assert_eq!(seconds(0.25), "250 ms");
        assert_eq!(seconds(2.5), "2.50 s");
        assert_eq!(slower(3.0, Some(1.5)).as_deref(), Some("2.0x"));
        assert_eq!(slower(3.0, None), None);
        assert_eq!(slower(3.0, Some(0.0)), None);
    }
}

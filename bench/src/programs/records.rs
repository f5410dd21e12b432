//! What was measured, run by run, and as CSV.

use std::path::Path;

use serde_json::{Value, json};

use super::args::Contender;
use super::attempt::Figures;
use super::summary;
use crate::error::Result;
use crate::report;

/// One run.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) program: String,
    pub(super) contender: Contender,
    /// Share of the plain total; none for plain itself.
    pub(super) limit_percent: Option<u32>,
    /// Of the group; of ghost the number for `--memory`; of plain 0.
    pub(super) limit_bytes: u64,
    pub(super) repetition: u32,
    pub(super) figures: Figures,
}

/// What was left out, and why; without a contender it is the program.
#[derive(Debug, Clone)]
struct LeftOut {
    program: String,
    place: Option<(Contender, Option<u32>)>,
    why: String,
}

/// All runs.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) rows: Vec<Row>,
    left_out: Vec<LeftOut>,
}

impl LeftOut {
    fn text(&self) -> String {
        let program = &self.program;
        let why = &self.why;
        match self.place {
            None => format!("{program}: {why}"),
            Some((contender, None)) => format!("{program}, {contender}: {why}"),
            Some((contender, Some(percent))) => {
                format!("{program}, {contender}, limit {percent} %: {why}")
            }
        }
    }
}

impl Record {
    pub(super) const fn new() -> Self {
        Self {
            rows: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Leaves a program out, loudly.
    pub(super) fn leave_out_program(&mut self, program: &str, why: &str) {
        self.note(program, None, why);
    }

    /// Leaves a contender out at one limit of one program, loudly.
    pub(super) fn leave_out(
        &mut self,
        program: &str,
        contender: Contender,
        percent: Option<u32>,
        why: &str,
    ) {
        self.note(program, Some((contender, percent)), why);
    }

    fn note(&mut self, program: &str, place: Option<(Contender, Option<u32>)>, why: &str) {
        let left_out = LeftOut {
            program: program.to_owned(),
            place,
            why: why.to_owned(),
        };
        eprintln!("LEFT OUT: {}", left_out.text());
        self.left_out.push(left_out);
    }

    /// Whether a contender was left out at this limit.
    pub(super) fn is_out(&self, program: &str, contender: Contender, percent: Option<u32>) -> bool {
        self.why_out(program, contender, percent).is_some()
    }

    /// Why a contender was left out at this limit, if it was.
    pub(super) fn why_out(
        &self,
        program: &str,
        contender: Contender,
        percent: Option<u32>,
    ) -> Option<&str> {
        self.left_out
            .iter()
            .find(|out| out.program == program && out.place == Some((contender, percent)))
            .map(|out| out.why.as_str())
    }

    /// What was left out, one line each.
    pub(super) fn left_out(&self) -> Vec<String> {
        self.left_out.iter().map(LeftOut::text).collect()
    }

    /// The total of zram's first run at a limit, which ours keeps to.
    pub(super) fn zram_total(&self, program: &str, percent: u32) -> Option<u64> {
        self.rows_of(program, Contender::Zram, Some(percent))
            .next()
            .map(|row| row.figures.peak.total)
    }

    /// The runs of one contender at one limit, in order.
    pub(super) fn rows_of(
        &self,
        program: &str,
        contender: Contender,
        percent: Option<u32>,
    ) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| {
            row.program == program && row.contender == contender && row.limit_percent == percent
        })
    }

    /// The programs that ran, in order.
    pub(super) fn programs(&self) -> Vec<&str> {
        let mut programs: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !programs.contains(&row.program.as_str()) {
                programs.push(&row.program);
            }
        }
        programs
    }

    /// Each program that ran, and each share that it was to run at, from the largest on.
    pub(super) fn squeezed(&self) -> Vec<(String, u32)> {
        let of_rows = self.rows.iter();
        let of_rows = of_rows.filter_map(|row| Some((row.program.as_str(), row.limit_percent?)));
        let of_left_out = self.left_out.iter();
        let of_left_out = of_left_out.filter_map(|out| Some((out.program.as_str(), out.place?.1?)));
        let all: Vec<(&str, u32)> = of_rows.chain(of_left_out).collect();
        let mut squeezed = Vec::new();
        for program in self.programs() {
            let own = all.iter().filter(|(of, _)| *of == program);
            let mut percents: Vec<u32> = own.map(|&(_, percent)| percent).collect();
            percents.sort_unstable_by(|a, b| b.cmp(a));
            percents.dedup();
            squeezed.extend(
                percents
                    .into_iter()
                    .map(|percent| (program.to_owned(), percent)),
            );
        }
        squeezed
    }

    /// Which rows do not count, and why.
    fn not_counted(&self) -> Vec<Value> {
        summary::pairs(self)
            .into_iter()
            .filter_map(|pair| {
                let why = pair.why_not?;
                Some(json!({
                    "program": pair.program,
                    "limit_percent": pair.percent,
                    "why": why,
                }))
            })
            .collect()
    }

    /// Writes one row per run.
    pub(super) fn write_csv(&self, path: &Path) -> Result<()> {
        let header = [
            "program",
            "contender",
            "limit_percent",
            "limit_bytes",
            "repetition",
            "seconds",
            "user_s",
            "system_s",
            "engine_s",
            "total_bytes",
            "zram_bytes",
            "file_bytes",
            "peak_rss_bytes",
            "faults",
            "lent",
            "lent_s",
        ];
        let seconds = |ns: u64| format!("{:.3}", ns as f64 / 1e9);
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                let figures = &row.figures;
                vec![
                    row.program.clone(),
                    row.contender.to_string(),
                    row.limit_percent
                        .map_or_else(String::new, |percent| percent.to_string()),
                    row.limit_bytes.to_string(),
                    row.repetition.to_string(),
                    format!("{:.3}", figures.seconds),
                    seconds(figures.spent.user_ns),
                    seconds(figures.spent.system_ns),
                    seconds(figures.engine_ns),
                    figures.peak.total.to_string(),
                    figures.peak.zram.to_string(),
                    figures.file_bytes.to_string(),
                    figures.spent.peak_rss_bytes.to_string(),
                    figures.faults.to_string(),
                    figures.lent.count.to_string(),
                    format!("{:.3}", figures.lent.lasted.as_secs_f64()),
                ]
            })
            .collect();
        let mut facts = report::machine();
        facts["left_out"] = json!(self.left_out());
        facts["not_counted"] = json!(self.not_counted());
        report::write_csv(path, &facts, &header, &rows)
    }
}

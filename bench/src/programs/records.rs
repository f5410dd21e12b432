//! What was measured: on a terminal, and as CSV.

use std::path::Path;

use serde_json::json;

use super::args::Contender;
use super::attempt::Ended;
use crate::error::Result;
use crate::report::{self, Spread, mib};

/// One run.
pub(super) struct Row {
    pub(super) program: &'static str,
    pub(super) contender: Contender,
    /// Share of the plain peak; none for plain itself.
    pub(super) limit_percent: Option<u32>,
    pub(super) limit_bytes: u64,
    pub(super) repetition: u32,
    pub(super) ended: Ended,
}

/// What was left out, and why; without a contender it is the program.
struct LeftOut {
    program: &'static str,
    place: Option<(Contender, Option<u32>)>,
    why: String,
}

/// All runs.
pub(super) struct Record {
    pub(super) rows: Vec<Row>,
    left_out: Vec<LeftOut>,
}

impl LeftOut {
    fn text(&self) -> String {
        let program = self.program;
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
    pub(super) fn leave_out_program(&mut self, program: &'static str, why: &str) {
        self.note(program, None, why);
    }

    /// Leaves a contender out at one limit of one program, loudly.
    pub(super) fn leave_out(
        &mut self,
        program: &'static str,
        contender: Contender,
        percent: Option<u32>,
        why: &str,
    ) {
        self.note(program, Some((contender, percent)), why);
    }

    fn note(&mut self, program: &'static str, place: Option<(Contender, Option<u32>)>, why: &str) {
        let left_out = LeftOut {
            program,
            place,
            why: why.to_owned(),
        };
        eprintln!("LEFT OUT: {}", left_out.text());
        self.left_out.push(left_out);
    }

    /// Whether a contender was left out at this limit.
    pub(super) fn is_out(&self, program: &str, contender: Contender, percent: Option<u32>) -> bool {
        self.left_out
            .iter()
            .any(|out| out.program == program && out.place == Some((contender, percent)))
    }

    /// What ran, in the order of the table, each once.
    fn places(&self) -> Vec<(&'static str, Option<u32>, Contender)> {
        let mut places = Vec::new();
        for program in super::list::PROGRAMS {
            let of_program = self.rows.iter().filter(|row| row.program == program.name);
            let mut own: Vec<_> = of_program
                .map(|row| (row.limit_percent, row.contender))
                .collect();
            // Plain first, then from the largest limit on.
            own.sort_unstable_by_key(|&(percent, contender)| {
                (percent.map_or(0, |percent| 101 - percent), contender)
            });
            own.dedup();
            places.extend(
                own.into_iter()
                    .map(|(percent, contender)| (program.name, percent, contender)),
            );
        }
        places
    }

    fn figures(
        &self,
        place: (&str, Option<u32>, Contender),
        field: impl Fn(&Row) -> Option<f64>,
    ) -> Option<Spread> {
        let rows = self
            .rows
            .iter()
            .filter(|row| (row.program, row.limit_percent, row.contender) == place);
        Spread::of(&rows.filter_map(field).collect::<Vec<_>>())
    }

    /// Time of a run over that of the plain program in the same repetition.
    fn times_plain(&self, row: &Row) -> Option<f64> {
        let plain = self.rows.iter().find(|plain| {
            plain.contender == Contender::Plain
                && plain.program == row.program
                && plain.repetition == row.repetition
        })?;
        Some(row.ended.seconds / plain.ended.seconds)
    }

    /// Prints the table of medians.
    pub(super) fn print(&self) {
        let mut table = report::table(&[
            "program",
            "contender",
            "limit MiB",
            "total at peak MiB",
            "of it zram",
            "s, median (min-max)",
            "times plain",
            "user s",
            "system s",
            "engine's threads s",
            "faults",
            "lent",
        ]);
        for place in self.places() {
            let (program, percent, contender) = place;
            let median = |digits: usize, field: &dyn Fn(&Row) -> f64| {
                self.figures(place, |row| Some(field(row)))
                    .map_or_else(String::new, |spread| format!("{:.digits$}", spread.median))
            };
            let in_mib = |field: &dyn Fn(&Row) -> u64| {
                median(0, &|row| field(row) as f64 / f64::from(1 << 20))
            };
            let seconds = |field: &dyn Fn(&Row) -> u64| median(2, &|row| field(row) as f64 / 1e9);
            let only = |wanted, text: String| {
                if contender == wanted {
                    text
                } else {
                    String::new()
                }
            };
            let limit = self.rows.iter().find(|row| {
                (row.program, row.limit_percent, row.contender) == place && percent.is_some()
            });
            let limit = limit.map_or_else(String::new, |row| {
                format!("{} ({} %)", mib(row.limit_bytes), percent.unwrap_or(0))
            });
            let time = self.figures(place, |row| Some(row.ended.seconds));
            let ratio = self.figures(place, |row| self.times_plain(row));
            table.add_row([
                program.to_owned(),
                contender.to_string(),
                limit,
                in_mib(&|row| row.ended.total_bytes),
                only(Contender::Zram, in_mib(&|row| row.ended.zram_bytes)),
                time.map_or_else(String::new, |time| {
                    format!("{:.2} ({:.2}-{:.2})", time.median, time.min, time.max)
                }),
                ratio.map_or_else(String::new, |ratio| format!("{:.2}", ratio.median)),
                seconds(&|row| row.ended.spent.user_ns),
                seconds(&|row| row.ended.spent.system_ns),
                only(Contender::Ghost, seconds(&|row| row.ended.engine_ns)),
                median(0, &|row| row.ended.faults as f64),
                only(
                    Contender::Zram,
                    median(0, &|row| row.ended.lent.count as f64),
                ),
            ]);
        }
        println!("{table}");
        println!("the output of every run is that of the plain program");
        for left_out in &self.left_out {
            println!("left out: {}", left_out.text());
        }
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
            "peak_rss_bytes",
            "zram_bytes",
            "faults",
            "lent",
            "lent_s",
        ];
        let seconds = |ns: u64| format!("{:.3}", ns as f64 / 1e9);
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| {
                let ended = &row.ended;
                vec![
                    row.program.to_owned(),
                    row.contender.to_string(),
                    row.limit_percent
                        .map_or_else(String::new, |percent| percent.to_string()),
                    row.limit_bytes.to_string(),
                    row.repetition.to_string(),
                    format!("{:.3}", ended.seconds),
                    seconds(ended.spent.user_ns),
                    seconds(ended.spent.system_ns),
                    seconds(ended.engine_ns),
                    ended.total_bytes.to_string(),
                    ended.spent.peak_rss_bytes.to_string(),
                    ended.zram_bytes.to_string(),
                    ended.faults.to_string(),
                    ended.lent.count.to_string(),
                    format!("{:.3}", ended.lent.lasted.as_secs_f64()),
                ]
            })
            .collect();
        let mut facts = report::machine();
        facts["left_out"] = json!(self.left_out.iter().map(LeftOut::text).collect::<Vec<_>>());
        report::write_csv(path, &facts, &header, &rows)
    }
}

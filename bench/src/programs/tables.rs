//! What was measured, on a terminal: every contender, and then the pairs.

use comfy_table::Table;

use super::args::Contender;
use super::records::{Record, Row};
use super::summary::{Medians, Pair, pairs};
use crate::report::{self, Spread, mib};

const DASH: &str = "-";

/// Prints both tables and what was left out.
pub(super) fn print(record: &Record) {
    println!("{}", contenders(record));
    let pairs = pairs(record);
    if !pairs.is_empty() {
        println!("{}", beside_zram(&pairs));
    }
    println!("the output of every run is that of the plain program");
    for pair in &pairs {
        if let Some(why) = &pair.why_not {
            println!("not counted: {}, {} %: {why}", pair.program, pair.percent);
        }
    }
    for left_out in record.left_out() {
        println!("left out: {left_out}");
    }
}

/// Medians of every contender at every limit.
fn contenders(record: &Record) -> Table {
    let mut table = report::table(&[
        "program",
        "contender",
        "limit MiB",
        "total MiB",
        "of it zram",
        "s, median (min-max)",
        "times plain",
        "overhead s",
        "user s",
        "system s",
        "engine's threads s",
        "faults",
        "lent",
    ]);
    for (program, percent, contender) in places(record) {
        let rows: Vec<&Row> = record.rows_of(&program, contender, percent).collect();
        let plain: Vec<&Row> = record.rows_of(&program, Contender::Plain, None).collect();
        let (Some(medians), Some(plain)) = (Medians::of(&rows), Medians::of(&plain)) else {
            continue;
        };
        let only = |wanted, text: String| {
            if contender == wanted {
                text
            } else {
                String::new()
            }
        };
        let seconds: Vec<f64> = rows.iter().map(|row| row.figures.seconds).collect();
        let time = Spread::of(&seconds).map_or_else(String::new, |time| {
            format!("{:.2} ({:.2}-{:.2})", time.median, time.min, time.max)
        });
        let squeezed = |text: String| percent.map_or_else(String::new, |_| text);
        table.add_row([
            program.clone(),
            contender.to_string(),
            percent.map_or_else(String::new, |percent| {
                format!("{} ({percent} %)", mib(medians.limit_bytes))
            }),
            in_mib(medians.total_bytes),
            only(Contender::Zram, in_mib(medians.zram_bytes)),
            time,
            format!("{:.2}", medians.seconds / plain.seconds),
            squeezed(format!("{:.2}", medians.overhead_s(&plain))),
            format!("{:.2}", medians.user_s),
            format!("{:.2}", medians.system_s),
            only(Contender::Ghost, format!("{:.2}", medians.engine_s)),
            format!("{:.0}", medians.faults),
            only(Contender::Zram, format!("{:.0}", medians.lent)),
        ]);
    }
    table
}

/// What ran, each once: plain first, then from the largest limit on.
fn places(record: &Record) -> Vec<(String, Option<u32>, Contender)> {
    let mut places = Vec::new();
    for program in record.programs() {
        let of_program = record.rows.iter().filter(|row| row.program == program);
        let mut own: Vec<_> = of_program
            .map(|row| (row.limit_percent, row.contender))
            .collect();
        own.sort_unstable_by_key(|&(percent, contender)| {
            (percent.map_or(0, |percent| 101 - percent), contender)
        });
        own.dedup();
        places.extend(
            own.into_iter()
                .map(|(percent, contender)| (program.to_owned(), percent, contender)),
        );
    }
    places
}

/// GhostMem beside zram, at equal total.
fn beside_zram(pairs: &[Pair]) -> Table {
    let mut table = report::table(&[
        "zram / ghost",
        "at",
        "total MiB",
        "overhead s",
        "zram's over ours",
        "our time / zram's",
        "processor s",
        "ours / zram's",
        "faults",
    ]);
    for pair in pairs {
        let both = |figure: &dyn Fn(&Medians) -> String| {
            let side = |side: &Option<Medians>| side.as_ref().map_or(DASH.into(), figure);
            format!("{} / {}", side(&pair.zram), side(&pair.ghost))
        };
        let ratio = |ratio: Option<f64>| ratio.map_or(DASH.into(), |ratio| format!("{ratio:.2}"));
        table.add_row([
            pair.program.clone(),
            format!("{} %", pair.percent),
            both(&|medians| in_mib(medians.total_bytes)),
            both(&|medians| format!("{:.2}", medians.overhead_s(&pair.plain))),
            verdict(pair),
            ratio(pair.time_ratio()),
            both(&|medians| format!("{:.2}", medians.processor_s())),
            ratio(pair.processor_ratio()),
            both(&|medians| format!("{:.0}", medians.faults)),
        ]);
    }
    table
}

/// How many times our overhead zram's is, or why that is no number.
fn verdict(pair: &Pair) -> String {
    match (&pair.why_not, pair.gain()) {
        (Some(_), _) => "not counted".into(),
        (None, Some(gain)) => format!("{gain:.2}"),
        (None, None) => "ours is none".into(),
    }
}

fn in_mib(bytes: f64) -> String {
    format!("{:.0}", bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::super::attempt::Figures;
    use super::super::peak::Peak;
    use super::*;

    fn row(contender: Contender, percent: Option<u32>, seconds: f64, total_mib: u64) -> Row {
        Row {
            program: "arrays".into(),
            contender,
            limit_percent: percent,
            limit_bytes: total_mib << 20,
            repetition: 0,
            figures: Figures {
                seconds,
                peak: Peak {
                    total: total_mib << 20,
                    zram: 0,
                },
                faults: 7,
                ..Figures::default()
            },
        }
    }

    fn record() -> Record {
        let mut record = Record::new();
        record.rows = vec![
            row(Contender::Plain, None, 2.0, 200),
            row(Contender::Ghost, Some(30), 5.0, 120),
            row(Contender::Zram, Some(30), 9.0, 110),
            row(Contender::Zram, Some(50), 8.0, 150),
            row(Contender::Ghost, Some(50), 4.0, 151),
        ];
        // zram's first total is what ours kept to.
        record.rows[1].limit_bytes = 110 << 20;
        record.rows[4].limit_bytes = 150 << 20;
        record
    }

    /// Proves the order: plain, then from the largest limit on, zram before ghost.
    #[test]
    fn the_table_goes_from_much_memory_to_little() {
        let order: Vec<_> = places(&record())
            .into_iter()
            .map(|(_, percent, contender)| (percent, contender))
            .collect();
        assert_eq!(
            order,
            [
                (None, Contender::Plain),
                (Some(50), Contender::Zram),
                (Some(50), Contender::Ghost),
                (Some(30), Contender::Zram),
                (Some(30), Contender::Ghost),
            ]
        );
    }

    /// Proves that the pair that counts has its ratio, and that the other one says so.
    #[test]
    fn a_row_that_does_not_count_is_shown_without_a_ratio() {
        let pairs = pairs(&record());
        // (8 - 2) / (4 - 2)
        assert_eq!(verdict(&pairs[0]), "3.00");
        assert_eq!(verdict(&pairs[1]), "not counted");
        let table = beside_zram(&pairs).to_string();
        let lines: Vec<&str> = table
            .lines()
            .filter(|line| line.contains("arrays"))
            .collect();
        assert!(
            lines[0].contains("150 / 151") && lines[0].contains("6.00 / 2.00"),
            "{table}"
        );
        assert!(
            lines[1].contains("110 / 120") && lines[1].contains("7.00 / 3.00"),
            "{table}"
        );
        assert!(lines[0].contains("7 / 7"), "{table}");
    }

    /// Proves that the overhead is the time beyond plain.
    #[test]
    fn every_contender_has_its_overhead() {
        let table = contenders(&record()).to_string();
        let zram = table
            .lines()
            .find(|line| line.contains("zram") && line.contains("50 %"));
        assert!(
            zram.unwrap().contains("4.00") && zram.unwrap().contains("6.00"),
            "{table}"
        );
    }
}

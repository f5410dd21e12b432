//! A picture of each program: overhead over total memory.

use std::fs;
use std::path::Path;

use super::args::Contender;
use super::records::{Record, Row};
use super::summary::Medians;
use crate::error::{Error, Result};
use crate::plot::{self, Axis, Line};

/// Who is in a picture, in which colour: the same as in the page of the comparison.
const CONTENDERS: [(Contender, usize); 3] = [
    (Contender::Plain, 0),
    (Contender::Ghost, 1),
    (Contender::Zram, 2),
];

/// Writes the pictures, DIR/NAME.svg each.
pub(super) fn write(folder: &Path, record: &Record) -> Result<()> {
    fs::create_dir_all(folder).map_err(|err| Error::io(folder.display(), &err))?;
    for program in record.programs() {
        if let Some(svg) = picture(record, program)? {
            let file = folder.join(program).with_extension("svg");
            fs::write(&file, svg).map_err(|err| Error::io(file.display(), &err))?;
        }
    }
    Ok(())
}

/// Medians of a contender, a point for each limit: MiB held, and seconds beyond plain.
fn points(record: &Record, program: &str, contender: Contender) -> Vec<(f64, f64)> {
    let medians = |contender, percent| {
        let rows: Vec<&Row> = record.rows_of(program, contender, percent).collect();
        Medians::of(&rows)
    };
    let Some(plain) = medians(Contender::Plain, None) else {
        return Vec::new();
    };
    let mut percents: Vec<Option<u32>> = record
        .rows
        .iter()
        .filter(|row| row.program == program && row.contender == contender)
        .map(|row| row.limit_percent)
        .collect();
    percents.sort_unstable();
    percents.dedup();
    let all = percents
        .into_iter()
        .filter_map(|percent| medians(contender, percent));
    all.map(|medians| {
        let mib = medians.total_bytes / f64::from(1 << 20);
        (mib, medians.overhead_s(&plain))
    })
    .collect()
}

/// The picture of a program; `None` where nothing but plain ran.
fn picture(record: &Record, program: &str) -> Result<Option<String>> {
    let mut lines: Vec<(String, Line)> = Vec::new();
    for (contender, colour) in CONTENDERS {
        let points = points(record, program, contender);
        if !points.is_empty() {
            lines.push((contender.to_string(), (colour, points)));
        }
    }
    if lines.len() < 2 {
        return Ok(None);
    }
    let named: Vec<(&str, Line)> = lines
        .iter()
        .map(|(name, line)| (name.as_str(), line.clone()))
        .collect();
    let all: Vec<Line> = lines.iter().map(|(_, line)| line.clone()).collect();
    let (Some(x), Some(y)) = (
        plot::extent(&all, |point| point.0),
        plot::extent(&all, |point| point.1),
    ) else {
        return Ok(None);
    };
    plot::draw_alone(
        &format!("{program}: overhead over total memory"),
        &named,
        (0.0..x.end * 1.1, y.start.min(0.0)..(y.end * 1.1).max(0.1)),
        (
            Axis {
                name: "total MiB at the peak",
                label: &plot::plain,
                labels: 8,
            },
            Axis {
                name: "seconds beyond the plain run",
                label: &plot::plain,
                labels: 8,
            },
        ),
    )
    .map(Some)
}

#[cfg(test)]
mod tests {
    use super::super::attempt::Figures;
    use super::super::peak::Peak;
    use super::*;

    fn row(contender: Contender, percent: Option<u32>, seconds: f64, total_mib: u64) -> Row {
        Row {
            program: "git".into(),
            contender,
            limit_percent: percent,
            limit_bytes: 0,
            repetition: 0,
            figures: Figures {
                seconds,
                peak: Peak {
                    total: total_mib << 20,
                    zram: 0,
                },
                ..Figures::default()
            },
        }
    }

    /// Proves that a picture has a point for each limit, who is who, and what is drawn.
    #[test]
    fn a_picture_has_both_and_their_names() {
        let mut record = Record::new();
        record.rows.push(row(Contender::Plain, None, 2.0, 200));
        assert!(picture(&record, "git").unwrap().is_none());
        record.rows.push(row(Contender::Zram, Some(50), 8.0, 150));
        record.rows.push(row(Contender::Zram, Some(30), 9.0, 110));
        record.rows.push(row(Contender::Ghost, Some(50), 4.0, 151));
        assert_eq!(
            points(&record, "git", Contender::Zram),
            [(110.0, 7.0), (150.0, 6.0)]
        );
        let svg = picture(&record, "git").unwrap().unwrap();
        for words in ["git: overhead", "total MiB", "plain", "ghost", "zram"] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 4, "{svg}");
    }
}

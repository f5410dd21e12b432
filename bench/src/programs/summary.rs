//! What the runs of a program say together: medians, and whether GhostMem may be compared
//! with zram.

use super::args::Contender;
use super::records::{Record, Row};
use crate::report::Spread;

/// How much more than zram's total ours may be.
const MORE: f64 = 1.02;

/// Medians of one contender at one limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Medians {
    pub(super) runs: usize,
    pub(super) seconds: f64,
    /// User and system time.
    pub(super) user_s: f64,
    pub(super) system_s: f64,
    pub(super) engine_s: f64,
    pub(super) total_bytes: f64,
    pub(super) zram_bytes: f64,
    pub(super) faults: f64,
    pub(super) lent: f64,
    /// The limit of the group, or the number for `--memory`.
    pub(super) limit_bytes: u64,
}

/// One program at one limit, by all three.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pair {
    pub(super) program: String,
    pub(super) percent: u32,
    pub(super) plain: Medians,
    pub(super) zram: Option<Medians>,
    pub(super) ghost: Option<Medians>,
    /// Why the row does not count.
    pub(super) why_not: Option<String>,
}

impl Medians {
    /// Of rows of one program, one contender and one limit.
    pub(super) fn of(rows: &[&Row]) -> Option<Self> {
        let median = |field: &dyn Fn(&Row) -> f64| {
            let values: Vec<f64> = rows.iter().map(|&row| field(row)).collect();
            Spread::of(&values).map(|spread| spread.median)
        };
        Some(Self {
            runs: rows.len(),
            seconds: median(&|row| row.figures.seconds)?,
            user_s: median(&|row| row.figures.spent.user_ns as f64 / 1e9)?,
            system_s: median(&|row| row.figures.spent.system_ns as f64 / 1e9)?,
            engine_s: median(&|row| row.figures.engine_ns as f64 / 1e9)?,
            total_bytes: median(&|row| row.figures.peak.total as f64)?,
            zram_bytes: median(&|row| row.figures.peak.zram as f64)?,
            faults: median(&|row| row.figures.faults as f64)?,
            lent: median(&|row| row.figures.lent.count as f64)?,
            limit_bytes: rows.first()?.limit_bytes,
        })
    }

    /// Processor time, user and system, seconds.
    pub(super) fn processor_s(&self) -> f64 {
        self.user_s + self.system_s
    }

    /// Time beyond the plain run, seconds.
    pub(super) fn overhead_s(&self, plain: &Self) -> f64 {
        self.seconds - plain.seconds
    }
}

impl Pair {
    /// zram's overhead over ours, where the row counts and ours is an overhead at all.
    pub(super) fn gain(&self) -> Option<f64> {
        let (zram, ghost) = self.compared()?;
        let ours = ghost.overhead_s(&self.plain);
        (ours > 0.0).then(|| zram.overhead_s(&self.plain) / ours)
    }

    /// Our time over zram's, start to end, where the row counts.
    pub(super) fn time_ratio(&self) -> Option<f64> {
        let (zram, ghost) = self.compared()?;
        Some(ghost.seconds / zram.seconds)
    }

    /// Our processor time over zram's, where the row counts.
    pub(super) fn processor_ratio(&self) -> Option<f64> {
        let (zram, ghost) = self.compared()?;
        Some(ghost.processor_s() / zram.processor_s())
    }

    fn compared(&self) -> Option<(&Medians, &Medians)> {
        if self.why_not.is_some() {
            return None;
        }
        Some((self.zram.as_ref()?, self.ghost.as_ref()?))
    }
}

/// Why a row does not count, if it does not: ours held more than zram. `given` is the total
/// of zram's first run, which ours had to keep to; the others are medians, bytes.
fn why_not(given: u64, zram: f64, ours: f64) -> Option<String> {
    let times = |total: f64| format!("{:.3}", ours / total);
    let given = given as f64;
    if ours > given * MORE {
        return Some(format!(
            "its total is {} times that of zram, {MORE} at most",
            times(given)
        ));
    }
    if ours > zram * MORE {
        return Some(format!(
            "zram's first total, which ours kept to, was above its median: ours is {} times \
             that, {MORE} at most",
            times(zram)
        ));
    }
    None
}

/// Every program at every limit, in the order of the first round.
pub(super) fn pairs(record: &Record) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for (program, percent) in record.squeezed() {
        let medians = |contender, percent| {
            let rows: Vec<&Row> = record.rows_of(&program, contender, percent).collect();
            Medians::of(&rows)
        };
        let Some(plain) = medians(Contender::Plain, None) else {
            continue;
        };
        let zram = medians(Contender::Zram, Some(percent));
        let ghost = medians(Contender::Ghost, Some(percent));
        // One that failed in a later round has rows and does not count.
        let out = |contender| record.why_out(&program, contender, Some(percent));
        let why_not = match (&zram, &ghost) {
            _ if out(Contender::Zram).is_some() || out(Contender::Ghost).is_some() => {
                [Contender::Zram, Contender::Ghost]
                    .into_iter()
                    .find_map(|contender| Some(format!("{contender}: {}", out(contender)?)))
            }
            (None, _) => Some("zram was not asked for".into()),
            (_, None) => Some("ghost was not asked for".into()),
            (Some(zram), Some(ghost)) => {
                why_not(ghost.limit_bytes, zram.total_bytes, ghost.total_bytes)
            }
        };
        pairs.push(Pair {
            program,
            percent,
            plain,
            zram,
            ghost,
            why_not,
        });
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::super::attempt::Figures;
    use super::super::peak::Peak;
    use super::*;
    use crate::sys::Spent;

    const MIB: u64 = 1 << 20;

    fn row(contender: Contender, repetition: u32, seconds: f64, total: u64) -> Row {
        Row {
            program: "records".into(),
            contender,
            limit_percent: (contender != Contender::Plain).then_some(50),
            limit_bytes: match contender {
                Contender::Plain => 0,
                Contender::Zram => 100 * MIB,
                Contender::Ghost => 140 * MIB,
            },
            repetition,
            figures: Figures {
                seconds,
                spent: Spent {
                    user_ns: (seconds * 5e8) as u64,
                    system_ns: (seconds * 5e8) as u64,
                    ..Spent::default()
                },
                peak: Peak {
                    total: total * MIB,
                    zram: 0,
                },
                ..Figures::default()
            },
        }
    }

    fn record(rows: Vec<Row>) -> Record {
        let mut record = Record::new();
        record.rows = rows;
        record
    }

    fn three(contender: Contender, seconds: [f64; 3], total: u64) -> Vec<Row> {
        (0..3)
            .zip(seconds)
            .map(|(repetition, seconds)| row(contender, repetition, seconds, total))
            .collect()
    }

    /// Proves what the figures of a row are made of: medians, and overheads of medians.
    #[test]
    fn the_gain_is_zrams_overhead_over_ours() {
        let mut rows = three(Contender::Plain, [2.0, 1.9, 9.0], 200);
        rows.extend(three(Contender::Zram, [12.0, 11.0, 13.0], 140));
        rows.extend(three(Contender::Ghost, [7.0, 6.0, 40.0], 141));
        let pairs = pairs(&record(rows));
        let [pair] = pairs.as_slice() else {
            panic!("{pairs:?}");
        };
        assert_eq!((pair.percent, &pair.why_not), (50, &None));
        // (12 - 2) / (7 - 2)
        assert_eq!(pair.gain(), Some(2.0));
        assert_eq!(pair.time_ratio(), Some(7.0 / 12.0));
        assert!((pair.processor_ratio().unwrap() - 7.0 / 12.0).abs() < 1e-6);
        assert_eq!(pair.ghost.unwrap().limit_bytes, 140 * MIB);
    }

    /// Proves where the line is: 1.02 times the total that ours was given, and 1.02 times
    /// zram's median.
    #[test]
    fn a_row_counts_up_to_a_fiftieth_more() {
        assert_eq!(why_not(1000, 1000.0, 1020.0), None);
        let more = why_not(1000, 1000.0, 1021.0).unwrap();
        assert!(more.contains("1.021 times that of zram"), "{more}");
        assert_eq!(why_not(1000, 2000.0, 400.0), None);
        // The first run of zram held more than it mostly does.
        let lucky = why_not(1100, 1000.0, 1100.0).unwrap();
        assert!(lucky.contains("above its median"), "{lucky}");
        // It held less: ours had less, and counts.
        assert_eq!(why_not(900, 1000.0, 915.0), None);
    }

    /// Proves that a row whose memory was more has no ratio.
    #[test]
    fn a_row_that_does_not_count_has_no_gain() {
        let mut rows = three(Contender::Plain, [2.0; 3], 200);
        rows.extend(three(Contender::Zram, [12.0; 3], 140));
        rows.extend(three(Contender::Ghost, [7.0; 3], 150));
        let pair = pairs(&record(rows)).remove(0);
        assert!(pair.why_not.is_some());
        assert_eq!(
            (pair.gain(), pair.time_ratio(), pair.processor_ratio()),
            (None, None, None)
        );
    }

    /// Proves that a missing side is said, with its reason where there is one.
    #[test]
    fn a_row_without_one_side_does_not_count() {
        let mut rows = three(Contender::Plain, [2.0; 3], 200);
        rows.extend(three(Contender::Ghost, [7.0; 3], 100));
        let mut record = record(rows);
        let why = |record: &Record| pairs(record).remove(0).why_not.unwrap();
        assert_eq!(why(&record), "zram was not asked for");
        record.leave_out("records", Contender::Zram, Some(50), "zram needs root");
        assert_eq!(why(&record), "zram: zram needs root");
    }

    /// Proves that a run that failed in a later round takes the whole row out.
    #[test]
    fn a_run_that_failed_once_is_no_row() {
        let mut rows = three(Contender::Plain, [2.0; 3], 200);
        rows.extend(three(Contender::Zram, [12.0; 3], 140));
        rows.push(row(Contender::Ghost, 0, 7.0, 140));
        let mut record = record(rows);
        record.leave_out("records", Contender::Ghost, Some(50), "exit status: 1");
        let pair = pairs(&record).remove(0);
        assert_eq!(pair.why_not.as_deref(), Some("ghost: exit status: 1"));
        assert_eq!(pair.gain(), None);
    }

    /// Proves that a gain over no overhead is not made up.
    #[test]
    fn no_overhead_has_no_gain() {
        let mut rows = three(Contender::Plain, [2.0; 3], 200);
        rows.extend(three(Contender::Zram, [3.0; 3], 140));
        rows.extend(three(Contender::Ghost, [1.9; 3], 140));
        let pair = pairs(&record(rows)).remove(0);
        assert_eq!(pair.why_not, None);
        assert_eq!(pair.gain(), None);
        assert!(pair.time_ratio().unwrap() < 1.0);
    }
}

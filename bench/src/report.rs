//! Figures for people and for machines: medians, tables, JSON, CSV, and the
//! facts of the machine that every published number carries.

use std::fs;
use std::path::Path;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use ghostmem_os::report::Reports;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Median and extremes of a few repetitions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    /// The middle value, the mean of both middle ones for an even count.
    pub(crate) median: f64,
    /// Smallest value.
    pub(crate) min: f64,
    /// Largest value.
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one value; `None` for none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        } else {
            sorted[middle]
        };
        Some(Self { median, min, max })
    }

    /// As JSON.
    pub(crate) fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }

    /// `1234 (1200-1300)`.
    pub(crate) fn text(self) -> String {
        format!("{:.0} ({:.0}-{:.0})", self.median, self.min, self.max)
    }
}

/// A table with right-aligned columns after the first.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Bytes as MiB with one decimal.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

/// A field of `/proc/self/status` that is given in kB, as bytes; 0 when the
/// kernel does not have it.
pub(crate) fn status_bytes(field: &str) -> u64 {
    Reports::of_this_machine().status_bytes(field).unwrap_or(0)
}

/// A field of `/proc/meminfo`, bytes.
pub(crate) fn meminfo_bytes(field: &str) -> u64 {
    Reports::of_this_machine().meminfo_bytes(field).unwrap_or(0)
}

fn line_of(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What decides the figures besides the code: machine, kernel, settings,
/// command and revision.
pub(crate) fn machine() -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("", |(_, name)| name.trim());
    json!({
        "cpu": model,
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory_bytes": meminfo_bytes("MemTotal"),
        "kernel": line_of("/proc/sys/kernel/osrelease"),
        "thp": line_of("/sys/kernel/mm/transparent_hugepage/enabled"),
        "swappiness": line_of("/proc/sys/vm/swappiness"),
        "page_cluster": line_of("/proc/sys/vm/page-cluster"),
        "zswap": line_of("/sys/module/zswap/parameters/enabled"),
        "command": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        "version": env!("CARGO_PKG_VERSION"),
        "revision": revision(),
        "unix_time": std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs()),
    })
}

/// The commit of the source tree this was built from, with `-dirty` behind it
/// when files differ; empty when that cannot be found out.
fn revision() -> String {
    let run = |args: &[&str]| {
        std::process::Command::new("git")
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .args(args)
            .output()
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = run(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
    match run(&["status", "--porcelain"]) {
        Some(changes) if !changes.is_empty() && !head.is_empty() => head + "-dirty",
        _ => head,
    }
}

/// Writes `value` to `path`, indented.
pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    fs::write(path, text).map_err(|err| Error::io(path.display(), &err))
}

/// Writes rows of plain fields (no quoting: none holds a comma) to `path`,
/// after comment lines with the machine's facts.
pub(crate) fn write_csv(
    path: &Path,
    facts: &Value,
    header: &[&str],
    rows: &[Vec<String>],
) -> Result<()> {
    let mut text = String::new();
    if let Value::Object(facts) = facts {
        for (name, value) in facts {
            text += &format!("# {name}: {value}\n");
        }
    }
    text += &(header.join(",") + "\n");
    for row in rows {
        text += &(row.join(",") + "\n");
    }
    fs::write(path, text).map_err(|err| Error::io(path.display(), &err))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves median and extremes for odd, even and no values.
    #[test]
    fn spread() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of(&[1.0, 2.0, 4.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of(&[]), None);
    }
}

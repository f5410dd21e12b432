//! `ghostmem-bench store`: what the store keeps beyond the compressed bytes,
//! fresh and while the contents are rewritten at random for a long time.
//!
//! *Overhead* is everything that exists because pages are compressed, less the
//! compressed bytes themselves, as a share of these: slabs' gaps and slot
//! headers (`held - data`) and all tables (`metadata`: page words, slab tables).
//!
//! Rewriting is counted in *turnovers*: as many page rewrites as there are
//! pages, at random, each with the contents of another random page of the data
//! set. Fragmentation depends on how often slots were freed and reused, not on
//! the time between, so turnovers stand for time: 24 turnovers of 1 GiB are
//! what a program does in an hour that rewrites 7 MiB of cold memory every
//! second.

use std::path::PathBuf;

use clap::Args;
use ghostmem_lab::rng::Rng;
use serde_json::json;

use crate::buffer::PAGE;
use crate::compare::report_mix;
use crate::contenders::ghost::Ghost;
use crate::contenders::{Contender, Figures};
use crate::data::DataSet;
use crate::error::{Error, Result};
use crate::options::{DataArgs, Size};
use crate::report::{self, mib};
use crate::work;

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Bytes of the buffer that may be resident.
    #[arg(long, default_value = "256M")]
    resident: Size,
    /// Backend of the heap: auto, inline, monitor, guard or guard-mprotect.
    #[arg(long, default_value = "inline")]
    backend: String,
    /// Page rewrites in all; default: 24 turnovers.
    #[arg(long)]
    rewrites: Option<u64>,
    /// Everything measured, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Overhead over the compressed bytes, a fraction.
fn overhead(figures: &Figures) -> f64 {
    let all = (figures.held + figures.metadata) as f64;
    (all - figures.data as f64) / figures.data.max(1) as f64
}

/// Runs the command.
pub(crate) fn run(args: &StoreArgs) -> Result<()> {
    let (data, mix) = args.data.build(1)?;
    report_mix(&mix, args.data.size.0);
    let ghost = Ghost::open(&args.backend, data.pages(), args.resident.0)?;
    work::fill(ghost.buffer(), &data)?;

    let mut table = report::table(&[
        "turnovers",
        "resident MiB",
        "compressed MiB",
        "held MiB",
        "metadata MiB",
        "gaps and headers %",
        "overhead %",
    ]);
    let mut results = Vec::new();
    let mut note = |turnovers: f64| -> Result<()> {
        let figures = ghost.figures()?;
        let gaps = (figures.held as f64 / figures.data.max(1) as f64 - 1.0) * 100.0;
        let percent = overhead(&figures) * 100.0;
        eprintln!("{turnovers:.1} turnovers: {percent:.2} % overhead");
        table.add_row([
            format!("{turnovers:.1}"),
            mib(figures.resident),
            mib(figures.data),
            mib(figures.held),
            mib(figures.metadata),
            format!("{gaps:.2}"),
            format!("{percent:.2}"),
        ]);
        results.push(json!({
            "turnovers": turnovers,
            "resident": figures.resident,
            "data": figures.data,
            "held": figures.held,
            "metadata": figures.metadata,
            "overhead": overhead(&figures),
        }));
        Ok(())
    };
    note(0.0)?;

    let pages = u64::from(data.pages());
    let rewrites = args.rewrites.unwrap_or(pages * 24);
    // Where each page's contents come from.
    let mut origin: Vec<u32> = (0..data.pages()).collect();
    let mut rng = Rng::new(0x7265_7772);
    let mut bytes = vec![0; PAGE];
    for done in 1..=rewrites {
        let (page, from) = (rng.below(pages) as u32, rng.below(pages) as u32);
        data.read(from, &mut bytes)?;
        ghost.buffer().write(page, &bytes);
        origin[page as usize] = from;
        // Densely at first, where most happens, then once per turnover.
        if done % pages == 0 || done == rewrites || done == pages / 4 || done == pages / 2 {
            note(done as f64 / pages as f64)?;
        }
    }
    verify(&ghost, &data, &origin)?;
    println!("{table}");
    if let Some(path) = &args.json {
        let value = json!({ "machine": report::machine(), "store": results });
        report::write_json(path, &value)?;
    }
    Ok(())
}

/// Compares every page with the one its contents came from.
fn verify(ghost: &Ghost, data: &DataSet, origin: &[u32]) -> Result<()> {
    let mut expected = vec![0; PAGE];
    let mut actual = vec![0; PAGE];
    for (page, &from) in (0..).zip(origin) {
        data.read(from, &mut expected)?;
        ghost.buffer().read(page, &mut actual);
        if expected != actual {
            return Err(Error::Failed(format!("wrong contents: page {page}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that gaps and metadata both count.
    #[test]
    fn overhead_counts_everything() {
        let figures = Figures {
            data: 100,
            held: 103,
            metadata: 2,
            ..Figures::default()
        };
        assert!((overhead(&figures) - 0.05).abs() < 1e-9);
    }
}

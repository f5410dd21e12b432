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
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Args;
use ghostmem::Heap;
use ghostmem_lab::rng::Rng;
use serde_json::json;

use crate::buffer::{Buffer, PAGE_SIZE};
use crate::compare::report_mix;
use crate::contenders::ghost::Ghost;
use crate::contenders::{self, Contender, Figures};
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
    /// Threads that rewrite, each its own part of the buffer.
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// Everything measured, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// How often the peak is looked for.
const SAMPLE: Duration = Duration::from_millis(2);

/// Samples the overhead on a thread of its own until it is dropped: what it was
/// at its worst between two lines of the table.
struct Peak {
    /// Bits of the largest overhead since it was last taken.
    largest: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peak {
    fn watch(heap: &'static Heap) -> Self {
        let (largest, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (to, end) = (Arc::clone(&largest), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                // Bits of floats that are not negative are ordered as they are.
                let now = overhead(&contenders::ghost::store_figures(heap));
                to.fetch_max(now.max(0.0).to_bits(), Ordering::Relaxed);
                std::thread::sleep(SAMPLE);
            }
        });
        Self {
            largest,
            stop,
            thread: Some(thread),
        }
    }

    /// The largest overhead since the last call.
    fn take(&self) -> f64 {
        f64::from_bits(self.largest.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Peak {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
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
        "peak %",
    ]);
    let mut results = Vec::new();
    let peak = Peak::watch(ghost.heap());
    let mut worst: f64 = 0.0;
    let mut note = |turnovers: f64| -> Result<()> {
        let figures = ghost.probe()()?;
        let gaps = (figures.held as f64 / figures.data.max(1) as f64 - 1.0) * 100.0;
        let percent = overhead(&figures) * 100.0;
        let peak_percent = peak.take().max(overhead(&figures)) * 100.0;
        worst = worst.max(peak_percent);
        eprintln!("{turnovers:.1} turnovers: {percent:.2} % overhead, {peak_percent:.2} % at most");
        table.add_row([
            format!("{turnovers:.1}"),
            mib(figures.resident),
            mib(figures.data),
            mib(figures.held),
            mib(figures.metadata),
            format!("{gaps:.2}"),
            format!("{percent:.2}"),
            format!("{peak_percent:.2}"),
        ]);
        results.push(json!({
            "turnovers": turnovers,
            "resident": figures.resident,
            "data": figures.data,
            "held": figures.held,
            "metadata": figures.metadata,
            "overhead": overhead(&figures),
            "overhead_peak": peak_percent / 100.0,
        }));
        Ok(())
    };
    note(0.0)?;

    let pages = u64::from(data.pages());
    let rewrites = args.rewrites.unwrap_or(pages * 24);
    let threads = args.threads.clamp(1, data.pages());
    // Where each page's contents come from.
    let mut origin: Vec<u32> = (0..data.pages()).collect();
    let part = data.pages().div_ceil(threads);
    // Densely at first, where most happens, then once per turnover.
    let stops = [pages / 4, pages / 2].into_iter();
    let stops = stops.chain((1..=rewrites / pages).map(|turn| turn * pages));
    let mut done = 0;
    for stop in stops.filter(|&stop| stop < rewrites).chain([rewrites]) {
        let each = (stop - done) / u64::from(threads);
        std::thread::scope(|scope| {
            let parts = (0..).zip(origin.chunks_mut(part as usize));
            let workers: Vec<_> = parts
                .map(|(number, origins)| {
                    let (buffer, data) = (ghost.buffer(), &data);
                    let seed = 0x7265_7772 ^ done << 8 ^ number;
                    let first = number as u32 * part;
                    scope.spawn(move || rewrite(buffer, data, first, origins, each, seed))
                })
                .collect();
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .map_err(|_| Error::Failed("a thread panicked".into()))?
            })
        })?;
        done = stop;
        note(done as f64 / pages as f64)?;
    }
    verify(&ghost, &data, &origin)?;
    println!("{table}");
    println!("peak overhead {worst:.2} %");
    if let Some(path) = &args.json {
        let value = json!({ "machine": report::machine(), "store": results });
        report::write_json(path, &value)?;
    }
    Ok(())
}

/// Gives `count` random pages of the part that starts at page `first` the
/// contents of other random pages, and notes their origin.
fn rewrite(
    buffer: Buffer<'_>,
    data: &DataSet,
    first: u32,
    origins: &mut [u32],
    count: u64,
    seed: u64,
) -> Result<()> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; PAGE_SIZE];
    for _ in 0..count {
        let page = rng.below(origins.len() as u64) as usize;
        let from = rng.below(u64::from(data.pages())) as u32;
        data.read(from, &mut bytes)?;
        buffer.write(first + page as u32, &bytes);
        origins[page] = from;
    }
    Ok(())
}

/// Compares every page with the one its contents came from.
fn verify(ghost: &Ghost, data: &DataSet, origin: &[u32]) -> Result<()> {
    let mut expected = vec![0; PAGE_SIZE];
    let mut actual = vec![0; PAGE_SIZE];
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

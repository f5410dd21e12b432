//! `ghostmem-bench faults`: how fault throughput grows when two threads fault
//! on different pages.
//!
//! *steady*: the buffer is larger than the limit, so every restored page costs
//! an eviction. One thread reads random pages of all of it; several threads
//! read random pages of disjoint parts, so the share of resident pages is the
//! same. *restore only*: the limit holds the whole buffer, all of it is evicted
//! beforehand, and each page is touched once in random order: nothing but
//! faults.

use std::path::PathBuf;
use std::sync::Barrier;
use std::time::Instant;

use clap::Args;
use ghostmem_lab::rng::Rng;
use serde_json::json;

use crate::buffer::Buffer;
use crate::compare::report_mix;
use crate::contenders::Contender;
use crate::contenders::ghost::Ghost;
use crate::data::{DataSet, tag_offset, tag_value};
use crate::error::{Error, Result};
use crate::options::{DataArgs, Size};
use crate::report::{self, Spread};
use crate::sys;
use crate::work;

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct FaultsArgs {
    #[command(flatten)]
    data: DataArgs,
    /// Bytes of the buffer that may be resident in the steady part.
    #[arg(long, default_value = "256M")]
    resident: Size,
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<u32>,
    /// Backend of the heap: auto, inline, monitor, guard or guard-mprotect.
    #[arg(long, default_value = "inline")]
    backend: String,
    /// Which parts to measure: steady, restore-only.
    #[arg(long, value_delimiter = ',', default_value = "steady,restore-only", value_parser = ["steady", "restore-only"])]
    part: Vec<String>,
    /// Repetitions, alternating between the numbers of threads.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Touches per page of the buffer in the steady part.
    #[arg(long, default_value_t = 0.5)]
    touches: f64,
    /// Everything measured, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: &FaultsArgs) -> Result<()> {
    let (data, mix) = args.data.build(1)?;
    report_mix(&mix, args.data.size.0);
    let mut table = report::table(&[
        "backend",
        "part",
        "threads",
        "faults/s: median (min-max)",
        "ns per fault",
        "times the first: median (min-max)",
        "processors busy",
        "CPU ns per fault",
        "readahead pages/fault",
    ]);
    let mut results = Vec::new();
    for part in &args.part {
        let restore_only = part == "restore-only";
        eprintln!("{part}");
        let limit = if restore_only {
            args.data.size.0 + (64 << 20)
        } else {
            args.resident.0
        };
        let ghost = Ghost::open(&args.backend, data.pages(), limit)?;
        work::fill(ghost.buffer(), &data)?;
        let mut seen = vec![Vec::new(); args.threads.len()];
        for round in 0..args.rounds {
            for (&threads, seen) in args.threads.iter().zip(&mut seen) {
                let seed = u64::from(round);
                seen.push(measure(args, &ghost, &data, threads, seed, restore_only)?);
            }
        }
        for (&threads, rounds) in args.threads.iter().zip(&seen) {
            let rate = over(rounds.iter().map(|seen| seen.faults_per_s))?;
            let busy = over(rounds.iter().map(|seen| seen.processors))?;
            let ahead = over(rounds.iter().map(|seen| seen.readahead))?;
            let gain = gain(rounds, &seen[0])?;
            let wall_ns = 1e9 / rate.median;
            table.add_row([
                args.backend.clone(),
                part.clone(),
                threads.to_string(),
                rate.text(),
                format!("{wall_ns:.0}"),
                format!("{:.2} ({:.2}-{:.2})", gain.median, gain.min, gain.max),
                format!("{:.2}", busy.median),
                format!("{:.0}", wall_ns * busy.median),
                format!("{:.2}", ahead.median),
            ]);
            results.push(json!({
                "backend": args.backend,
                "part": part,
                "threads": threads,
                "faults_per_s": rate.json(),
                "processors_busy": busy.json(),
                "gain": gain.json(),
            }));
        }
    }
    println!("{table}");
    if let Some(path) = &args.json {
        let value = json!({ "machine": report::machine(), "faults": results });
        report::write_json(path, &value)?;
    }
    Ok(())
}

/// Median and extremes of what the rounds showed.
fn over(rounds: impl Iterator<Item = f64>) -> Result<Spread> {
    Spread::of(&rounds.collect::<Vec<_>>())
        .ok_or_else(|| Error::Failed("--rounds: at least 1".into()))
}

/// How many times the faults of the first number of threads there are. Each round is
/// compared with the first's in the same round, so that a machine that is slower for a
/// while does not count.
fn gain(rounds: &[Seen], first: &[Seen]) -> Result<Spread> {
    over(
        rounds
            .iter()
            .zip(first)
            .map(|(seen, first)| seen.faults_per_s / first.faults_per_s),
    )
}

/// What one repetition showed.
#[derive(Clone)]
struct Seen {
    faults_per_s: f64,
    /// Processors that the process kept busy, its background threads' too: one thread that
    /// faults may have more than one.
    processors: f64,
    /// Pages read ahead per fault.
    readahead: f64,
}

/// One repetition.
fn measure(
    args: &FaultsArgs,
    ghost: &Ghost,
    data: &DataSet,
    threads: u32,
    seed: u64,
    restore_only: bool,
) -> Result<Seen> {
    if restore_only {
        ghost.evict_all()?;
    }
    let part = data.pages() / threads;
    let touches = (f64::from(part) * args.touches) as usize;
    let orders: Vec<Vec<u32>> = (0..threads)
        .map(|thread| {
            let mut rng = Rng::new((seed << 16) + u64::from((threads << 8) + thread));
            let first = thread * part;
            if restore_only {
                rng.permutation(part)
                    .into_iter()
                    .map(|page| first + page)
                    .collect()
            } else {
                (0..touches)
                    .map(|_| first + rng.below(u64::from(part)) as u32)
                    .collect()
            }
        })
        .collect();
    let gate = Barrier::new(threads as usize + 1);
    let buffer = ghost.buffer();
    let before = ghost.heap().stats();
    let (elapsed, cpu_ns) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(&orders)
            .map(|(thread, order)| {
                let gate = &gate;
                scope.spawn(move || {
                    sys::stay_on_processor(thread);
                    gate.wait();
                    read_all(buffer, order)
                })
            })
            .collect();
        gate.wait();
        let cpu_before = sys::usage().cpu_ns;
        let start = Instant::now();
        for worker in workers {
            worker
                .join()
                .unwrap_or_else(|_| Err(Error::Failed("a touching thread panicked".into())))?;
        }
        Ok((start.elapsed(), sys::usage().cpu_ns - cpu_before))
    })?;
    let after = ghost.heap().stats();
    let faults = after.faults.saturating_sub(before.faults).max(1) as f64;
    let ahead = after.readahead_pages.saturating_sub(before.readahead_pages) as f64;
    Ok(Seen {
        faults_per_s: faults / elapsed.as_secs_f64(),
        processors: cpu_ns as f64 / elapsed.as_nanos() as f64,
        readahead: ahead / faults,
    })
}

/// Reads and checks the tag of each page.
fn read_all(buffer: Buffer<'_>, order: &[u32]) -> Result<()> {
    for &page in order {
        if buffer.load(page, tag_offset(page, 0)) != tag_value(page, 0, 0) {
            return Err(Error::Failed(format!("wrong word in page {page}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of these rates.
    fn rounds(rates: &[f64]) -> Vec<Seen> {
        rates
            .iter()
            .map(|&faults_per_s| Seen {
                faults_per_s,
                processors: 1.0,
                readahead: 0.0,
            })
            .collect()
    }

    /// A machine that is three times as slow in some rounds changes nothing as long as it is
    /// so for both: the ratio of the medians would be 2.0 here.
    #[test]
    fn a_gain_is_of_pairs_that_ran_side_by_side() -> Result<()> {
        let (one, two) = (
            rounds(&[100.0, 300.0, 100.0]),
            rounds(&[180.0, 570.0, 200.0]),
        );
        let gain = gain(&two, &one)?;
        assert_eq!((gain.min, gain.median, gain.max), (1.8, 1.9, 2.0));
        Ok(())
    }

    #[test]
    fn no_rounds_have_no_gain() {
        assert!(gain(&[], &[]).is_err());
    }
}

//! `ghostmem-bench line`: what a cache line costs that moves from one processor to the
//! other, the unit of the model in ARCHITECTURE.md.
//!
//! *ping-pong*: two threads, each on a processor of its own, wait for each other's number
//! in one word and write the next: the line moves once for each number, so the time is
//! divided by a count. *additions*: the locked addition that a counter costs, on a line of
//! the thread's own and on one that two threads add to without a pause.

use std::hint;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Args;
use serde_json::json;

use crate::error::{Error, Result};
use crate::report::{self, Spread};
use crate::sys;

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct LineArgs {
    /// Moves, and additions of each thread, in a repetition.
    #[arg(long, default_value_t = 2_000_000)]
    count: u64,
    /// Repetitions.
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// The two processors, by their place among those the process may run on.
    #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [0_usize, 1])]
    processors: Vec<usize>,
    /// Everything measured, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A word on a line of its own, and on the one that the prefetcher brings along.
#[derive(Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// Runs the command.
pub(crate) fn run(args: &LineArgs) -> Result<()> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let &[one, other] = args.processors.as_slice() else {
        return Err(Error::Failed("--processors: two of them".into()));
    };
    if available < 2 || one == other {
        return Err(Error::Skipped("a line moves between two processors".into()));
    }
    let processors = [one, other];
    let (mut moves, mut own, mut shared) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        moves.push(ping_pong(processors, args.count));
        own.push(additions(processors, args.count, false)?);
        shared.push(additions(processors, args.count, true)?);
    }
    let mut table = report::table(&["what", "ns: median (min-max)"]);
    let mut results = Vec::new();
    for (what, ns) in [
        ("a line that moves", &moves),
        ("an addition on a line of one's own", &own),
        ("an addition on a line of two, both adding", &shared),
    ] {
        let spread = Spread::of(ns).ok_or_else(|| Error::Failed("--rounds: at least 1".into()))?;
        let text = format!("{:.1} ({:.1}-{:.1})", spread.median, spread.min, spread.max);
        table.add_row([what.to_owned(), text]);
        results.push(json!({ "what": what, "ns": spread.json() }));
    }
    println!("{table}");
    if let Some(path) = &args.json {
        let value = json!({ "machine": report::machine(), "line": results });
        report::write_json(path, &value)?;
    }
    Ok(())
}

/// Nanoseconds that `act` takes of the slower of two threads that begin together, each on
/// a processor of its own.
fn both(processors: [usize; 2], act: impl Fn(usize) + Sync) -> f64 {
    let gate = Barrier::new(2);
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|which| {
            let (act, gate) = (&act, &gate);
            scope.spawn(move || {
                sys::stay_on_processor(processors[which]);
                gate.wait();
                let start = Instant::now();
                act(which);
                start.elapsed().as_nanos() as f64
            })
        });
        threads
            .map(|thread| thread.join().unwrap_or(f64::NAN))
            .into_iter()
            .fold(0.0, f64::max)
    })
}

/// Nanoseconds for each of `moves` moves of a line between two processors.
fn ping_pong(processors: [usize; 2], moves: u64) -> f64 {
    let line = Line::default();
    let ns = both(processors, |turn| {
        for number in (turn as u64..moves).step_by(2) {
            while line.0.load(Ordering::Acquire) != number {
                hint::spin_loop();
            }
            line.0.store(number + 1, Ordering::Release);
        }
    });
    ns / moves.max(1) as f64
}

/// Nanoseconds for each addition of two threads that each add `count` times, to one line
/// or to one each.
fn additions(processors: [usize; 2], count: u64, shared: bool) -> Result<f64> {
    let lines = [Line::default(), Line::default()];
    let ns = both(processors, |which| {
        let line = &lines[if shared { 0 } else { which }];
        for _ in 0..count {
            line.0.fetch_add(1, Ordering::Relaxed);
        }
    });
    let sum: u64 = lines.map(|line| line.0.into_inner()).iter().sum();
    if sum != 2 * count {
        return Err(Error::Failed(format!("{sum} additions of {}", 2 * count)));
    }
    Ok(ns / count.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_move_and_every_addition_happens() {
        for count in [0, 1, 2, 7, 1000] {
            assert!(ping_pong([0, 1], count) >= 0.0);
            for shared in [false, true] {
                additions([0, 1], count, shared).unwrap();
            }
        }
    }
}

//! `ghostmem-bench alloc`: throughput of allocating and deallocating blocks by
//! several threads, and how it grows with their number.
//!
//! One *operation* is an allocation and the deallocation that goes with it.
//! Two shapes: *pair* gives each block back at once; *ring* keeps 64 blocks per
//! thread and replaces a random one. Each with and without a write to the
//! block.

use std::alloc::Layout;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ghostmem_lab::rng::Rng;
use serde_json::json;

use crate::blocks::{Block, Blocks, GhostBlocks, SystemBlocks};
use crate::contenders::ghost;
use crate::error::{Error, Result};
use crate::options::Size;
use crate::report::{self, Spread};
use crate::sys;

/// Blocks a thread keeps in the ring shape.
const RING: usize = 64;
/// Operations between two looks at the clock's flag.
const BATCH: u64 = 64;

/// Arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct AllocArgs {
    /// Bytes of a block.
    #[arg(long, default_value = "4K")]
    block: Size,
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4,8")]
    threads: Vec<u32>,
    /// Limit on the heap's resident bytes.
    #[arg(long, default_value = "256M")]
    resident: Size,
    /// Backend of the heap: auto, inline, monitor, guard or guard-mprotect.
    #[arg(long, default_value = "auto")]
    backend: String,
    /// Milliseconds of one measurement.
    #[arg(long, default_value_t = 300)]
    millis: u64,
    /// Repetitions, alternating between both allocators.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Everything measured, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    name: &'static str,
    ring: bool,
    touch: bool,
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "pair",
        ring: false,
        touch: false,
    },
    Shape {
        name: "pair, touched",
        ring: false,
        touch: true,
    },
    Shape {
        name: "ring of 64",
        ring: true,
        touch: false,
    },
    Shape {
        name: "ring of 64, touched",
        ring: true,
        touch: true,
    },
];

/// Runs the command.
pub(crate) fn run(args: &AllocArgs) -> Result<()> {
    let bytes = usize::try_from(args.block.0).unwrap_or(usize::MAX);
    let layout = Layout::from_size_align(bytes.max(8), 16)
        .map_err(|err| Error::Failed(format!("--block: {err}")))?;
    let heap = ghost::heap(&args.backend, args.resident.0)?;
    let (ghost, system) = (GhostBlocks::new(heap, layout), SystemBlocks::new(layout));
    let span = Duration::from_millis(args.millis);

    let mut table = report::table(&[
        "operations/s: median (min-max)",
        "threads",
        "GhostMem",
        "times 1 thread",
        "system allocator",
        "times 1 thread",
    ]);
    let mut results = Vec::new();
    for shape in SHAPES {
        let mut rates = vec![[Vec::new(), Vec::new()]; args.threads.len()];
        for _ in 0..args.rounds {
            for (&threads, [ours, theirs]) in args.threads.iter().zip(&mut rates) {
                ours.push(rate(&ghost, shape, threads, span)?);
                theirs.push(rate(&system, shape, threads, span)?);
            }
        }
        let mut single = None;
        for (&threads, [ours, theirs]) in args.threads.iter().zip(&rates) {
            let (Some(ours), Some(theirs)) = (Spread::of(ours), Spread::of(theirs)) else {
                return Err(Error::Failed("--rounds: at least 1".into()));
            };
            // The first number asked for is what the others are compared with.
            let (our_base, their_base) = *single.get_or_insert((ours.median, theirs.median));
            let (our_gain, their_gain) = (ours.median / our_base, theirs.median / their_base);
            table.add_row([
                shape.name.to_owned(),
                threads.to_string(),
                ours.text(),
                format!("{our_gain:.2}"),
                theirs.text(),
                format!("{their_gain:.2}"),
            ]);
            results.push(json!({
                "shape": shape.name,
                "threads": threads,
                "ghostmem_per_s": ours.json(),
                "system_per_s": theirs.json(),
                "ghostmem_gain": our_gain,
                "system_gain": their_gain,
            }));
        }
    }
    println!("{table}");
    if let Some(path) = &args.json {
        let value = json!({ "machine": report::machine(), "alloc": results });
        report::write_json(path, &value)?;
    }
    Ok(())
}

/// Operations per second of all threads together.
fn rate<B: Blocks>(blocks: &B, shape: Shape, threads: u32, span: Duration) -> Result<f64> {
    let stop = AtomicBool::new(false);
    let total = AtomicU64::new(0);
    let gate = Barrier::new(threads as usize + 1);
    let elapsed = std::thread::scope(|scope| {
        for thread in 0..threads {
            let (stop, total, gate) = (&stop, &total, &gate);
            scope.spawn(move || {
                sys::stay_on_processor(thread as usize);
                let mut ring = Vec::new();
                if shape.ring {
                    ring.extend((0..RING).map(|_| blocks.take()));
                }
                let mut rng = Rng::new(u64::from(thread));
                gate.wait();
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..BATCH {
                        let Some(mut block) = blocks.take() else {
                            // Noticed below: nothing is counted any more.
                            return;
                        };
                        if shape.touch {
                            block.touch(done);
                        }
                        if shape.ring {
                            ring[rng.below(RING as u64) as usize] = Some(block);
                        } else {
                            drop(std::hint::black_box(block));
                        }
                    }
                    done += BATCH;
                }
                total.fetch_add(done, Ordering::Relaxed);
            });
        }
        gate.wait();
        let start = Instant::now();
        std::thread::sleep(span);
        stop.store(true, Ordering::Relaxed);
        start.elapsed()
    });
    match total.into_inner() {
        0 => Err(Error::Failed("no block could be allocated".into())),
        done => Ok(done as f64 / elapsed.as_secs_f64()),
    }
}

//! The access patterns of the first GhostMem's own tests, on a heap of five
//! pages: allocate 4 KiB and fill it; a 16 KiB array written and read in order;
//! the same array read at random. The peer beside GhostMem, and the system's
//! allocator as the floor: what the loop itself costs.
//!
//! Each operation is as those tests do it: a fresh block, `i32` elements,
//! written one by one, the sum of what is read compared. The block is freed
//! within the operation, as nothing could run for long otherwise.

use std::alloc::Layout;
use std::time::Instant;

use ghostmem_lab::rng::Rng;
use serde::{Deserialize, Serialize};

use crate::blocks::{Block, Blocks, GhostBlock, SystemBlocks};
use crate::buffer::PAGE_SIZE;
use crate::contenders::peer::Library;
use crate::contenders::{Kind, ghost};
use crate::error::{Error, Result};

/// Pages that may be resident.
const LIMIT_PAGES: u64 = 5;
/// Elements of the array.
const ELEMENTS: usize = 4096;
/// Random reads.
const READS: usize = 10_000;

/// Names of the patterns, in order.
pub(crate) const NAMES: [&str; 3] = [
    "allocate and fill 4 KiB",
    "16 KiB array, sequential",
    "16 KiB array, random",
];

/// Nanoseconds of one operation of each pattern.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// In the order of [`NAMES`].
    pub(crate) ns: [f64; 3],
}

/// Runs the patterns on one contender, `rounds` times each.
pub(crate) fn run(kind: &Kind, peer: &[std::path::PathBuf], rounds: u32) -> Result<Outcome> {
    match kind {
        Kind::Ghost(backend) => {
            let heap = ghost::heap(backend, LIMIT_PAGES * PAGE_SIZE as u64)?;
            measure(rounds, |bytes| {
                let layout = Layout::from_size_align(bytes, PAGE_SIZE)
                    .map_err(|err| Error::Failed(err.to_string()))?;
                GhostBlock::new(heap, layout)
                    .map_err(|err| Error::Failed(format!("allocating: {err}")))
            })
        }
        Kind::Peer => {
            let library = Library::load(peer, LIMIT_PAGES * PAGE_SIZE as u64)?;
            measure(rounds, |bytes| library.take(bytes))
        }
        Kind::Plain => measure(rounds, |bytes| {
            let layout = Layout::from_size_align(bytes, PAGE_SIZE)
                .map_err(|err| Error::Failed(err.to_string()))?;
            let block = SystemBlocks::new(layout).take();
            block.ok_or_else(|| Error::Failed(format!("no {bytes} bytes")))
        }),
        other => Err(Error::Failed(format!("{other} has no such patterns"))),
    }
}

fn measure<B: Block>(rounds: u32, take: impl Fn(usize) -> Result<B>) -> Result<Outcome> {
    let mut rng = Rng::new(5);
    let random: Vec<usize> = (0..READS)
        .map(|_| rng.below(ELEMENTS as u64) as usize)
        .collect();
    let allocate = || {
        let mut block = take(PAGE_SIZE)?;
        for index in 0..PAGE_SIZE / 4 {
            block.set(index, 42);
        }
        Ok(())
    };
    let array = |order: &mut dyn Iterator<Item = usize>| {
        let mut block = take(ELEMENTS * 4)?;
        for index in 0..ELEMENTS {
            block.set(index, index as i32);
        }
        let (mut expected, mut sum) = (0_i64, 0_i64);
        for index in order {
            expected += index as i64;
            sum += i64::from(block.get(index));
        }
        if sum == expected {
            Ok(())
        } else {
            Err(Error::Failed(format!(
                "wrong sum: {sum} instead of {expected}"
            )))
        }
    };
    let time = |work: &dyn Fn() -> Result<()>| -> Result<f64> {
        work()?;
        let start = Instant::now();
        for _ in 0..rounds {
            work()?;
        }
        Ok(start.elapsed().as_nanos() as f64 / f64::from(rounds))
    };
    Ok(Outcome {
        ns: [
            time(&allocate)?,
            time(&|| array(&mut (0..ELEMENTS)))?,
            time(&|| array(&mut random.iter().copied()))?,
        ],
    })
}

//! The touch loops: the same accesses, in the same order, for every contender.
//!
//! A *touch* is one 8-byte access to one page, at an offset that depends on the
//! page. Orders are drawn before the clock starts. Every read is compared with
//! what must be there, every write is compared later; each thread uses its own
//! tag in each page, so threads never disagree about a value although they
//! share pages.

use std::sync::Barrier;
use std::time::Instant;

use ghostmem_lab::trace::{BenchPart, bench_order};

use crate::buffer::{Buffer, PAGE};
use crate::data::{DataSet, stamp, tag_offset, tag_value};
use crate::error::{Error, Result};
use crate::sys;

/// Pages copied or compared at a time.
const RUN: u32 = 16;

/// A way of touching pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pattern {
    /// All pages in order, read; each thread its own part.
    SeqRead,
    /// Uniformly random pages, read.
    RandomRead,
    /// Uniformly random pages, written.
    RandomWrite,
    /// Pages by a zipf law over a random order of the pages, read.
    ZipfRead,
}

impl Pattern {
    /// In the order they are run.
    pub(crate) const ALL: [Self; 4] = [
        Self::SeqRead,
        Self::RandomRead,
        Self::RandomWrite,
        Self::ZipfRead,
    ];

    /// Name in tables and files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SeqRead => "sequential read",
            Self::RandomRead => "random read",
            Self::RandomWrite => "random write",
            Self::ZipfRead => "zipf(0.99) read",
        }
    }

    /// Name on the command line.
    pub(crate) const fn argument(self) -> &'static str {
        match self {
            Self::SeqRead => "seq-read",
            Self::RandomRead => "random-read",
            Self::RandomWrite => "random-write",
            Self::ZipfRead => "zipf-read",
        }
    }

    /// What draws its orders, here and in the lab.
    const fn part(self) -> BenchPart {
        match self {
            Self::SeqRead => BenchPart::SeqRead,
            Self::RandomRead => BenchPart::RandomRead,
            Self::RandomWrite => BenchPart::RandomWrite,
            Self::ZipfRead => BenchPart::ZipfRead,
        }
    }
}

/// One workload, drawn beforehand.
#[derive(Debug)]
pub(crate) struct Plan {
    /// What is done.
    pub(crate) pattern: Pattern,
    /// Per thread, the pages in order; the first [`Plan::warm`] are not timed.
    orders: Vec<Vec<u32>>,
    /// Untimed touches per thread.
    warm: usize,
}

impl Plan {
    /// Draws a workload over `pages` pages for `threads` threads; `scale`
    /// multiplies the number of touches. The same arguments give the same plan.
    pub(crate) fn new(pattern: Pattern, pages: u32, threads: u32, scale: f64) -> Self {
        let orders: Vec<_> = (0..threads)
            .map(|thread| bench_order(pattern.part(), pages, threads, thread, scale))
            .collect();
        Self {
            pattern,
            warm: orders.first().map_or(0, |(_, warm)| *warm),
            orders: orders.into_iter().map(|(order, _)| order).collect(),
        }
    }

    /// Number of threads.
    pub(crate) fn threads(&self) -> u32 {
        self.orders.len() as u32
    }
}

/// What running a plan took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// Timed touches of all threads.
    pub(crate) touches: u64,
    /// Wall-clock time of the timed part, nanoseconds.
    pub(crate) wall_ns: u64,
    /// Processor time of the whole process in the timed part, nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Contender's faults in the timed part.
    pub(crate) faults: u64,
}

impl Timing {
    /// Wall-clock nanoseconds per touch, all threads together.
    pub(crate) fn ns_per_touch(&self) -> f64 {
        self.wall_ns as f64 / self.touches as f64
    }
}

/// How often each tag has been written, by slot and page: what must be in the
/// memory under test, 4 bytes per page and thread.
#[derive(Debug)]
pub(crate) struct Versions(Vec<Vec<u32>>);

impl Versions {
    /// All tags as the data set holds them. The memory is touched now.
    pub(crate) fn new(pages: u32, slots: u32) -> Self {
        let mut fresh: Vec<Vec<u32>> = (0..slots).map(|_| vec![1; pages as usize]).collect();
        for slot in &mut fresh {
            slot.fill(0);
        }
        Self(fresh)
    }
}

/// Copies the data set into the memory under test.
pub(crate) fn fill(buffer: Buffer<'_>, data: &DataSet) -> Result<()> {
    let mut bytes = vec![0; RUN as usize * PAGE];
    for first in (0..buffer.pages()).step_by(RUN as usize) {
        let count = RUN.min(buffer.pages() - first) as usize;
        let bytes = &mut bytes[..count * PAGE];
        data.read(first, bytes)?;
        buffer.write(first, bytes);
    }
    Ok(())
}

/// Compares every byte with what must be there.
pub(crate) fn verify(buffer: Buffer<'_>, data: &DataSet, versions: &Versions) -> Result<()> {
    let mut expected = vec![0; RUN as usize * PAGE];
    let mut actual = expected.clone();
    for first in (0..buffer.pages()).step_by(RUN as usize) {
        let count = RUN.min(buffer.pages() - first) as usize;
        let expected = &mut expected[..count * PAGE];
        let actual = &mut actual[..count * PAGE];
        data.read(first, expected)?;
        buffer.read(first, actual);
        let pairs = expected
            .chunks_exact_mut(PAGE)
            .zip(actual.chunks_exact(PAGE));
        for (page, (expected, actual)) in (first..).zip(pairs) {
            stamp(
                expected,
                page,
                versions.0.iter().map(|slot| slot[page as usize]),
            );
            if expected != actual {
                let at = expected.iter().zip(actual).position(|(a, b)| a != b);
                return Err(Error::Failed(format!(
                    "wrong contents: page {page}, byte {}",
                    at.unwrap_or(0)
                )));
            }
        }
    }
    Ok(())
}

/// Runs a plan. `faults` reads the contender's fault counter.
///
/// # Errors
/// The first wrong word met, after all threads have ended.
pub(crate) fn run(
    buffer: Buffer<'_>,
    plan: &Plan,
    versions: &mut Versions,
    faults: impl Fn() -> u64,
) -> Result<Timing> {
    let threads = plan.orders.len();
    assert!(threads <= versions.0.len(), "more threads than tags");
    let gate = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(plan.orders.iter().zip(&mut versions.0))
            .map(|(slot, (order, versions))| {
                let gate = &gate;
                scope.spawn(move || {
                    sys::stay_on_processor(slot as usize);
                    let (warm, timed) = order.split_at(plan.warm);
                    let before = touch(buffer, plan.pattern, slot, warm, versions);
                    gate.wait();
                    gate.wait();
                    let after = touch(buffer, plan.pattern, slot, timed, versions);
                    before.and(after)
                })
            })
            .collect();
        gate.wait();
        let faults_before = faults();
        let cpu_before = sys::usage().cpu_ns;
        let start = Instant::now();
        gate.wait();
        let mut outcome = Ok(());
        for worker in workers {
            let result = worker
                .join()
                .unwrap_or_else(|_| Err(Error::Failed("a touching thread panicked".into())));
            outcome = outcome.and(result);
        }
        let wall_ns = start.elapsed().as_nanos() as u64;
        outcome?;
        Ok(Timing {
            touches: plan
                .orders
                .iter()
                .map(|o| (o.len() - plan.warm) as u64)
                .sum(),
            wall_ns,
            cpu_ns: sys::usage().cpu_ns - cpu_before,
            faults: faults().saturating_sub(faults_before),
        })
    })
}

/// The loop that is timed.
fn touch(
    buffer: Buffer<'_>,
    pattern: Pattern,
    slot: u32,
    order: &[u32],
    versions: &mut [u32],
) -> Result<()> {
    if pattern == Pattern::RandomWrite {
        for &page in order {
            let version = &mut versions[page as usize];
            *version = version.wrapping_add(1);
            let value = tag_value(page, slot, *version);
            buffer.store(page, tag_offset(page, slot), value);
        }
        return Ok(());
    }
    for &page in order {
        let expected = tag_value(page, slot, versions[page as usize]);
        let actual = buffer.load(page, tag_offset(page, slot));
        if actual != expected {
            return Err(Error::Failed(format!(
                "wrong word: page {page}, thread {slot}: {actual:#x} instead of {expected:#x}"
            )));
        }
    }
    Ok(())
}

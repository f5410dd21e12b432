//! The touch loops: the same accesses, in the same order, for every contender.
//!
//! A *touch* is one 8-byte access to one page, at an offset that depends on the
//! page. Orders are drawn before the clock starts. Every read is compared with
//! what must be there, every write is compared later; each thread uses its own
//! tag in each page, so threads never disagree about a value although they
//! share pages.
//!
//! Single touches are timed in a part of their own that follows, the untimed
//! beginning once more: reading the clock would slow the timed part down. The
//! two clock readings, 30 to 60 ns, are in each latency.

pub(crate) mod objects;
pub(crate) mod words;

use std::ops::Range;
use std::sync::{Barrier, Mutex};
use std::time::Instant;

use ghostmem_lab::rng::Rng;
use ghostmem_lab::trace::{BenchPart, bench_order};
use hdrhistogram::Histogram;

use crate::buffer::{Buffer, PAGE_SIZE};
use crate::data::{DataSet, stamp, tag_offset, tag_value};
use crate::error::{Error, Result};
use crate::sys;

/// Pages copied or compared at a time.
const RUN: u32 = 16;

/// What is done to the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pattern {
    /// The whole data set copied in, in order; each thread its own part.
    Fill,
    /// All pages in order, read; each thread its own part.
    SeqRead,
    /// Uniformly random pages, read.
    RandomRead,
    /// Uniformly random pages, written.
    RandomWrite,
    /// Pages by a zipf law over a random order of the pages, read.
    ZipfRead,
    /// The same law, one touch in ten a write.
    ZipfMixed,
    /// By turns: a scattered tenth of the pages at random, all pages in order.
    ScanHot,
    /// A linked list of 64-byte objects, followed from one to the next.
    Chase,
    /// The words of the data set, counted in a hash table beside it.
    WordCount,
}

impl Pattern {
    /// In the order they are run.
    pub(crate) const ALL: [Self; 9] = [
        Self::Fill,
        Self::SeqRead,
        Self::RandomRead,
        Self::RandomWrite,
        Self::ZipfRead,
        Self::ZipfMixed,
        Self::ScanHot,
        Self::Chase,
        Self::WordCount,
    ];

    /// Name in tables and files.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::SeqRead => "sequential read",
            Self::RandomRead => "random read",
            Self::RandomWrite => "random write",
            Self::ZipfRead => "zipf(0.99) read",
            Self::ZipfMixed => "zipf 90/10",
            Self::ScanHot => "scan then hot",
            Self::Chase => "pointer chase",
            Self::WordCount => "word count",
        }
    }

    /// What one touch is.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Fill | Self::WordCount => "page",
            Self::Chase => "object",
            _ => "touch",
        }
    }
}

/// In an order, marks a touch that writes; pages are below it.
const WRITE: u32 = 1 << 31;

/// One workload of touches, drawn beforehand.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Per thread, the touches in order; the first [`Plan::warm`] are not timed.
    orders: Vec<Vec<u32>>,
    /// Untimed touches per thread.
    warm: usize,
}

impl Plan {
    /// Draws a workload over `pages` pages (below 2^31) for `threads` threads;
    /// `scale` multiplies the number of touches. The same arguments give the
    /// same plan. `None` for the patterns that are no touches.
    pub(crate) fn new(pattern: Pattern, pages: u32, threads: u32, scale: f64) -> Option<Self> {
        let draw_times = |part, times: f64| -> Vec<_> {
            (0..threads)
                .map(|thread| bench_order(part, pages, threads, thread, scale * times))
                .collect()
        };
        let draw = |part| draw_times(part, 1.0);
        let mut orders = match pattern {
            Pattern::Fill | Pattern::Chase | Pattern::WordCount => return None,
            Pattern::SeqRead => draw(BenchPart::SeqRead),
            Pattern::RandomRead => draw(BenchPart::RandomRead),
            Pattern::RandomWrite => draw(BenchPart::RandomWrite),
            Pattern::ZipfRead => draw(BenchPart::ZipfRead),
            // Fewer, as each costs several times as much.
            Pattern::ZipfMixed => draw_times(BenchPart::ZipfRead, 0.25),
            Pattern::ScanHot => (0..threads)
                .map(|thread| scan_then_hot(pages, threads, thread, scale))
                .collect(),
        };
        for (thread, (order, _)) in (0..).zip(&mut orders) {
            let mut rng = Rng::new(0x6d69_7865_6400 + thread);
            for touch in order {
                let writes = match pattern {
                    Pattern::RandomWrite => true,
                    Pattern::ZipfMixed => rng.below(10) == 0,
                    _ => false,
                };
                *touch |= if writes { WRITE } else { 0 };
            }
        }
        Some(Self {
            warm: orders.first().map_or(0, |(_, warm)| *warm),
            orders: orders.into_iter().map(|(order, _)| order).collect(),
        })
    }
}

/// The touches of one thread in [`Pattern::ScanHot`], and how many are not
/// timed. A round is two touches per page of the thread's part in a hot tenth
/// of all pages, scattered over the buffer and the same for all threads, and
/// then one pass over the thread's part. One round is not timed, twice `scale`
/// (at least one) are.
fn scan_then_hot(pages: u32, threads: u32, thread: u32, scale: f64) -> (Vec<u32>, usize) {
    let hot = &Rng::new(0x686f_7400).permutation(pages)[..(pages as usize / 10).max(1)];
    let part = share(pages, threads, thread);
    // The same length for all threads, whose parts may differ by one.
    let length = pages / threads;
    let mut rng = Rng::new(0x7363_616e_0000 + (u64::from(threads) << 8) + u64::from(thread));
    let mut order = Vec::new();
    for _ in 0..1 + (scale * 2.0).max(1.0) as u32 {
        order.extend((0..length * 2).map(|_| hot[rng.below(hot.len() as u64) as usize]));
        order.extend(part.clone().take(length as usize));
    }
    (order, length as usize * 3)
}

/// What running a workload took.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    /// Timed touches of all threads.
    pub(crate) touches: u64,
    /// Wall-clock time of the timed part, nanoseconds.
    pub(crate) wall_ns: u64,
    /// Processor time of the whole process in the timed part, nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Contender's faults in the timed part.
    pub(crate) faults: u64,
    /// Nanoseconds of single touches, of a part that follows the timed one.
    pub(crate) latency: Option<Histogram<u64>>,
}

impl Timing {
    /// Wall-clock nanoseconds per touch, all threads together.
    pub(crate) fn ns_per_touch(&self) -> f64 {
        self.wall_ns as f64 / self.touches as f64
    }

    /// Runs `work` in `threads` threads that start together, each kept on a
    /// processor, and times it from the moment all have done `prepare`. Both
    /// are given the number of the thread; what `work` returns is its touches.
    ///
    /// # Errors
    /// The first error of any thread, after all have ended.
    pub(crate) fn of<P: Send>(
        threads: u32,
        faults: impl Fn() -> u64,
        prepare: impl Fn(u32) -> Result<P> + Sync,
        work: impl Fn(u32, P) -> Result<u64> + Sync,
    ) -> Result<Self> {
        let gate = Barrier::new(threads as usize + 1);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|thread| {
                    let (gate, prepare, work) = (&gate, &prepare, &work);
                    scope.spawn(move || {
                        sys::stay_on_processor(thread as usize);
                        let prepared = prepare(thread);
                        gate.wait();
                        gate.wait();
                        work(thread, prepared?)
                    })
                })
                .collect();
            gate.wait();
            let faults_before = faults();
            let cpu_before = sys::usage().cpu_ns;
            let start = Instant::now();
            gate.wait();
            let mut outcome = Ok(0);
            for worker in workers {
                let result = worker
                    .join()
                    .unwrap_or_else(|_| Err(Error::Failed("a touching thread panicked".into())));
                outcome = outcome.and_then(|sum| Ok(sum + result?));
            }
            let wall_ns = start.elapsed().as_nanos() as u64;
            Ok(Self {
                touches: outcome?,
                wall_ns,
                cpu_ns: sys::usage().cpu_ns - cpu_before,
                faults: faults().saturating_sub(faults_before),
                latency: None,
            })
        })
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

    /// All tags as the data set holds them again.
    pub(crate) fn reset(&mut self) {
        for slot in &mut self.0 {
            slot.fill(0);
        }
    }
}

/// Copies the data set into the memory under test.
pub(crate) fn fill(buffer: Buffer<'_>, data: &DataSet) -> Result<()> {
    fill_part(buffer, data, 0..buffer.pages())
}

/// The same by `threads` threads, timed; each its own part.
pub(crate) fn timed_fill(
    buffer: Buffer<'_>,
    data: &DataSet,
    threads: u32,
    faults: impl Fn() -> u64,
) -> Result<Timing> {
    let part = |thread| share(buffer.pages(), threads, thread);
    Timing::of(
        threads,
        faults,
        |thread| Ok(part(thread)),
        |_, part| {
            let touches = part.len() as u64;
            fill_part(buffer, data, part)?;
            Ok(touches)
        },
    )
}

/// The part of `count` things that falls to one of `threads` threads; parts
/// differ in length by one at most.
pub(crate) fn share(count: u32, threads: u32, thread: u32) -> Range<u32> {
    let at = |thread| (u64::from(count) * u64::from(thread) / u64::from(threads)) as u32;
    at(thread)..at(thread + 1)
}

fn fill_part(buffer: Buffer<'_>, data: &DataSet, part: Range<u32>) -> Result<()> {
    let mut bytes = vec![0; RUN as usize * PAGE_SIZE];
    for first in part.clone().step_by(RUN as usize) {
        let count = RUN.min(part.end - first) as usize;
        let bytes = &mut bytes[..count * PAGE_SIZE];
        data.read(first, bytes)?;
        buffer.write(first, bytes);
    }
    Ok(())
}

/// Compares every byte with what must be there.
pub(crate) fn verify(buffer: Buffer<'_>, data: &DataSet, versions: &Versions) -> Result<()> {
    let mut expected = vec![0; RUN as usize * PAGE_SIZE];
    let mut actual = expected.clone();
    for first in (0..buffer.pages()).step_by(RUN as usize) {
        let count = RUN.min(buffer.pages() - first) as usize;
        let expected = &mut expected[..count * PAGE_SIZE];
        let actual = &mut actual[..count * PAGE_SIZE];
        data.read(first, expected)?;
        buffer.read(first, actual);
        let pairs = expected
            .chunks_exact_mut(PAGE_SIZE)
            .zip(actual.chunks_exact(PAGE_SIZE));
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
    assert!(
        plan.orders.len() <= versions.0.len(),
        "more threads than tags"
    );
    // Each thread takes its own slot's versions once.
    let own: Vec<_> = versions.0.iter_mut().map(|v| Mutex::new(Some(v))).collect();
    let latencies = Mutex::new(latency_histogram());
    let mut timing = Timing::of(
        plan.orders.len() as u32,
        faults,
        |thread| {
            let mine = own[thread as usize].lock().ok().and_then(|mut v| v.take());
            let versions = mine.ok_or_else(|| Error::Failed("a slot is in use twice".into()))?;
            let warm = &plan.orders[thread as usize][..plan.warm];
            for &step in warm {
                touch(buffer, thread, step, versions)?;
            }
            Ok(versions)
        },
        |thread, versions| {
            let timed = &plan.orders[thread as usize][plan.warm..];
            for &step in timed {
                touch(buffer, thread, step, versions)?;
            }
            // Put back for the latencies below.
            if let Ok(mut slot) = own[thread as usize].lock() {
                *slot = Some(versions);
            }
            Ok(timed.len() as u64)
        },
    )?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..)
            .zip(&plan.orders)
            .zip(&own)
            .map(|((thread, order), own)| {
                let latencies = &latencies;
                scope.spawn(move || {
                    sys::stay_on_processor(thread as usize);
                    let mut own = own.lock().map_err(poisoned)?;
                    let versions = own
                        .as_mut()
                        .ok_or_else(|| Error::Failed("no slot".into()))?;
                    let mut seen = latency_histogram();
                    for &step in &order[..plan.warm.min(LATENCIES)] {
                        let start = Instant::now();
                        touch(buffer, thread, step, versions)?;
                        seen.saturating_record(start.elapsed().as_nanos() as u64);
                    }
                    latencies
                        .lock()
                        .map_err(poisoned)?
                        .add(&seen)
                        .map_err(|err| Error::Failed(format!("adding latencies: {err}")))
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(Error::Failed("a touching thread panicked".into())))
        })
    })?;
    timing.latency = latencies.into_inner().ok();
    Ok(timing)
}

/// Most single touches timed per thread.
const LATENCIES: usize = 1 << 16;

/// Room for 1 ns to 10 s at two digits, made beforehand.
fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 2).expect("constant bounds are in order")
}

fn poisoned<T>(_: T) -> Error {
    Error::Failed("a touching thread panicked".into())
}

/// One touch, with its check.
fn touch(buffer: Buffer<'_>, slot: u32, step: u32, versions: &mut [u32]) -> Result<()> {
    let page = step & !WRITE;
    let version = &mut versions[page as usize];
    if step & WRITE != 0 {
        *version = version.wrapping_add(1);
        let value = tag_value(page, slot, *version);
        buffer.store(page, tag_offset(page, slot), value);
        return Ok(());
    }
    let expected = tag_value(page, slot, *version);
    let actual = buffer.load(page, tag_offset(page, slot));
    if actual != expected {
        return Err(Error::Failed(format!(
            "wrong word: page {page}, thread {slot}: {actual:#x} instead of {expected:#x}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that parts cover everything once, and that one touch in ten of
    /// the mixed workload writes while its pages are the first of the zipf read.
    #[test]
    fn shares_and_orders() {
        let parts: Vec<_> = (0..3).map(|thread| share(100, 3, thread)).collect();
        assert_eq!((parts[0].start, parts[2].end), (0, 100));
        assert!(parts.windows(2).all(|two| two[0].end == two[1].start));

        let plan = |pattern| Plan::new(pattern, 4096, 2, 1.0).unwrap();
        let (read, mixed) = (plan(Pattern::ZipfRead), plan(Pattern::ZipfMixed));
        let writes = mixed.orders[1].iter().filter(|&&s| s & WRITE != 0).count();
        let share = writes as f64 / mixed.orders[1].len() as f64;
        assert!((0.08..0.12).contains(&share), "{share}");
        let pages: Vec<_> = mixed.orders[1].iter().map(|s| s & !WRITE).collect();
        assert_eq!((pages.len(), read.orders[1].len()), (8192, 32768));
        assert!(read.orders[1].starts_with(&pages));
    }

    /// Proves that of a scan-then-hot order a third of the touches pass over
    /// the thread's part in order and the rest stay in a tenth of the pages.
    #[test]
    fn scan_then_hot_keeps_to_a_tenth() {
        let (order, warm) = scan_then_hot(1000, 2, 1, 1.0);
        assert_eq!((order.len(), warm), (4500, 1500));
        let hot: std::collections::BTreeSet<_> = order[1500..2500].iter().collect();
        assert!(hot.len() <= 100);
        assert!(order[2500..3000].iter().copied().eq(500..1000));
    }
}

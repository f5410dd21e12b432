//! Discarded pages read as zero, their neighbours keep every byte: while
//! threads write around them and pages come and go, on every backend.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog, heap, stats_at_rest, word};
use ghostmem::{Backend, Heap};

mod common;

const WRITERS: usize = 4;
/// Neighbouring pages of one writer; the next run is another's.
const RUN_PAGES: usize = 3;
/// Runs of each writer.
const RUNS: usize = 6;
const PAGES: usize = WRITERS * RUNS * RUN_PAGES;
/// A fraction of the pages: most touches find their page gone.
const LIMIT_PAGES: usize = 12;
const WORDS: usize = PAGE_SIZE / 8;
const STEPS: usize = 250;

/// The block all threads work in, used through raw pointers as its bytes
/// change under whoever looks.
#[derive(Clone, Copy)]
struct Block(*mut u64);

// SAFETY: writers keep to their own pages, the others only give advice.
unsafe impl Send for Block {}

impl Block {
    fn words(self, first: usize, count: usize) -> *mut [u64] {
        assert!(first + count <= PAGES * WORDS);
        std::ptr::slice_from_raw_parts_mut(self.0.wrapping_add(first), count)
    }

    fn store(self, index: usize, value: u64) {
        assert!(index < PAGES * WORDS);
        // SAFETY: inside the block, on a page of the calling writer's.
        unsafe { self.0.add(index).write_volatile(value) };
    }

    fn load(self, index: usize) -> u64 {
        assert!(index < PAGES * WORDS);
        // SAFETY: as in `store`.
        unsafe { self.0.add(index).read_volatile() }
    }
}

/// One writer's pages, and what they must hold.
struct Writer<'a> {
    heap: &'a Heap,
    block: Block,
    number: usize,
    backend: Backend,
    random: Random,
    mirror: Vec<[u64; RUN_PAGES * WORDS]>,
    /// Discarded pages that were resident, and that were not.
    discarded: &'a [AtomicU64; 2],
}

impl Writer<'_> {
    /// The first word of a run.
    fn at(&self, run: usize) -> usize {
        (run * WRITERS + self.number) * RUN_PAGES * WORDS
    }

    fn store(&mut self, run: usize, index: usize, round: u64) {
        let value = word(index, round);
        self.mirror[run][index] = value;
        self.block.store(self.at(run) + index, value);
    }

    /// Discards some of a run's bytes, whole pages or not, and looks at the
    /// whole run at once.
    fn discard(&mut self, run: usize, round: u64) {
        let grain = [1, WORDS][self.random.below(2)];
        let first = self.random.below(RUN_PAGES * WORDS / grain) * grain;
        let left = (RUN_PAGES * WORDS - first) / grain;
        let count = (1 + self.random.below(left)) * grain;
        if self.random.below(2) == 0 {
            // Resident most likely, and dirty.
            self.store(run, first, round);
        }
        let start = self.at(run);
        let (whole, end) = (first.div_ceil(WORDS), (first + count) / WORDS);
        for page in whole..end {
            let address = self.block.words(start + page * WORDS, 1);
            let resident = self.heap.is_resident(address).unwrap();
            self.discarded[usize::from(resident)].fetch_add(1, Ordering::Relaxed);
        }
        let range = self.block.words(start + first, count);
        // SAFETY: this writer's own pages, to which nobody has references.
        unsafe { self.heap.discard(range) }.unwrap();
        if whole < end {
            self.mirror[run][whole * WORDS..end * WORDS].fill(0);
        }
        self.check(run, "after a discard");
    }

    fn check(&self, run: usize, when: &str) {
        let start = self.at(run);
        for (index, &expected) in self.mirror[run].iter().enumerate() {
            let found = self.block.load(start + index);
            assert_eq!(
                found,
                expected,
                "{}: writer {}, run {run}, page {}, word {} {when}",
                self.backend,
                self.number,
                index / WORDS,
                index % WORDS
            );
        }
    }

    fn work(mut self) {
        for step in 1..=STEPS as u64 {
            let run = self.random.below(RUNS);
            match self.random.below(8) {
                0 | 1 => {
                    let page = self.random.below(RUN_PAGES);
                    for index in page * WORDS..(page + 1) * WORDS {
                        self.store(run, index, step);
                    }
                }
                2 | 3 => {
                    let index = self.random.below(RUN_PAGES * WORDS);
                    self.store(run, index, step);
                }
                4..=6 => self.discard(run, step),
                _ => {
                    let range = self.block.words(self.at(run), RUN_PAGES * WORDS);
                    self.heap.evict(range).unwrap();
                }
            }
            let run = self.random.below(RUNS);
            self.check(run, "later");
        }
        for run in 0..RUNS {
            self.check(run, "at the end");
        }
    }
}

/// Sends pages in and out wherever it likes.
fn advise(heap: &Heap, block: Block, seed: u64, stop: &AtomicBool) {
    let mut random = Random::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let first = random.below(PAGES);
        let count = 1 + random.below((PAGES - first).min(8));
        let range = block.words(first * WORDS, count * WORDS).cast_const();
        match random.below(4) {
            0 => drop(heap.prefetch(range).unwrap()),
            1 => drop(heap.evict(range).unwrap()),
            2 => heap.make_cold(range).unwrap(),
            _ => drop(heap.evict_coldest().unwrap()),
        }
    }
}

/// Sets a flag when dropped: also when a check fails.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn discarded_pages_are_zero_and_their_neighbours_whole() {
    let _watchdog = Watchdog::new("discard", 120);
    // Another seed each time: a failure names its own.
    let seed = u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos());
    println!("seed {seed}");
    for backend in BACKENDS {
        let heap = heap(backend, LIMIT_PAGES);
        let layout = Layout::from_size_align(PAGES * PAGE_SIZE, PAGE_SIZE).unwrap();
        let start = heap.allocate(layout).unwrap().cast::<u8>();
        let block = Block(start.as_ptr().cast());
        let discarded = [const { AtomicU64::new(0) }; 2];
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (heap, stop, discarded) = (&heap, &stop, &discarded);
            let stopper = Stopper(stop);
            let writers = [0, 1, 2, 3].map(|number| {
                scope.spawn(move || {
                    let writer = Writer {
                        heap,
                        block,
                        number,
                        backend,
                        random: Random::new(seed ^ number as u64),
                        mirror: vec![[0; RUN_PAGES * WORDS]; RUNS],
                        discarded,
                    };
                    writer.work();
                })
            });
            scope.spawn(move || advise(heap, block, seed ^ 77, stop));
            let ended = writers.map(thread::ScopedJoinHandle::join);
            drop(stopper);
            assert!(ended.iter().all(Result::is_ok), "{backend}: seed {seed}");
        });
        let stats = heap.stats();
        let [gone, resident] = discarded.each_ref().map(|n| n.load(Ordering::Relaxed));
        // Both kinds were discarded, under pressure.
        assert!(gone > 20 && resident > 20, "{backend}: {gone} {resident}");
        assert!(
            stats.evictions_dirty > 100 && stats.refaults > 100,
            "{backend}: {stats:?}"
        );
        // SAFETY: nobody uses it any more.
        unsafe { heap.deallocate(start, layout) }.unwrap();
        let stats = stats_at_rest(&heap);
        assert_eq!(
            (stats.resident_bytes, stats.stored_pages),
            (0, 0),
            "{backend}: seed {seed}"
        );
    }
}

//! Many threads on one heap, pages coming and going under them, on every
//! backend: everybody always reads what was written last.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use common::{BACKENDS, PAGE_SIZE, Random, Watchdog, heap, word};
use ghostmem::{Backend, Heap};

mod common;

const THREADS: usize = 8;

#[test]
fn eight_threads_restore_shared_read_only_data() {
    let _watchdog = Watchdog::new("shared reading", 60);
    for backend in BACKENDS {
        let heap = heap(backend, 128);
        let count = 1024 * PAGE_SIZE / 8;
        let data = heap.slice_from_fn(count, |i| word(i, 3)).unwrap();
        thread::scope(|scope| {
            for me in 0..THREADS {
                let data = &data;
                scope.spawn(move || {
                    let mut random = Random::new(me as u64);
                    if me % 2 == 0 {
                        // All of it, from a place of one's own on.
                        for step in (0..count).step_by(61) {
                            let i = (step + me * count / THREADS) % count;
                            assert_eq!(data[i], word(i, 3), "{backend}: word {i}");
                        }
                    } else {
                        for _ in 0..2000 {
                            let i = random.below(count);
                            assert_eq!(data[i], word(i, 3), "{backend}: word {i}");
                        }
                    }
                });
            }
        });
        let stats = heap.stats();
        assert!(stats.refaults > 1000, "{backend}: {stats:?}");
        assert!(
            stats.resident_bytes <= 128 * PAGE_SIZE,
            "{backend}: {stats:?}"
        );
        assert_eq!(stats.overdrafts, 0, "{backend}: {stats:?}");
    }
}

#[test]
fn neighbouring_words_of_one_page_keep_every_store_under_constant_eviction() {
    let _watchdog = Watchdog::new("neighbouring words", 60);
    for backend in BACKENDS {
        let heap = heap(backend, 5);
        // Page 0 is shared; the others press it out of its frame.
        let words = heap
            .slice_from_fn(32 * PAGE_SIZE / 8, |_| AtomicU64::new(0))
            .unwrap();
        // Until it has been pressed out often enough, however long that takes.
        let pressed = || {
            let stats = heap.stats();
            stats.evictions_dirty > 500 && stats.refaults > 500
        };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let done = &done;
            for me in 0..4 {
                let words = &words;
                scope.spawn(move || {
                    let mut mine = 0;
                    while !done.load(Ordering::Relaxed) {
                        for _ in 0..50 {
                            // A plain load and a plain store, as a program does.
                            let seen = words[me].load(Ordering::Relaxed);
                            assert_eq!(seen, mine, "{backend}: a store of thread {me} is lost");
                            mine += 1;
                            words[me].store(mine, Ordering::Relaxed);
                        }
                        words[8].fetch_add(50, Ordering::Relaxed);
                        words[16 + me].store(mine, Ordering::Relaxed);
                    }
                });
            }
            scope.spawn(|| {
                let mut random = Random::new(9);
                while !done.load(Ordering::Relaxed) {
                    words[PAGE_SIZE / 8 + random.below(31 * PAGE_SIZE / 8)]
                        .fetch_add(1, Ordering::Relaxed);
                }
            });
            while !pressed() {
                heap.evict(&raw const words[..512]).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        heap.evict(&raw const *words).unwrap();
        let total: u64 = (0..4).map(|me| words[me].load(Ordering::Relaxed)).sum();
        assert_eq!(words[8].load(Ordering::Relaxed), total, "{backend}");
        for me in 0..4 {
            let last = words[me].load(Ordering::Relaxed);
            assert_eq!(words[16 + me].load(Ordering::Relaxed), last, "{backend}");
        }
    }
}

/// A block filled with words that tell who filled it.
struct Block {
    start: NonNull<u8>,
    layout: Layout,
    seed: u64,
}

// SAFETY: a block is memory; whoever has it may use it.
unsafe impl Send for Block {}

impl Block {
    fn new(heap: &Heap, random: &mut Random) -> Self {
        let size = match random.below(4) {
            0 => 8 + random.below(200),
            1 => 8 + random.below(5000),
            2 => 8 + random.below(60_000),
            _ => PAGE_SIZE,
        };
        let layout = Layout::from_size_align(size, 8 << random.below(4)).unwrap();
        let start = heap.allocate(layout).unwrap().cast::<u8>();
        let seed = random.next();
        for i in 0..size / 8 {
            // SAFETY: inside the block, which is aligned for words.
            unsafe { start.cast::<u64>().add(i).write(word(i, seed)) };
        }
        Self {
            start,
            layout,
            seed,
        }
    }

    fn check_and_free(self, heap: &Heap, backend: Backend) {
        for i in 0..self.layout.size() / 8 {
            // SAFETY: as in `new`; written there.
            let found = unsafe { self.start.cast::<u64>().add(i).read() };
            assert_eq!(
                found,
                word(i, self.seed),
                "{backend}: word {i} of {:?}",
                self.layout
            );
        }
        // SAFETY: the block is not used after this.
        unsafe { heap.deallocate(self.start, self.layout) }.unwrap();
    }
}

#[test]
fn eight_threads_allocate_use_and_free() {
    let _watchdog = Watchdog::new("allocation", 60);
    for backend in BACKENDS {
        let heap = heap(backend, 64);
        thread::scope(|scope| {
            for me in 0..THREADS {
                let heap = &heap;
                scope.spawn(move || {
                    let mut random = Random::new(me as u64 + 77);
                    let mut held = Vec::new();
                    for _ in 0..120 {
                        if held.len() > 8 || (random.below(3) == 0 && !held.is_empty()) {
                            let block: Block = held.swap_remove(random.below(held.len()));
                            block.check_and_free(heap, backend);
                        } else {
                            held.push(Block::new(heap, &mut random));
                        }
                    }
                    for block in held {
                        block.check_and_free(heap, backend);
                    }
                });
            }
        });
        assert_eq!(heap.stats().allocated_bytes, 0, "{backend}");
    }
}

#[test]
fn blocks_handed_to_another_thread_are_whole_and_freed_there() {
    let _watchdog = Watchdog::new("handing over", 60);
    for backend in BACKENDS {
        let heap = heap(backend, 32);
        thread::scope(|scope| {
            for pair in 0..4 {
                let (give, take) = mpsc::sync_channel::<Block>(16);
                let heap = &heap;
                scope.spawn(move || {
                    let mut random = Random::new(pair + 5);
                    for _ in 0..120 {
                        give.send(Block::new(heap, &mut random)).unwrap();
                    }
                });
                scope.spawn(move || {
                    for block in take {
                        block.check_and_free(heap, backend);
                    }
                });
            }
        });
        assert_eq!(heap.stats().allocated_bytes, 0, "{backend}");
    }
}

/// Sets a flag when dropped.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn advice_runs_against_readers_and_writers() {
    let _watchdog = Watchdog::new("advice", 60);
    for backend in BACKENDS {
        let heap = heap(backend, 48);
        let part = 32 * PAGE_SIZE / 8;
        let shared = heap.slice_from_fn(part, |i| word(i, 1)).unwrap();
        let mut written: Vec<_> = (0..2)
            .map(|_| heap.slice_from_fn(part, |i| word(i, 0)).unwrap())
            .collect();
        let ranges: Vec<(usize, usize)> = written
            .iter()
            .chain([&shared])
            .map(|slice| (slice.as_ptr().addr(), slice.len()))
            .collect();
        let mut scratch = heap.slice_from_fn(8 * PAGE_SIZE / 8, |_| 7_u64).unwrap();
        let stop = AtomicBool::new(false);
        let rounds = thread::scope(|scope| {
            // Also when a check below fails: the threads must not go on.
            let stopper = Stopper(&stop);
            for seed in 0..2 {
                let (shared, stop) = (&shared, &stop);
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    while !stop.load(Ordering::Relaxed) {
                        let i = random.below(part);
                        assert_eq!(black_box(shared[i]), word(i, 1), "{backend}: word {i}");
                    }
                });
            }
            let writers: Vec<_> = written
                .iter_mut()
                .map(|slice| {
                    let stop = &stop;
                    scope.spawn(move || {
                        let mut round = 0;
                        while !stop.load(Ordering::Relaxed) || round == 0 {
                            for (i, value) in slice.iter_mut().enumerate() {
                                assert_eq!(*value, word(i, round), "{backend}: word {i}");
                                *value = word(i, round + 1);
                            }
                            round += 1;
                        }
                        round
                    })
                })
                .collect();
            let mut random = Random::new(99);
            for _ in 0..2000 {
                let (base, len) = ranges[random.below(ranges.len())];
                let from = random.below(len);
                let count = 1 + random.below((len - from).min(4096));
                let start = std::ptr::with_exposed_provenance::<u64>(base + from * 8);
                let range = std::ptr::slice_from_raw_parts(start, count);
                match random.below(5) {
                    0 => drop(heap.prefetch(range).unwrap()),
                    1 => heap.make_cold(range).unwrap(),
                    2 => drop(heap.evict_coldest().unwrap()),
                    3 => {
                        let at = random.below(scratch.len());
                        scratch[at] = 8;
                        let all: *mut [u64] = &raw mut *scratch;
                        // SAFETY: plain words, nobody else refers to them.
                        unsafe { heap.discard(all) }.unwrap();
                        assert!(
                            scratch.iter().all(|&w| w == 0),
                            "{backend}: discarded pages are not zero"
                        );
                    }
                    _ => drop(heap.evict(range).unwrap()),
                }
            }
            drop(stopper);
            writers.into_iter().map(|w| w.join().unwrap()).sum::<u64>()
        });
        assert!(rounds >= 2, "{backend}: {rounds}");
        assert!(
            shared.iter().enumerate().all(|(i, &w)| w == word(i, 1)),
            "{backend}"
        );
    }
}

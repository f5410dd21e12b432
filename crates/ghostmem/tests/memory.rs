//! One bound on the whole process: it holds at every sample, whatever grows.
#![cfg(target_os = "linux")] // /proc
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::fs;
use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::{PAGE_SIZE, Random, Watchdog, alone_on_each, role, run_alone};
use ghostmem::{Backend, Error, Heap, Spill};

mod common;

const MIB: usize = 1 << 20;
/// What the process may take beside what it takes at the start.
const ROOM: usize = 48 * MIB;

/// What the kernel charges this process for, bytes.
fn taken() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.map_or(0, |line| {
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        })
    };
    let kib: usize = ["RssAnon:", "RssShmem:", "VmPTE:", "VmSwap:"]
        .map(field)
        .iter()
        .sum();
    kib << 10
}

/// Looks at what the process takes, a thousand times a second.
struct Sampler {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    most: Arc<AtomicUsize>,
    samples: Arc<AtomicUsize>,
}

impl Sampler {
    fn new() -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let (most, samples) = (Arc::default(), Arc::default());
        let thread = {
            let (ended, most, samples) = (ended.clone(), Arc::clone(&most), Arc::clone(&samples));
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    AtomicUsize::fetch_max(&most, taken(), Ordering::Relaxed);
                    AtomicUsize::fetch_add(&samples, 1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
            })
        };
        Self {
            ended,
            thread: Some(thread),
            most,
            samples,
        }
    }

    /// The most it saw, bytes.
    fn end(mut self) -> usize {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        assert!(self.samples.load(Ordering::Relaxed) > 10, "too few samples");
        self.most.load(Ordering::Relaxed)
    }
}

fn bounded(backend: Backend) -> (Heap, usize) {
    let bound = taken() + ROOM;
    let heap = Heap::builder().memory(bound).backend(backend).build();
    (heap.unwrap(), bound)
}

fn figures(heap: &Heap) -> String {
    let stats = heap.stats();
    format!(
        "resident {} KiB, store {} KiB, tables {} KiB",
        stats.resident_bytes >> 10,
        stats.store_held_bytes >> 10,
        stats.metadata_bytes >> 10
    )
}

/// Checks a bound against the most that was seen.
fn assert_kept(most: usize, bound: usize, heap: &Heap) {
    assert!(
        most <= bound,
        "{} KiB over {} MiB, {}",
        (most - bound) >> 10,
        bound / MIB,
        figures(heap)
    );
}

/// Checks what the figures say of the peak: the parts are those of the whole.
fn assert_parts_are_told(heap: &Heap, bound: usize) {
    let stats = heap.stats();
    let parts = [
        stats.peak_resident_bytes,
        stats.peak_stored_bytes,
        stats.peak_copies_bytes,
        stats.peak_tables_bytes,
        stats.peak_ordinary_bytes,
    ];
    let sum: usize = parts.iter().sum();
    assert_eq!(sum, stats.process_peak_bytes, "{parts:?}");
    assert!(parts[0] > MIB, "{parts:?}");
    // On a busy machine the peak may be as the first pages leave.
    assert!(
        parts[1] > 0 && parts[3..].iter().all(|&bytes| bytes > 0),
        "{parts:?}"
    );
    // Three times the room, and what was there before.
    let plain = stats.plain_peak_bytes;
    assert!(
        plain > bound + ROOM && plain < bound + 4 * ROOM,
        "{plain} of {bound}"
    );
}

/// A word that compresses to about a fifth beside its neighbours.
fn word(index: usize) -> u64 {
    match index % 8 {
        0 => (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        _ => 0,
    }
}

#[test]
fn data_of_three_times_the_bound_is_kept_within_it() {
    alone_on_each(
        "data_of_three_times_the_bound_is_kept_within_it",
        |backend| {
            let _watchdog = Watchdog::new("three times the bound", 55);
            let (heap, bound) = bounded(backend);
            let sampler = Sampler::new();
            let words = 3 * ROOM / 8;
            let mut data = heap.slice_from_fn(words, word).unwrap();
            let mut random = Random::new(7);
            for turn in 0..words / 256 {
                let i = random.below(words);
                assert_eq!(data[i], word(i), "{i}");
                if turn & 1 == 0 {
                    data[i] = word(i);
                }
            }
            for i in 0..words {
                assert_eq!(data[i], word(i), "{i}");
            }
            let most = sampler.end();
            assert_kept(most, bound, &heap);
            // Not by keeping little: what there is is used.
            assert!(most > bound - ROOM / 3, "{} of {bound} bytes used", most);
            assert_parts_are_told(&heap, bound);
        },
    );
}

#[test]
fn what_does_not_compress_is_refused_where_it_is_asked_for() {
    alone_on_each(
        "what_does_not_compress_is_refused_where_it_is_asked_for",
        |backend| {
            let _watchdog = Watchdog::new("what does not compress", 55);
            let (heap, bound) = bounded(backend);
            let sampler = Sampler::new();
            let mut random = Random::new(3);
            let mut blocks = Vec::new();
            let refused = loop {
                match heap.slice_from_fn(MIB / 8, |_| random.next()) {
                    Ok(block) => blocks.push(block),
                    Err(error) => break error,
                }
                assert!(blocks.len() < ROOM / MIB, "nothing was refused");
            };
            assert!(matches!(refused, Error::OutOfMemory { .. }), "{refused}");
            assert!(blocks.len() > ROOM / MIB / 2, "{} MiB", blocks.len());
            let mut random = Random::new(3);
            for block in &blocks {
                assert!(block.iter().all(|&word| word == random.next()));
            }
            assert_kept(sampler.end(), bound, &heap);
        },
    );
}

#[test]
fn memory_that_was_granted_and_does_not_fit_ends_with_the_signal() {
    let name = "memory_that_was_granted_and_does_not_fit_ends_with_the_signal";
    if let Some(role) = role() {
        let backend = common::BACKENDS.iter().find(|b| b.to_string() == role);
        let (heap, _bound) = bounded(*backend.unwrap());
        let layout = Layout::from_size_align(2 * ROOM, PAGE_SIZE).unwrap();
        let block = heap.allocate_zeroed(layout).unwrap().cast::<u64>();
        let mut random = Random::new(5);
        for i in 0..2 * ROOM / 8 {
            // SAFETY: within the block.
            let at = unsafe { block.as_ptr().add(i) };
            // SAFETY: as above.
            unsafe { at.write(random.next()) };
        }
        black_box(block);
        return;
    }
    for backend in common::BACKENDS {
        let status = run_alone(name, &backend.to_string(), &[]);
        let signal = match backend {
            Backend::Guard | Backend::GuardMprotect => libc::SIGSEGV,
            // It cannot send the signal of a touch.
            Backend::Monitor => libc::SIGABRT,
            _ => libc::SIGBUS,
        };
        assert_eq!(status.signal(), Some(signal), "{backend}: {status}");
    }
}

#[test]
fn memory_beside_the_heap_makes_the_heap_give_way() {
    alone_on_each(
        "memory_beside_the_heap_makes_the_heap_give_way",
        |backend| {
            let _watchdog = Watchdog::new("memory beside the heap", 55);
            let (heap, bound) = bounded(backend);
            let words = 2 * ROOM / 8;
            let data = heap.slice_from_fn(words, word).unwrap();
            let sampler = Sampler::new();
            let before = heap.stats().resident_bytes;
            let mut beside = Vec::new();
            for _ in 0..20 {
                beside.push(vec![1_u8; MIB]);
                thread::sleep(Duration::from_millis(20));
                black_box(data[beside.len() * 1000]);
            }
            let after = heap.stats().resident_bytes;
            assert!(after + 10 * MIB < before, "{after} of {before} stayed");
            assert!((0..words).all(|i| data[i] == word(i)));
            assert_kept(sampler.end(), bound, &heap);
            drop(beside);
        },
    );
}

/// Bytes that stayed resident of a heap's `words` while 20 MiB came up beside it.
fn stayed_beside(heap: &Heap, data: &[u64]) -> usize {
    let before = heap.stats().resident_bytes;
    let mut beside = Vec::new();
    for _ in 0..20 {
        beside.push(vec![1_u8; MIB]);
        thread::sleep(Duration::from_millis(20));
        black_box(data[beside.len() * 1000]);
    }
    before.saturating_sub(heap.stats().resident_bytes)
}

#[test]
fn a_lower_resident_limit_holds_at_once_under_a_bound() {
    let heap = Heap::builder()
        .memory(1 << 30)
        .background(false)
        .build()
        .unwrap();
    let data = heap.slice_from_fn(4 * MIB / 8, word).unwrap();
    heap.set_resident_limit(MIB).unwrap();
    assert!(heap.stats().resident_limit_bytes <= MIB);
    // The next page that is wanted finds no frame.
    let more = heap.slice_from_fn(4 * MIB / 8, word).unwrap();
    assert!(heap.stats().resident_bytes <= MIB);
    assert!((0..data.len()).all(|i| data[i] == word(i) && more[i] == word(i)));
}

/// Far from its bound a heap need not be asked for each small object, which is what makes
/// malloc cheap; close to it each is asked for, and what no memory holds is refused.
#[test]
fn small_objects_are_asked_for_one_by_one_close_to_the_bound() {
    alone_on_each(
        "small_objects_are_asked_for_one_by_one_close_to_the_bound",
        |backend| {
            let (heap, _) = bounded(backend);
            let layout = Layout::from_size_align(1 << 10, 16).unwrap();
            let object = |random: &mut Random| -> Result<(), Error> {
                let block = heap.allocate_block(layout, false)?;
                for at in (0..layout.size()).step_by(8) {
                    // SAFETY: inside the block just made.
                    unsafe { block.cast::<u64>().byte_add(at).write(random.next()) };
                }
                Ok(())
            };
            let mut random = Random::new(1);
            object(&mut random).unwrap();
            assert!(heap.small_objects().is_some());
            let mut objects = 0;
            while !heap.count_small(0, false) {
                object(&mut random).unwrap();
                objects += 1;
            }
            // At least half of the room is granted without being asked for.
            assert!(objects * layout.size() > ROOM / 2, "{objects} objects");
            let refused = (0..1 << 20).find_map(|_| object(&mut random).err());
            assert!(
                matches!(refused, Some(Error::OutOfMemory { .. })),
                "{refused:?}"
            );
        },
    );
}

/// Programs close what they did not open, and use up what they may open.
#[test]
fn memory_beside_the_heap_is_seen_without_a_free_descriptor() {
    alone_on_each(
        "memory_beside_the_heap_is_seen_without_a_free_descriptor",
        |backend| {
            let _watchdog = Watchdog::new("no free descriptor", 55);
            let (heap, _bound) = bounded(backend);
            let data = heap.slice_from_fn(2 * ROOM / 8, word).unwrap();
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // SAFETY: a valid limit; what is open stays open.
            let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
            assert_eq!(rc, 0);
            let gone = stayed_beside(&heap, &data);
            assert!(gone > 10 * MIB, "only {gone} bytes left for it");
            assert_eq!(heap.stats().bound_overruns, 0);
        },
    );
}

#[test]
fn a_look_that_cannot_see_is_counted_and_holds_what_there_is() {
    alone_on_each(
        "a_look_that_cannot_see_is_counted_and_holds_what_there_is",
        |backend| {
            let _watchdog = Watchdog::new("a blind look", 55);
            let (heap, _bound) = bounded(backend);
            let data = heap.slice_from_fn(2 * ROOM / 8, word).unwrap();
            let reads_status = |path: &std::path::Path| {
                let target = fs::read_link(path).unwrap_or_default();
                target.ends_with("status")
            };
            let numbers: Vec<i32> = fs::read_dir("/proc/self/fd")
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| reads_status(path))
                .map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
                .collect();
            let none = libc::rlimit {
                rlim_cur: 0,
                rlim_max: 0,
            };
            // A program puts a file of its own over every number that reads what it takes.
            // Nothing else until the limit is set: a look in between opens the report again.
            for number in numbers {
                // SAFETY: any number may become a copy of standard input.
                assert_eq!(unsafe { libc::dup2(0, number) }, number);
            }
            // SAFETY: a valid limit; it cannot open the report again.
            let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) };
            assert_eq!(rc, 0);
            let gone = stayed_beside(&heap, &data);
            assert!(gone < 4 * MIB, "{gone} bytes left for what nobody saw");
            assert!(heap.stats().bound_overruns > 0);
            assert!((0..data.len()).all(|i| data[i] == word(i)));
        },
    );
}

#[test]
fn a_forked_child_keeps_its_own_bound() {
    alone_on_each("a_forked_child_keeps_its_own_bound", |backend| {
        let _watchdog = Watchdog::new("a bound in a child", 55);
        let (heap, bound) = bounded(backend);
        let words = ROOM / 8;
        let data = heap.slice_from_fn(words, word).unwrap();
        // SAFETY: the child ends by _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut beside = Vec::new();
            for turn in 0..20 {
                beside.push(vec![1_u8; MIB]);
                thread::sleep(Duration::from_millis(20));
                for i in (turn..words).step_by(2048) {
                    assert_eq!(data[i], word(i));
                }
            }
            // More came up than there was room for, and the parent's figure says nothing of
            // it.
            let most = taken();
            if most > bound {
                eprintln!("{most} bytes of {bound}");
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(most > bound)) };
        }
        let mut status = 0;
        // SAFETY: our own child and a valid place.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!(status, 0, "status of the child");
    });
}

#[test]
fn memory_beside_the_heap_that_was_given_back_is_granted_at_once() {
    alone_on_each(
        "memory_beside_the_heap_that_was_given_back_is_granted_at_once",
        |backend| {
            let _watchdog = Watchdog::new("memory given back", 55);
            let (heap, _bound) = bounded(backend);
            let layout = Layout::from_size_align(ROOM / 2, PAGE_SIZE).unwrap();
            for turn in 0..10 {
                let beside = vec![1_u8; ROOM - 6 * MIB];
                // Longer than the heap leaves it unwatched.
                thread::sleep(Duration::from_millis(120));
                let full = heap.allocate_zeroed(layout);
                assert!(full.is_err(), "turn {turn}: there was no room");
                drop(black_box(beside));
                let block = heap.allocate_zeroed(layout);
                let block = block.unwrap_or_else(|error| panic!("turn {turn}: {error}"));
                // SAFETY: the block is this heap's, of this layout, and unused.
                unsafe { heap.deallocate(block.cast(), layout) }.unwrap();
            }
        },
    );
}

#[test]
fn a_file_takes_what_memory_beside_the_heap_needs() {
    alone_on_each(
        "a_file_takes_what_memory_beside_the_heap_needs",
        |backend| {
            let _watchdog = Watchdog::new("memory beside a heap with a file", 55);
            let bound = taken() + 2 * ROOM;
            let spill = Spill::dir(env!("CARGO_TARGET_TMPDIR")).limit(512 * MIB as u64);
            let builder = Heap::builder().memory(bound).backend(backend);
            let heap = builder.spill(spill).build().unwrap();
            let words = 3 * ROOM / 8;
            let mut random = Random::new(9);
            let data = heap.slice_from_fn(words, |_| random.next()).unwrap();
            let sampler = Sampler::new();
            let mut beside = Vec::new();
            for _ in 0..2 * ROOM / MIB - 16 {
                // No faster than the file takes pages: other work may keep the disk. And the
                // heap may have been granted a part of what is left at the same moment.
                while taken() + 4 * MIB > bound {
                    thread::sleep(Duration::from_millis(5));
                }
                beside.push(vec![1_u8; MIB]);
                thread::sleep(Duration::from_millis(20));
                black_box(data[beside.len() * 1000]);
            }
            let mut random = Random::new(9);
            assert!((0..words).all(|i| data[i] == random.next()));
            assert_kept(sampler.end(), bound, &heap);
            drop(beside);
        },
    );
}

#[test]
fn too_little_for_the_process_as_it_is_is_said_at_once() {
    let refused = Heap::builder().memory(2 * MIB).build().err();
    let Some(Error::MemoryTooSmall { least_bytes, .. }) = refused else {
        panic!("{refused:?}");
    };
    // What it names is enough, unless the tests beside this one took more meanwhile.
    assert!(
        Heap::builder()
            .memory(least_bytes + 64 * MIB)
            .build()
            .is_ok()
    );
}

//! A heap whose arena is full goes on in the next step of it.
#![cfg(not(windows))] // where an arena has one step
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::collections::HashSet;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::Random;
use ghostmem_os::OsError;
use ghostmem_os::error::ENOMEM;
use ghostmem_os::map::Reservation;
use ghostmem_small::{
    ARENAS_MAX, Arena, SIZE_MAX, STEP_BYTES_MIN, STEPS_MAX, SmallError, SmallHeap, Space, seam,
};

/// Ordinary memory that remembers what it was asked to be.
#[derive(Default)]
struct Adopting {
    adopted: Mutex<Vec<(usize, usize)>>,
    /// How many more ranges it takes.
    refuse_after: AtomicUsize,
}

impl Space for Adopting {
    fn discard(&self, _address: usize, _bytes: usize) {}

    fn adopt(
        &self,
        reservation: &'static Reservation,
        offset: usize,
        bytes: usize,
    ) -> Result<(), OsError> {
        let left = self.refuse_after.load(Ordering::Relaxed);
        if left == 0 {
            return Err(OsError::new("adopt", ENOMEM));
        }
        self.refuse_after.store(left - 1, Ordering::Relaxed);
        let range = (reservation.base() + offset, bytes);
        self.adopted.lock().unwrap().push(range);
        Ok(())
    }
}

fn heap(refuse_after: usize) -> SmallHeap<Adopting> {
    let space = Adopting {
        refuse_after: AtomicUsize::new(refuse_after),
        ..Adopting::default()
    };
    SmallHeap::new(Arena::acquire().unwrap(), space).unwrap()
}

fn free(heap: &SmallHeap<Adopting>, block: NonNull<u8>) -> Result<(), SmallError> {
    // SAFETY: the tests keep no reference into blocks.
    unsafe { heap.deallocate(block) }
}

/// A block's address, which may go to another thread.
struct Sent(NonNull<u8>);

// SAFETY: an address; only the thread that has it uses the block.
unsafe impl Send for Sent {}

/// Sizes that mimalloc has no blocks of by itself.
const LARGE: [usize; 3] = [1100, 4368, 2700];

/// Largest blocks that a step has room for, about.
const IN_A_STEP: usize = STEP_BYTES_MIN / SIZE_MAX;

/// One test: arenas belong to the whole process.
#[test]
fn a_full_arena_grows_until_it_is_refused() {
    seam::set_step_bytes(STEP_BYTES_MIN);
    blocks_of_all_steps_are_alike();
    threads_share_a_heap_that_grows();
    a_refusal_is_the_end_of_growth();
    blocks_between_fill_all_steps();
    no_more_steps_than_mimalloc_takes();
}

fn blocks_of_all_steps_are_alike() {
    let first = heap(usize::MAX);
    let base = first.arena().base();
    drop(first);
    for round in 0..3_u8 {
        let heap = heap(usize::MAX);
        assert_eq!(
            heap.arena().base(),
            base,
            "the pool has the arena that grew"
        );
        assert_eq!(heap.steps(), 1);
        let (start, bytes) = heap.span();
        let mut seen = HashSet::new();
        let mut blocks = Vec::new();
        for i in 0..IN_A_STEP * 3 {
            for (size, align) in [(SIZE_MAX, 4096), (1 + i % 700, 16), (LARGE[i % 3], 16)] {
                let block = heap.allocate(size, align, true).unwrap();
                assert!(seen.insert(block), "a live block was handed out again");
                assert!(block.as_ptr().addr().is_multiple_of(align));
                assert!(block.as_ptr().addr() - start < bytes);
                assert!(heap.contains(block.as_ptr().addr()) && heap.is_live(block));
                assert!(heap.usable_size(block).unwrap() >= size);
                // SAFETY: at least this byte was handed out.
                let byte = unsafe { block.as_ptr().read() };
                assert_eq!(byte, 0, "round {round}: not zero");
                // SAFETY: as above.
                unsafe { block.as_ptr().write(round + 1) };
                blocks.push(block);
            }
        }
        let steps = heap.steps();
        assert!(
            (4..=5).contains(&steps),
            "{steps} steps for three and a half"
        );
        // What was adopted is all of the further steps, their metadata left out.
        let adopted = heap.space().adopted.lock().unwrap().clone();
        assert_eq!(adopted.len(), steps - 1);
        for (step, &(at, len)) in adopted.iter().enumerate() {
            assert_eq!(at + len, base + (step + 2) * STEP_BYTES_MIN);
            assert!(len > STEP_BYTES_MIN * 9 / 10 && len < STEP_BYTES_MIN);
        }
        for block in &blocks {
            // SAFETY: as above.
            assert_eq!(unsafe { block.as_ptr().read() }, round + 1);
        }
        for &block in &blocks {
            assert_eq!(free(&heap, block), Ok(()));
            assert!(matches!(
                free(&heap, block),
                Err(SmallError::NotLive { .. })
            ));
        }
        // Room in any step is found again.
        for _ in 0..IN_A_STEP * 3 {
            assert!(heap.allocate(SIZE_MAX, 16, false).is_some());
        }
        assert_eq!(heap.steps(), steps);
    }
}

fn threads_share_a_heap_that_grows() {
    let heap = heap(usize::MAX);
    let store: [Mutex<Vec<(Sent, u64)>>; 8] = [const { Mutex::new(Vec::new()) }; 8];
    thread::scope(|scope| {
        for me in 0..4_u64 {
            let (heap, store) = (&heap, &store);
            scope.spawn(move || {
                let mut random = Random(0x6E0 + me * 7919);
                for round in 0..6000_u64 {
                    let size = match round % 4 {
                        0 | 2 => SIZE_MAX,
                        1 => 16 + random.below(900),
                        _ => 1025 + random.below(29_000),
                    };
                    let block = heap.allocate(size, 8, false).unwrap();
                    let mark = me << 32 | round;
                    // SAFETY: 16 bytes at least, aligned.
                    unsafe { block.cast::<u64>().write(mark) };
                    let shelf = &store[random.below(store.len())];
                    let found = {
                        let mut shelf = shelf.lock().unwrap();
                        shelf.push((Sent(block), mark));
                        let place = random.below(shelf.len());
                        // Two of three stay: it grows.
                        (round % 3 == 0).then(|| shelf.swap_remove(place))
                    };
                    if let Some((Sent(block), mark)) = found {
                        // SAFETY: a live block that only we have.
                        assert_eq!(unsafe { block.cast::<u64>().read() }, mark);
                        assert_eq!(free(heap, block), Ok(()));
                    }
                }
            });
        }
    });
    assert!(heap.steps() > 3, "{} steps", heap.steps());
    for (Sent(block), mark) in store.into_iter().flat_map(|s| s.into_inner().unwrap()) {
        // SAFETY: a live block that only we have.
        assert_eq!(unsafe { block.cast::<u64>().read() }, mark);
        assert_eq!(free(&heap, block), Ok(()));
    }
}

fn a_refusal_is_the_end_of_growth() {
    for refused in 0..3 {
        let heap = heap(refused);
        let mut blocks = Vec::new();
        while let Some(block) = heap.allocate(SIZE_MAX, 16, false) {
            blocks.push(block);
            assert!(
                blocks.len() < IN_A_STEP * (refused + 1),
                "a refused step is used"
            );
        }
        assert_eq!(heap.steps(), refused + 1);
        assert!(blocks.len() > IN_A_STEP * (refused + 1) * 3 / 4);
        assert_eq!(heap.allocate(SIZE_MAX, 16, false), None);
        // There may be room for others yet; those that have it are the heap's.
        while let Some(block) = heap.allocate(30_000, 16, false) {
            assert!(heap.contains(block.as_ptr().addr()));
        }
        assert_eq!(heap.steps(), refused + 1);
        assert_eq!(free(&heap, blocks.pop().unwrap()), Ok(()));
        assert!(heap.allocate(SIZE_MAX, 16, false).is_some());
    }
}

/// The first and the last word of a block.
fn ends(block: NonNull<u8>, size: usize) -> [NonNull<u64>; 2] {
    let last = block.map_addr(|at| at.checked_add(size - 8).unwrap());
    [block.cast(), last.cast()]
}

/// Proves that blocks of the sizes between find room in any step, of mimalloc's own sizes where
/// there is no other.
fn blocks_between_fill_all_steps() {
    for size in [4368, 30_000] {
        let heap = heap(2);
        let mut blocks = Vec::new();
        while let Some(block) = heap.allocate_block(size, 16, false) {
            let block_bytes = block.len();
            let block = block.cast::<u8>();
            assert!(block_bytes >= size && heap.contains(block.as_ptr().addr()));
            for word in ends(block, size) {
                // SAFETY: a word of a block that nobody else has.
                unsafe { word.write_unaligned(blocks.len() as u64) };
            }
            blocks.push(block);
        }
        assert_eq!(heap.steps(), 3);
        assert!(
            blocks.len() > STEP_BYTES_MIN / size * 5 / 2,
            "{}",
            blocks.len()
        );
        for (mark, &block) in blocks.iter().enumerate() {
            for word in ends(block, size) {
                // SAFETY: as above.
                assert_eq!(unsafe { word.read_unaligned() }, mark as u64);
            }
            assert_eq!(free(&heap, block), Ok(()));
        }
        // Blocks of mimalloc's own sizes find the room that these gave back.
        let own = (size + size / 8 + 100).min(SIZE_MAX);
        let count = std::iter::from_fn(|| heap.allocate(own, 16, false)).count();
        assert!(count > STEP_BYTES_MIN / own * 2, "{count} of {own}");
        assert_eq!(heap.steps(), 3);
    }
}

fn no_more_steps_than_mimalloc_takes() {
    let mut heaps = Vec::new();
    while let Ok(arena) = Arena::acquire() {
        let space = Adopting {
            refuse_after: AtomicUsize::new(usize::MAX),
            ..Adopting::default()
        };
        let heap = SmallHeap::new(arena, space).unwrap();
        while heap.allocate(SIZE_MAX, 16, false).is_some() {}
        heaps.push(heap);
    }
    assert_eq!(heaps[0].steps(), STEPS_MAX);
    assert_eq!(
        heaps.iter().map(SmallHeap::steps).sum::<usize>(),
        ARENAS_MAX
    );
    let single = heaps.iter().filter(|heap| heap.steps() == 1).count();
    assert!(single >= ARENAS_MAX / 4, "{single} heaps that did not grow");
}

//! Blocks freed by threads that did not allocate them, while mimalloc's pages
//! are abandoned and reclaimed: no live block is refused, none is handed out
//! twice, none is freed twice.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::{Plain, Random};
use ghostmem_small::{Arena, SIZE_MAX, SmallError, SmallHeap};

fn heap() -> SmallHeap<Plain> {
    SmallHeap::new(Arena::acquire().expect("an arena"), Plain::new()).expect("a heap")
}

fn free(heap: &SmallHeap<Plain>, block: NonNull<u8>) -> Result<(), SmallError> {
    // SAFETY: the tests keep no reference into blocks they free.
    unsafe { heap.deallocate(block) }
}

/// A block's address, which may go to another thread.
#[derive(Clone, Copy)]
struct Sent(NonNull<u8>);

// SAFETY: an address; only the thread that has it uses the block.
unsafe impl Send for Sent {}

/// Allocates `count` blocks on a thread that then ends.
fn from_an_ended_thread(heap: &SmallHeap<Plain>, count: usize) -> Vec<NonNull<u8>> {
    let blocks: Vec<Sent> = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            (0..count)
                .map(|i| Sent(heap.allocate(16 + i % 3000, 8, false).unwrap()))
                .collect()
        });
        thread.join().unwrap()
    });
    blocks.into_iter().map(|sent| sent.0).collect()
}

fn on_another_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(act).join().unwrap())
}

#[test]
fn a_second_free_is_refused_whoever_makes_which() {
    let heap = heap();
    for round in 0..200 {
        let size = 16 + round * 97;
        // Ours, freed by us and by another.
        let block = Sent(heap.allocate(size, 8, false).unwrap());
        assert_eq!(free(&heap, block.0), Ok(()));
        let heap = &heap;
        let second = on_another_thread(move || free(heap, { block }.0));
        assert!(matches!(second, Err(SmallError::NotLive { .. })));
        // The other way round.
        let block = Sent(heap.allocate(size, 8, false).unwrap());
        assert_eq!(on_another_thread(move || free(heap, { block }.0)), Ok(()));
        assert!(matches!(
            free(heap, block.0),
            Err(SmallError::NotLive { .. })
        ));
        assert!(!heap.is_live(block.0));
        // By two others.
        let block = Sent(heap.allocate(size, 8, false).unwrap());
        assert_eq!(on_another_thread(move || free(heap, { block }.0)), Ok(()));
        let second = on_another_thread(move || free(heap, { block }.0));
        assert!(matches!(second, Err(SmallError::NotLive { .. })));
    }
}

#[test]
fn blocks_of_an_ended_thread_are_freed_once() {
    let heap = heap();
    let blocks = from_an_ended_thread(&heap, 20_000);
    for &block in &blocks {
        assert!(heap.is_live(block));
    }
    for &block in &blocks {
        assert_eq!(free(&heap, block), Ok(()));
        assert!(matches!(
            free(&heap, block),
            Err(SmallError::NotLive { .. })
        ));
    }
}

#[test]
fn pages_that_fill_up_and_come_back_keep_their_bits() {
    // Full pages are given up by their thread, and reclaimed when it frees in
    // them: each block is noted by whoever owned its page at that moment.
    let heap = heap();
    let mut random = Random(0xF011);
    let mut held: Vec<(NonNull<u8>, usize)> = Vec::new();
    let mut live = std::collections::HashSet::new();
    for round in 0..300_000_usize {
        // In waves, so that pages fill up and empty.
        let grow = round / 20_000 % 2 == 0;
        if grow || held.is_empty() || random.below(8) == 0 {
            let size = 1 + random.below(if round % 8 == 0 { SIZE_MAX } else { 700 });
            let block = heap.allocate(size, 16, false).unwrap();
            assert!(live.insert(block), "a live block was handed out again");
            held.push((block, size));
        } else {
            let (block, size) = held.swap_remove(random.below(held.len()));
            assert!(live.remove(&block));
            assert!(heap.usable_size(block).unwrap() >= size);
            assert_eq!(free(&heap, block), Ok(()));
            assert!(!heap.is_live(block));
        }
    }
    for (block, _) in held {
        assert_eq!(free(&heap, block), Ok(()));
    }
}

/// Threads come and go; each allocates, frees what it finds in a common store,
/// whoever allocated it, and leaves blocks behind.
#[test]
fn threads_that_free_each_others_blocks_lose_and_double_none() {
    let heap = heap();
    const GENERATIONS: usize = 12;
    const THREADS: usize = 4;
    let store: [Mutex<Vec<(Sent, u64, usize)>>; 16] = [const { Mutex::new(Vec::new()) }; 16];
    let (allocated, freed, foreign) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    for generation in 0..GENERATIONS {
        thread::scope(|scope| {
            for me in 0..THREADS {
                let (heap, store) = (&heap, &store);
                let (allocated, freed, foreign) = (&allocated, &freed, &foreign);
                scope.spawn(move || {
                    let who = (generation * THREADS + me) as u64;
                    let mut random = Random(0xABCD + who * 7919);
                    for round in 0..12_000_usize {
                        let size = (1 + random.below(if round % 32 == 0 { SIZE_MAX } else { 900 }))
                            .max(16);
                        let block = heap.allocate(size, 8, false).unwrap();
                        allocated.fetch_add(1, Ordering::Relaxed);
                        assert!(heap.is_live(block));
                        // A mark of its own: a block handed out twice loses one.
                        let mark = who << 32 | round as u64;
                        // SAFETY: 16 bytes at least, aligned.
                        unsafe { block.cast::<u64>().write(mark) };
                        // SAFETY: as above, the block's last whole word.
                        let last = unsafe { block.cast::<u64>().add(size / 8 - 1) };
                        // SAFETY: as above.
                        unsafe { last.write(mark) };
                        let shelf = random.below(store.len());
                        store[shelf].lock().unwrap().push((Sent(block), mark, size));
                        if round % 3 == 0 {
                            continue;
                        }
                        let shelf = &store[random.below(store.len())];
                        let found = {
                            let mut shelf = shelf.lock().unwrap();
                            let place = random.below(shelf.len().max(1));
                            (!shelf.is_empty()).then(|| shelf.swap_remove(place))
                        };
                        let Some((Sent(block), mark, size)) = found else {
                            continue;
                        };
                        // SAFETY: a live block that only we have.
                        assert_eq!(unsafe { block.cast::<u64>().read() }, mark);
                        // SAFETY: as above.
                        let last = unsafe { block.cast::<u64>().add(size / 8 - 1) };
                        // SAFETY: as above.
                        assert_eq!(unsafe { last.read() }, mark);
                        assert_eq!(free(heap, block), Ok(()), "a live block was refused");
                        freed.fetch_add(1, Ordering::Relaxed);
                        foreign.fetch_add(usize::from(mark >> 32 != who), Ordering::Relaxed);
                    }
                });
            }
        });
    }
    for (Sent(block), mark, _) in store.into_iter().flat_map(|s| s.into_inner().unwrap()) {
        // SAFETY: a live block that only we have.
        assert_eq!(unsafe { block.cast::<u64>().read() }, mark);
        assert_eq!(free(&heap, block), Ok(()));
        assert!(matches!(
            free(&heap, block),
            Err(SmallError::NotLive { .. })
        ));
        freed.fetch_add(1, Ordering::Relaxed);
    }
    assert_eq!(allocated.into_inner(), freed.into_inner());
    let foreign = foreign.into_inner();
    assert!(foreign > 100_000, "only {foreign} frees of others' blocks");
}

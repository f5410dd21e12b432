//! What a heap on ordinary memory promises to one caller and to many.

mod common;

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;

use common::{Block, Plain, Random};
use ghostmem_small::{ALIGN_MAX, Arena, SIZE_MAX, SmallError, SmallHeap};

fn heap() -> SmallHeap<Plain> {
    SmallHeap::new(Arena::acquire().expect("an arena"), Plain::new()).expect("a heap")
}

fn free(heap: &SmallHeap<Plain>, block: NonNull<u8>) -> Result<(), SmallError> {
    // SAFETY: the tests keep no reference into blocks they free.
    unsafe { heap.deallocate(block) }
}

#[test]
fn an_alignment_that_is_none_is_refused_by_a_warm_heap_too() {
    let heap = heap();
    for _ in 0..100 {
        assert!(heap.allocate(48, 1, false).is_some());
        for align in [0, 3, 24, ALIGN_MAX + 1, 2 * ALIGN_MAX] {
            assert_eq!(heap.allocate(48, align, false), None, "alignment {align}");
            assert_eq!(heap.allocate(48, align, true), None, "alignment {align}");
        }
    }
}

#[test]
fn every_size_and_alignment_is_honoured() {
    let heap = heap();
    let mut blocks = Vec::new();
    let mut align = 1;
    while align <= ALIGN_MAX {
        for size in [
            0, 1, 7, 8, 15, 16, 17, 24, 100, 1000, 1024, 1025, 4095, 4096, 5000, SIZE_MAX,
        ] {
            for zeroed in [false, true] {
                let at = heap.allocate(size, align, zeroed).unwrap();
                let address = at.as_ptr() as usize;
                assert_eq!(address % align.max(16), 0, "size {size} align {align}");
                assert!(heap.usable_size(at).unwrap() >= size.max(1));
                let (start, bytes) = heap.arena().ghost_range();
                assert!(address >= start && address + size <= start + bytes);
                assert!(heap.contains(address) && heap.is_live(at));
                blocks.push(Block::fill(at, size, (size ^ align) as u8));
            }
        }
        align *= 2;
    }
    for block in &blocks {
        block.check();
    }
    for block in blocks {
        free(&heap, block.at).unwrap();
    }
    assert!(heap.assumptions_hold());
}

#[test]
fn all_bytes_that_may_be_used_are_the_blocks_own() {
    let heap = heap();
    let mut random = Random(0xA119);
    let mut blocks = Vec::new();
    for round in 0..6000_usize {
        // Odd sizes at large alignments begin inside of what mimalloc gives.
        let align = 1 << random.below(13);
        let size = 1 + random.below(if round % 4 == 0 { SIZE_MAX } else { 5000 });
        let block = heap.allocate_block(size, align, false).unwrap();
        assert!(block.len() >= size);
        let at = block.cast::<u8>();
        assert_eq!(heap.usable_size(at), Some(block.len()));
        blocks.push(Block::fill(at, block.len(), round as u8));
    }
    for block in blocks {
        block.check();
        // SAFETY: nobody uses it any more.
        let freed = unsafe { heap.deallocate_block(block.at) };
        assert_eq!(freed, Ok(block.size));
    }
}

#[test]
fn what_is_not_served_is_refused() {
    let heap = heap();
    assert!(heap.allocate(SIZE_MAX + 1, 1, false).is_none());
    assert!(heap.allocate(1, ALIGN_MAX * 2, false).is_none());
    assert!(heap.allocate(1, 3, false).is_none());
    assert!(heap.allocate(1, 0, false).is_none());
}

#[test]
fn double_foreign_and_interior_frees_are_errors_and_change_nothing() {
    let heap = heap();
    let other = SmallHeap::new(Arena::acquire().unwrap(), Plain::new()).unwrap();
    let keep = Block::fill(heap.allocate(64, 8, false).unwrap(), 64, 7);
    let at = heap.allocate(64, 8, false).unwrap();
    let address = at.as_ptr() as usize;
    // SAFETY: in bounds of the 64 bytes.
    let inside = unsafe { at.add(16) };
    // SAFETY: as above.
    let odd = unsafe { at.add(3) };
    assert!(matches!(
        free(&heap, inside),
        Err(SmallError::NotLive { .. })
    ));
    assert!(matches!(free(&heap, odd), Err(SmallError::NotLive { .. })));
    assert_eq!(free(&other, at), Err(SmallError::Foreign { address }));
    let mut local = 0_u8;
    assert!(matches!(
        free(&heap, NonNull::from(&mut local)),
        Err(SmallError::Foreign { .. })
    ));
    // mimalloc's metadata at the start of the arena is foreign too.
    let base = NonNull::new(heap.arena().base() as *mut u8).unwrap();
    assert!(matches!(free(&heap, base), Err(SmallError::Foreign { .. })));
    assert_eq!(free(&heap, at), Ok(()));
    assert_eq!(free(&heap, at), Err(SmallError::NotLive { address }));
    assert_eq!(heap.usable_size(at), None);
    // The list of free blocks is intact: nothing is handed out twice.
    let mut seen = std::collections::HashSet::new();
    for _ in 0..10_000 {
        assert!(seen.insert(heap.allocate(64, 8, false).unwrap()));
    }
    assert!(!seen.contains(&keep.at));
    keep.check();
}

#[test]
fn tiny_blocks_each_have_their_own_bit() {
    let heap = heap();
    let blocks: Vec<_> = (0..5000)
        .map(|_| heap.allocate(1, 1, false).unwrap())
        .collect();
    for &block in blocks.iter().step_by(2) {
        free(&heap, block).unwrap();
    }
    for pair in blocks.chunks(2) {
        assert!(!heap.is_live(pair[0]) && heap.is_live(pair[1]));
    }
}

#[test]
fn zeroed_blocks_are_zero_also_on_used_memory() {
    let heap = heap();
    let mut random = Random(0x5EED);
    let mut held: Vec<Block> = Vec::new();
    for round in 0..40_000 {
        let size = 1 + random.below(if round % 8 == 0 { SIZE_MAX } else { 600 });
        let align = 1 << random.below(8);
        let at = heap.allocate(size, align, true).unwrap();
        // SAFETY: `size` bytes were handed out.
        let bytes = unsafe { std::slice::from_raw_parts(at.as_ptr(), size) };
        assert!(bytes.iter().all(|&b| b == 0), "round {round} size {size}");
        held.push(Block::fill(at, size, 0xA5));
        if held.len() > 500 {
            let victim = held.swap_remove(random.below(held.len()));
            free(&heap, victim.at).unwrap();
        }
        if round % 10_000 == 0 {
            heap.trim();
        }
    }
}

#[test]
fn discard_hears_of_freed_memory_and_only_of_it() {
    let heap = heap();
    let blocks: Vec<_> = (0..4096)
        .map(|i| Block::fill(heap.allocate(4096, 16, false).unwrap(), 4096, i as u8))
        .collect();
    let (freed, kept): (Vec<_>, Vec<_>) =
        blocks.into_iter().enumerate().partition(|(i, _)| *i < 3072);
    for (_, block) in freed {
        free(&heap, block.at).unwrap();
    }
    heap.trim();
    let space = heap.space();
    let bytes = space.bytes.load(Ordering::Relaxed);
    assert!(
        bytes >= 3072 * 4096 * 9 / 10,
        "only {bytes} bytes discarded"
    );
    let (start, len) = heap.arena().ghost_range();
    assert!(space.low.load(Ordering::Relaxed) >= start);
    assert!(space.high.load(Ordering::Relaxed) <= start + len);
    for (_, block) in &kept {
        block.check();
    }
}

#[test]
fn threads_allocate_free_and_pass_blocks_on_with_contents_intact() {
    let heap = heap();
    const THREADS: usize = 8;
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..THREADS).map(|_| mpsc::channel::<Block>()).unzip();
    thread::scope(|scope| {
        for (me, inbox) in receivers.into_iter().enumerate() {
            let heap = &heap;
            let senders = senders.clone();
            scope.spawn(move || {
                let mut random = Random(0x1234_5678 + me as u64 * 77);
                let mut own: Vec<Block> = Vec::new();
                for round in 0..30_000_usize {
                    let size = 1 + random.below(if round % 16 == 0 { SIZE_MAX } else { 512 });
                    let at = heap.allocate(size, 1 << random.below(7), false).unwrap();
                    own.push(Block::fill(at, size, random.next() as u8));
                    if own.len() > 200 {
                        let block = own.swap_remove(random.below(own.len()));
                        if random.below(2) == 0 {
                            block.check();
                            free(heap, block.at).unwrap();
                        } else {
                            // A receiver that is gone gives it back: freed below.
                            if let Err(back) = senders[random.below(THREADS)].send(block) {
                                free(heap, back.0.at).unwrap();
                            }
                        }
                    }
                    while let Ok(block) = inbox.try_recv() {
                        block.check();
                        free(heap, block.at).unwrap();
                    }
                }
                drop(senders);
                for block in own {
                    block.check();
                    free(heap, block.at).unwrap();
                }
            });
        }
        drop(senders);
    });
}

#[test]
fn blocks_outlive_the_thread_that_allocated_them() {
    let heap = heap();
    let mut rounds: Vec<Vec<Block>> = Vec::new();
    let mut slices = std::collections::HashSet::new();
    for round in 0..60_usize {
        let blocks = thread::scope(|scope| {
            let heap = &heap;
            scope
                .spawn(move || {
                    (0..300)
                        .map(|i| {
                            Block::fill(
                                heap.allocate(8 + i * 3, 8, false).unwrap(),
                                8 + i * 3,
                                (round + i) as u8,
                            )
                        })
                        .collect::<Vec<_>>()
                })
                .join()
                .unwrap()
        });
        slices.extend(blocks.iter().map(|block| block.at.as_ptr() as usize >> 16));
        rounds.push(blocks);
        if round >= 3 {
            for block in rounds.remove(0) {
                block.check();
                free(&heap, block.at).unwrap();
            }
        }
    }
    // Room of ended threads is reused: without that every thread would take
    // fresh slices of 64 KiB for each of its some 25 size classes.
    assert!(slices.len() < 300, "{} slices", slices.len());
    heap.trim();
    for blocks in &rounds {
        for block in blocks {
            block.check();
        }
    }
}

/// Proves that large blocks come from the sizes between mimalloc's own, too, which are a quarter
/// apart; that all of their bytes are theirs; and that zeros are.
#[test]
fn no_large_block_takes_an_eighth_more_than_was_asked_for() {
    let heap = heap();
    let mut kept = Vec::new();
    for size in (1025..=SIZE_MAX).step_by(7) {
        let block = heap.allocate_block(size, 16, false).unwrap();
        assert!(
            block.len() >= size && block.len() - size <= size / 8,
            "{size}"
        );
        let all = Block::fill(block.cast(), block.len(), size as u8);
        let zeros = heap.allocate_block(size, 16, true).unwrap();
        let zero = Block {
            at: zeros.cast(),
            size,
            mark: 0,
        };
        zero.check();
        Block::fill(zeros.cast(), zeros.len(), 0xff);
        all.check();
        kept.push(all);
        free(&heap, zeros.cast()).unwrap();
    }
    for block in kept {
        block.check();
        free(&heap, block.at).unwrap();
    }
    assert!(heap.assumptions_hold());
}

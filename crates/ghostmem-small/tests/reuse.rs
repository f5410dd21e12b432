//! Heaps come and go for ever; mimalloc's arenas do not.

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{Block, Plain};
use ghostmem_small::{ARENAS_MAX, Arena, SmallError, SmallHeap};

fn heap() -> SmallHeap<Plain> {
    SmallHeap::new(Arena::acquire().expect("an arena"), Plain::new()).expect("a heap")
}

/// One test: the pool belongs to the whole process.
#[test]
fn arenas_are_reused_and_bounded() {
    // Many heaps one after the other, used by threads that outlive them, with
    // blocks left alive and others freed.
    let mut bases = HashSet::new();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (to_worker, heaps) =
            std::sync::mpsc::sync_channel::<std::sync::Arc<SmallHeap<Plain>>>(0);
        let (done, finished) = std::sync::mpsc::channel();
        let stop = &stop;
        scope.spawn(move || {
            while let Ok(heap) = heaps.recv() {
                let keep = Block::fill(heap.allocate(200, 8, false).unwrap(), 200, 3);
                for i in 0..50 {
                    let at = heap.allocate(1 + i * 100, 16, false).unwrap();
                    // SAFETY: nobody else has it.
                    unsafe { heap.deallocate(at) }.unwrap();
                }
                keep.check();
                drop(heap);
                done.send(()).unwrap();
            }
            assert!(stop.load(Ordering::Relaxed));
        });
        for round in 0..500_usize {
            let heap = std::sync::Arc::new(heap());
            bases.insert(heap.arena().base());
            to_worker.send(heap.clone()).unwrap();
            let blocks: Vec<_> = (1..100)
                .map(|i| {
                    let at = heap.allocate(i * 50, 8, true).unwrap();
                    // SAFETY: that many bytes were handed out.
                    let bytes = unsafe { std::slice::from_raw_parts(at.as_ptr(), i * 50) };
                    assert!(bytes.iter().all(|&b| b == 0), "round {round}: old contents");
                    Block::fill(at, i * 50, round as u8)
                })
                .collect();
            // Some threads end before the heap, some (the worker) after.
            if round % 10 == 0 {
                let short = heap.clone();
                thread::spawn(move || {
                    let _ = short.allocate(33, 1, false);
                })
                .join()
                .unwrap();
            }
            finished.recv().unwrap();
            for block in &blocks {
                block.check();
            }
        }
        stop.store(true, Ordering::Relaxed);
        drop(to_worker);
    });
    assert!(
        bases.len() <= 2,
        "{} arenas for one heap at a time",
        bases.len()
    );

    // All at once: as many as promised, then an error, then again.
    for _ in 0..2 {
        let heaps: Vec<_> = (0..ARENAS_MAX).map(|_| heap()).collect();
        assert_eq!(Arena::acquire().unwrap_err(), SmallError::TooManyArenas);
        let blocks: Vec<_> = heaps
            .iter()
            .enumerate()
            .map(|(i, heap)| Block::fill(heap.allocate(100, 8, false).unwrap(), 100, i as u8))
            .collect();
        for block in &blocks {
            block.check();
        }
    }
    // A closed heap leaves its arena to whoever ends the ghost range.
    let arena = heap().close();
    let (start, bytes) = arena.ghost_range();
    assert!(bytes > 0 && start > arena.base());
}

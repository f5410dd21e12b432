//! Calls from the middle of mimalloc on the same thread, as a signal handler
//! makes them that interrupted it: an allocation is refused, a free put off.
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_small::{Arena, SmallError, SmallHeap, Space};

static HEAP: OnceLock<SmallHeap<Interrupted>> = OnceLock::new();
/// Blocks that the interruption frees.
static LEFT: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static INTERRUPTIONS: AtomicUsize = AtomicUsize::new(0);

struct Interrupted;

impl Space for Interrupted {
    fn discard(&self, _address: usize, _bytes: usize) {
        let heap = HEAP.get().unwrap();
        let Some(address) = LEFT.lock().unwrap().pop() else {
            return;
        };
        INTERRUPTIONS.fetch_add(1, Ordering::SeqCst);
        assert_eq!(
            heap.allocate(SIZE, 4096, false),
            None,
            "allocated inside mimalloc"
        );
        assert_eq!(free(heap, block(address)), Ok(()));
        assert!(!heap.is_live(block(address)));
        let again = free(heap, block(address));
        assert!(
            matches!(again, Err(SmallError::NotLive { .. })),
            "{again:?}"
        );
    }
}

const SIZE: usize = 32 << 10;

fn block(address: usize) -> NonNull<u8> {
    NonNull::new(std::ptr::with_exposed_provenance_mut(address)).unwrap()
}

fn free(heap: &SmallHeap<Interrupted>, block: NonNull<u8>) -> Result<(), SmallError> {
    // SAFETY: the test keeps no reference into blocks.
    unsafe { heap.deallocate(block) }
}

fn allocate(count: usize) -> Vec<NonNull<u8>> {
    let heap = HEAP.get().unwrap();
    (0..count)
        .map(|_| heap.allocate(SIZE, 16, false).unwrap())
        .collect()
}

#[test]
fn what_is_freed_inside_mimalloc_is_freed_afterwards() {
    let heap = SmallHeap::new(Arena::acquire().unwrap(), Interrupted).unwrap();
    assert!(HEAP.set(heap).is_ok());
    let heap = HEAP.get().unwrap();
    for _ in 0..20 {
        let rest = allocate(64);
        let left = allocate(8);
        let addresses: Vec<usize> = left
            .iter()
            .map(|b| b.as_ptr().expose_provenance())
            .collect();
        LEFT.lock().unwrap().clone_from(&addresses);
        for block in rest {
            assert_eq!(free(heap, block), Ok(()));
        }
        while !LEFT.lock().unwrap().is_empty() {
            let before = INTERRUPTIONS.load(Ordering::SeqCst);
            // Something to purge, each time.
            for block in allocate(64) {
                assert_eq!(free(heap, block), Ok(()));
            }
            heap.trim();
            assert_ne!(INTERRUPTIONS.load(Ordering::SeqCst), before);
        }
        for block in left {
            assert!(matches!(free(heap, block), Err(SmallError::NotLive { .. })));
        }
    }
    // All of it can be had again: a megabyte and a half, of which each round
    // took a quarter of a megabyte by interruptions.
    heap.trim();
    let mut seen = std::collections::HashSet::new();
    let all = allocate(4000);
    for &block in &all {
        assert!(seen.insert(block), "a block was handed out twice");
    }
    for block in all {
        assert_eq!(free(heap, block), Ok(()));
    }
}

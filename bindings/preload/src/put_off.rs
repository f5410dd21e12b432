//! Blocks freed where freeing is not possible: by a handler of a signal that
//! interrupted malloc or free on the same thread, or while that thread forks.
//!
//! The heap's structures may be half changed then, or locked by the very thread,
//! so the block's address is kept here for the next call that may free it. The
//! places are as many as a handler plausibly fills before such a call comes; a
//! block that finds none is lost.

use core::sync::atomic::{AtomicUsize, Ordering};

const PLACES: usize = 512;

static BLOCKS: [AtomicUsize; PLACES] = [const { AtomicUsize::new(0) }; PLACES];
/// Blocks in `BLOCKS`, never less than there are.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Keeps a block for later. Async-signal-safe.
pub(crate) fn put(block: usize) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    let kept = BLOCKS.iter().any(|place| {
        place
            .compare_exchange(0, block, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    });
    if !kept {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

/// In a forked child, where the calling thread is alone: counts what is kept anew, as
/// another thread may have been about to keep a block.
pub(crate) fn forget_others() {
    let kept = BLOCKS
        .iter()
        .filter(|place| place.load(Ordering::Relaxed) != 0);
    COUNT.store(kept.count(), Ordering::Relaxed);
}

/// Whether any block is kept.
#[inline]
pub(crate) fn any() -> bool {
    COUNT.load(Ordering::Relaxed) != 0
}

/// Takes what is kept, block by block.
pub(crate) fn take(mut act: impl FnMut(usize)) {
    for place in &BLOCKS {
        if place.load(Ordering::Relaxed) != 0 {
            let block = place.swap(0, Ordering::Acquire);
            if block != 0 {
                COUNT.fetch_sub(1, Ordering::Relaxed);
                act(block);
            }
        }
    }
}

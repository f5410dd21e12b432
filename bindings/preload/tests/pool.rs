//! The pool for a child that was made past libc. The library itself cannot be linked into a
//! test: its malloc would be the test's.
#![allow(dead_code, reason = "the library uses all of it")]
#![allow(clippy::unwrap_used)]

use core::ffi::c_void;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

#[path = "../src/pool.rs"]
mod pool;
#[allow(unused_macros, unused_imports, reason = "the library uses all of it")]
#[path = "../src/raw.rs"]
mod raw;

/// What the module uses of the library.
mod bounce {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::raw::{failed, own};

    pub(crate) static MAPPED: AtomicUsize = AtomicUsize::new(0);

    pub(crate) fn map(bytes: usize) -> Option<usize> {
        MAPPED.fetch_add(1, Ordering::Relaxed);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let at = own!(libc::SYS_mmap, 0, bytes, access, flags, -1_isize, 0);
        (!failed(at)).then_some(at as usize)
    }
}

const SLOTS: usize = 16;
const SLOT_BYTES: usize = 1024;

/// The pool is the whole process's.
fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    ONE_AT_A_TIME.lock().unwrap()
}

/// Writes a block full of one byte.
fn fill(block: *mut c_void, size: usize, byte: u8) {
    raw::copy(block as usize, vec![byte; size].as_ptr() as usize, size);
}

/// Whether a block has that byte everywhere.
fn is_full_of(block: *mut c_void, size: usize, byte: u8) -> bool {
    raw::is_same(block as usize, vec![byte; size].as_ptr() as usize, size)
}

fn mapped() -> usize {
    bounce::MAPPED.load(std::sync::atomic::Ordering::Relaxed)
}

/// Blocks of all sizes and alignments are apart, zeros, known by their address and as long as
/// asked for; what was freed is taken again, and is zeros again.
#[test]
fn blocks_are_zeros_and_nobody_elses() {
    let _alone = alone();
    let asked = [
        (0, 16),
        (1, 16),
        (SLOT_BYTES, 64),
        (SLOT_BYTES, SLOT_BYTES),
        (SLOT_BYTES + 1, 16),
        (40, 4096),
        (3000, 1 << 16),
        (1 << 20, 16),
    ];
    for _ in 0..3 {
        let mut blocks = Vec::new();
        for (size, align) in asked.repeat(4) {
            let block = pool::allocate(size, align);
            assert!(!block.is_null() && pool::has(block));
            assert!((block as usize).is_multiple_of(align), "{size} {align}");
            assert!(pool::usable_size(block) >= size);
            assert!(is_full_of(block, size, 0), "{size} {align}");
            fill(block, size, blocks.len() as u8 + 1);
            blocks.push((block, size));
        }
        for (nth, &(block, size)) in blocks.iter().enumerate() {
            assert!(is_full_of(block, size, nth as u8 + 1), "{nth}");
            pool::free(block);
        }
    }
}

#[test]
fn pieces_that_were_freed_are_taken_again() {
    let _alone = alone();
    let mut most = 0;
    for round in 0..50 {
        let blocks = [(); 3].map(|()| pool::allocate(70_000, 16));
        for block in blocks {
            assert!(!block.is_null());
            pool::free(block);
        }
        if round == 0 {
            most = mapped();
        }
    }
    assert_eq!(mapped(), most);
}

#[test]
fn the_slots_come_first_and_are_taken_again() {
    let _alone = alone();
    let before = mapped();
    let take_all = || -> BTreeSet<usize> {
        (0..SLOTS)
            .map(|_| pool::allocate(100, 16) as usize)
            .collect()
    };
    let all = take_all();
    assert_eq!(all.len(), SLOTS);
    assert_eq!(mapped(), before);
    // One more is a piece, and no slot goes lost by it.
    let more = pool::allocate(100, 16);
    assert!(pool::has(more) && !all.contains(&(more as usize)));
    pool::free(more);
    for &block in &all {
        pool::free(block as *mut c_void);
    }
    assert_eq!(take_all(), all);
    for &block in &all {
        pool::free(block as *mut c_void);
    }
}

#[test]
fn another_length_is_the_same_place_or_a_copy() {
    let _alone = alone();
    let block = pool::allocate(10, 16);
    fill(block, SLOT_BYTES, 7);
    assert_eq!(pool::reallocate(block, SLOT_BYTES), block);
    assert_eq!(pool::reallocate(block, 1), block);
    let longer = pool::reallocate(block, SLOT_BYTES + 1);
    assert_ne!(longer, block);
    assert!(is_full_of(longer, SLOT_BYTES, 7));
    // Its slot is the next one's.
    let next = pool::allocate(10, 16);
    assert_eq!(next, block);
    let much_longer = pool::reallocate(longer, 1 << 20);
    assert!(is_full_of(much_longer, SLOT_BYTES, 7));
    // What the kernel cannot map leaves the block as it is.
    assert!(pool::reallocate(much_longer, usize::MAX / 2).is_null());
    assert!(pool::reallocate(much_longer, usize::MAX).is_null());
    assert!(is_full_of(much_longer, SLOT_BYTES, 7));
    pool::free(next);
    pool::free(much_longer);
}

#[test]
fn what_is_others_is_none_of_its_blocks() {
    let _alone = alone();
    let piece = pool::allocate(1 << 16, 16);
    let mine = Box::new(1_u64);
    let here = 0_u8;
    let others = [
        (&raw const *mine) as usize,
        (&raw const here) as usize,
        0,
        usize::MAX,
    ];
    for other in others {
        assert!(!pool::has(other as *mut c_void), "{other:#x}");
    }
    pool::free(piece);
}

/// Threads that take and give back at once never have the same block.
#[test]
fn threads_have_blocks_of_their_own() {
    let _alone = alone();
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            scope.spawn(move || {
                for round in 0..2000 {
                    let size = if round % 5 == 0 { 5000 } else { 200 };
                    let blocks = [(); 3].map(|()| pool::allocate(size, 16));
                    for (nth, block) in (0_u8..).zip(blocks) {
                        assert!(is_full_of(block, size, 0));
                        fill(block, size, thread * 3 + nth + 1);
                    }
                    std::thread::yield_now();
                    for (nth, block) in (0_u8..).zip(blocks) {
                        assert!(is_full_of(block, size, thread * 3 + nth + 1));
                        pool::free(block);
                    }
                }
            });
        }
    });
}

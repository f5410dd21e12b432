//! Frames of ghost pages on Windows: while they come and go, become read-only and
//! writable, threads that use them see their bytes or fault, and lose no store.
#![cfg(windows)]
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use ghostmem_os::PAGE_SIZE;
use ghostmem_os::frame;
use ghostmem_os::ghost::{Installed, read_page};
use ghostmem_os::map::{Access, Reservation};
use ghostmem_os::signal::{self, SignalFault};

const ROUNDS: u64 = 1000;
const READERS: usize = 2;
const WRITERS: usize = 2;
const WORDS: usize = PAGE_SIZE / 8;

/// The page under test.
static PAGE: AtomicUsize = AtomicUsize::new(0);
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// Until the page is there, or open.
fn try_again(fault: &SignalFault) -> bool {
    let ours = fault.address.wrapping_sub(PAGE.load(Ordering::Relaxed)) < PAGE_SIZE;
    if ours {
        FAULTS.fetch_add(1, Ordering::Relaxed);
        thread::yield_now();
    }
    ours
}

fn word(index: usize) -> *mut u64 {
    let page = PAGE.load(Ordering::Relaxed);
    std::ptr::with_exposed_provenance_mut::<u64>(page).wrapping_add(index)
}

fn word_of(bytes: &[u8; PAGE_SIZE], index: usize) -> u64 {
    u64::from_le_bytes(bytes.as_chunks::<8>().0[index])
}

#[test]
fn a_page_is_whole_or_not_there() {
    const LEN: usize = 1 << 16;
    frame::prepare().unwrap();
    signal::install(try_again).unwrap();
    let space = Reservation::new(LEN, LEN, Access::ReadWrite).unwrap();
    space.become_ghost(0, LEN).unwrap();
    let page = space.base() + 3 * PAGE_SIZE;
    PAGE.store(page, Ordering::Relaxed);
    // SAFETY: a page of placeholders of ours.
    unsafe { frame::split(page) };

    // The upper half stays as it is, the lower belongs to the writers. No word is
    // ever zero.
    let mut bytes = [0_u8; PAGE_SIZE];
    for (index, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = (index as u64 + 1).to_le_bytes();
    }
    let stop = AtomicBool::new(false);
    let stores = thread::scope(|scope| {
        for me in 0..READERS {
            let stop = &stop;
            scope.spawn(move || {
                let mut index = WORDS / 2 + me;
                while !stop.load(Ordering::Relaxed) {
                    // SAFETY: there, or faults until it is.
                    let seen = unsafe { word(index).read_volatile() };
                    assert_eq!(seen, index as u64 + 1, "word {index}");
                    index = WORDS / 2 + (index + 1) % (WORDS / 2);
                }
            });
        }
        let writers: Vec<_> = (0..WRITERS)
            .map(|me| {
                let stop = &stop;
                scope.spawn(move || {
                    let first = me as u64 + 1;
                    let mut stored = 0;
                    while !stop.load(Ordering::Relaxed) {
                        // SAFETY: as above; nobody else writes this word.
                        let seen = unsafe { word(me).read_volatile() };
                        assert_eq!(seen, first + stored, "a store of writer {me} is lost");
                        stored += 1;
                        // SAFETY: as above.
                        unsafe { word(me).write_volatile(first + stored) };
                    }
                    stored
                })
            })
            .collect();
        for round in 0..ROUNDS {
            let writable = round % 2 == 0;
            // SAFETY: the placeholder is ours, and nobody else changes it.
            let placed = unsafe { frame::place(page, Some(&bytes), writable) }.unwrap();
            assert_eq!(placed, Installed::Bytes(PAGE_SIZE));
            if round % 3 == 0 {
                // Still there.
                // SAFETY: as above.
                let placed = unsafe { frame::place(page, None, true) }.unwrap();
                assert_eq!(placed, Installed::Exists);
            }
            if round % 4 != 3 {
                // From reading only, by way of another section; or as it is.
                // SAFETY: as above.
                unsafe { frame::set_writable(page, true) }.unwrap();
                thread::yield_now();
            }
            // SAFETY: as above.
            unsafe { frame::set_writable(page, false) }.unwrap();
            // SAFETY: there, and closed to stores.
            unsafe { read_page(page, &mut bytes) };
            // SAFETY: the bytes are safe.
            unsafe { frame::remove(page) }.unwrap();
            if round % 16 == 0 {
                thread::yield_now();
            }
        }
        // Lets everybody who waits for the page out.
        // SAFETY: as above.
        unsafe { frame::place(page, Some(&bytes), true) }.unwrap();
        stop.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect::<Vec<_>>()
    });
    // SAFETY: there, and nobody writes any more.
    unsafe { read_page(page, &mut bytes) };
    for (me, &stored) in stores.iter().enumerate() {
        assert!(stored > 0, "writer {me} never came through");
        assert_eq!(word_of(&bytes, me), me as u64 + 1 + stored);
    }
    for index in WORDS / 2..WORDS {
        assert_eq!(word_of(&bytes, index), index as u64 + 1, "word {index}");
    }
    assert!(FAULTS.load(Ordering::Relaxed) > 0, "nobody faulted");
    // SAFETY: nobody looks any more.
    unsafe { frame::remove(page) }.unwrap();
    // SAFETY: as above.
    unsafe { frame::remove(page) }.unwrap_err();

    // Without bytes it is zero.
    // SAFETY: as above.
    unsafe { frame::place(page, None, false) }.unwrap();
    // SAFETY: there.
    unsafe { read_page(page, &mut bytes) };
    assert_eq!(bytes, [0; PAGE_SIZE]);
}

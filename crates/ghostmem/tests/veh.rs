//! What only the Windows backend promises: what is committed is what is mapped,
//! no thread sees a part of a page, and faults of others go on to their handlers.
#![cfg(windows)]
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use common::{PAGE_SIZE, Watchdog, alone, word};
use ghostmem::{Backend, Error, Heap};
use windows_sys::Win32::Foundation::EXCEPTION_ACCESS_VIOLATION;
use windows_sys::Win32::System::Diagnostics::Debug::{
    AddVectoredExceptionHandler, EXCEPTION_CONTINUE_EXECUTION, EXCEPTION_CONTINUE_SEARCH,
    EXCEPTION_POINTERS,
};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_MAPPED, MEM_PRIVATE, MEM_RESERVE, MEMORY_BASIC_INFORMATION, PAGE_READWRITE,
    VirtualAlloc, VirtualQuery,
};
use windows_sys::Win32::System::ProcessStatus::{GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::Threading::GetCurrentProcess;

mod common;

/// Committed bytes of the whole process: views of sections, private memory.
fn committed() -> (usize, usize) {
    let (mut at, mut views, mut private) = (0_usize, 0, 0);
    loop {
        let mut found = MEMORY_BASIC_INFORMATION::default();
        let len = size_of::<MEMORY_BASIC_INFORMATION>();
        // SAFETY: a writable place of the length given.
        if unsafe { VirtualQuery(at as *const c_void, &raw mut found, len) } != len {
            return (views, private);
        }
        match (found.State, found.Type) {
            (MEM_COMMIT, MEM_MAPPED) => views += found.RegionSize,
            (MEM_COMMIT, MEM_PRIVATE) => private += found.RegionSize,
            _ => {}
        }
        at = found.BaseAddress as usize + found.RegionSize;
    }
}

/// What the system charges the process for, bytes. Under Wine that is what the
/// Linux process has of anonymous memory: Wine's own tables too, among them a
/// byte for each page of reserved address space, so 16 MiB for a region.
fn charged() -> usize {
    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let len = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
    // SAFETY: a writable place of the length given; the handle needs no closing.
    assert_ne!(
        unsafe { GetProcessMemoryInfo(GetCurrentProcess(), &raw mut counters, len) },
        0
    );
    counters.PagefileUsage
}

#[test]
fn committed_memory_stays_within_the_limit_over_eight_times_as_much_data() {
    alone(
        "committed_memory_stays_within_the_limit_over_eight_times_as_much_data",
        || {
            const LIMIT: usize = 2 << 20;
            const WORDS: usize = 8 * LIMIT / 8;
            let (views_before, private_before) = committed();
            let heap = Heap::builder().resident_limit(LIMIT).build().unwrap();
            assert_eq!(heap.backend(), Backend::Veh);
            // Reserves the region, and with it what the system keeps for that.
            let first = heap
                .slice_from_fn(64 * PAGE_SIZE / 8, |i| word(i, 0))
                .unwrap();
            let charged_before = charged();
            let mut looks = 0;
            let mut most = (0, 0, 0);
            // By the thread that works: a walk beside it would count pages twice
            // that come while it goes on.
            let mut look = || {
                let (views, private) = committed();
                most.0 = most.0.max(views.saturating_sub(views_before));
                most.1 = most.1.max(private.saturating_sub(private_before));
                most.2 = most.2.max(charged().saturating_sub(charged_before));
                looks += 1;
            };
            let mut data = heap.slice_from_fn(WORDS, |i| word(i, 0)).unwrap();
            for round in 1..3 {
                for (i, value) in data.iter_mut().enumerate() {
                    assert_eq!(*value, word(i, round - 1), "word {i} round {round}");
                    *value = word(i, round);
                    if i.is_multiple_of(WORDS / 64) {
                        look();
                    }
                }
            }
            assert!(data.iter().enumerate().all(|(i, v)| *v == word(i, 2)));
            assert!(first.iter().enumerate().all(|(i, v)| *v == word(i, 0)));
            look();
            let stats = heap.stats();
            let (views, private, charged) = most;
            eprintln!(
                "limit {LIMIT}, data {}: views {views}, private {private}, charged {charged}, \
                 {} looks; {stats:?}",
                WORDS * 8,
                looks
            );
            assert!(looks > 100);
            assert_eq!(stats.overdrafts, 0);
            assert!(views <= LIMIT, "{views} bytes of frames");
            // Buffers of handlers, tables that grow, stacks of two threads.
            let beside = stats.store_held_bytes + stats.metadata_bytes + (8 << 20);
            assert!(private <= beside, "{private} bytes beside {beside}");
            assert!(charged <= LIMIT + beside, "{charged} bytes charged");
            assert!(stats.evictions_dirty > 8 * LIMIT as u64 / PAGE_SIZE as u64);
        },
    );
}

#[test]
fn threads_that_fault_on_one_page_at_once_all_see_the_whole_of_it() {
    const THREADS: usize = 8;
    const ROUNDS: u64 = 150;
    let _watchdog = Watchdog::new("one page, many threads", 100);
    let heap = common::heap(Backend::Veh, 16);
    let layout = Layout::from_size_align(8 * PAGE_SIZE, PAGE_SIZE).unwrap();
    let block = heap.allocate(layout).unwrap().cast::<u64>();
    let words = PAGE_SIZE / 8;
    let at = block.as_ptr() as usize;
    let (round, ready, seen) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for me in 0..THREADS {
            let (round, ready, seen) = (&round, &ready, &seen);
            scope.spawn(move || {
                for turn in 1..=ROUNDS {
                    ready.fetch_add(1, Ordering::AcqRel);
                    while round.load(Ordering::Acquire) < turn {
                        std::hint::spin_loop();
                    }
                    // The last word is the last to be filled.
                    for index in (0..words).rev().step_by(1 + me % 3) {
                        // SAFETY: inside the block; nobody writes now.
                        let value = unsafe { (at as *const u64).add(index).read_volatile() };
                        assert_eq!(value, word(index, turn), "word {index}, turn {turn}");
                    }
                    seen.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        for turn in 1..=ROUNDS {
            while ready.load(Ordering::Acquire) < THREADS * turn as usize {
                thread::yield_now();
            }
            for index in 0..words {
                // SAFETY: inside the block; nobody reads now.
                unsafe {
                    (at as *mut u64)
                        .add(index)
                        .write_volatile(word(index, turn))
                };
            }
            assert_eq!(
                heap.evict(ptr::slice_from_raw_parts(block.as_ptr(), words))
                    .unwrap(),
                1
            );
            round.store(turn, Ordering::Release);
            while seen.load(Ordering::Acquire) < THREADS as u64 * turn {
                thread::yield_now();
            }
        }
    });
    let stats = heap.stats();
    assert!(stats.refaults >= ROUNDS, "{stats:?}");
    // SAFETY: from `allocate`, not used any more.
    unsafe { heap.deallocate(block.cast(), layout) }.unwrap();
}

/// A page of the program's own that it commits when it is touched.
static THEIRS: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "system" fn their_handler(exception: *mut EXCEPTION_POINTERS) -> i32 {
    // SAFETY: the system passes valid pointers.
    let record = unsafe { &*(*exception).ExceptionRecord };
    let page = THEIRS.load(Ordering::Relaxed);
    if record.ExceptionCode != EXCEPTION_ACCESS_VIOLATION
        || record.ExceptionInformation[1].wrapping_sub(page) >= PAGE_SIZE
    {
        return EXCEPTION_CONTINUE_SEARCH;
    }
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the program's own reserved page.
    unsafe { VirtualAlloc(page as *const c_void, PAGE_SIZE, MEM_COMMIT, PAGE_READWRITE) };
    EXCEPTION_CONTINUE_EXECUTION
}

#[test]
fn faults_that_are_not_ours_go_to_the_programs_handlers() {
    alone(
        "faults_that_are_not_ours_go_to_the_programs_handlers",
        || {
            let touch_theirs = || {
                // SAFETY: fresh address space.
                let page =
                    unsafe { VirtualAlloc(ptr::null(), PAGE_SIZE, MEM_RESERVE, PAGE_READWRITE) };
                THEIRS.store(page as usize, Ordering::Relaxed);
                let before = CALLS.load(Ordering::Relaxed);
                // SAFETY: the handler commits it.
                unsafe { page.cast::<u64>().write_volatile(7) };
                assert_eq!(CALLS.load(Ordering::Relaxed), before + 1);
            };
            let check = |heap: &Heap| {
                let data = heap
                    .slice_from_fn(64 * PAGE_SIZE / 8, |i| word(i, 1))
                    .unwrap();
                assert!(data.iter().enumerate().all(|(i, v)| *v == word(i, 1)));
            };
            // SAFETY: a handler that stays.
            unsafe { AddVectoredExceptionHandler(1, Some(their_handler)) };
            let heap = common::heap(Backend::Auto, 16);
            check(&heap);
            touch_theirs();
            // In front of ours, then behind it again.
            // SAFETY: as above.
            unsafe { AddVectoredExceptionHandler(1, Some(their_handler)) };
            check(&heap);
            touch_theirs();
            Heap::rearm().unwrap();
            check(&heap);
            touch_theirs();
        },
    );
}

#[test]
fn the_mechanisms_of_linux_are_refused_with_a_reason() {
    for backend in [
        Backend::Inline,
        Backend::Monitor,
        Backend::Guard,
        Backend::GuardMprotect,
    ] {
        let refused = Heap::builder().backend(backend).build();
        let error = refused.err().unwrap();
        assert!(matches!(error, Error::BackendUnavailable { .. }));
        assert!(error.to_string().contains("on Windows"), "{error}");
    }
}

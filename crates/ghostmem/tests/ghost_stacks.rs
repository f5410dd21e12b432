//! A coroutine whose stack is ghost memory asks the heap for all there is, while
//! its stack is evicted under it.
#![cfg(target_os = "linux")] // Windows resolves faults on the program's stack
#![cfg(target_arch = "x86_64")] // where the switch of stacks is written down
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{PAGE_SIZE, Watchdog};
use ghostmem::{Backend, Heap};

mod common;

const STACK_PAGES: usize = 64;
const DATA_PAGES: usize = 64;
/// Less than both have, more than one signal frame and what it needs.
const LIMIT_PAGES: usize = 24;
const PINNED_PAGES: usize = 4;
const ROUNDS: usize = 150;

/// Runs `body` on the stack that ends at `top`. A panic in it ends the process.
fn on_stack(top: usize, body: &mut dyn FnMut()) {
    extern "C" fn entry(body: *mut &mut dyn FnMut()) {
        // SAFETY: points to the parameter below.
        unsafe { (*body)() }
    }
    let mut body = body;
    // SAFETY: `top` is the aligned end of memory that nobody else uses; the stack
    // pointer is kept in a register that the callee saves and put back; what the C
    // ABI may clobber besides is declared.
    unsafe {
        core::arch::asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {entry}",
            "mov rsp, r12",
            top = in(reg) top,
            entry = in(reg) entry as extern "C" fn(*mut &mut dyn FnMut()),
            in("rdi") &raw mut body,
            out("r12") _,
            clobber_abi("C"),
        );
    }
}

/// Ordinary memory for the fault handler to begin on, as programs with coroutines
/// of any kind have it.
fn use_alternate_stack(memory: &mut [u8]) {
    let stack = libc::stack_t {
        ss_sp: memory.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: memory.len(),
    };
    // SAFETY: the memory outlives the thread.
    let rc = unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) };
    assert_eq!(rc, 0);
}

/// Goes `depth` frames of a page and more down, and comes back.
#[inline(never)]
fn descend(depth: usize, seed: u64) -> u64 {
    let frame = black_box([seed; PAGE_SIZE / 8]);
    let below = if depth > 0 {
        descend(depth - 1, seed + 1)
    } else {
        0
    };
    below.wrapping_add(black_box(&frame).iter().sum())
}

/// What `descend` returns.
fn expected(depth: usize, seed: u64) -> u64 {
    (0..=depth as u64)
        .map(|d| (seed + d) * (PAGE_SIZE as u64 / 8))
        .sum()
}

fn heap(backend: Backend) -> Heap {
    Heap::builder()
        .backend(backend)
        .resident_limit(LIMIT_PAGES * PAGE_SIZE)
        .heap_limit(8 << 20)
        .build()
        .unwrap()
}

fn allocate(heap: &Heap, pages: usize) -> *mut [u8] {
    let layout = Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap();
    heap.allocate(layout).unwrap().as_ptr()
}

fn free(heap: &Heap, block: *mut [u8]) {
    let layout = Layout::from_size_align(block.len(), PAGE_SIZE).unwrap();
    let start = core::ptr::NonNull::new(block.cast::<u8>()).unwrap();
    // SAFETY: the test's own block, not used afterwards.
    unsafe { heap.deallocate(start, layout) }.unwrap();
}

/// One of everything, on a stack that may be gone at any time. `stack` is that.
fn ask_for_everything(heap: &Heap, stack: *mut [u8], data: *mut [u8], round: usize) {
    let words = data.cast::<u64>();
    let word = |page: usize| words.wrapping_add(page * PAGE_SIZE / 8);
    for page in 0..DATA_PAGES {
        // SAFETY: inside the block, which is this thread's.
        unsafe { word(page).write_volatile((round * 1000 + page) as u64) };
    }
    heap.evict(stack).unwrap();
    heap.evict_coldest().unwrap();
    heap.prefetch(data).unwrap();
    let some = core::ptr::slice_from_raw_parts_mut(data.cast::<u8>(), PINNED_PAGES * PAGE_SIZE);
    let pinned = heap.pin(some.cast_const()).unwrap();
    heap.evict(stack).unwrap();
    heap.evict(data).unwrap();
    drop(pinned);
    heap.make_cold(data).unwrap();
    // SAFETY: nobody refers to it.
    unsafe { heap.discard(some) }.unwrap();
    for page in 0..DATA_PAGES {
        let kept = if page < PINNED_PAGES {
            0
        } else {
            round * 1000 + page
        };
        // SAFETY: as before.
        assert_eq!(unsafe { word(page).read_volatile() }, kept as u64);
    }
    let short = allocate(heap, 12);
    // SAFETY: inside the block.
    unsafe { short.cast::<u8>().write_bytes(7, short.len()) };
    heap.evict(stack).unwrap();
    free(heap, short);
    // The limit refuses it, but not before the store was compacted.
    let huge = Layout::from_size_align(1 << 30, PAGE_SIZE).unwrap();
    assert!(heap.allocate(huge).is_err());
}

/// Proves that a stack of ghost memory may be absent, and may leave, whatever its
/// thread asks of the heap.
#[test]
fn a_stack_of_ghost_memory_may_leave_at_any_time() {
    let name = "a_stack_of_ghost_memory_may_leave_at_any_time";
    common::alone_on_each(name, |backend| {
        let _watchdog = Watchdog::new("a ghost stack", 50);
        let heap = heap(backend);
        let stop = AtomicBool::new(false);
        // Addresses: pointers do not cross threads.
        let [stack, data] = [STACK_PAGES, DATA_PAGES].map(|n| allocate(&heap, n).addr());
        let block = |start: usize, pages: usize| {
            core::ptr::slice_from_raw_parts_mut(start as *mut u8, pages * PAGE_SIZE)
        };
        thread::scope(|scope| {
            let (heap, stop, block) = (&heap, &stop, &block);
            // Sends the stack away whenever it likes.
            let evictor = scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    heap.evict(block(stack, STACK_PAGES)).unwrap();
                    thread::yield_now();
                }
            });
            let user = scope.spawn(move || {
                let mut alternate = vec![0; 1 << 16];
                use_alternate_stack(&mut alternate);
                on_stack(stack + STACK_PAGES * PAGE_SIZE, &mut || {
                    for round in 0..ROUNDS {
                        // A frame and its copies take three pages at most.
                        let depth = round % (STACK_PAGES / 4);
                        let found = descend(depth, round as u64);
                        assert_eq!(found, expected(depth, round as u64));
                        let (stack, data) = (block(stack, STACK_PAGES), block(data, DATA_PAGES));
                        ask_for_everything(heap, stack, data, round);
                    }
                });
                std::mem::forget(alternate);
            });
            let ended = user.join();
            stop.store(true, Ordering::Relaxed);
            evictor.join().unwrap();
            ended.unwrap();
        });
        free(&heap, block(stack, STACK_PAGES));
        free(&heap, block(data, DATA_PAGES));
    });
}

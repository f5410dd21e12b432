//! Blocks that change their size, on a heap and as plain vectors: both hold the
//! same bytes; and those that have room stay where they are.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::{GlobalAlloc, Layout};
use std::ops::Range;
use std::ptr::NonNull;

use allocator_api2::alloc::Allocator;
use common::{BACKENDS, PAGE_SIZE, heap};
use ghostmem::{Error, GhostAlloc, Heap};
use proptest::prelude::*;
use proptest::sample::Index;

mod common;

#[derive(Debug, Clone)]
enum Step {
    Allocate(usize, u32),
    Free(Index),
    Grow(Index, usize, u32, bool),
    Shrink(Index, usize, u32),
    Evict(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let size = || {
        prop_oneof![
            0_usize..40,
            0_usize..3000,
            0_usize..50_000,
            0_usize..600_000
        ]
    };
    let align = || prop_oneof![8 => 0_u32..5, 1 => 5_u32..15];
    prop_oneof![
        2 => (size(), align()).prop_map(|(size, align)| Step::Allocate(size, align)),
        1 => any::<Index>().prop_map(Step::Free),
        4 => (any::<Index>(), size(), align(), any::<bool>())
            .prop_map(|(b, more, align, zeroed)| Step::Grow(b, more, align, zeroed)),
        4 => (any::<Index>(), size(), align()).prop_map(|(b, less, a)| Step::Shrink(b, less, a)),
        1 => (0_usize..60).prop_map(Step::Evict),
    ]
}

/// A block, and what it holds.
struct Block {
    at: NonNull<u8>,
    layout: Layout,
    model: Vec<u8>,
}

impl Block {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: a live block of that many initialised bytes.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.layout.size()) }
    }

    /// Fills what is there from `from` on.
    fn fill(&mut self, from: usize, seed: usize) {
        let at = self.at.as_ptr();
        for i in from..self.layout.size() {
            let byte = (i * 31 + seed * 7 + i / PAGE_SIZE) as u8;
            // SAFETY: within the live block.
            unsafe { at.add(i).write(byte) };
            self.model.push(byte);
        }
    }

    fn check(&mut self) {
        assert!(self.at.as_ptr().addr().is_multiple_of(self.layout.align()));
        let model = std::mem::take(&mut self.model);
        assert!(self.bytes() == model, "contents changed");
        self.model = model;
    }
}

fn layout(size: usize, align: u32) -> Layout {
    Layout::from_size_align(size, 1 << align).unwrap()
}

fn run(heap: &Heap, steps: &[Step]) {
    let mut blocks: Vec<Block> = Vec::new();
    for (seed, step) in steps.iter().enumerate() {
        match *step {
            Step::Allocate(size, align) => {
                let layout = layout(size, align);
                let block = Allocator::allocate(heap, layout).unwrap();
                assert_eq!(block.len(), size);
                let model = Vec::new();
                let mut block = Block {
                    at: block.cast(),
                    layout,
                    model,
                };
                block.fill(0, seed);
                blocks.push(block);
            }
            Step::Free(index) if !blocks.is_empty() => {
                let mut block = blocks.swap_remove(index.index(blocks.len()));
                block.check();
                // SAFETY: nobody uses it any more.
                unsafe { Allocator::deallocate(heap, block.at, block.layout) };
            }
            Step::Grow(index, more, align, zeroed) if !blocks.is_empty() => {
                let place = index.index(blocks.len());
                let block = &mut blocks[place];
                let (old, new) = (block.layout, layout(block.layout.size() + more, align));
                let grown = if zeroed {
                    // SAFETY: the block is live, and used by its new pointer only.
                    unsafe { heap.grow_zeroed(block.at, old, new) }
                } else {
                    // SAFETY: as above.
                    unsafe { heap.grow(block.at, old, new) }
                };
                let grown = grown.unwrap();
                assert_eq!(grown.len(), new.size());
                (block.at, block.layout) = (grown.cast(), new);
                if zeroed {
                    let gained = &block.bytes()[old.size()..];
                    assert!(gained.iter().all(|&byte| byte == 0), "not zero");
                }
                block.fill(old.size(), seed);
            }
            Step::Shrink(index, less, align) if !blocks.is_empty() => {
                let place = index.index(blocks.len());
                let block = &mut blocks[place];
                let new = layout(block.layout.size().saturating_sub(less), align);
                // SAFETY: the block is live, and used by its new pointer only.
                let shrunk = unsafe { heap.shrink(block.at, block.layout, new) }.unwrap();
                assert_eq!(shrunk.len(), new.size());
                (block.at, block.layout) = (shrunk.cast(), new);
                block.model.truncate(new.size());
            }
            Step::Evict(pages) => {
                for _ in 0..pages {
                    let _any = heap.evict_coldest().unwrap();
                }
            }
            _ => {}
        }
        for block in &mut blocks {
            block.check();
        }
    }
    for mut block in blocks {
        block.check();
        // SAFETY: nobody uses it any more.
        unsafe { Allocator::deallocate(heap, block.at, block.layout) };
    }
    assert_eq!(heap.stats().allocated_bytes, 0, "bytes counted wrong");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_resized_block_holds_what_a_vector_does(
        backend in proptest::sample::select(&BACKENDS[..]),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        run(&heap(backend, 40), &steps);
    }
}

/// Which of a block's pages are absent, fresh ones among them. (Counted faults say nothing
/// of touches: with the monitor backend one is counted a moment after its thread went on.)
fn absent(heap: &Heap, block: NonNull<u8>, pages: Range<usize>) -> Vec<usize> {
    let address = |page: usize| block.as_ptr().wrapping_add(page * PAGE_SIZE);
    pages
        .filter(|&page| heap.is_resident(address(page)) == Some(false))
        .collect()
}

#[test]
fn what_has_room_stays_where_it_is_and_is_not_touched() {
    for backend in BACKENDS {
        let heap = heap(backend, 64);
        let pages = |pages: usize| layout(pages * PAGE_SIZE - 100, 4);
        let block: NonNull<u8> = Allocator::allocate(&heap, pages(20)).unwrap().cast();
        // SAFETY: so many bytes are ours.
        unsafe { block.as_ptr().write_bytes(7, 20 * PAGE_SIZE - 100) };
        // A monitor may be held up between a fault and the pages it restores ahead, for
        // longer than anybody waits: what touches a page does so each time.
        let untouched = (0..5).any(|_| {
            while heap.evict_coldest().unwrap() {}
            let before = absent(&heap, block, 0..17);
            for (from, to) in [(20, 32), (32, 17), (17, 30), (30, 20)] {
                let (from, to) = (pages(from), pages(to));
                let resized = if to.size() > from.size() {
                    // SAFETY: a live block.
                    unsafe { heap.grow(block, from, to) }
                } else {
                    // SAFETY: as above.
                    unsafe { heap.shrink(block, from, to) }
                };
                assert_eq!(resized.unwrap().cast(), block, "{backend}");
            }
            let behind = absent(&heap, block, 17..32).len();
            before.len() >= 12 && absent(&heap, block, 0..17) == before && behind == 15
        });
        assert!(untouched, "{backend}: {:?}", absent(&heap, block, 0..32));
        assert_eq!(heap.stats().allocated_bytes, 20 * PAGE_SIZE);
        // SAFETY: the first 17 pages were part of the block all the time.
        let kept = unsafe { std::slice::from_raw_parts(block.as_ptr(), 17 * PAGE_SIZE - 100) };
        assert!(kept.iter().all(|&byte| byte == 7));
        // SAFETY: nobody uses it any more.
        unsafe { heap.deallocate(block, pages(20)) }.unwrap();
        // SAFETY: none lives there, and it is refused.
        let dead = unsafe { heap.reallocate(block, pages(20), pages(21)) };
        assert!(matches!(dead, Err(Error::NotAllocated { .. })), "{dead:?}");
    }
}

/// What a vector does that grows to twice its length, again and again: nothing is moved
/// while nobody else is behind it.
#[test]
fn a_block_grows_over_free_memory_behind_it() {
    for backend in BACKENDS {
        let heap = heap(backend, 64);
        let pages = |pages: usize| layout(pages * PAGE_SIZE, 4);
        let block: NonNull<u8> = heap.allocate(pages(16)).unwrap().cast();
        // SAFETY: so many bytes are ours.
        unsafe { block.as_ptr().write_bytes(7, 16 * PAGE_SIZE) };
        let mut held = 16;
        for wanted in [32, 64, 100, 256, 512] {
            // SAFETY: a live block.
            let grown = unsafe { heap.grow_zeroed(block, pages(held), pages(wanted)) };
            assert_eq!(
                grown.unwrap().cast(),
                block,
                "{backend}: {held} to {wanted} pages"
            );
            held = wanted;
        }
        assert_eq!(absent(&heap, block, 16..512).len(), 496, "{backend}");
        assert_eq!(heap.stats().allocated_bytes, 512 * PAGE_SIZE);
        // SAFETY: so many bytes are ours.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), 512 * PAGE_SIZE) };
        let (old, new) = bytes.split_at(16 * PAGE_SIZE);
        assert!(old.iter().all(|&byte| byte == 7), "{backend}");
        assert!(new.iter().all(|&byte| byte == 0), "{backend}");
        // What is behind belongs to another: it moves, whole.
        let other: NonNull<u8> = heap.allocate(pages(16)).unwrap().cast();
        // SAFETY: a live block.
        let moved = unsafe { heap.grow(block, pages(512), pages(600)) };
        let moved: NonNull<u8> = moved.unwrap().cast();
        assert_ne!(moved, block, "{backend}");
        // SAFETY: as above.
        assert_eq!(unsafe { moved.as_ptr().read() }, 7);
        // SAFETY: nobody uses them any more.
        unsafe { heap.deallocate(moved, pages(600)) }.unwrap();
        // SAFETY: as above.
        unsafe { heap.deallocate(other, pages(16)) }.unwrap();
        assert_eq!(heap.stats().allocated_bytes, 0);
    }
}

#[test]
fn small_objects_stay_while_they_have_room() {
    let heap = heap(ghostmem::Backend::Auto, 64);
    let block: NonNull<u8> = heap.allocate(layout(20_000, 4)).unwrap().cast();
    let room = heap.block_bytes(block).unwrap();
    assert!(room > 20_000);
    for (from, to) in [(20_000, room), (room, room / 2 + 1), (room / 2 + 1, 20_000)] {
        // SAFETY: a live block.
        let resized = unsafe { heap.reallocate(block, layout(from, 4), layout(to, 4)) };
        assert_eq!(resized.unwrap().cast(), block, "{from} to {to}");
    }
    // SAFETY: nobody uses it any more.
    unsafe { heap.deallocate(block, layout(20_000, 4)) }.unwrap();
}

#[test]
fn a_refused_change_leaves_the_block_as_it_was() {
    for backend in BACKENDS {
        let heap = Heap::builder()
            .resident_limit(64 * PAGE_SIZE)
            .heap_limit(256 * PAGE_SIZE)
            .backend(backend)
            .build()
            .unwrap();
        let (small, huge) = (layout(40_000, 4), layout(64 << 20, 4));
        let block: NonNull<u8> = heap.allocate(small).unwrap().cast();
        // SAFETY: so many bytes are ours.
        unsafe { block.as_ptr().write_bytes(3, small.size()) };
        // SAFETY: a live block.
        let refused = unsafe { heap.reallocate(block, small, huge) };
        assert!(
            matches!(refused, Err(Error::OutOfMemory { .. })),
            "{refused:?}"
        );
        // SAFETY: it lives on.
        let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), small.size()) };
        assert!(bytes.iter().all(|&byte| byte == 3));
        assert_eq!(heap.stats().allocated_bytes, 10 * PAGE_SIZE);
        // SAFETY: nobody uses it any more.
        unsafe { heap.deallocate(block, small) }.unwrap();
    }
}

#[test]
fn a_program_s_block_goes_where_its_new_size_belongs() {
    const FROM: usize = 5000;
    let program = GhostAlloc::from_size(FROM);
    let is_ghost = |at: *mut u8| Heap::global().unwrap().is_ghost(at);
    let mut size = 64;
    // SAFETY: a size above zero.
    let mut at = unsafe { program.alloc(layout(size, 3)) };
    // SAFETY: so many bytes are ours.
    unsafe { at.write_bytes(9, size) };
    let mut in_place = 0;
    for new in [
        4999, 5000, 80_000, 100_000, 70_000, 400_000, 5001, 4999, 300_000, 10, 6000,
    ] {
        // SAFETY: a live block, used by its new pointer only.
        let moved = unsafe { program.realloc(at, layout(size, 3), new) };
        assert!(!moved.is_null());
        in_place += usize::from(moved == at && new >= FROM);
        assert_eq!(is_ghost(moved), new >= FROM, "{new} bytes");
        // SAFETY: live, and initialised so far.
        let kept = unsafe { std::slice::from_raw_parts(moved, size.min(new)) };
        assert!(kept.iter().all(|&byte| byte == 9), "{size} to {new}");
        (at, size) = (moved, new);
        // SAFETY: so many bytes are ours.
        unsafe { at.write_bytes(9, size) };
    }
    assert!(in_place >= 2, "{in_place} of the larger ones stayed");
    // SAFETY: nobody uses it any more.
    unsafe { program.dealloc(at, layout(size, 3)) };
}

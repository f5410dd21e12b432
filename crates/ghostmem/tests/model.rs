//! Random operations on a heap and on plain vectors: both hold the same bytes
//! at every step, on every backend.
#![allow(clippy::unwrap_used, clippy::multiple_unsafe_ops_per_block)] // a test ends at the first failure

use std::alloc::Layout;
use std::ptr::NonNull;

use common::{PAGE_SIZE, Random, heap};
use ghostmem::{Backend, Heap, Pinned};
use proptest::prelude::*;
use proptest::sample::Index;

mod common;

#[derive(Debug, Clone)]
enum Step {
    Allocate {
        size: usize,
        align: u32,
        zeroed: bool,
    },
    Free(Index),
    /// Part of a block, given by two places in it.
    Write(Index, Index, Index, u64),
    Read(Index, Index, Index),
    Evict(Index, Index, Index),
    Prefetch(Index, Index, Index),
    Cold(Index, Index, Index),
    Discard(Index, Index, Index),
    EvictColdest,
    Pin(Index),
    Unpin(Index),
    Limit(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let part = || any::<(Index, Index, Index)>();
    let size = prop_oneof![1_usize..300, 1_usize..9000, 1_usize..200_000];
    prop_oneof![
        4 => (size, 0_u32..14, any::<bool>())
            .prop_map(|(size, align, zeroed)| Step::Allocate { size, align, zeroed }),
        2 => any::<Index>().prop_map(Step::Free),
        6 => (part(), any::<u64>()).prop_map(|((b, f, t), seed)| Step::Write(b, f, t, seed)),
        4 => part().prop_map(|(b, f, t)| Step::Read(b, f, t)),
        4 => part().prop_map(|(b, f, t)| Step::Evict(b, f, t)),
        2 => part().prop_map(|(b, f, t)| Step::Prefetch(b, f, t)),
        1 => part().prop_map(|(b, f, t)| Step::Cold(b, f, t)),
        2 => part().prop_map(|(b, f, t)| Step::Discard(b, f, t)),
        1 => Just(Step::EvictColdest),
        1 => any::<Index>().prop_map(Step::Pin),
        1 => any::<Index>().prop_map(Step::Unpin),
        1 => (5_usize..64).prop_map(Step::Limit),
    ]
}

struct Block {
    start: NonNull<u8>,
    layout: Layout,
    /// What it holds; `None` for bytes nobody wrote.
    model: Vec<Option<u8>>,
    pin: Option<Pinned>,
}

impl Block {
    fn new(heap: &Heap, layout: Layout, zeroed: bool) -> Self {
        let block = if zeroed {
            heap.allocate_zeroed(layout)
        } else {
            heap.allocate(layout)
        };
        let start = block.unwrap().cast::<u8>();
        assert!(start.addr().get().is_multiple_of(layout.align()));
        Self {
            start,
            layout,
            model: vec![zeroed.then_some(0); layout.size()],
            pin: None,
        }
    }

    /// The part between two places, in this order or the other.
    fn part(&self, from: &Index, to: &Index) -> (usize, usize) {
        let ends = [from.index(self.model.len()), to.index(self.model.len())];
        (ends[0].min(ends[1]), ends[0].max(ends[1]) + 1)
    }

    fn range(&self, (from, to): (usize, usize)) -> *mut [u8] {
        let start = self.start.as_ptr().wrapping_add(from);
        std::ptr::slice_from_raw_parts_mut(start, to - from)
    }

    fn write(&mut self, (from, to): (usize, usize), seed: u64) {
        let mut random = Random::new(seed);
        // A third of the writes compress to nothing, a third not at all.
        let mask = [0, 0x0F, 0xFF][seed as usize % 3];
        for at in from..to {
            let byte = (random.next() >> 32) as u8 & mask;
            // SAFETY: inside the block.
            let place = unsafe { self.start.add(at) };
            // SAFETY: this test's own memory.
            unsafe { place.write(byte) };
            self.model[at] = Some(byte);
        }
    }

    fn check(&self, (from, to): (usize, usize)) {
        for at in from..to {
            // SAFETY: inside the block.
            let place = unsafe { self.start.add(at) };
            // SAFETY: this test's own memory.
            let found = unsafe { place.read() };
            if let Some(byte) = self.model[at] {
                assert_eq!(found, byte, "byte {at} of {:?}", self.layout);
            }
        }
    }

    fn discard(&mut self, heap: &Heap, (from, to): (usize, usize)) {
        // SAFETY: bytes to which nothing refers.
        unsafe { heap.discard(self.range((from, to))) }.unwrap();
        if self.pin.is_some() {
            return;
        }
        let base = self.start.addr().get();
        let first = (base + from).next_multiple_of(PAGE_SIZE);
        let end = (base + to) / PAGE_SIZE * PAGE_SIZE;
        if first < end {
            self.model[first - base..end - base].fill(Some(0));
        }
    }

    fn free(mut self, heap: &Heap) {
        self.check((0, self.model.len()));
        self.pin = None;
        // SAFETY: not used after this.
        unsafe { heap.deallocate(self.start, self.layout) }.unwrap();
    }
}

fn run(backend: Backend, steps: &[Step]) {
    let heap = heap(backend, 16);
    let mut blocks: Vec<Block> = Vec::new();
    for step in steps {
        match step {
            Step::Allocate {
                size,
                align,
                zeroed,
            } => {
                let layout = Layout::from_size_align(*size, 1 << align).unwrap();
                blocks.push(Block::new(&heap, layout, *zeroed));
                continue;
            }
            Step::EvictColdest => {
                heap.evict_coldest().unwrap();
                continue;
            }
            Step::Limit(pages) => {
                heap.set_resident_limit(pages * PAGE_SIZE).unwrap();
                continue;
            }
            _ if blocks.is_empty() => continue,
            _ => {}
        }
        let count = blocks.len();
        match step {
            Step::Free(block) => blocks.swap_remove(block.index(count)).free(&heap),
            Step::Write(block, from, to, seed) => {
                let block = &mut blocks[block.index(count)];
                block.write(block.part(from, to), *seed);
            }
            Step::Read(block, from, to) => {
                let block = &blocks[block.index(count)];
                block.check(block.part(from, to));
            }
            Step::Evict(block, from, to) => {
                let block = &blocks[block.index(count)];
                heap.evict(block.range(block.part(from, to)).cast_const())
                    .unwrap();
            }
            Step::Prefetch(block, from, to) => {
                let block = &blocks[block.index(count)];
                heap.prefetch(block.range(block.part(from, to)).cast_const())
                    .unwrap();
            }
            Step::Cold(block, from, to) => {
                let block = &blocks[block.index(count)];
                heap.make_cold(block.range(block.part(from, to)).cast_const())
                    .unwrap();
            }
            Step::Discard(block, from, to) => {
                // Pages are shared with small neighbours, whose pins keep
                // them: only where no other block is pinned.
                let others = blocks.iter().any(|b| b.pin.is_some());
                let block = &mut blocks[block.index(count)];
                if !others {
                    block.discard(&heap, block.part(from, to));
                }
            }
            Step::Pin(block) => {
                let block = &mut blocks[block.index(count)];
                let all = block.range((0, block.model.len())).cast_const();
                // Refused when too much would be pinned.
                if let Ok(pin) = heap.pin(all) {
                    block.pin = Some(pin);
                    assert_eq!(heap.is_resident(block.start.as_ptr()), Some(true));
                }
            }
            Step::Unpin(block) => blocks[block.index(count)].pin = None,
            Step::Allocate { .. } | Step::EvictColdest | Step::Limit(_) => {}
        }
    }
    for block in blocks {
        block.free(&heap);
    }
    let stats = heap.stats();
    assert_eq!(stats.allocated_bytes, 0, "{stats:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[cfg(not(windows))]
    #[test]
    fn inline_holds_what_the_model_holds(steps in prop::collection::vec(step(), 1..80)) {
        run(Backend::Inline, &steps);
    }

    #[cfg(not(windows))]
    #[test]
    fn monitor_holds_what_the_model_holds(steps in prop::collection::vec(step(), 1..80)) {
        run(Backend::Monitor, &steps);
    }

    #[cfg(not(windows))]
    #[test]
    fn guard_holds_what_the_model_holds(steps in prop::collection::vec(step(), 1..80)) {
        run(Backend::Guard, &steps);
    }

    #[cfg(not(windows))]
    #[test]
    fn guard_mprotect_holds_what_the_model_holds(
        steps in prop::collection::vec(step(), 1..80)
    ) {
        run(Backend::GuardMprotect, &steps);
    }

    #[cfg(windows)]
    #[test]
    fn veh_holds_what_the_model_holds(steps in prop::collection::vec(step(), 1..80)) {
        run(Backend::Veh, &steps);
    }
}

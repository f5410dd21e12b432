//! What a program asks of a heap works on the smallest stacks there are: batches
//! and buffers live elsewhere.
#![cfg(target_os = "linux")] // Windows resolves faults on the program's stack

mod common;

use std::thread;

use ghostmem::{Backend, Heap};

/// What pthread_create(3) takes at least.
const STACK_BYTES: usize = 16 << 10;
const WORDS: usize = 512 * 200;

/// Proves that advice, pins and frees of many evicted, dirty pages need little of
/// the caller's stack, on each backend.
#[test]
fn advice_works_on_the_smallest_stack() {
    common::alone_on_each("advice_works_on_the_smallest_stack", |backend: Backend| {
        let heap = Heap::builder()
            .backend(backend)
            .resident_limit(64 << 12)
            .build()
            .unwrap();
        let words = heap.slice_from_fn(WORDS, |i| i as u64 * 7).unwrap();
        let user = thread::Builder::new().stack_size(STACK_BYTES);
        let user = user.spawn(move || {
            let all: *const [u64] = &raw const words[..];
            heap.evict(all).unwrap();
            heap.prefetch(all).unwrap();
            drop(heap.pin(&raw const words[..512 * 8]).unwrap());
            heap.evict_coldest().unwrap();
            let sum: u64 = words.iter().sum();
            drop(words);
            sum
        });
        let expected = (0..WORDS as u64).map(|i| i * 7).sum::<u64>();
        assert_eq!(user.unwrap().join().unwrap(), expected);
    });
}

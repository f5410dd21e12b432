//! The live bitmaps, and what is put off, under the model checker: the very source
//! files, on loom's atomics.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ghostmem-small --release --test loom`
//!
//! mimalloc's part, handing pages and blocks from thread to thread, is an atomic
//! with release and acquire, as it is there. loom lets relaxed loads read old
//! values, more of them than x86 does.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "../src/live.rs"]
mod live;
#[path = "../src/put_off.rs"]
mod put_off;

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering};
}

use live::LiveBits;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use loom::thread;
use put_off::PutOff;

/// One word of each bitmap, and mimalloc's word of mouth.
struct Memory {
    own: AtomicU64,
    others: AtomicU64,
    mixed: AtomicU8,
    passed_on: AtomicBool,
}

impl Memory {
    /// Where the block at each of these bits lives, allocated by the owner.
    fn with_live(bits: u64) -> Arc<Self> {
        let memory = Arc::new(Self {
            own: AtomicU64::new(0),
            others: AtomicU64::new(0),
            mixed: AtomicU8::new(0),
            passed_on: AtomicBool::new(false),
        });
        for bit in (0..64).map(|n| 1 << n).filter(|bit| bits & bit != 0) {
            assert!(memory.places().begin(bit, true));
        }
        memory
    }

    fn places(&self) -> LiveBits<'_> {
        LiveBits {
            own: &self.own,
            others: &self.others,
            mixed: &self.mixed,
        }
    }

    fn pass_on(&self) {
        self.passed_on.store(true, Ordering::Release);
    }

    fn was_passed_on(&self) -> bool {
        self.passed_on.load(Ordering::Acquire)
    }
}

const A: u64 = 1 << 3;
const B: u64 = 1 << 4;
const OWNER: bool = true;
const OTHER: bool = false;

/// Runs each of `acts` on a thread of its own; what they return.
fn at_once<const N: usize>(memory: &Arc<Memory>, acts: [fn(&Memory) -> usize; N]) -> [usize; N] {
    let threads = acts.map(|act| {
        let memory = memory.clone();
        thread::spawn(move || act(&memory))
    });
    threads.map(|thread| thread.join().unwrap())
}

fn free_as_other(memory: &Memory) -> usize {
    usize::from(memory.places().end(A, OTHER))
}

fn free_as_owner(memory: &Memory) -> usize {
    usize::from(memory.places().end(A, OWNER))
}

#[test]
fn of_two_others_that_free_a_block_one_succeeds() {
    loom::model(|| {
        let memory = Memory::with_live(A | B);
        let freed = at_once(&memory, [free_as_other, free_as_other]);
        assert_eq!(freed.iter().sum::<usize>(), 1);
        assert!(!memory.places().is_live(A) && memory.places().is_live(B));
    });
}

#[test]
fn a_free_by_owner_and_other_at_once_is_refused_or_found_at_the_next_allocation() {
    loom::model(|| {
        let memory = Memory::with_live(A);
        let freed = at_once(&memory, [free_as_owner, free_as_other]);
        match freed.iter().sum::<usize>() {
            1 => assert!(!memory.places().is_live(A)),
            2 => assert!(!memory.places().begin(A, OWNER) && !memory.places().begin(A, OTHER)),
            _ => panic!("a live block was refused"),
        }
    });
}

#[test]
fn what_happens_to_one_block_leaves_its_neighbours_alone() {
    fn owner(memory: &Memory) -> usize {
        let freed = usize::from(memory.places().end(B, OWNER));
        freed + usize::from(memory.places().begin(1, OWNER))
    }
    fn other(memory: &Memory) -> usize {
        free_as_other(memory) + usize::from(memory.places().begin(A, OTHER))
    }
    fn third(memory: &Memory) -> usize {
        usize::from(memory.places().begin(2, OTHER))
    }
    loom::model(|| {
        let memory = Memory::with_live(A | B);
        assert_eq!(at_once(&memory, [owner, other]), [2, 2]);
        assert!(memory.places().is_live(A) && memory.places().is_live(1));
        assert!(!memory.places().is_live(B));
    });
    loom::model(|| {
        let memory = Memory::with_live(A | B);
        assert_eq!(at_once(&memory, [free_as_other, third]), [1, 1]);
        assert!(memory.places().is_live(B) && memory.places().is_live(2));
        assert!(!memory.places().is_live(A));
    });
}

#[test]
fn a_block_freed_by_another_is_the_owners_again_and_not_the_others() {
    loom::model(|| {
        let memory = Memory::with_live(A | B);
        let done = at_once(
            &memory,
            [
                |memory| {
                    let freed = usize::from(memory.places().end(A, OTHER));
                    // mi_free, on the page's list for other threads.
                    memory.pass_on();
                    freed
                },
                |memory| {
                    // The owner goes on with what it has, until it collects
                    // that list.
                    let mut done = usize::from(memory.places().end(B, OWNER));
                    if memory.was_passed_on() {
                        done += 10 * usize::from(memory.places().begin(A, OWNER));
                        done += 100 * usize::from(memory.places().end(A, OWNER));
                        done += 1000 * usize::from(memory.places().end(A, OWNER));
                    }
                    done
                },
            ],
        );
        assert!(matches!(done, [1, 1 | 111]), "{done:?}");
        assert!(!memory.places().is_live(A) && !memory.places().is_live(B));
    });
}

#[test]
fn a_page_may_change_hands() {
    loom::model(|| {
        let memory = Memory::with_live(A | B);
        let done = at_once(
            &memory,
            [
                |memory| {
                    let freed = usize::from(memory.places().end(A, OWNER));
                    // The page is abandoned.
                    memory.pass_on();
                    freed
                },
                |memory| {
                    // And reclaimed by this thread; until then it is another.
                    let own = memory.was_passed_on();
                    let mut done = usize::from(memory.places().end(B, own));
                    if own {
                        done += 10 * usize::from(memory.places().begin(A, OWNER));
                    }
                    done
                },
            ],
        );
        assert!(matches!(done, [1, 1 | 11]), "{done:?}");
        assert_eq!(memory.places().is_live(A), done[1] == 11);
        assert!(!memory.places().is_live(B));
    });
}

/// Words of the bitmap of retired blocks, and where some were put off.
struct Retired {
    words: [AtomicU64; 3],
    put_off: PutOff,
}

impl Retired {
    fn put_off(&self, word: usize) {
        self.words[word].fetch_or(1, Ordering::SeqCst);
        self.put_off.add(word..word + 1);
    }

    /// Frees what was put off; how many blocks it was.
    fn settle(&self) -> u64 {
        if !self.put_off.is_any() {
            return 0;
        }
        let words = self.put_off.take();
        words
            .map(|word| self.words[word].swap(0, Ordering::SeqCst))
            .sum()
    }
}

#[test]
fn what_is_put_off_beside_two_that_settle_is_settled_once() {
    loom::model(|| {
        let retired = Arc::new(Retired {
            words: core::array::from_fn(|_| AtomicU64::new(0)),
            put_off: PutOff::new(),
        });
        retired.put_off(1);
        let settlers = [(); 2].map(|()| {
            let retired = retired.clone();
            thread::spawn(move || retired.settle())
        });
        retired.put_off(2);
        let settled: u64 = settlers.map(|settler| settler.join().unwrap()).iter().sum();
        assert_eq!(settled + retired.settle(), 2);
    });
}

//! Forks: each side reads what was there, and neither sees or disturbs what the
//! other writes.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Pair, Random};
use crate::tier::{ColdTier, TierStats};

/// The calls of the system, which are unsafe: who runs the suite makes them.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    /// fork(2): 0 in the child, its number in the parent.
    pub fork: fn() -> i32,
    /// _exit(2).
    pub exit: fn(i32) -> !,
    /// waitpid(2): whether the child ended by itself, with 0.
    pub ended_well: fn(i32) -> bool,
}

/// A forked child.
#[derive(Debug)]
pub struct Child {
    calls: Calls,
    pid: i32,
    /// A byte for the child to go on.
    go: PipeWriter,
    /// A byte from the child when it is done.
    done: PipeReader,
}

/// Forks as the engine does; `what` runs in the child after a byte has come, and may
/// say that it is done and wait for another.
pub fn fork<T: ColdTier>(
    calls: Calls,
    pair: &mut Pair<T>,
    what: impl FnOnce(&mut Pair<T>, &mut PipeReader, &mut PipeWriter),
) -> Child {
    let (mut go_read, go) = pipe().unwrap();
    let (done, mut done_write) = pipe().unwrap();
    while !pair.tier.try_before_fork() {
        std::thread::yield_now();
    }
    let pid = (calls.fork)();
    assert!(pid >= 0);
    if pid > 0 {
        pair.tier.after_fork_in_parent();
        return Child {
            calls,
            pid,
            go,
            done,
        };
    }
    drop((go, done));
    pair.tier.after_fork_in_child();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        wait(&mut go_read);
        what(pair, &mut go_read, &mut done_write);
    }));
    // Without the parent's destructors.
    (calls.exit)(i32::from(ended.is_err()));
}

/// Waits for a byte.
pub fn wait(from: &mut PipeReader) {
    let mut byte = [0];
    from.read_exact(&mut byte).expect("a byte comes");
}

impl Child {
    /// Lets the child go on.
    pub fn go(&mut self) {
        self.go.write_all(&[1]).unwrap();
    }

    /// Waits until the child says that it is done.
    pub fn done(&mut self) {
        wait(&mut self.done);
    }

    /// Waits for the end of the child, which must be a good one.
    pub fn end(self) {
        drop(self.go);
        assert!((self.calls.ended_well)(self.pid), "the child failed");
    }
}

/// Writes `count` pages from owner `first` on.
pub fn fill<T: ColdTier>(pair: &mut Pair<T>, random: &mut Random, first: u64, count: u64) {
    let batch: Vec<(u64, usize, u8)> = (first..first + count)
        .map(|owner| (owner, 1 + random.below(3000), 4))
        .collect();
    pair.write(&batch).unwrap();
}

/// Writes over pages and tends, again and again.
pub fn churn<T: ColdTier>(pair: &mut Pair<T>, random: &mut Random, rounds: usize) {
    for _ in 0..rounds {
        let first = random.next() % 2000;
        fill(pair, random, first, 600);
        while pair.tend(4 << 20).is_behind {}
    }
}

/// Both sides have what was there at the fork, and go on by themselves.
pub fn both_sides_go_on<T: ColdTier>(calls: Calls, open: impl Fn() -> T) {
    let mut random = Random(1);
    let mut pair = Pair::new(open());
    fill(&mut pair, &mut random, 0, 2600);
    let mut child = fork(calls, &mut pair, |pair, go, done| {
        // What was there at the fork, while the parent has rewritten all of it.
        pair.check_all();
        let mut random = Random(2);
        churn(pair, &mut random, 4);
        pair.check_all();
        done.write_all(&[1]).unwrap();
        wait(go);
        // And once more, after the parent has gone on.
        pair.check_all();
    });
    churn(&mut pair, &mut random, 4);
    child.go();
    child.done();
    churn(&mut pair, &mut random, 4);
    pair.check_all();
    child.go();
    child.end();
    pair.check_all();
    // A fork that does not take place changes nothing.
    while !pair.tier.try_before_fork() {
        std::thread::yield_now();
    }
    pair.tier.cancel_fork();
    churn(&mut pair, &mut random, 1);
    pair.check_all();
    assert_eq!(pair.tier.stats().frozen_bytes, 0, "nobody else reads it");
}

/// Children of children read what their ancestors wrote.
pub fn generations<T: ColdTier>(calls: Calls, open: impl Fn() -> T) {
    fn generation<T: ColdTier>(calls: Calls, pair: &mut Pair<T>, depth: u64) {
        let mut random = Random(depth);
        // Some pages stay where each ancestor has them; those of all but a few are
        // brought into one's own part.
        while pair.tend(4 << 20).is_behind {}
        fill(pair, &mut random, depth * 1000, 300);
        pair.check_all();
        if depth == 18 {
            return;
        }
        let mut child = fork(calls, pair, |pair, _, _| {
            generation(calls, pair, depth + 1);
        });
        fill(pair, &mut random, 0, 900);
        while pair.tend(4 << 20).is_behind {}
        child.go();
        child.end();
        pair.check_all();
    }
    generation(calls, &mut Pair::new(open()), 0);
}

/// Many children at once; `beside` looks at the parent's figures while they live.
pub fn many_children<T: ColdTier>(
    calls: Calls,
    open: impl Fn() -> T,
    beside: impl FnOnce(&TierStats),
) {
    let mut random = Random(6);
    let mut pair = Pair::new(open());
    fill(&mut pair, &mut random, 0, 2600);
    let mut children = Vec::new();
    for _ in 0..20 {
        children.push(fork(calls, &mut pair, |pair, _, _| pair.check_all()));
        churn(&mut pair, &mut random, 1);
    }
    beside(&pair.tier.stats());
    for mut child in children {
        child.go();
        child.end();
    }
    while pair.tend(4 << 20).is_behind {}
    assert_eq!(pair.tier.stats().frozen_bytes, 0);
    pair.check_all();
}

//! Forks: each side reads what was there, and neither sees or disturbs what the
//! other writes.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::collections::HashSet;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Mutex;

use common::{Pair, Random};
use ghostmem_file::{FileTier, Options};
use ghostmem_store::conformance::forks::{self, Calls, Child, churn, fill, wait};
use ghostmem_store::conformance::{Faulty, Rates};

/// One test at a time: a fork duplicates what other threads are in the middle of.
static ALONE: Mutex<()> = Mutex::new(());

const CALLS: Calls = Calls {
    // SAFETY: the suite's child uses nothing that another thread may hold.
    fork: || unsafe { libc::fork() },
    // SAFETY: ends the child.
    exit: |code| unsafe { libc::_exit(code) },
    ended_well: |pid| {
        let mut status = 0;
        // SAFETY: our own child and a valid place.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    },
};

fn fork(pair: &mut Pair, what: impl FnOnce(&mut Pair, &mut PipeReader, &mut PipeWriter)) -> Child {
    forks::fork(CALLS, pair, what)
}

fn unnamed() -> FileTier {
    FileTier::open(&Options::unnamed(std::env::temp_dir())).unwrap()
}

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ghostmem-fork-{name}-{}", std::process::id()))
}

#[test]
fn both_sides_go_on_and_the_parent_gets_its_space_back() {
    let _alone = ALONE.lock();
    let path = path("both");
    let mut random = Random(1);
    let mut pair = Pair::new(FileTier::open(&Options::named(&path)).unwrap());
    fill(&mut pair, &mut random, 0, 2600);
    let mut child = fork(&mut pair, |pair, go, done| {
        // What was there at the fork, while the parent has rewritten all of it.
        pair.check_all();
        let mut random = Random(2);
        churn(pair, &mut random, 8);
        pair.check_all();
        done.write_all(&[1]).unwrap();
        wait(go);
        // And once more, after the parent has gone on.
        pair.check_all();
        let stats = pair.tier.stats();
        let live = stats.live_bytes;
        assert!(stats.file_bytes < live * 115 / 100 + (7 << 20), "{stats:?}");
    });
    churn(&mut pair, &mut random, 8);
    let stats = pair.tier.stats();
    assert!(stats.frozen_bytes > 0, "the child may still read {stats:?}");
    child.go();
    child.done();
    churn(&mut pair, &mut random, 8);
    pair.check_all();
    child.go();
    child.end();
    // The child is gone: its segments are the parent's again.
    while pair.tend(4 << 20).is_behind {}
    let stats = pair.tier.stats();
    assert_eq!(stats.frozen_bytes, 0);
    let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(
        blocks < stats.live_bytes * 115 / 100 + (7 << 20),
        "{blocks} {stats:?}"
    );
    pair.check_all();
    drop(pair);
    assert!(!path.exists());
}

#[test]
fn a_child_that_needs_the_file_no_more_lets_go_of_it() {
    let _alone = ALONE.lock();
    let mut random = Random(3);
    let mut pair = Pair::new(unnamed());
    fill(&mut pair, &mut random, 0, 2600);
    let mut child = fork(&mut pair, |pair, go, done| {
        let owners: Vec<u64> = pair.pages.keys().copied().collect();
        owners.into_iter().for_each(|owner| pair.remove(owner));
        pair.tend(0);
        done.write_all(&[1]).unwrap();
        wait(go);
        // It lives on, with a file of its own.
        let mut random = Random(4);
        fill(pair, &mut random, 0, 100);
        pair.check_all();
        done.write_all(&[1]).unwrap();
        wait(go);
    });
    churn(&mut pair, &mut random, 10);
    assert!(pair.tier.stats().frozen_bytes > 0);
    child.go();
    child.done();
    pair.tend(0);
    assert_eq!(pair.tier.stats().frozen_bytes, 0);
    child.go();
    child.done();
    child.go();
    pair.check_all();
    child.end();
}

#[test]
fn a_child_does_not_remove_its_parents_name() {
    let _alone = ALONE.lock();
    let path = path("name");
    let mut random = Random(5);
    let mut pair = Pair::new(FileTier::open(&Options::named(&path)).unwrap());
    fill(&mut pair, &mut random, 0, 100);
    let mut child = fork(&mut pair, |pair, _, _| {
        let other = FileTier::open(&Options::unnamed(std::env::temp_dir())).unwrap();
        drop(core::mem::replace(&mut pair.tier, other));
    });
    child.go();
    child.end();
    assert!(path.exists());
    pair.check_all();
}

#[test]
fn both_sides_go_on() {
    let _alone = ALONE.lock();
    forks::both_sides_go_on(CALLS, unnamed);
}

#[test]
fn generations_of_children_read_what_their_ancestors_wrote() {
    let _alone = ALONE.lock();
    forks::generations(CALLS, unnamed);
}

#[test]
fn many_children_at_once() {
    let _alone = ALONE.lock();
    forks::many_children(CALLS, unnamed, |stats| assert!(stats.frozen_bytes > 0));
}

#[test]
fn forks_that_must_try_again() {
    let _alone = ALONE.lock();
    let rates = Rates {
        others: 2,
        ..Rates::SLOW
    };
    let open = || Faulty::new(unnamed(), 7, rates);
    forks::both_sides_go_on(CALLS, open);
    forks::generations(CALLS, open);
    forks::many_children(CALLS, open, |stats| assert!(stats.frozen_bytes > 0));
}

/// The same pages written by both sides after a fork, and before: no two blocks of
/// any file are the same, so no two were made with one key and nonce.
#[test]
fn no_block_of_parent_and_child_is_the_same() {
    let _alone = ALONE.lock();
    let mut pair = Pair::new(unnamed());
    let batch: Vec<(u64, usize, u8)> = (0..250).map(|owner| (owner, 4075, 4)).collect();
    pair.write(&batch).unwrap();
    let copy = path("image");
    let to = copy.clone();
    let version = pair.versions;
    let batch_of_child = batch.clone();
    let mut child = fork(&mut pair, move |pair, _, _| {
        pair.versions = version;
        pair.write(&batch_of_child).unwrap();
        std::fs::write(to, image_of_own_file()).unwrap();
    });
    pair.versions = version;
    pair.write(&batch).unwrap();
    child.go();
    child.end();
    let mut blocks = HashSet::new();
    let mut count = 0;
    for image in [image_of_own_file(), std::fs::read(&copy).unwrap()] {
        for block in image[1 << 20..]
            .chunks(4096)
            .filter(|block| block.iter().any(|&b| b != 0))
        {
            assert!(blocks.insert(block.to_vec()), "a block twice");
            count += 1;
        }
    }
    assert!(count >= 500 + 250, "{count} blocks");
    let _removed = std::fs::remove_file(copy);
}

/// The bytes of every file that this process has open for spilling and has written
/// itself: the largest number of an unlinked one.
fn image_of_own_file() -> Vec<u8> {
    let mut newest = None;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().contains("(deleted)") {
            newest = newest.max(Some(number));
        }
    }
    let file = File::open(format!("/proc/self/fd/{}", newest.expect("a spill file"))).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

//! How much of the disk the file takes: never much more than what lives in it, and
//! nothing once nothing does.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use common::{Pair, Random};
use ghostmem_file::{FileTier, Options};
use ghostmem_store::conformance;
use ghostmem_store::tier::{Packed, WriteError};

const MIB: u64 = 1 << 20;
/// Segments being filled, kept for the next ones, and what is between two calls of
/// `tend`.
const SLACK: u64 = 7 * MIB;

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ghostmem-space-{name}-{}", std::process::id()))
}

/// Rewrites random pages for long, like pages of a heap that change, and looks at the
/// file after each batch.
fn rewrite(pages: u64, rounds: usize, len: impl Fn(&mut Random) -> usize, ratio: f64) {
    let path = path(&format!("rewrite-{pages}"));
    let mut pair = Pair::new(FileTier::open(&Options::named(&path)).unwrap());
    let mut random = Random(7);
    let all: Vec<(u64, usize, u8)> = (0..pages).map(|page| (page, len(&mut random), 1)).collect();
    for batch in all.chunks(700) {
        pair.write(batch).unwrap();
    }
    let mut worst = 0.0_f64;
    let first = pair.tier.stats();
    for round in 0..rounds {
        let mut owners: Vec<u64> = (0..700).map(|_| random.next() % pages).collect();
        owners.sort_unstable();
        owners.dedup();
        let batch: Vec<(u64, usize, u8)> = owners
            .iter()
            .map(|&owner| (owner, len(&mut random), 1))
            .collect();
        pair.write(&batch).unwrap();
        while pair.tend(2 * MIB).is_behind {}
        let stats = pair.tier.stats();
        let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
        let over = blocks.saturating_sub(SLACK) as f64 / stats.live_bytes as f64;
        assert!(
            over <= ratio,
            "round {round}: {blocks} bytes of blocks, {stats:?}"
        );
        // What the tier counts is what the file system says, but for the blocks in
        // which that keeps its own list of them.
        let counted = stats.file_bytes;
        assert!(
            counted <= blocks && blocks <= counted + 256 * 1024,
            "{blocks} {stats:?}"
        );
        worst = worst.max(over);
    }
    pair.check_all();
    let stats = pair.tier.stats();
    let fresh = (stats.pages_written - first.pages_written) as f64;
    println!(
        "{pages} pages, {rounds} batches: at most {worst:.3} times the live bytes and {} MiB; {:.2} \
         pages moved for one written",
        SLACK / MIB,
        stats.pages_moved as f64 / fresh,
    );
    let owners: Vec<u64> = pair.pages.keys().copied().collect();
    owners.into_iter().for_each(|owner| pair.remove(owner));
    while pair.tend(MIB).is_behind {}
    let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(blocks <= 6 * MIB, "{blocks} bytes of an empty file");
    assert_eq!(pair.tier.stats().live_bytes, 0);
    let memory = pair.tier.stats().metadata_bytes;
    assert!(memory <= 3 * MIB, "{memory} bytes of tables for no page");
    drop(pair);
    assert!(!path.exists(), "a named file is removed at its end");
}

#[test]
fn random_rewriting_of_usual_pages() {
    // What LZ4 makes of pages: a third of them on average.
    rewrite(40_000, 150, |random| 400 + random.below(2000), 1.15);
}

#[test]
fn random_rewriting_of_whole_pages() {
    rewrite(9_000, 60, |_| 4096, 1.15);
}

#[test]
fn most_rewriting_in_a_small_part() {
    let path = path("skewed");
    let mut pair = Pair::new(FileTier::open(&Options::named(&path)).unwrap());
    let mut random = Random(9);
    let pages = 30_000;
    for start in (0..pages).step_by(500) {
        let batch: Vec<(u64, usize, u8)> = (start..start + 500).map(|p| (p, 1365, 1)).collect();
        pair.write(&batch).unwrap();
    }
    for _ in 0..120 {
        let batch: Vec<(u64, usize, u8)> = (0..500_u64)
            .map(|at| {
                let part = if random.one_in(10) { pages } else { pages / 10 };
                (random.next() % (part / 500) * 500 + at, 1365, 1)
            })
            .collect();
        pair.write(&batch).unwrap();
        while pair.tend(2 * MIB).is_behind {}
        let live = pair.tier.stats().live_bytes;
        let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!(
            blocks.saturating_sub(SLACK) as f64 <= live as f64 * 1.15,
            "{blocks} {live}"
        );
    }
    pair.check_all();
}

#[test]
fn the_limit_holds_and_cleaning_makes_room_under_it() {
    for encrypt in [true, false] {
        let path = path(&format!("limit-{encrypt}"));
        let limit = 24 * MIB;
        let options = Options::named(&path).limit_bytes(limit).encrypt(encrypt);
        let mut pair = Pair::new(FileTier::open(&options).unwrap());
        let mut random = Random(3);
        let mut refused = 0;
        for _ in 0..300 {
            let start = random.next() % 20_000;
            let batch: Vec<(u64, usize, u8)> = (0..300_u64)
                .map(|at| (start + at, 200 + random.below(2000), 2))
                .collect();
            match pair.write(&batch) {
                Ok(()) => {}
                Err(WriteError::LimitReached) => {
                    refused += 1;
                    let owners: Vec<u64> = pair.pages.keys().copied().take(400).collect();
                    owners.into_iter().for_each(|owner| pair.remove(owner));
                }
                Err(other) => panic!("{other}"),
            }
            pair.tend(4 * MIB);
            let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
            assert!(
                blocks <= limit + 256 * 1024,
                "{blocks} bytes under a limit of {limit}"
            );
        }
        pair.check_all();
        assert!(refused > 0, "the limit was never reached");
        // It was used, too.
        let live = pair.tier.stats().live_bytes;
        assert!(live > limit / 2, "{live} of {limit}");
    }
}

#[test]
fn a_limit_too_small_to_work_with_is_refused() {
    let options = Options::unnamed(std::env::temp_dir()).limit_bytes(1 << 20);
    let error = FileTier::open(&options).unwrap_err().to_string();
    assert_eq!(
        error,
        "a spill file of at most 1048576 bytes is too small to work with; allow at least 8388608"
    );
}

/// Cleaning that is always refused ends all the same, and leaves everything right.
#[test]
fn cleaning_ends_when_no_page_may_be_moved() {
    let open = || FileTier::open(&Options::unnamed(std::env::temp_dir())).unwrap();
    let (mut pair, asked, report) = conformance::tending_without_leave(open);
    assert!(asked > 100, "{asked} pages, {report:?}");
    let stats = pair.tier.stats();
    assert!(
        stats.file_bytes < stats.live_bytes * 115 / 100 + SLACK,
        "{stats:?}"
    );
    pair.check_all();
}

/// Forks do not use a limited file up: what is being filled goes on being filled.
#[test]
fn a_page_written_between_forks_takes_no_segment_of_its_own() {
    let options = Options::unnamed(std::env::temp_dir()).limit_bytes(8 * MIB);
    let tier = FileTier::open(&options).unwrap();
    for owner in 0..1000 {
        let page = Packed {
            owner,
            codec: 1,
            bytes: &[7; 3900],
        };
        let written = tier.write(&[page], &mut [None]);
        assert!(written.is_ok(), "{written:?} of page {owner}");
        assert!(tier.try_before_fork());
        tier.after_fork_in_parent();
    }
}

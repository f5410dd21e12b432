//! A disk with not one block left, and what else runs out: numbers for segments,
//! places for ancestors' files. Cleaning goes on all the same, and makes room.
//!
//! The disk is a made-up one that counts blocks, so that each of its kinds can be had
//! anywhere: with holes or without, with reservations or without, and with somebody
//! else who takes every block as soon as it is free.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::collections::BTreeSet;
use std::sync::Mutex;

use common::{Pair, Random};
use ghostmem_file::{Faults, FileTier, Injected, Options};
use ghostmem_store::tier::WriteError;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const DISK_BYTES: u64 = 24 * MIB;
/// Segments being filled, and kept for the next ones.
const SLACK: u64 = 7 * MIB;

/// What a disk can do beside reading and writing.
#[derive(Debug, Clone, Copy)]
struct Kind {
    punches: bool,
    reserves: bool,
    /// What is given back is somebody else's at once.
    has_thief: bool,
}

const KINDS: [Kind; 8] = {
    let mut kinds = [Kind {
        punches: false,
        reserves: false,
        has_thief: false,
    }; 8];
    let mut at = 0;
    while at < 8 {
        kinds[at].punches = at & 1 == 0;
        kinds[at].reserves = at & 2 == 0;
        kinds[at].has_thief = at & 4 == 4;
        at += 1;
    }
    kinds
};

#[derive(Debug)]
struct Disk(Mutex<Blocks>);

#[derive(Debug)]
struct Blocks {
    kind: Kind,
    /// Taken by the file.
    taken: BTreeSet<u64>,
    free: u64,
    thief_is_here: bool,
    /// Segments that refuse writes.
    bad: BTreeSet<u64>,
}

impl Disk {
    fn new(kind: Kind) -> &'static Self {
        Box::leak(Box::new(Self(Mutex::new(Blocks {
            kind,
            taken: BTreeSet::new(),
            free: DISK_BYTES / BLOCK,
            thief_is_here: false,
            bad: BTreeSet::new(),
        }))))
    }

    fn with<R>(&self, what: impl FnOnce(&mut Blocks) -> R) -> R {
        what(&mut self.0.lock().unwrap())
    }

    /// Somebody else takes every block that is free, now and later.
    fn let_thief_in(&self) {
        self.with(|blocks| {
            blocks.free = 0;
            blocks.thief_is_here = true;
        });
    }

    /// And gives all of it back.
    fn let_thief_out(&self) {
        self.with(|blocks| {
            blocks.free = DISK_BYTES / BLOCK - blocks.taken.len() as u64;
            blocks.thief_is_here = false;
        });
    }
}

impl Blocks {
    /// Takes blocks for a range: how many bytes of it have some.
    fn take(&mut self, offset: u64, len: u64) -> u64 {
        for block in offset / BLOCK..(offset + len).div_ceil(BLOCK) {
            if self.taken.contains(&block) {
                continue;
            }
            if self.free == 0 {
                return block * BLOCK - offset;
            }
            self.free -= 1;
            self.taken.insert(block);
        }
        len
    }
}

impl Faults for Disk {
    fn read(&self, _: u64, _: usize) -> Injected {
        Injected::Nothing
    }

    fn write(&self, offset: u64, len: usize) -> Injected {
        self.with(|blocks| {
            if blocks.bad.contains(&(offset / MIB)) {
                return Injected::Errno(libc::EIO);
            }
            let fits = blocks.take(offset, len as u64) as usize;
            match fits == len {
                true => Injected::Nothing,
                false => Injected::Short(fits, libc::ENOSPC),
            }
        })
    }

    fn punch(&self, offset: u64, len: u64) -> Injected {
        self.with(|blocks| {
            if !blocks.kind.punches {
                return Injected::Errno(libc::EOPNOTSUPP);
            }
            let range = offset / BLOCK..(offset + len) / BLOCK;
            let freed: Vec<u64> = blocks.taken.range(range).copied().collect();
            for block in &freed {
                blocks.taken.remove(block);
            }
            if !(blocks.kind.has_thief && blocks.thief_is_here) {
                blocks.free += freed.len() as u64;
            }
            Injected::Nothing
        })
    }

    fn reserve(&self, offset: u64, len: u64) -> Injected {
        self.with(|blocks| {
            if !blocks.kind.reserves {
                return Injected::Errno(libc::EOPNOTSUPP);
            }
            match blocks.take(offset, len) == len {
                true => Injected::Nothing,
                false => Injected::Errno(libc::ENOSPC),
            }
        })
    }
}

fn open(disk: &'static Disk) -> Pair {
    let options = Options::unnamed(std::env::temp_dir()).faults(disk);
    Pair::new(FileTier::open(&options).unwrap())
}

/// Writes batches of new pages until there is no room for one; how many there was.
fn fill(pair: &mut Pair, next: &mut u64, len: impl Fn(u64) -> usize, most: usize) -> usize {
    for batch in 0..most {
        let pages: Vec<(u64, usize, u8)> = (*next..*next + 250)
            .map(|page| (page, len(page), 1))
            .collect();
        match pair.write(&pages) {
            Ok(()) => *next += 250,
            Err(WriteError::NoSpace {
                errno: libc::ENOSPC,
            }) => return batch,
            Err(other) => panic!("{other}"),
        }
    }
    most
}

/// Cleans until there is no more to do.
fn clean(pair: &mut Pair) {
    for _ in 0..2000 {
        if !pair.tend(2 * MIB).is_behind {
            return;
        }
    }
    panic!("cleaning never ends: {:?}", pair.tier.stats());
}

fn keep_one_in(pair: &mut Pair, n: u64) {
    let gone: Vec<u64> = pair
        .pages
        .keys()
        .copied()
        .filter(|page| page % n != 0)
        .collect();
    gone.into_iter().for_each(|page| pair.remove(page));
}

/// No segment is empty, and no block to be had: what is dead is room all the same.
#[test]
fn a_completely_full_disk_is_cleaned() {
    for kind in KINDS {
        let disk = Disk::new(kind);
        let mut pair = open(disk);
        let mut next = 0;
        let batches = fill(&mut pair, &mut next, |_| 3900, 100);
        assert!(batches > 18, "{batches} batches on {kind:?}");
        disk.let_thief_in();
        keep_one_in(&mut pair, 3);
        clean(&mut pair);
        pair.check_all();
        let stats = pair.tier.stats();
        if kind.punches {
            assert!(
                stats.file_bytes < stats.live_bytes * 115 / 100 + SLACK,
                "{stats:?} on {kind:?}"
            );
        }
        // Two thirds are free again, if nobody else took them.
        let expected = if kind.has_thief && kind.punches {
            1
        } else {
            10
        };
        let batches = fill(&mut pair, &mut next, |_| 3900, 100);
        assert!(
            batches >= expected,
            "{batches} batches more on {kind:?}: {stats:?}"
        );
        pair.check_all();
    }
}

/// Again and again, with pages of all lengths, and cleaning in small steps.
#[test]
fn a_disk_that_stays_full_is_cleaned_again_and_again() {
    for (kind, seed) in KINDS.into_iter().zip(40..) {
        let disk = Disk::new(kind);
        let mut pair = open(disk);
        let mut random = Random(seed);
        let mut next = 0;
        let mut batches = 0;
        for round in 0..9 {
            let most = [40, 700, 4096][round % 3];
            let spread = random.next();
            let len = |page: u64| 1 + (Random(page ^ spread).next() % most) as usize;
            batches += fill(&mut pair, &mut next, len, 60);
            disk.let_thief_in();
            let owners: Vec<u64> = pair.pages.keys().copied().collect();
            let gone = owners.into_iter().filter(|_| random.one_in(2));
            gone.for_each(|page| pair.remove(page));
            clean(&mut pair);
            disk.let_thief_out();
            pair.check_all();
            let stats = pair.tier.stats();
            if kind.punches {
                let sealed = stats.live_bytes + stats.slots * 21;
                assert!(
                    stats.file_bytes < sealed * 115 / 100 + SLACK,
                    "round {round}: {stats:?} on {kind:?}"
                );
            }
        }
        assert!(batches > 60, "{batches} batches on {kind:?}");
    }
}

/// Everything at once, a disk that comes and goes and refuses parts of itself: each
/// page stays readable, and once there is room all is well.
#[test]
fn whatever_a_full_disk_refuses_no_page_is_lost() {
    for (kind, seed) in KINDS.into_iter().zip(60..) {
        let disk = Disk::new(kind);
        let mut pair = open(disk);
        let mut random = Random(seed);
        let mut refused = 0;
        // How many writes are refused differs from run to run: goes on until some are.
        for step in 0..1200 {
            if step >= 300 && refused > 10 {
                break;
            }
            match random.below(8) {
                0..=3 => {
                    let first = random.next() % 20_000;
                    let pages: Vec<(u64, usize, u8)> = (first..first + 200)
                        .map(|page| (page, 1 + random.below(4096), 1))
                        .collect();
                    refused += usize::from(pair.write(&pages).is_err());
                }
                4 => {
                    let owners: Vec<u64> = pair.pages.keys().copied().collect();
                    let gone = owners.into_iter().filter(|_| random.one_in(8));
                    gone.for_each(|page| pair.remove(page));
                }
                5 => disk.with(|blocks| {
                    // Somebody else takes room, or gives it back.
                    let used = blocks.taken.len() as u64;
                    blocks.free = random.next() % (DISK_BYTES / BLOCK + 1 - used.min(6000)) / 4;
                }),
                6 => disk.with(|blocks| {
                    blocks.bad.clear();
                    if random.one_in(3) {
                        blocks.bad.insert(1 + random.next() % 30);
                    }
                }),
                _ => {
                    pair.tend(MIB);
                }
            }
            if step % 40 == 0 {
                pair.check_all();
            }
        }
        assert!(refused > 10, "{refused} refusals on {kind:?}");
        pair.check_all();
        disk.with(|blocks| {
            blocks.bad.clear();
            blocks.free = DISK_BYTES / BLOCK;
        });
        clean(&mut pair);
        pair.write(&[(1, 4000, 1)]).unwrap();
        pair.check_all();
    }
}

/// A segment that refuses writes is not the next one to be tried where its blocks
/// cannot be given back.
#[test]
fn bad_segments_are_left_alone_without_holes_too() {
    for kind in KINDS {
        let disk = Disk::new(kind);
        let mut pair = open(disk);
        let mut next = 0;
        disk.with(|blocks| blocks.bad.extend([3, 4]));
        let mut failures = 0;
        for _ in 0..10 {
            let pages: Vec<(u64, usize, u8)> =
                (next..next + 250).map(|page| (page, 3900, 1)).collect();
            match pair.write(&pages) {
                Ok(()) => next += 250,
                // Both of them, one after the other.
                Err(WriteError::Io { errno: libc::EIO }) => failures += 1,
                Err(other) => panic!("{other}"),
            }
            clean(&mut pair);
        }
        assert!(failures <= 1, "{failures} batches refused on {kind:?}");
        // Nor by cleaning.
        keep_one_in(&mut pair, 3);
        clean(&mut pair);
        assert!(
            pair.tier.stats().write_errors <= 2,
            "{:?}",
            pair.tier.stats()
        );
        pair.check_all();
    }
}

/// The limit is kept with the spare segment counted in.
#[test]
fn a_limit_is_kept_and_cleaned_under_to_the_last_byte() {
    for kind in KINDS {
        let disk = Disk::new(kind);
        let limit = 12 * MIB;
        let options = Options::unnamed(std::env::temp_dir())
            .limit_bytes(limit)
            .faults(disk);
        let mut pair = Pair::new(FileTier::open(&options).unwrap());
        let mut next = 0;
        for round in 0..6 {
            let mut batches = 0;
            loop {
                let pages: Vec<(u64, usize, u8)> =
                    (next..next + 200).map(|page| (page, 3000, 1)).collect();
                match pair.write(&pages) {
                    Ok(()) => next += 200,
                    Err(WriteError::LimitReached) => break,
                    Err(other) => panic!("{other}"),
                }
                batches += 1;
                let blocks = disk.with(|blocks| blocks.taken.len() as u64 * BLOCK);
                assert!(blocks + BLOCK <= limit, "{blocks} of {limit} on {kind:?}");
            }
            assert!(
                batches > 2,
                "{batches} batches in round {round} on {kind:?}"
            );
            keep_one_in(&mut pair, 2 + round);
            clean(&mut pair);
            let blocks = disk.with(|blocks| blocks.taken.len() as u64 * BLOCK);
            assert!(blocks + BLOCK <= limit, "{blocks} of {limit} on {kind:?}");
            pair.check_all();
        }
    }
}

/// Tiny records use numbers up before space: cleaning makes numbers.
#[test]
fn numbers_are_made_free_when_they_run_out() {
    let options = Options::unnamed(std::env::temp_dir()).limit_bytes(8 * MIB);
    let mut pair = Pair::new(FileTier::open(&options).unwrap());
    let mut next = 0;
    for round in 0..3 {
        let mut batches = 0;
        loop {
            let pages: Vec<(u64, usize, u8)> =
                (next..next + 1000).map(|page| (page, 10, 1)).collect();
            match pair.write(&pages) {
                Ok(()) => next += 1000,
                Err(WriteError::Full) => break,
                Err(other) => panic!("{other}"),
            }
            batches += 1;
        }
        assert!(batches > 40, "{batches} batches in round {round}");
        keep_one_in(&mut pair, 3 + round);
        clean(&mut pair);
        pair.check_all();
    }
}

/// Each generation writes a page, is forked at once, and never has the time to
/// clean. In one process: what a child does after its fork is all there is to it.
#[test]
fn generations_without_rest_can_write_and_clean_again() {
    let mut pair = Pair::new(FileTier::open(&Options::unnamed(std::env::temp_dir())).unwrap());
    let mut written = 0;
    for generation in 0..60 {
        match pair.write(&[(generation, 4000, 1)]) {
            Ok(()) => written += 1,
            Err(WriteError::Full | WriteError::NoKey) => {}
            Err(other) => panic!("generation {generation}: {other}"),
        }
        pair.check_all();
        assert!(pair.tier.try_before_fork());
        pair.tier.after_fork_in_child();
    }
    assert!(written > 40, "{written} generations could write");
    // The last one has the time.
    clean(&mut pair);
    pair.check_all();
    pair.write(&[(1000, 4000, 1)]).unwrap();
    pair.check_all();
    assert_eq!(pair.pages.len(), written + 1);
}

//! A file that somebody else changes: bits flipped, blocks swapped, older blocks put
//! back, cut short. 6,000 random cases, each of which is noticed for exactly the
//! pages it touches.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use common::{Pair, Random, place};
use ghostmem_file::{FileTier, Options};
use ghostmem_store::tier::TierCause;

struct Target {
    pair: Pair,
    file: File,
    path: PathBuf,
}

impl Target {
    fn new(name: &str, encrypt: bool) -> Self {
        let path = std::env::temp_dir().join(format!("ghostmem-{name}-{}", std::process::id()));
        // Through the page cache, so that what is changed behind the tier's back is
        // what it reads.
        let options = Options::named(&path).encrypt(encrypt).direct(false);
        let pair = Pair::new(FileTier::open(&options).unwrap());
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Self { pair, file, path }
    }

    fn fill(&mut self, random: &mut Random) {
        let batch: Vec<(u64, usize, u8)> = (0..600_u64)
            .map(|owner| (owner, 1 + random.below(4096), 3))
            .collect();
        self.pair.write(&batch).unwrap();
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    /// Pages that cannot be read, and that every refusal is the right one.
    fn refused(&mut self, cause: impl Fn(TierCause) -> bool) -> usize {
        let owners: Vec<u64> = self.pair.pages.keys().copied().collect();
        let mut refused = 0;
        for &owner in &owners {
            if let Err(error) = self.pair.read(owner) {
                assert!(cause(error.cause), "{error}");
                assert!(error.to_string().starts_with(self.path.to_str().unwrap()));
                refused += 1;
            }
        }
        let mut in_runs = 0;
        for run in owners.chunks(64) {
            in_runs += self.pair.read_run(run).len();
        }
        assert_eq!(refused, in_runs, "one page's damage is not its neighbours'");
        refused
    }
}

fn is_changed(cause: TierCause) -> bool {
    matches!(cause, TierCause::Tampered | TierCause::Checksum)
}

/// Where the first record is: behind the header and the segment kept for cleaning.
const DATA: usize = 2 << 20;

#[test]
fn every_flipped_bit_is_noticed() {
    let mut random = Random(11);
    for encrypt in [true, false] {
        let mut target = Target::new("flip", encrypt);
        target.fill(&mut random);
        let image = target.image();
        for _ in 0..2500 {
            let owner = random.next() % 600;
            let place = place(&target.pair, owner);
            let at = place.start + random.below(place.len());
            let changed = image[at] ^ 1 << random.below(8);
            target.file.write_at(&[changed], at as u64).unwrap();
            let error = target.pair.read(owner).expect_err("a bit is wrong");
            assert!(is_changed(error.cause), "{error}");
            assert_eq!(error.offset, Some(place.start as u64));
            for _ in 0..3 {
                let other = random.next() % 600;
                if other != owner {
                    target.pair.read(other).expect("only one page is damaged");
                }
            }
            target.file.write_at(&image[at..=at], at as u64).unwrap();
        }
        assert_eq!(target.refused(|_| false), 0);
    }
}

#[test]
fn swapped_and_replayed_blocks_are_refused() {
    let mut random = Random(12);
    for encrypt in [true, false] {
        let mut target = Target::new("swap", encrypt);
        // Pages of one size, one block each: whole records change places, and a batch is
        // a segment.
        let len = 4096 - if encrypt { 21 } else { 13 };
        let batch: Vec<(u64, usize, u8)> = (0..256_u64).map(|owner| (owner, len, 3)).collect();
        target.pair.write(&batch).unwrap();
        let older = target.image();
        for _ in 0..500 {
            let (a, b) = (random.below(256), random.below(256));
            if a == b {
                continue;
            }
            let offset = |page: usize| DATA + page * 4096;
            let block = |image: &[u8], page: usize| image[offset(page)..][..4096].to_vec();
            target
                .file
                .write_at(&block(&older, a), offset(b) as u64)
                .unwrap();
            target
                .file
                .write_at(&block(&older, b), offset(a) as u64)
                .unwrap();
            for owner in [a, b] {
                let error = target.pair.read(owner as u64).unwrap_err();
                assert!(is_changed(error.cause), "{error}");
            }
            target
                .file
                .write_at(&block(&older, a), offset(a) as u64)
                .unwrap();
            target
                .file
                .write_at(&block(&older, b), offset(b) as u64)
                .unwrap();
        }
        assert_eq!(target.refused(|_| false), 0);
        // The same pages again, until they are where they were; then their old records
        // back.
        let places = |target: &Target| -> Vec<_> {
            (0..256).map(|owner| place(&target.pair, owner)).collect()
        };
        let again = |target: &mut Target| {
            (0..256).for_each(|owner| target.pair.remove(owner));
            target.pair.tend(0);
            target.pair.write(&batch).unwrap();
        };
        let (before, older) = (places(&target), target.image());
        let replayed = (0..10).any(|_| {
            again(&mut target);
            if places(&target) != before {
                return false;
            }
            for (owner, place) in before.iter().enumerate() {
                let older = &older[place.clone()];
                target.file.write_at(older, place.start as u64).unwrap();
                let error = target
                    .pair
                    .read(owner as u64)
                    .expect_err("it is an older one");
                assert!(is_changed(error.cause), "{error}");
            }
            true
        });
        assert!(replayed, "no segment was used again");
    }
}

#[test]
fn a_file_cut_short_refuses_what_was_behind_the_cut() {
    let mut random = Random(13);
    for encrypt in [true, false] {
        let mut target = Target::new("cut", encrypt);
        target.fill(&mut random);
        let image = target.image();
        let live = target.pair.tier.stats().live_bytes as usize;
        for _ in 0..15 {
            let end = DATA + random.below(live);
            target.file.set_len(end as u64).unwrap();
            let refused = target.refused(|cause| matches!(cause, TierCause::Short { .. }));
            assert!(refused > 0, "cut at {end}");
            target.file.write_at(&image[end..], end as u64).unwrap();
            assert_eq!(target.refused(|_| false), 0);
        }
        // Grown again, with holes.
        let end = DATA + live / 2;
        target.file.set_len(end as u64).unwrap();
        target.file.set_len(image.len() as u64).unwrap();
        assert!(target.refused(is_changed) > 200);
        // What is damaged is not moved by cleaning, and not freed while it is a page's.
        let before = target.pair.pages.len();
        target.pair.tend(8 << 20);
        assert_eq!(target.pair.tier.stats().slots, before as u64);
    }
}

//! Random operations on the tier and on a plain map: they must agree.
#![cfg(target_os = "linux")] // the file tier

mod common;

use common::{Pair, Random};
use ghostmem_file::{FileTier, Options};

fn dir() -> std::path::PathBuf {
    std::env::temp_dir()
}

fn run(options: &Options, seed: u64, steps: usize, len_max: usize) {
    let mut random = Random(seed);
    let mut pair = Pair::new(FileTier::open(options).expect("the tier opens"));
    for _ in 0..steps {
        match random.below(12) {
            0..=4 => {
                let count = 1 + random.below(300);
                let batch: Vec<(u64, usize, u8)> = (0..count as u64)
                    .map(|at| {
                        let owner = (at << 16) + random.below(40) as u64;
                        let len = 1 + random.below(len_max);
                        (owner, len, random.next() as u8)
                    })
                    .collect();
                pair.write(&batch).expect("there is room");
            }
            5..=6 => {
                let owners: Vec<u64> = pair.pages.keys().copied().collect();
                for owner in owners {
                    if random.one_in(10) {
                        pair.remove(owner);
                    }
                }
            }
            7..=8 => {
                pair.tidy(random.next() % (4 << 20));
            }
            9 => {
                let owners: Vec<u64> = pair.pages.keys().copied().take(64).collect();
                assert_eq!(pair.read_run(&owners), []);
            }
            _ => {
                let owner = pair.pages.keys().next().copied();
                if let Some(owner) = owner {
                    pair.read(owner).expect("it is there");
                }
            }
        }
    }
    pair.check_all();
}

#[test]
fn encrypted() {
    for seed in 0..8 {
        run(&Options::unnamed(dir()), seed, 60, 4096);
    }
}

#[test]
fn checksummed() {
    run(&Options::unnamed(dir()).encrypt(false), 100, 60, 4096);
}

#[test]
fn through_the_page_cache() {
    run(&Options::unnamed(dir()).direct(false), 200, 60, 4096);
}

#[test]
fn tiny_records_fill_segments_by_number() {
    run(&Options::unnamed(dir()), 300, 80, 90);
}

#[test]
fn new_keys_all_the_time() {
    run(&Options::unnamed(dir()).nonce_bits(1), 400, 80, 4096);
}

//! Random operations on the tier and on a plain map: they must agree.
#![cfg(target_os = "linux")] // the file tier

use ghostmem_file::{FileTier, Options};
use ghostmem_store::conformance;

fn dir() -> std::path::PathBuf {
    std::env::temp_dir()
}

fn run(options: &Options, seed: u64, steps: usize, len_max: usize) {
    let open = || FileTier::open(options).expect("the tier opens");
    conformance::model(open, seed, steps, len_max);
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

//! Many threads read and remove while one writes and cleans.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

use ghostmem_file::{FileTier, Options};
use ghostmem_store::conformance;

fn run(options: &Options, batches: usize) {
    let open = || FileTier::open(options).unwrap();
    let (stats, reads) = conformance::parallel(open, batches);
    println!(
        "{reads} reads beside {batches} batches, {} pages moved",
        stats.pages_moved
    );
    assert!(stats.pages_moved > 0);
    assert!(reads > 100);
}

#[test]
fn readers_beside_a_writer() {
    run(&Options::unnamed(std::env::temp_dir()).nonce_bits(3), 120);
}

#[test]
fn readers_beside_a_writer_through_the_page_cache() {
    run(
        &Options::unnamed(std::env::temp_dir())
            .encrypt(false)
            .direct(false),
        60,
    );
}

//! The rest of the suite for tiers on the file, and all of it once more behind a tier
//! that fails on purpose. `model`, `parallel`, `space` and `fork` have the first part.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

use ghostmem_file::{FileTier, Options};
use ghostmem_store::conformance::{self, Faulty, Rates};
use ghostmem_store::tier::{Access, ColdTier};

/// Each way a file can be used.
fn options() -> [Options; 3] {
    let unnamed = || Options::unnamed(std::env::temp_dir());
    [
        unnamed(),
        unnamed().encrypt(false),
        unnamed().direct(false).nonce_bits(3),
    ]
}

fn slow(options: &Options) -> Faulty<FileTier> {
    Faulty::new(FileTier::open(options).unwrap(), 5, Rates::SLOW)
}

#[test]
fn a_fault_reads_it_itself() {
    for options in options() {
        let tier = FileTier::open(&options).unwrap();
        assert_eq!(tier.access(), Access::Direct);
    }
}

#[test]
fn edges() {
    for options in options() {
        conformance::edges(|| FileTier::open(&options).unwrap());
        conformance::edges(|| slow(&options));
    }
}

#[test]
fn the_limit_holds() {
    for options in options() {
        let options = options.limit_bytes(24 << 20);
        conformance::limit(|| FileTier::open(&options).unwrap());
        conformance::limit(|| slow(&options));
    }
}

#[test]
fn it_agrees_with_a_map_however_slow() {
    for (options, seed) in options().iter().zip(500..) {
        conformance::model(|| slow(options), seed, 60, 4096);
    }
}

#[test]
fn readers_beside_a_slow_writer() {
    for options in options() {
        let (stats, reads) = conformance::parallel(|| slow(&options), 60);
        assert!(stats.pages_moved > 0 && reads > 100, "{reads} {stats:?}");
    }
}

#[test]
fn slow_cleaning_ends_when_no_page_may_be_moved() {
    let (_, asked, report) = conformance::tending_without_leave(|| slow(&options()[0]));
    assert!(asked > 100, "{asked} pages, {report:?}");
}

#[test]
fn whatever_fails_no_page_is_lost() {
    for options in options() {
        for seed in 0..3 {
            let open = || Faulty::new(FileTier::open(&options).unwrap(), seed, Rates::CALM);
            let refusals = conformance::storm(open, seed, 500);
            assert!(refusals > 300, "{refusals}");
        }
    }
}

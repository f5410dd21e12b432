//! What tests of the file have beside the suite for tiers.
#![allow(dead_code)]
#![allow(unused_imports, reason = "no test has a use for all of them")]

use ghostmem_file::FileTier;
use ghostmem_store::conformance::Pair as PairOf;
pub(crate) use ghostmem_store::conformance::{Random, payload};
pub(crate) use ghostmem_store::tier::ColdTier;

/// A file and what it must hold.
pub(crate) type Pair = PairOf<FileTier>;

/// Where in the file a page's record is: what an error names, and how long it is.
pub(crate) fn place(pair: &Pair, owner: u64) -> core::ops::Range<usize> {
    let page = pair.pages[&owner];
    let offset = pair.tier.undecodable(page.slot).offset;
    let start = offset.expect("its record is in the file") as usize;
    let overhead = if pair.tier.is_encrypted() { 21 } else { 13 };
    start..start + page.len + overhead
}

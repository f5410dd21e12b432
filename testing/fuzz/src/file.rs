//! A file that somebody else writes into: each page is right or refused, and
//! cleaning never takes another page's place.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ghostmem_file::{FileTier, Options, WORK_BYTES};
use ghostmem_store::tier::{Packed, TierSlot};

use crate::scratch;

/// Where the first segment begins.
const DATA: u64 = 1 << 20;
/// Pages written.
const PAGES: u64 = 24;

fn payload(owner: u64) -> Vec<u8> {
    let len = 1 + (owner as usize * 997) % 4096;
    (0..len)
        .map(|at| (owner as usize * 131 + at * at / 7) as u8)
        .collect()
}

/// `data`: encrypted or not, which pages are removed first, then writes of `at`
/// (three bytes) and up to 255 bytes, with their length before.
pub(crate) fn run(data: &[u8]) {
    let [kind, gone, damage @ ..] = data else {
        return;
    };
    let mut damage: &[u8] = damage;
    let path = scratch::path("tier");
    let options = Options::named(&path).encrypt(kind & 1 == 0).direct(false);
    let tier = FileTier::open(&options).expect("a file in the temporary folder");
    let file = File::options()
        .write(true)
        .open(&path)
        .expect("the tier's file");

    let bytes: Vec<Vec<u8>> = (0..PAGES).map(payload).collect();
    let packed: Vec<Packed<'_>> = (0..PAGES)
        .zip(&bytes)
        .map(|(owner, bytes)| Packed {
            owner,
            codec: 3,
            bytes,
        })
        .collect();
    let mut slots = vec![None; packed.len()];
    tier.write(&packed, &mut slots).expect("room on the disk");
    let mut pages: HashMap<u64, TierSlot> = (0..PAGES)
        .zip(slots)
        .map(|(owner, slot)| (owner, slot.expect("a slot for each page")))
        .collect();
    if kind & 2 != 0 {
        for owner in 0..PAGES {
            if owner % 8 < 7 && gone >> (owner % 8) & 1 != 0 {
                tier.remove(pages.remove(&owner).expect("written above"));
            }
        }
    }

    while let [a, b, c, len, rest @ ..] = damage {
        let written = &rest[..usize::from(*len).min(rest.len())];
        let at = DATA + (u64::from_le_bytes([*a, *b, *c, 0, 0, 0, 0, 0]) & 0x1ffff);
        file.write_all_at(written, at).expect("room on the disk");
        damage = &rest[written.len()..];
    }
    if kind & 4 != 0 {
        tier.clean(1 << 20, &mut |owner, from, to| {
            // A page that is not ours to move there is a page of another.
            match pages.get_mut(&owner).filter(|slot| **slot == from) {
                Some(slot) => {
                    *slot = to;
                    true
                }
                None => false,
            }
        });
    }
    let mut work = vec![0; WORK_BYTES];
    for (&owner, &slot) in &pages {
        let mut out = [0xee; 4096];
        if let Ok((codec, len)) = tier.read(slot, owner, &mut work, &mut out) {
            assert_eq!(codec, 3);
            assert!(out[..len] == bytes[owner as usize], "page {owner}");
        }
    }
}

//! What somebody sees who reads the raw file.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use common::Random;
use ghostmem_file::{FileTier, OpenError, Options};
use ghostmem_store::tier::Packed;

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ghostmem-raw-{name}-{}", std::process::id()))
}

/// Pages as programs have them: text, zeros, one byte again and again, numbers.
fn pages() -> Vec<Vec<u8>> {
    let text: &[u8] = include_bytes!("raw.rs");
    (0..3000_usize)
        .map(|page| match page % 5 {
            0 => text
                .iter()
                .cycle()
                .skip(page * 7)
                .take(4096)
                .copied()
                .collect(),
            1 => vec![0; 4096],
            2 => vec![0x41; 1 + page % 4096],
            3 => (0..512_u64)
                .flat_map(|n| (n + page as u64).to_le_bytes())
                .collect(),
            // Always the same.
            _ => text[..1500].to_vec(),
        })
        .collect()
}

/// Every run of 32 bytes of a page, by a hash of it.
fn runs(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.windows(32)
}

fn written(path: &PathBuf, encrypt: bool) -> (FileTier, Vec<u8>) {
    let tier = FileTier::open(&Options::named(path).encrypt(encrypt)).unwrap();
    let pages = pages();
    // Each page twice, and written again after cleaning.
    let packed: Vec<Packed<'_>> = (0..pages.len() * 2)
        .map(|at| Packed {
            owner: at as u64,
            codec: 0,
            bytes: &pages[at % pages.len()],
        })
        .collect();
    let mut slots = vec![None; packed.len()];
    for (batch, slots) in packed.chunks(500).zip(slots.chunks_mut(500)) {
        tier.write(batch, slots).unwrap();
    }
    let mut random = Random(5);
    for slot in &mut slots {
        if !random.one_in(3) {
            tier.remove(slot.take().unwrap());
        }
    }
    let report = tier.clean(u64::MAX, &mut |owner, from, to| {
        let slot = &mut slots[owner as usize];
        *slot == Some(from) && slot.replace(to).is_some()
    });
    assert!(
        report.moved_pages > 0 || !encrypt,
        "cleaning moved something"
    );
    let image = std::fs::read(path).unwrap();
    (tier, image)
}

#[test]
fn no_plaintext_and_no_repeated_ciphertext() {
    let path = path("sealed");
    let (tier, image) = written(&path, true);
    assert!(tier.is_encrypted());
    let mut known: HashSet<&[u8]> = HashSet::new();
    let pages = pages();
    for page in &pages {
        known.extend(runs(page));
    }
    // The first block is the header; holes read as zeros, which are a run of the page
    // of zeros, and are no blocks of the file.
    let blocks: Vec<&[u8]> = image[4096..]
        .chunks(4096)
        .filter(|block| block.iter().any(|&byte| byte != 0))
        .collect();
    assert!(blocks.len() > 1000, "{} blocks", blocks.len());
    let mut seen: HashSet<&[u8]> = HashSet::new();
    let mut bits = [0_u64; 256];
    for block in &blocks {
        for run in runs(block) {
            assert!(!known.contains(run), "32 bytes of a page in the file");
        }
        for chunk in block.windows(16) {
            assert!(seen.insert(chunk), "16 bytes of ciphertext twice");
        }
        block.iter().for_each(|&byte| bits[usize::from(byte)] += 1);
    }
    // Every byte about as often as every other: also the padding says nothing.
    let mean = bits.iter().sum::<u64>() / 256;
    assert!(
        bits.iter()
            .all(|&n| n > mean * 9 / 10 && n < mean * 11 / 10),
        "{bits:?}"
    );
}

/// That the search above finds what is there.
#[test]
fn without_encryption_the_pages_are_plain_to_see() {
    let path = path("plain");
    let (tier, image) = written(&path, false);
    assert!(!tier.is_encrypted());
    let pages = pages();
    let known: HashSet<&[u8]> = runs(&pages[0]).collect();
    assert!(image.windows(32).any(|run| known.contains(run)));
}

#[test]
fn nobody_else_may_read_the_file() {
    let path = path("mode");
    let tier = FileTier::open(&Options::named(&path)).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(tier);
}

/// An empty file that somebody put there is not taken over with its rights: as
/// root, one of another user is refused, and one of our own is closed to others.
#[test]
fn an_empty_file_is_taken_over_only_from_ourselves() {
    let path = path("found");
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let tier = FileTier::open(&Options::named(&path)).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(tier);
    std::fs::write(&path, b"").unwrap();
    // Only root can give a file away.
    if std::os::unix::fs::chown(&path, Some(1234), None).is_ok() {
        let refused = FileTier::open(&Options::named(&path));
        assert!(
            matches!(refused, Err(OpenError::Foreign { .. })),
            "{refused:?}"
        );
    } else {
        eprintln!("SKIPPED: a file of another user cannot be made without root");
    }
    std::fs::remove_file(&path).unwrap();
}

//! Many threads read and remove while one writes and cleans.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use common::{Random, payload};
use ghostmem_file::{FileSlot, FileTier, Options, Packed, WORK_BYTES};

/// A page and who may touch it: the lock is what the page word is in the engine.
type Page = Mutex<Option<(FileSlot, u64, usize)>>;

fn run(options: &Options, batches: usize) {
    const PAGES: usize = 6000;
    let tier = FileTier::open(options).unwrap();
    let pages: Vec<Page> = (0..PAGES).map(|_| Mutex::new(None)).collect();
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (tier, pages, stop, reads) = (&tier, &pages, &stop, &reads);
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut work = vec![0; WORK_BYTES];
                let mut out = [0; 4096];
                while !stop.load(Relaxed) {
                    let owner = random.below(PAGES);
                    let mut page = pages[owner].lock().unwrap();
                    let Some((slot, version, len)) = *page else {
                        continue;
                    };
                    let read = tier.read(slot, owner as u64, &mut work, &mut out);
                    assert_eq!(read, Ok((version as u8, len)));
                    assert_eq!(out[..len], payload(owner as u64, version, len)[..]);
                    reads.fetch_add(1, Relaxed);
                    // A write to the page: its place in the file is given up.
                    if random.one_in(4) {
                        *page = None;
                        tier.remove(slot);
                    }
                }
            });
        }
        let mut random = Random(99);
        for version in 1..=batches as u64 {
            let mut owners: Vec<u64> = (0..500).map(|_| random.next() % PAGES as u64).collect();
            owners.sort_unstable();
            owners.dedup();
            let bytes: Vec<Vec<u8>> = owners
                .iter()
                .map(|&owner| payload(owner, version, 1 + random.below(3000)))
                .collect();
            let packed: Vec<Packed<'_>> = owners
                .iter()
                .zip(&bytes)
                .map(|(&owner, bytes)| Packed {
                    owner,
                    codec: version as u8,
                    bytes,
                })
                .collect();
            let mut slots = vec![None; packed.len()];
            tier.write(&packed, &mut slots).unwrap();
            for (page, slot) in packed.iter().zip(slots) {
                let new = (slot.unwrap(), version, page.bytes.len());
                let old = pages[page.owner as usize].lock().unwrap().replace(new);
                if let Some((old, ..)) = old {
                    tier.remove(old);
                }
            }
            tier.tidy(2 << 20, &mut |owner, from, to| {
                // A page that is being read is left where it is.
                let Ok(mut page) = pages[owner as usize].try_lock() else {
                    return false;
                };
                match &mut *page {
                    Some((slot, ..)) if *slot == from => {
                        *slot = to;
                        true
                    }
                    _ => false,
                }
            });
        }
        stop.store(true, Relaxed);
    });
    let stats = tier.stats();
    println!(
        "{} reads beside {batches} batches, {} pages moved",
        reads.load(Relaxed),
        stats.pages_moved
    );
    assert!(stats.pages_moved > 0 && stats.read_errors == 0);
    assert!(reads.load(Relaxed) > 100);
    let live: usize = pages
        .iter()
        .flat_map(|page| *page.lock().unwrap())
        .map(|page| page.2)
        .sum();
    assert_eq!(stats.live_bytes, live as u64);
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

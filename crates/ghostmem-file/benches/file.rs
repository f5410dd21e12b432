//! The tier against plain reads and writes of a file on the same disk, and what
//! each of its parts costs.
//!
//! `cargo bench -p ghostmem-file --bench file -- [DIR] [MIB]`: the directory's disk is
//! measured. Every byte read is compared with what was written.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use ghostmem_file::{FileTier, Options};
use ghostmem_os::PAGE_SIZE;
use ghostmem_os::buffer::Buffer;
use ghostmem_store::tier::{Packed, TierSlot};

/// What LZ4 makes of a page on average.
const PACKED_BYTES: usize = 1365;
const BATCH: usize = 768;
const RUN: usize = 64;

fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    *state >> 33
}

/// Blocks for direct I/O, never freed.
fn blocks(len: usize) -> &'static mut [u8] {
    let buffer: &'static mut Buffer =
        Box::leak(Box::new(Buffer::new(len).expect("room for a buffer")));
    buffer
}

fn report(what: &str, pages: usize, bytes: usize, start: Instant) {
    let ns = start.elapsed().as_nanos() as f64;
    println!(
        "{what:<58} {:>9.0} ns a page {:>8.1} MiB/s",
        ns / pages as f64,
        bytes as f64 / ns * 1e9 / (1 << 20) as f64
    );
}

fn plain(dir: &Path, pages: usize) {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | libc::O_DIRECT)
        .open(dir)
        .expect("a file for direct I/O");
    let buffer = blocks(1 << 20);
    let len = pages * PACKED_BYTES / (1 << 20) * (1 << 20);
    let mut state = 7;
    buffer.fill_with(|| random(&mut state) as u8);
    let start = Instant::now();
    for offset in (0..len).step_by(1 << 20) {
        file.write_all_at(buffer, offset as u64).expect("a write");
    }
    report(
        "plain pwrite, 1 MiB, direct",
        len / PACKED_BYTES,
        len,
        start,
    );
    let start = Instant::now();
    for offset in (0..len).step_by(1 << 20) {
        file.write_all_at(buffer, offset as u64).expect("a write");
    }
    report(
        "plain pwrite, 1 MiB, direct, over it",
        len / PACKED_BYTES,
        len,
        start,
    );
    let (block, count) = (&mut buffer[..PAGE_SIZE], 20_000);
    let start = Instant::now();
    for _ in 0..count {
        let offset = random(&mut state) as usize % (len / PAGE_SIZE) * PAGE_SIZE;
        file.read_exact_at(block, offset as u64).expect("a read");
    }
    report(
        "plain pread, 4 KiB, random",
        count,
        count * PAGE_SIZE,
        start,
    );
    for size in [16 << 10, 88 << 10, 1 << 20] {
        let start = Instant::now();
        for offset in (0..len / size * size).step_by(size) {
            file.read_exact_at(&mut buffer[..size], offset as u64)
                .expect("a read");
        }
        let what = format!("plain pread, {} KiB, sequential", size >> 10);
        report(&what, len / PACKED_BYTES, len, start);
    }
}

fn tier(options: &Options, pages: usize, what: &str) {
    let tier = FileTier::open(options).expect("a tier");
    let mut bytes = vec![0; PACKED_BYTES];
    let mut state = 9;
    bytes.fill_with(|| random(&mut state) as u8);
    let mut slots: Vec<Option<TierSlot>> = vec![None; pages];
    let start = Instant::now();
    for (batch, chunk) in slots.chunks_mut(BATCH).enumerate() {
        let packed: Vec<Packed<'_>> = (0..chunk.len())
            .map(|at| Packed {
                owner: (batch * BATCH + at) as u64,
                codec: 1,
                bytes: &bytes,
            })
            .collect();
        tier.write(&packed, chunk).expect("room");
    }
    report(
        &format!("{what}: write, batches of 1 MiB"),
        pages,
        pages * PACKED_BYTES,
        start,
    );
    let work = blocks(72 * PAGE_SIZE);
    let mut out = [0; PAGE_SIZE];
    let count = 20_000;
    let start = Instant::now();
    for _ in 0..count {
        let owner = random(&mut state) as usize % pages;
        let slot = slots[owner].expect("written");
        let read = tier.read(slot, owner as u64, work, &mut out);
        assert_eq!(read, Ok((1, PACKED_BYTES)));
        assert_eq!(out[..PACKED_BYTES], bytes[..]);
    }
    report(
        &format!("{what}: read, random"),
        count,
        count * PACKED_BYTES,
        start,
    );
    for size in [1, 8, RUN] {
        let mut seen = 0;
        let some = pages.min(size * 20_000);
        let start = Instant::now();
        for (run, chunk) in slots[..some].chunks(size).enumerate() {
            let mut wanted = [(TierSlot::from_number(0), 0); RUN];
            for (at, slot) in chunk.iter().enumerate() {
                wanted[at] = (slot.expect("written"), (run * size + at) as u64);
            }
            tier.read_run(&wanted[..chunk.len()], work, &mut |_, read| {
                let (_, packed) = read.expect("readable");
                assert_eq!(*packed, bytes[..]);
                seen += 1;
            });
        }
        assert_eq!(seen, some);
        report(
            &format!("{what}: read, sequential, runs of {size}"),
            some,
            some * PACKED_BYTES,
            start,
        );
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (tier, slots, bytes) = (&tier, &slots, &bytes);
            scope.spawn(move || {
                let work = blocks(4 * PAGE_SIZE);
                let (mut out, mut state) = ([0; PAGE_SIZE], thread);
                for _ in 0..count / 4 {
                    let owner = random(&mut state) as usize % pages;
                    let slot = slots[owner].expect("written");
                    let read = tier.read(slot, owner as u64, work, &mut out);
                    assert_eq!(read, Ok((1, PACKED_BYTES)));
                    assert_eq!(out[..PACKED_BYTES], bytes[..]);
                }
            });
        }
    });
    report(
        &format!("{what}: read, random, 4 threads"),
        count,
        count * PACKED_BYTES,
        start,
    );
    // How long reads take while another thread writes without a pause.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut times: Vec<u64> = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let packed = [Packed {
                owner: 1,
                codec: 1,
                bytes: &bytes,
            }; BATCH];
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut given = [None; BATCH];
                tier.write(&packed, &mut given).expect("room");
                given.iter().flatten().for_each(|&slot| tier.remove(slot));
            }
        });
        for _ in 0..2000 {
            let owner = random(&mut state) as usize % pages;
            let slot = slots[owner].expect("written");
            let start = Instant::now();
            tier.read(slot, owner as u64, work, &mut out)
                .expect("readable");
            times.push(start.elapsed().as_nanos() as u64);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    times.sort_unstable();
    println!(
        "{what}: read beside a writer: median {} us, 99 of 100 within {} us, longest {} us",
        times[1000] / 1000,
        times[1980] / 1000,
        times[1999] / 1000
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let dir = arguments
        .first()
        .map_or_else(std::env::temp_dir, Into::into);
    let mib: usize = arguments
        .get(1)
        .map_or(192, |n| n.parse().expect("a number of MiB"));
    let pages = (mib << 20) / PACKED_BYTES;
    plain(&dir, pages);
    tier(&Options::unnamed(&dir), pages, "tier");
    tier(
        &Options::unnamed(&dir).encrypt(false),
        pages,
        "checksum only",
    );
    tier(&Options::unnamed(&dir).direct(false), pages, "page cache");
}

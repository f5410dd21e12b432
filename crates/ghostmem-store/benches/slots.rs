//! Cost of a slot: insert, read and remove, in nanoseconds, and how two
//! threads get along. `cargo bench -p ghostmem-store --bench slots`.
//!
//! One hundred thousand pages of LZ4-like sizes; the best of five rounds. The
//! figure beside each is a bare copy of the same bytes through the arena.

use std::hint::black_box;
use std::time::Instant;

use ghostmem_os::bytes::ByteArena;
use ghostmem_store::{MAX_SLOT_BYTES, Owner, SlabStore, Slot};

#[path = "../tests/common/mod.rs"]
mod common;
use common::{Random, page_bytes};

const PAGES: usize = 100_000;
const ROUNDS: usize = 5;

/// Nanoseconds per page of `work`.
fn time(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / PAGES as f64
}

fn shuffled(random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..PAGES).collect();
    for i in (1..PAGES).rev() {
        order.swap(i, random.below(i + 1));
    }
    order
}

fn fill(store: &SlabStore, sizes: &[usize], data: &[u8]) -> Vec<Slot> {
    let slots = sizes.iter().enumerate().map(|(owner, &len)| {
        store
            .insert(Owner::new(owner as u64), 1, &data[..len])
            .expect("no limit is set")
    });
    slots.collect()
}

fn main() {
    let mut random = Random(7);
    let sizes: Vec<usize> = (0..PAGES).map(|_| page_bytes(&mut random, 0)).collect();
    let order = shuffled(&mut random);
    let data = [0x5A_u8; MAX_SLOT_BYTES];
    let mut out = [0_u8; MAX_SLOT_BYTES];
    let names = [
        "insert, memory fresh from the kernel",
        "insert, memory held (spare slabs)",
        "rewrite: remove + insert, random page",
        "read, random page",
        "info, random page",
        "remove, random page",
        "copy into the arena, same bytes",
        "copy out of the arena, same bytes",
    ];
    let mut best = [f64::INFINITY; 8];
    for _ in 0..ROUNDS {
        let store = SlabStore::new(PAGES * MAX_SLOT_BYTES).expect("address space");
        let mut slots = Vec::new();
        let mut round = [0.0; 8];
        round[0] = time(|| slots = fill(&store, &sizes, &data));
        round[3] = time(|| {
            for &page in &order {
                black_box(store.read(slots[page], &mut out));
            }
        });
        round[4] = time(|| {
            for &page in &order {
                black_box(store.info(slots[page]));
            }
        });
        round[2] = time(|| {
            for &page in &order {
                store.remove(slots[page]);
                let len = sizes[order[page]];
                let slot = store.insert(Owner::new(page as u64), 1, &data[..len]);
                slots[page] = slot.expect("no limit is set");
            }
        });
        round[5] = time(|| {
            for &page in &order {
                store.remove(slots[page]);
            }
        });
        store.trim(usize::MAX);
        round[1] = time(|| slots = fill(&store, &sizes, &data));

        let arena = ByteArena::new(PAGES * MAX_SLOT_BYTES).expect("address space");
        let place = |page: usize| page * 1536;
        for page in 0..PAGES {
            arena.write(place(page), &data);
        }
        round[6] = time(|| {
            for page in 0..PAGES {
                arena.write(place(page), &data[..sizes[page]]);
            }
        });
        round[7] = time(|| {
            for &page in &order {
                arena.read(place(page), &mut out[..sizes[page]]);
                black_box(&out);
            }
        });
        for (best, new) in best.iter_mut().zip(round) {
            *best = best.min(new);
        }
    }
    for (name, ns) in names.iter().zip(best) {
        println!("{name:40} {ns:7.1} ns");
    }
    for (what, threads, stores) in [
        ("1 thread", 1, 1),
        ("2 threads, a store each", 2, 2),
        ("2 threads, one store", 2, 1),
    ] {
        println!(
            "insert, read, remove: {what:24} {:7.1} ns per page and thread",
            in_parallel(threads, stores, &sizes, &data)
        );
    }
}

/// Wall time per page of each of `threads` threads that fill, read and empty
/// stores at once. With a store each they share nothing: what the machine can
/// do at best.
fn in_parallel(threads: usize, stores: usize, sizes: &[usize], data: &[u8]) -> f64 {
    let capacity = threads * PAGES * MAX_SLOT_BYTES;
    let stores: Vec<SlabStore> = (0..stores)
        .map(|_| SlabStore::new(capacity).expect("address space"))
        .collect();
    let round = |thread: usize| {
        let store = &stores[thread % stores.len()];
        let mut out = [0_u8; MAX_SLOT_BYTES];
        let slots = fill(store, sizes, data);
        for &slot in &slots {
            black_box(store.read(slot, &mut out));
        }
        for &slot in &slots {
            store.remove(slot);
        }
    };
    let both = || {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let round = &round;
                scope.spawn(move || round(thread));
            }
        });
    };
    both(); // memory fetched from the kernel is not what is measured
    let rounds = (0..ROUNDS).map(|_| time(both));
    rounds.fold(f64::INFINITY, f64::min)
}

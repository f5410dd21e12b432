//! Each stage of a fault and of an eviction by itself, so that a regression
//! shows where: `cargo bench -p ghostmem-bench --bench stages`.
//!
//! ```text
//!  fault:     (signal, see `faults`)  claim a page  read the slot
//!             decompress  put the page in place  publish
//!  eviction:  claim for eviction  write-protect 64  compress  insert the slot
//!             commit and publish  drop 64
//! ```
//!
//! One page of text-like bytes that LZ4 packs about three to one; all state is
//! made beforehand, as the engine does. Stages that act on runs say per how
//! many pages their time is.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use divan::{Bencher, counter::BytesCount};
use ghostmem_codec::lz4::Lz4;
use ghostmem_codec::{Codec, PAGE_SIZE, WORTHWHILE_BYTES};
use ghostmem_os::map::{Access, Reservation};
use ghostmem_os::ranges::{drop_range, drop_ranges};
use ghostmem_os::uffd::{FEATURE_SIGBUS, FEATURE_WP, Source, Uffd};
use ghostmem_store::{Owner, SlabStore};
use ghostmem_table::{PageState, PageTable};

/// Pages of a batch of reclaim.
const BATCH: usize = 64;

fn main() {
    divan::main();
}

/// Words of a small vocabulary in a random order.
fn page() -> [u8; PAGE_SIZE] {
    const WORDS: [&str; 12] = [
        "page ",
        "frame ",
        "region ",
        "the ",
        "resident ",
        "of ",
        "slot ",
        "is ",
        "restored ",
        "reclaim ",
        "a ",
        "cold ",
    ];
    let mut rng = ghostmem_lab::rng::Rng::new(3);
    let mut bytes = Vec::new();
    while bytes.len() < PAGE_SIZE {
        bytes.extend_from_slice(WORDS[rng.below(12) as usize].as_bytes());
        bytes.push(rng.below(256) as u8);
    }
    bytes.truncate(PAGE_SIZE);
    bytes.try_into().expect("just cut to a page")
}

fn packed() -> Vec<u8> {
    let mut out = [0; PAGE_SIZE];
    let mut state = vec![0; Lz4.state_words()];
    let len = Lz4
        .compress(&mut state, &page(), &mut out[..WORTHWHILE_BYTES])
        .expect("the page compresses");
    out[..len].to_vec()
}

#[divan::bench_group(sample_count = 100)]
mod fault {
    use super::*;

    #[divan::bench]
    fn claim_and_publish(bencher: Bencher<'_, '_>) {
        let table = PageTable::new((0..BATCH).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        bencher.bench_local(|| {
            let seen = table.load(7);
            let claim = table.claim(7, seen).expect("nobody else is here");
            table.release(claim, black_box(seen))
        });
    }

    #[divan::bench]
    fn read_slot(bencher: Bencher<'_, '_>) {
        let store = SlabStore::new(64 << 20).expect("address space");
        let slot = store.insert(Owner::new(1), 1, &packed()).expect("room");
        let mut out = [0; PAGE_SIZE];
        bencher.bench_local(|| store.read(black_box(slot), &mut out));
    }

    #[divan::bench]
    fn decompress(bencher: Bencher<'_, '_>) {
        let packed = packed();
        let mut out = [0; PAGE_SIZE];
        bencher
            .counter(BytesCount::new(PAGE_SIZE))
            .bench_local(|| Lz4.decompress(black_box(&packed), &mut out));
    }

    #[divan::bench]
    fn put_in_place(bencher: Bencher<'_, '_>) {
        let memory = Memory::new();
        let page = page();
        bencher
            .with_inputs(|| memory.drop_all())
            .bench_local_values(|()| memory.uffd.copy(memory.base(), &page, true));
    }
}

#[divan::bench_group(sample_count = 100)]
mod eviction {
    use super::*;

    #[divan::bench]
    fn claim_commit_and_publish(bencher: Bencher<'_, '_>) {
        let table = PageTable::new((0..BATCH).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        let resident = {
            let seen = table.load(7);
            let claim = table.claim(7, seen).expect("nobody else is here");
            let word = seen.with_state(PageState::Resident);
            let _nobody_waits = table.release(claim, word);
            word
        };
        let mut nonce = 0;
        bencher.bench_local(|| {
            nonce += 1;
            let seen = table.load(7);
            let claim = table.begin_evict(7, seen, nonce).expect("nobody else");
            let claim = table.commit_evict(claim).expect("nobody touched it");
            let _nobody_waits =
                table.finish(claim, black_box(resident).with_state(PageState::Empty));
            let claim = table.claim(7, table.load(7)).expect("nobody else");
            table.release(claim, resident)
        });
    }

    #[divan::bench]
    fn compress(bencher: Bencher<'_, '_>) {
        let page = page();
        let mut state = vec![0; Lz4.state_words()];
        let mut out = [0; PAGE_SIZE];
        bencher.counter(BytesCount::new(PAGE_SIZE)).bench_local(|| {
            let out = &mut out[..WORTHWHILE_BYTES];
            Lz4.compress(&mut state, black_box(&page), out)
        });
    }

    #[divan::bench]
    fn insert_and_remove_slot(bencher: Bencher<'_, '_>) {
        let store = SlabStore::new(64 << 20).expect("address space");
        let packed = packed();
        bencher.bench_local(|| {
            let slot = store.insert(Owner::new(1), 1, &packed).expect("room");
            store.remove(slot);
        });
    }

    #[divan::bench]
    fn write_protect_64_pages(bencher: Bencher<'_, '_>) {
        let memory = Memory::new();
        bencher
            .with_inputs(|| memory.fill())
            .bench_local_values(|()| memory.uffd.protect(memory.base(), BATCH * PAGE_SIZE, true));
    }

    #[divan::bench]
    fn drop_64_pages(bencher: Bencher<'_, '_>) {
        let memory = Memory::new();
        bencher
            .with_inputs(|| memory.fill())
            .bench_local_values(|()| memory.drop_all());
    }
}

/// A registered run of one batch.
struct Memory {
    uffd: Uffd,
    reservation: Reservation,
}

impl Memory {
    fn new() -> Self {
        let len = BATCH * PAGE_SIZE;
        let reservation = Reservation::new(len, PAGE_SIZE, Access::ReadWrite).expect("memory");
        let uffd = Uffd::open(Source::UserModeOnly, FEATURE_SIGBUS | FEATURE_WP)
            .expect("userfaultfd: `ghostmem doctor` says what is missing");
        uffd.register(reservation.base(), len).expect("registering");
        Self { uffd, reservation }
    }

    fn base(&self) -> usize {
        self.reservation.base()
    }

    fn drop_all(&self) {
        let ranges = [drop_range(self.base(), BATCH * PAGE_SIZE)];
        // SAFETY: private anonymous memory of ours that holds nothing.
        unsafe { drop_ranges(&ranges, false, &mut |_| ()) };
    }

    fn fill(&self) {
        self.drop_all();
        let pages = page().repeat(BATCH);
        self.uffd
            .copy(self.base(), &pages, false)
            .expect("putting pages in place");
    }
}

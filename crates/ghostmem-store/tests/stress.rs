//! Threads that insert, read, replace and remove while others compact and
//! trim: every page must read back what its owner wrote, at every moment.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::thread;

use common::{Random, page_bytes, payload};
use ghostmem_store::{MAX_SLOT_BYTES, Owner, SlabStore, Slot};

const PAGES: usize = 6000;
const WORKERS: u64 = 4;
const ROUNDS: usize = 25_000;

/// A page word as the pager has it: the slot (0: none) and a claim bit.
const CLAIMED: u64 = 1 << 63;

struct Pager {
    store: SlabStore,
    words: Vec<AtomicU64>,
    /// Version of each page's content, changed under the claim.
    versions: Vec<AtomicU64>,
}

impl Pager {
    fn new(limit_bytes: usize) -> Self {
        let store = SlabStore::new(PAGES * MAX_SLOT_BYTES).unwrap();
        store.set_byte_limit(limit_bytes);
        Self {
            store,
            words: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
            versions: (0..PAGES).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Claims a page; its slot bits, or `None` when someone else has it.
    fn claim(&self, page: usize) -> Option<u64> {
        let word = self.words.get(page)?;
        let now = word.load(Relaxed);
        let free = now & CLAIMED == 0;
        (free
            && word
                .compare_exchange(now, now | CLAIMED, AcqRel, Relaxed)
                .is_ok())
        .then_some(now)
    }

    fn unclaim(&self, page: usize, slot: u64) {
        self.words[page].store(slot, Release);
    }

    fn verify(&self, page: usize, slot: Slot) {
        let mut out = [0; MAX_SLOT_BYTES];
        let info = self.store.read(slot, &mut out);
        assert_eq!(info.owner, Owner::new(page as u64));
        let version = self.versions[page].load(Relaxed);
        assert_eq!(u64::from(info.codec), version % 16);
        assert!(
            out[..info.len] == payload(page as u64, version, info.len)[..],
            "page {page} read back what it never held"
        );
    }

    /// One random operation on one random page.
    fn step(&self, random: &mut Random) {
        let page = random.below(PAGES);
        let Some(bits) = self.claim(page) else {
            return;
        };
        let mut now = bits;
        if let Some(slot) = Slot::from_bits(bits) {
            self.verify(page, slot);
            if random.below(2) == 0 {
                self.store.remove(slot);
                now = 0;
            }
        }
        if now == 0 && random.below(3) > 0 {
            let version = self.versions[page].fetch_add(1, Relaxed) + 1;
            let data = payload(page as u64, version, page_bytes(random, 50));
            let codec = (version % 16) as u8;
            let slot = self.store.insert(Owner::new(page as u64), codec, &data);
            now = slot.map_or(0, Slot::bits);
        }
        self.unclaim(page, now);
    }

    fn relocate(&self, owner: Owner, slot: Slot) -> bool {
        // Owners may be stale or nonsense: `claim` checks the bounds.
        let page = owner.get() as usize;
        let Some(bits) = self.claim(page) else {
            return false;
        };
        let copy = (bits == slot.bits())
            .then(|| self.store.copy(slot))
            .flatten();
        match copy {
            Some(copy) => {
                self.store.remove(slot);
                self.unclaim(page, copy.bits());
            }
            None => self.unclaim(page, bits),
        }
        copy.is_some()
    }
}

fn run(limit_bytes: usize) -> Pager {
    let pager = Pager::new(limit_bytes);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let workers: Vec<_> = (1..=WORKERS)
            .map(|seed| {
                let pager = &pager;
                scope.spawn(move || {
                    let mut random = Random(seed);
                    for _ in 0..ROUNDS {
                        pager.step(&mut random);
                        assert!(pager.store.held_bytes() <= limit_bytes as u64);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut random = Random(99);
            while !done.load(Acquire) {
                pager
                    .store
                    .compact(500, &mut |owner, slot| pager.relocate(owner, slot));
                pager.store.trim(random.below(1 << 20));
            }
        });
        let failed = workers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .filter(Result::is_err)
            .count();
        done.store(true, Release);
        assert_eq!(failed, 0, "a worker saw wrong content");
    });
    pager
}

fn drain(pager: &Pager) {
    let mut live = 0;
    for page in 0..PAGES {
        if let Some(slot) = pager.claim(page).and_then(Slot::from_bits) {
            pager.verify(page, slot);
            pager.store.remove(slot);
            live += 1;
        }
    }
    assert!(live > 100, "the run left pages behind");
    pager.store.trim(0);
    let stats = pager.store.stats();
    assert_eq!((stats.live_slots, stats.data_bytes), (0, 0));
    assert_eq!((stats.held_bytes, stats.spare_bytes), (0, 0), "{stats:?}");
}

#[test]
fn content_survives_concurrent_churn_and_compaction() {
    let pager = run(1 << 40);
    let stats = pager.store.stats();
    assert!(stats.relocations > 0, "compaction took part: {stats:?}");
    drain(&pager);
}

#[test]
fn content_survives_at_a_byte_limit_that_is_always_reached() {
    let pager = run(2 << 20);
    drain(&pager);
}

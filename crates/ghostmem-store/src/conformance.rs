//! What every tier keeps to, tried on any of them.
//!
//! Each function is one part of the contract ([`crate::tier`]). It takes a closure
//! that opens a tier, and panics where the tier does not keep to it. All of them are
//! to be run on every tier as it is, and once more behind [`Faulty`], which refuses,
//! fails and is slow as its seed says.
//!
//! A fork is an unsafe call: [`forks`] is given it.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "this is a test, which panics where it fails"
)]

mod asking;
mod faulty;
pub mod forks;
mod pair;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::MAX_SLOT_BYTES;
use crate::tier::{
    Access, ColdTier, Packed, Tended, TierCause, TierSlot, TierStats, WriteError, ask_and_wait,
};

pub use asking::Asking;
pub use faulty::{Faulty, Rates};
pub use pair::{Page, Pair, Random, payload};

/// Random operations on a tier and on a plain map: they must agree.
pub fn model<T: ColdTier>(open: impl Fn() -> T, seed: u64, steps: usize, len_max: usize) {
    let mut random = Random(seed);
    let mut pair = Pair::new(open());
    for _ in 0..steps {
        match random.below(12) {
            0..=4 => {
                let count = 1 + random.below(300);
                let batch: Vec<(u64, usize, u8)> = (0..count as u64)
                    .map(|at| {
                        let owner = (at << 16) + random.below(40) as u64;
                        let len = 1 + random.below(len_max);
                        (owner, len, random.next() as u8)
                    })
                    .collect();
                pair.write(&batch).expect("there is room");
            }
            5..=6 => {
                let owners: Vec<u64> = pair.pages.keys().copied().collect();
                for owner in owners {
                    if random.one_in(10) {
                        pair.remove(owner);
                    }
                }
            }
            7..=8 => {
                pair.tend(random.next() % (4 << 20));
            }
            9 => {
                let owners: Vec<u64> = pair.pages.keys().copied().take(64).collect();
                assert_eq!(pair.read_run(&owners), []);
            }
            _ => {
                let owner = pair.pages.keys().next().copied();
                if let Some(owner) = owner {
                    pair.read(owner).expect("it is there");
                }
            }
        }
    }
    pair.check_all();
}

/// What is asked for wrongly is refused, names the tier and changes nothing; what is
/// asked for rightly at an edge is done.
pub fn edges<T: ColdTier>(open: impl Fn() -> T) {
    let mut pair = Pair::new(open());
    let title = pair.tier.title();
    assert!(!title.is_empty());
    let asks = pair.tier.access() == Access::Ask;
    assert_eq!(asks, pair.tier.news().is_some(), "who asks needs news");

    // Nothing, and pages of every edge's length, codec and owner.
    assert_eq!(pair.tier.write(&[], &mut []), Ok(()));
    let last = (1 << 40) - 1;
    let batch = [
        (0, 1, 0),
        (1, MAX_SLOT_BYTES, 15),
        (last, MAX_SLOT_BYTES - 1, 1),
        (last - 1, 2, u8::MAX),
    ];
    pair.write(&batch).expect("there is room for four pages");
    let slots: HashSet<TierSlot> = pair.pages.values().map(|page| page.slot).collect();
    assert_eq!(slots.len(), batch.len(), "one slot for two pages");
    assert!(slots.iter().all(|slot| slot.number() < TierSlot::END));
    pair.check_all();

    // Pages that are none take the good ones of their batch with them.
    let good = [7; 100];
    let long = [7; MAX_SLOT_BYTES + 1];
    for bad in [&[][..], &long[..]] {
        let page = |bytes| Packed {
            owner: 9,
            codec: 1,
            bytes,
        };
        let mut slots = [None; 2];
        let refused = pair.tier.write(&[page(&good), page(bad)], &mut slots);
        assert_eq!(refused, Err(WriteError::BadPage));
        assert_eq!(slots, [None; 2]);
    }
    let page = Packed {
        owner: 9,
        codec: 1,
        bytes: &good,
    };
    let refused = pair.tier.write(&[page, page], &mut [None]);
    assert_eq!(refused, Err(WriteError::BadPage), "too few places");
    pair.check_all();

    // Another's page is nobody's to read.
    let slot = pair.pages[&1].slot;
    let mut work = vec![0; pair.tier.work_bytes()];
    let mut out = [0; MAX_SLOT_BYTES];
    let refused = pair.tier.read(slot, 2, &mut work, &mut out);
    let error = refused.expect_err("it is page 1's");
    assert_eq!(error.cause, TierCause::WrongOwner);
    assert!(error.to_string().starts_with(title), "{error}");
    pair.tier
        .read_run(&[(slot, 2)], &mut work, &mut |index, read| {
            assert_eq!((index, read.is_err()), (0, true));
        });
    let error = pair.tier.undecodable(slot);
    assert_eq!(error.cause, TierCause::Undecodable);
    assert!(error.to_string().starts_with(title), "{error}");
    pair.check_all();

    // Asking gives what reading does; one who gave up may ask again.
    if asks {
        let first = pair.tier.ask(slot, 1, &mut work, &mut out);
        assert_eq!(first, None, "who asks has no answer at once");
    }
    let answer = ask_and_wait(&pair.tier, slot, 1, &mut work, &mut out);
    assert_eq!(answer, Ok((15, MAX_SLOT_BYTES)));
    let version = pair.pages[&1].version;
    assert!(out[..] == payload(1, version, MAX_SLOT_BYTES)[..]);
    if asks {
        // A question that goes with its page.
        let first = pair.tier.ask(slot, 1, &mut work, &mut out);
        assert_eq!(first, None);
        pair.remove(1);
        pair.write(&[(1, 77, 3)]).expect("there is room");
    }
    pair.check_all();

    // A tier that holds nothing.
    let owners: Vec<u64> = pair.pages.keys().copied().collect();
    owners.into_iter().for_each(|owner| pair.remove(owner));
    while pair.tend(1 << 20).is_behind {}
    pair.check_all();
    pair.write(&batch).expect("there is room for four pages");
    pair.check_all();
}

/// Many threads read and remove while one writes and tends, at least `batches` and until
/// there were reads; what there was in the end, and how many reads were right.
pub fn parallel<T: ColdTier>(open: impl Fn() -> T, batches: usize) -> (TierStats, u64) {
    const PAGES: usize = 6000;
    const READS_LEAST: u64 = 200;
    /// A page and who may touch it: the lock is what the page word is in the engine.
    type Page = Mutex<Option<(TierSlot, u64, usize)>>;
    let tier = open();
    let pages: Vec<Page> = (0..PAGES).map(|_| Mutex::new(None)).collect();
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        // Also when the writer fails: the readers would wait for it for ever.
        let _stops = Stops(&stop);
        for thread in 0..4_u64 {
            let (tier, pages, stop, reads) = (&tier, &pages, &stop, &reads);
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut work = vec![0; tier.work_bytes()];
                let mut out = [0; MAX_SLOT_BYTES];
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
                    // A write to the page: its place in the tier is given up.
                    if random.one_in(4) {
                        *page = None;
                        tier.remove(slot);
                    }
                }
            });
        }
        let mut random = Random(99);
        let mut version = 0;
        // The readers may get little of the processor: nothing is shown without them.
        while version < batches as u64 || reads.load(Relaxed) < READS_LEAST {
            version += 1;
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
            tier.tend(2 << 20, &mut |owner, from, to| {
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
    });
    let stats = tier.stats();
    assert_eq!(stats.read_errors, 0);
    let live: usize = pages
        .iter()
        .flat_map(|page| *page.lock().unwrap())
        .map(|page| page.2)
        .sum();
    assert_eq!(stats.live_bytes, live as u64);
    (stats, reads.load(Relaxed))
}

/// Ends the readers when it goes.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Tending that is always refused ends all the same, and leaves everything right; how
/// many pages were asked for, and what it says. The tier is there to look at then.
pub fn tending_without_leave<T: ColdTier>(open: impl Fn() -> T) -> (Pair<T>, u64, Tended) {
    let mut pair = Pair::new(open());
    for version in 0..4 {
        for start in (0..8000).step_by(500) {
            let batch: Vec<(u64, usize, u8)> = (start..start + 500)
                .filter(|page| version == 0 || page % 3 == 0)
                .map(|page| (page, 2000, 1))
                .collect();
            pair.write(&batch).unwrap();
        }
    }
    let owners: Vec<u64> = pair
        .pages
        .keys()
        .copied()
        .filter(|page| page % 3 == 1)
        .collect();
    owners.into_iter().for_each(|owner| pair.remove(owner));
    let mut asked = 0;
    let report = pair.tier.tend(16 << 20, &mut |_, _, _| {
        asked += 1;
        false
    });
    assert_eq!((report.moved_bytes, report.moved_pages), (0, 0));
    assert!(report.written_bytes < 18 << 20, "{report:?}");
    pair.check_all();
    while pair.tend(4 << 20).is_behind {}
    pair.check_all();
    (pair, asked, report)
}

/// A tier with a limit refuses what is beyond it, says so, loses nothing, and takes
/// pages again when others have gone. `open` opens one of 8 to 40 MiB.
pub fn limit<T: ColdTier>(open: impl Fn() -> T) {
    let mut pair = Pair::new(open());
    let limit = pair.tier.stats().limit_bytes;
    assert!((8 << 20..=40 << 20).contains(&limit), "{limit}");
    let mut random = Random(3);
    let (mut refused, mut next) = (0, 0);
    while refused < 20 {
        let batch: Vec<(u64, usize, u8)> = (next..next + 300)
            .map(|owner| (owner, 200 + random.below(2000), 2))
            .collect();
        match pair.write(&batch) {
            Ok(()) => next += 300,
            Err(WriteError::LimitReached) => {
                refused += 1;
                let owners: Vec<u64> = pair.pages.keys().copied().take(900).collect();
                owners.into_iter().for_each(|owner| pair.remove(owner));
            }
            Err(other) => panic!("{other}"),
        }
        pair.tend(4 << 20);
        let stats = pair.tier.stats();
        assert!(stats.file_bytes <= limit, "{stats:?}");
        assert!(next < 100_000, "the limit was never reached: {stats:?}");
    }
    pair.check_all();
    // It was used, too.
    let live = pair.tier.stats().live_bytes;
    assert!(live > limit / 2, "{live} of {limit}");
}

/// Everything may fail at any moment, as `faulty`'s seed says: no wrong byte is ever
/// returned, no page is lost, and once all is well again everything works. How often a
/// refusal was seen.
pub fn storm<T: ColdTier>(open: impl Fn() -> Faulty<T>, seed: u64, steps: usize) -> u64 {
    let faulty = open();
    let title = faulty.title();
    let mut pair = Pair::new(faulty);
    let mut random = Random(seed);
    let mut refusals = 0;
    let mut kinds: HashMap<&'static str, u64> = HashMap::new();
    for step in 0..steps {
        let trouble = step % 50 >= 10;
        pair.tier
            .set(if trouble { Rates::STORM } else { Rates::CALM });
        let mut refuse = |kind| {
            refusals += 1;
            *kinds.entry(kind).or_default() += 1;
            assert!(trouble, "{kind} without a cause");
        };
        match random.below(10) {
            0..=3 => {
                let base = random.next() % 12_000;
                let batch: Vec<(u64, usize, u8)> = (0..1 + random.below(120) as u64)
                    .map(|at| (base + at, 1 + random.below(4096), random.next() as u8))
                    .collect();
                match pair.write(&batch) {
                    Ok(()) => {}
                    Err(WriteError::NoSpace { .. }) => refuse("no space"),
                    Err(WriteError::Io { .. }) => refuse("error of a write"),
                    Err(WriteError::LimitReached) => refuse("limit"),
                    Err(WriteError::Full) => refuse("full"),
                    Err(WriteError::NoKey) => refuse("no key"),
                    Err(other) => panic!("{other}"),
                }
            }
            4 => {
                let owners: Vec<u64> = pair.pages.keys().copied().collect();
                for owner in owners.into_iter().filter(|_| random.one_in(20)) {
                    pair.remove(owner);
                }
            }
            5 => {
                pair.tend(1 << 20);
            }
            6..=7 => {
                let owners: Vec<u64> = pair.pages.keys().copied().collect();
                for _ in 0..20.min(owners.len()) {
                    let owner = owners[random.below(owners.len())];
                    if let Err(error) = pair.read(owner) {
                        refuse("error of a read");
                        assert_ne!(error.cause, TierCause::NoRecord);
                        assert!(error.to_string().starts_with(title), "{error}");
                    }
                }
            }
            _ => {
                let mut owners: Vec<u64> = pair.pages.keys().copied().take(300).collect();
                owners.sort_unstable();
                for (_, error) in pair.read_run(&owners[..owners.len().min(64)]) {
                    refuse("error in a run");
                    assert!(error.to_string().starts_with(title), "{error}");
                }
            }
        }
    }
    // All is well again: everything is there.
    pair.tier.set(Rates::CALM);
    pair.check_all();
    while pair.tend(4 << 20).is_behind {}
    pair.write(&[(1, 100, 1)]).expect("it takes pages again");
    pair.check_all();
    println!("{kinds:?}, {} made", pair.tier.made());
    assert_eq!(
        kinds.len(),
        7,
        "not every kind of refusal was seen: {kinds:?}"
    );
    refusals
}

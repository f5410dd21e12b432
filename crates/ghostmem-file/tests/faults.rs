//! Every file operation may fail, in every way, at any moment: at least 10,000
//! random cases. No wrong byte is ever returned, no page is lost but to an error that
//! says so, and once the disk is well again everything works.
#![cfg(target_os = "linux")] // the file tier
#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::{Pair, Random};
use ghostmem_file::{Faults, FileTier, Injected, Options};
use ghostmem_store::tier::{TierCause, WriteError};

/// Decides by a random number for each operation.
#[derive(Debug)]
struct Dice {
    random: Mutex<u64>,
    /// One operation in so many goes wrong; 0: none.
    reads: AtomicU64,
    writes: AtomicU64,
    /// Writes may succeed and yet be wrong on the disk.
    lies: AtomicU64,
    cases: AtomicU64,
}

impl Dice {
    const fn new() -> Self {
        Self {
            random: Mutex::new(1),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            lies: AtomicU64::new(0),
            cases: AtomicU64::new(0),
        }
    }

    fn set(&self, seed: u64, reads: u64, writes: u64, lies: u64) {
        *self.random.lock().unwrap() = seed;
        self.reads.store(reads, Relaxed);
        self.writes.store(writes, Relaxed);
        self.lies.store(lies, Relaxed);
    }

    fn roll(&self, one_in: &AtomicU64) -> Option<Random> {
        let one_in = one_in.load(Relaxed);
        let mut state = self.random.lock().unwrap();
        let mut random = Random(*state);
        let hit = one_in > 0 && random.next().is_multiple_of(one_in);
        *state = random.next();
        if hit {
            self.cases.fetch_add(1, Relaxed);
        }
        hit.then_some(random)
    }
}

impl Faults for Dice {
    fn read(&self, _: u64, len: usize) -> Injected {
        let Some(mut random) = self.roll(&self.reads) else {
            return Injected::Nothing;
        };
        match random.below(4) {
            0 => Injected::Errno(libc::EIO),
            1 => Injected::Errno([libc::ESTALE, libc::ENODEV, libc::EBADF][random.below(3)]),
            2 => Injected::Short(random.below(len), 0),
            _ => Injected::Flip(random.next() as usize, 1 << random.below(8)),
        }
    }

    fn write(&self, _: u64, len: usize) -> Injected {
        let errnos = [
            libc::EIO,
            libc::ENOSPC,
            libc::EDQUOT,
            libc::EFBIG,
            libc::EROFS,
        ];
        if let Some(mut random) = self.roll(&self.writes) {
            let errno = errnos[random.below(errnos.len())];
            return match random.below(2) {
                0 => Injected::Errno(errno),
                _ => Injected::Short(random.below(len), errno),
            };
        }
        let Some(mut random) = self.roll(&self.lies) else {
            return Injected::Nothing;
        };
        match random.below(2) {
            0 => Injected::Lost,
            _ => Injected::Flip(random.next() as usize, 1 << random.below(8)),
        }
    }

    fn punch(&self, _: u64, _: u64) -> Injected {
        match self.roll(&self.writes) {
            Some(_) => Injected::Errno(libc::EOPNOTSUPP),
            None => Injected::Nothing,
        }
    }
}

/// A read error must name the file, the offset and what happened.
fn check_message(message: &str, title: &str) {
    let rest = message.strip_prefix(title).expect("the file comes first");
    let rest = rest.strip_prefix(" at offset ").expect("then the offset");
    let (offset, what) = rest.split_once(": ").expect("then what happened");
    assert!(
        offset.parse::<u64>().is_ok_and(|offset| offset >= 1 << 20),
        "{message}"
    );
    let known = [
        "input/output error, EIO (errno 5)",
        "file gone from its server, ESTALE (errno 116)",
        "device gone, ENODEV (errno 19)",
        "file closed, EBADF (errno 9)",
        "the file was cut short, ",
        "the bytes there are not the ones that were written (wrong ",
    ];
    assert!(
        known.iter().any(|known| what.starts_with(known)),
        "{message}"
    );
}

fn storm(dice: &'static Dice, encrypt: bool, seed: u64, steps: usize, lies: bool) -> u64 {
    let options = Options::unnamed(std::env::temp_dir())
        .encrypt(encrypt)
        .nonce_bits(6)
        .limit_bytes(40 << 20)
        .faults(dice);
    dice.set(seed, 0, 0, 0);
    let tier = FileTier::open(&options).unwrap();
    let title = tier.title();
    let mut pair = Pair::new(tier);
    let mut random = Random(seed);
    let mut refusals = 0;
    // Written while writes lie: these may turn out to be unreadable.
    let mut suspects: HashSet<u64> = HashSet::new();
    for step in 0..steps {
        let trouble = step % 50 >= 10;
        let (reads, writes) = if trouble { (3, 4) } else { (0, 0) };
        let lying = if lies && trouble { 6 } else { 0 };
        dice.set(random.next(), reads, writes, lying);
        match random.below(10) {
            0..=3 => {
                let base = random.next() % 12_000;
                let batch: Vec<(u64, usize, u8)> = (0..1 + random.below(120) as u64)
                    .map(|at| (base + at, 1 + random.below(4096), random.next() as u8))
                    .collect();
                match pair.write(&batch) {
                    Ok(()) => {
                        for (owner, ..) in batch {
                            suspects.remove(&owner);
                            if lying > 0 {
                                suspects.insert(owner);
                            }
                        }
                    }
                    Err(error) => {
                        refusals += 1;
                        let expected = match error {
                            WriteError::NoSpace { .. } => "the tier for cold pages cannot grow: ",
                            WriteError::Io { .. } => "the tier for cold pages takes no writes: ",
                            WriteError::LimitReached => {
                                "the tier for cold pages has reached its limit"
                            }
                            WriteError::NoKey => "no new key for cold pages can be had now",
                            other => panic!("{other}"),
                        };
                        assert!(error.to_string().starts_with(expected), "{error}");
                    }
                }
            }
            4 => {
                let owners: Vec<u64> = pair.pages.keys().copied().collect();
                for owner in owners.into_iter().filter(|_| random.one_in(20)) {
                    pair.remove(owner);
                    suspects.remove(&owner);
                }
            }
            5 => {
                // Reads that lie are found out; writes that lie move on with a page.
                let before: Vec<u64> = suspects.iter().copied().collect();
                let slots: Vec<_> = pair.pages.iter().map(|(&o, page)| (o, page.slot)).collect();
                pair.tend(1 << 20);
                if lying > 0 {
                    suspects.extend(
                        slots
                            .iter()
                            .filter(|(owner, slot)| pair.pages[owner].slot != *slot)
                            .map(|(owner, _)| *owner),
                    );
                }
                assert!(before.iter().all(|owner| suspects.contains(owner)));
            }
            6..=7 => {
                let owners: Vec<u64> = pair.pages.keys().copied().collect();
                for _ in 0..20.min(owners.len()) {
                    let owner = owners[random.below(owners.len())];
                    if let Err(error) = pair.read(owner) {
                        refusals += 1;
                        assert!(trouble || suspects.contains(&owner), "{error}");
                        assert_ne!(error.cause, TierCause::NoRecord);
                        check_message(&error.to_string(), title);
                    }
                }
            }
            _ => {
                let mut owners: Vec<u64> = pair.pages.keys().copied().take(300).collect();
                owners.sort_unstable();
                let run = &owners[..owners.len().min(64)];
                for (owner, error) in pair.read_run(run) {
                    refusals += 1;
                    assert!(trouble || suspects.contains(&owner), "{error}");
                    check_message(&error.to_string(), title);
                }
            }
        }
    }
    // The disk is well again: what was not lied about is all there.
    dice.set(seed, 0, 0, 0);
    let owners: Vec<u64> = pair.pages.keys().copied().collect();
    for owner in owners {
        match pair.read(owner) {
            Ok(()) => {}
            Err(error) => {
                assert!(suspects.contains(&owner), "owner {owner}: {error}");
                check_message(&error.to_string(), title);
                pair.remove(owner);
            }
        }
    }
    while pair.tend(4 << 20).is_behind {}
    match pair.write(&[(1, 100, 1)]) {
        Ok(()) => pair.read(1).unwrap(),
        Err(WriteError::LimitReached | WriteError::NoKey) => {}
        Err(other) => panic!("{other}"),
    }
    pair.check_all();
    refusals
}

fn many(dice: &'static Dice, encrypt: bool, lies: bool, seeds: core::ops::Range<u64>) {
    let mut refusals = 0;
    let count = seeds.end - seeds.start;
    for seed in seeds {
        refusals += storm(dice, encrypt, seed, 500, lies);
    }
    let cases = dice.cases.load(Relaxed);
    println!("{cases} operations made to fail in {count} runs, {refusals} refusals seen");
    assert!(cases >= 3000 && refusals >= 1000, "{cases} {refusals}");
}

#[test]
fn failing_reads_and_writes() {
    static DICE: Dice = Dice::new();
    many(&DICE, true, false, 0..3);
}

#[test]
fn failing_reads_and_writes_without_encryption() {
    static DICE: Dice = Dice::new();
    many(&DICE, false, false, 100..103);
}

#[test]
fn writes_that_lie() {
    static DICE: Dice = Dice::new();
    many(&DICE, true, true, 200..203);
}

#[test]
fn writes_that_lie_without_encryption() {
    static DICE: Dice = Dice::new();
    many(&DICE, false, true, 300..303);
}

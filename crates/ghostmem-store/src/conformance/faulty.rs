//! A tier around a tier, which fails on purpose.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::Random;
use crate::MAX_SLOT_BYTES;
use crate::tier::{
    Access, ColdTier, EachRead, Moved, Packed, Read, Tended, TierCause, TierError, TierSlot,
    TierStats, WriteError,
};

/// How often what goes wrong: one call in so many, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Pages that cannot be read.
    pub reads: u64,
    /// Batches that are refused, some of them half done.
    pub writes: u64,
    /// Pages that tending may not move, and forks that must try again.
    pub others: u64,
    /// Calls that take their time.
    pub slow: u64,
}

impl Rates {
    /// Nothing goes wrong.
    pub const CALM: Self = Self {
        reads: 0,
        writes: 0,
        others: 0,
        slow: 0,
    };
    /// Much does.
    pub const STORM: Self = Self {
        reads: 4,
        writes: 3,
        others: 3,
        slow: 5,
    };
    /// Nothing fails, but nobody knows when anything is done.
    pub const SLOW: Self = Self {
        slow: 3,
        ..Self::CALM
    };
}

/// A tier whose calls fail, or are slow, as a seed says.
#[derive(Debug)]
pub struct Faulty<T> {
    inner: T,
    random: Mutex<Random>,
    reads: AtomicU64,
    writes: AtomicU64,
    others: AtomicU64,
    slow: AtomicU64,
    made: AtomicU64,
    /// What was made to fail: the tier below does not know of it.
    read_errors: AtomicU64,
    write_errors: AtomicU64,
}

/// `EIO`, `ENOSPC` of errno(3).
const EIO: i32 = ghostmem_os::error::EIO;
const ENOSPC: i32 = ghostmem_os::error::ENOSPC;

impl<T: ColdTier> Faulty<T> {
    /// Around a tier; nothing goes wrong but for `rates`.
    pub const fn new(inner: T, seed: u64, rates: Rates) -> Self {
        Self {
            inner,
            random: Mutex::new(Random(seed)),
            reads: AtomicU64::new(rates.reads),
            writes: AtomicU64::new(rates.writes),
            others: AtomicU64::new(rates.others),
            slow: AtomicU64::new(rates.slow),
            made: AtomicU64::new(0),
            read_errors: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
        }
    }

    /// From now on.
    pub fn set(&self, rates: Rates) {
        self.reads.store(rates.reads, Relaxed);
        self.writes.store(rates.writes, Relaxed);
        self.others.store(rates.others, Relaxed);
        self.slow.store(rates.slow, Relaxed);
    }

    /// Faults made so far.
    pub fn made(&self) -> u64 {
        self.made.load(Relaxed)
    }

    /// A number for what goes wrong, if it does.
    fn roll(&self, rate: &AtomicU64) -> Option<u64> {
        let rate = rate.load(Relaxed);
        if rate == 0 {
            return None;
        }
        let mut random = self.random.lock().unwrap();
        if !random.next().is_multiple_of(rate) {
            return None;
        }
        self.made.fetch_add(1, Relaxed);
        Some(random.next())
    }

    /// Lets others go first, now and then.
    fn dawdle(&self) {
        if let Some(turns) = self.roll(&self.slow) {
            for _ in 0..turns % 8 {
                std::thread::yield_now();
            }
        }
    }

    fn fail_read(&self) -> Option<TierError> {
        let cause = match self.roll(&self.reads)? % 4 {
            0 => TierCause::Io { errno: EIO },
            1 => TierCause::Short {
                got_bytes: 1,
                wanted_bytes: 2,
            },
            2 => TierCause::Tampered,
            _ => TierCause::Checksum,
        };
        self.read_errors.fetch_add(1, Relaxed);
        Some(TierError::of(self.inner.title(), cause))
    }

    /// What a batch is refused with, and how many of its pages were written before.
    fn fail_write(&self, pages: usize) -> Option<(WriteError, usize)> {
        let number = self.roll(&self.writes)?;
        let error = match number % 5 {
            0 => WriteError::NoSpace { errno: ENOSPC },
            1 => WriteError::Io { errno: EIO },
            2 => WriteError::LimitReached,
            3 => WriteError::Full,
            _ => WriteError::NoKey,
        };
        Some((error, (number >> 8) as usize % (pages + 1)))
    }
}

impl<T: ColdTier> ColdTier for Faulty<T> {
    fn title(&self) -> &'static str {
        self.inner.title()
    }

    fn access(&self) -> Access {
        self.inner.access()
    }

    fn work_bytes(&self) -> usize {
        self.inner.work_bytes()
    }

    fn read(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Read {
        self.dawdle();
        match self.fail_read() {
            Some(error) => Err(error),
            None => self.inner.read(slot, owner, work, out),
        }
    }

    fn ask(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Option<Read> {
        self.dawdle();
        // The answer is given once, right or wrong.
        let answer = self.inner.ask(slot, owner, work, out)?;
        Some(self.fail_read().map_or(answer, Err))
    }

    fn news(&self) -> Option<&AtomicU64> {
        self.inner.news()
    }

    fn read_run(&self, pages: &[(TierSlot, u64)], work: &mut [u8], each: &mut EachRead<'_>) {
        self.dawdle();
        self.inner
            .read_run(pages, work, &mut |index, read| match self.fail_read() {
                Some(error) => each(index, Err(error)),
                None => each(index, read),
            });
    }

    fn undecodable(&self, slot: TierSlot) -> TierError {
        self.inner.undecodable(slot)
    }

    fn remove(&self, slot: TierSlot) {
        self.dawdle();
        self.inner.remove(slot);
    }

    fn write(
        &self,
        pages: &[Packed<'_>],
        slots: &mut [Option<TierSlot>],
    ) -> Result<(), WriteError> {
        self.dawdle();
        let Some((error, before)) = self.fail_write(pages.len()) else {
            return self.inner.write(pages, slots);
        };
        // A short write: what there is of the batch is taken out again.
        let slots = &mut slots[..before];
        if self.inner.write(&pages[..before], slots).is_ok() {
            self.dawdle();
            for slot in slots.iter_mut().filter_map(Option::take) {
                self.inner.remove(slot);
            }
        }
        self.write_errors.fetch_add(1, Relaxed);
        Err(error)
    }

    fn tend(&self, budget_bytes: u64, moved: &mut Moved<'_>) -> Tended {
        self.dawdle();
        self.inner.tend(budget_bytes, &mut |owner, from, to| {
            self.roll(&self.others).is_none() && moved(owner, from, to)
        })
    }

    fn stats(&self) -> TierStats {
        let stats = self.inner.stats();
        TierStats {
            read_errors: stats.read_errors + self.read_errors.load(Relaxed),
            write_errors: stats.write_errors + self.write_errors.load(Relaxed),
            ..stats
        }
    }

    fn try_before_fork(&self) -> bool {
        self.roll(&self.others).is_none() && self.inner.try_before_fork()
    }

    fn cancel_fork(&self) {
        self.inner.cancel_fork();
    }

    fn after_fork_in_parent(&self) {
        self.inner.after_fork_in_parent();
    }

    fn after_fork_in_child(&self) {
        self.inner.after_fork_in_child();
    }
}

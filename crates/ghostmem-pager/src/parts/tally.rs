//! A sum that many threads change, kept without a cache line they share.

use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_os::map::ZeroArray;
use ghostmem_os::shards::LINE_BYTES;
use ghostmem_os::{OsError, thread};

/// Shares for each processor: as many threads as there are processors rarely meet in
/// one.
const SHARES_PER_PROCESSOR: usize = 4;

/// 8 KiB at least.
const SHARES_MIN: usize = 64;

/// A sum that many threads change, kept without a cache line they share: a share of the
/// threads whose number says so. A share wraps below zero where they take back what
/// others handed out.
pub(crate) struct Tally {
    /// A power of two of them, the first word of a line each.
    shares: ZeroArray<[AtomicUsize; LINE_BYTES / size_of::<usize>()]>,
}

impl Tally {
    /// # Errors
    /// The kernel's refusal of memory.
    pub(crate) fn new(processors: usize) -> Result<Self, OsError> {
        let shares = (SHARES_PER_PROCESSOR * processors).max(SHARES_MIN);
        Ok(Self {
            shares: ZeroArray::new(shares.next_power_of_two())?,
        })
    }

    #[inline]
    pub(crate) fn mine(&self) -> &AtomicUsize {
        // The thread's number is an address: spread it (Fibonacci hashing). It
        // costs one instruction to get, the processor's a call.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let spread = (thread::key() as u64).wrapping_mul(SPREAD) >> 32;
        &self.shares[spread as usize & (self.shares.len() - 1)][0]
    }

    pub(crate) fn add(&self, amount: usize) {
        if amount > 0 {
            self.mine().fetch_add(amount, Ordering::Relaxed);
        }
    }

    pub(crate) fn sub(&self, amount: usize) {
        if amount > 0 {
            self.mine().fetch_sub(amount, Ordering::Relaxed);
        }
    }

    /// Never below zero: what one thread hands out and another takes back while the
    /// shares are read may be seen in one of them only, and an owner may take
    /// back more than it handed out.
    pub(crate) fn sum(&self) -> usize {
        let add = |total: usize, share: &[AtomicUsize; LINE_BYTES / size_of::<usize>()]| {
            total.wrapping_add(share[0].load(Ordering::Relaxed))
        };
        let sum = self.shares.iter().fold(0, add) as isize;
        sum.max(0).unsigned_abs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn what_threads_add_and_others_take_back_is_the_difference() {
        for processors in [1, 2, 256] {
            let tally = Tally::new(processors).unwrap();
            assert!(tally.shares.len() >= SHARES_PER_PROCESSOR * processors);
            let added = Barrier::new(8);
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let (tally, added) = (&tally, &added);
                    scope.spawn(move || {
                        (0..1000).for_each(|_| tally.add(thread));
                        added.wait();
                        // Less than all threads added, more than some of them did.
                        (0..1000).for_each(|_| tally.sub(3));
                    });
                }
            });
            assert_eq!(tally.sum(), 1000 * (28 - 8 * 3));
            tally.sub(5000);
            assert_eq!(tally.sum(), 0);
        }
    }
}

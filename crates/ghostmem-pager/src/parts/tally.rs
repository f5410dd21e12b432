//! A sum that many threads change, kept without a cache line they share.

use core::sync::atomic::{AtomicUsize, Ordering};

use ghostmem_os::thread;

/// So many threads rarely meet in one share.
const SHARES: usize = 64;

/// A sum that many threads change, kept without a cache line they share.
pub(crate) struct Tally([Share; SHARES]);

/// The share of the threads whose number says so; wraps below zero where they
/// take back what others handed out.
#[repr(align(128))]
struct Share(AtomicUsize);

impl Tally {
    pub(crate) const fn new() -> Self {
        Self([const { Share(AtomicUsize::new(0)) }; SHARES])
    }

    #[inline]
    pub(crate) fn mine(&self) -> &AtomicUsize {
        // The thread's number is an address: spread it (Fibonacci hashing). It
        // costs one instruction to get, the processor's a call.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let spread = (thread::key() as u64).wrapping_mul(SPREAD) >> 32;
        &self.0[spread as usize % SHARES].0
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
        let sum = |total: usize, share: &Share| total.wrapping_add(share.0.load(Ordering::Relaxed));
        let sum = self.0.iter().fold(0, sum) as isize;
        sum.max(0).unsigned_abs()
    }
}

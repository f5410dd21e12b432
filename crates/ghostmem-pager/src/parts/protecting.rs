//! Who is protecting pages of a region just now.
//!
//! An evictor says of its victims that they are being evicted, and then protects
//! them, together with what lies between two of them. A page that is pinned in
//! between is protected late, and must be opened again:
//!
//! ```text
//!   evictor                                pin
//!   enter                                  claim; count; release *pinned*
//!   words say Evicting                     wait for those inside
//!   pins in the region? then exactly       open
//!   protect
//!   leave
//! ```
//! Each side writes, fences and then looks at what the other wrote (`enter` has one,
//! and `wait` has one). So an evictor that the pin does not wait for sees the pin: its
//! word does not let it begin on that page, and it protects no page that is not its
//! own. That is all a pin has to wait for: about as long as the protection of
//! one batch takes, and as a rule not at all.
//!
//! Nobody is inside who is not inside the gate, so a forked child finds it empty.

use core::sync::atomic::{AtomicU64, Ordering, fence};
use core::time::Duration;

use ghostmem_os::{futex, thread};

/// Evictors that can be inside at once; others wait.
const PLACES: usize = 32;

/// Looks at an evictor's place before sleeping.
const SPINS: u32 = 200;

/// How long a sleep is: the evictor may be of lower priority.
const PAUSE: Duration = Duration::from_micros(50);

/// The evictors that are inside: a place is odd while it is taken, and never again
/// what it was.
pub(crate) struct Protecting([AtomicU64; PLACES]);

/// Being inside; leaving is dropping it.
#[must_use]
pub(crate) struct ProtectingNow<'a>(&'a AtomicU64);

impl Drop for ProtectingNow<'_> {
    fn drop(&mut self) {
        // Release: who sees it sees the pages protected.
        self.0.fetch_add(1, Ordering::Release);
    }
}

impl Protecting {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; PLACES])
    }

    /// Goes inside. Async-signal-safe.
    pub(crate) fn enter(&self) -> ProtectingNow<'_> {
        let home = thread::shard(PLACES);
        let mut tries = 0_u32;
        loop {
            for step in 0..PLACES {
                let place = &self.0[(home + step) % PLACES];
                let seen = place.load(Ordering::Relaxed);
                let taken = seen.is_multiple_of(2)
                    && place
                        .compare_exchange(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed)
                        .is_ok();
                if taken {
                    fence(Ordering::SeqCst);
                    return ProtectingNow(place);
                }
            }
            futex::pause(tries);
            tries = tries.saturating_add(1);
        }
    }

    /// Waits until everybody who is inside has left, and for no newcomer. Those inside wait
    /// for no claim, so that the caller may have some.
    pub(crate) fn wait_for_those_inside(&self) {
        fence(Ordering::SeqCst);
        for place in &self.0 {
            let seen = place.load(Ordering::Acquire);
            let mut looks = 0;
            while !seen.is_multiple_of(2) && place.load(Ordering::Acquire) == seen {
                looks += 1;
                if looks < SPINS {
                    core::hint::spin_loop();
                } else {
                    // Nobody wakes it: evictors have better things to do.
                    futex::wait(place, seen as u32, PAUSE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicBool;

    #[test]
    fn a_wait_is_for_those_inside_and_for_no_newcomer() {
        let protecting = Protecting::new();
        protecting.wait_for_those_inside();
        let (left, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let inside = protecting.enter();
            let waiter = scope.spawn(|| {
                protecting.wait_for_those_inside();
                assert!(left.load(Ordering::SeqCst), "one was inside");
                ended.store(true, Ordering::SeqCst);
            });
            // Newcomers, of whom one is inside at any time.
            let mut newcomer = protecting.enter();
            for _ in 0..1000 {
                let next = protecting.enter();
                drop(core::mem::replace(&mut newcomer, next));
                std::thread::yield_now();
            }
            assert!(!ended.load(Ordering::SeqCst));
            left.store(true, Ordering::SeqCst);
            drop(inside);
            while !ended.load(Ordering::SeqCst) {
                let next = protecting.enter();
                drop(core::mem::replace(&mut newcomer, next));
            }
            waiter.join().unwrap();
        });
    }

    #[test]
    fn places_are_taken_by_one_each_and_free_again() {
        let protecting = Protecting::new();
        let all: Vec<_> = (0..PLACES).map(|_| protecting.enter()).collect();
        let odd = |place: &&AtomicU64| !place.load(Ordering::Relaxed).is_multiple_of(2);
        assert_eq!(protecting.0.iter().filter(odd).count(), PLACES);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| drop(protecting.enter()));
            drop(all);
            late.join().unwrap();
        });
        assert_eq!(protecting.0.iter().filter(odd).count(), 0);
    }
}

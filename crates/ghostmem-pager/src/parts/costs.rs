//! What reclaim was measured to cost, in this process and lately: the numbers that
//! [`ghostmem_policy::costs`] decides by.
//!
//! Running medians are loaded and stored, not changed in one step: of two threads that
//! measure at once, one sample is lost. Async-signal-safe.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use ghostmem_policy::costs::{
    CallPrice, Costs, Evictor, Protected, SIGNAL_NS, WHOLE, chance, median,
};

/// The chance that a written page is stored to while it is protected between two victims,
/// before any was.
const STORED_GUESS: u64 = WHOLE / 2;

/// The chance that a page that was kept writable is what it was, before any was compared.
const UNCHANGED_GUESS: u64 = WHOLE / 2;

/// Two counts, of which old ones weigh less.
#[derive(Default)]
pub(crate) struct Recent {
    hits: AtomicU64,
    tries: AtomicU64,
}

/// Tries after which both counts are halved.
const RECENT_TRIES: u64 = 4096;

impl Recent {
    const fn new() -> Self {
        Self {
            hits: AtomicU64::new(0),
            tries: AtomicU64::new(0),
        }
    }

    pub(crate) fn hit(&self, hits: u64) {
        if hits > 0 {
            self.hits.fetch_add(hits, Ordering::Relaxed);
        }
    }

    pub(crate) fn tried(&self, tries: u64) {
        if tries == 0 {
            return;
        }
        let before = self.tries.fetch_add(tries, Ordering::Relaxed);
        if before + tries >= RECENT_TRIES {
            for count in [&self.hits, &self.tries] {
                let now = count.load(Ordering::Relaxed);
                count.store(now / 2, Ordering::Relaxed);
            }
        }
    }

    fn chance(&self, guess: u64) -> u64 {
        let hits = self.hits.load(Ordering::Relaxed);
        chance(hits, self.tries.load(Ordering::Relaxed), guess)
    }
}

/// What was measured.
pub(crate) struct CostMeter {
    /// A call that protects a run, and each page in it, by who made it.
    call_ns: [AtomicU64; 2],
    page_ns: [AtomicU64; 2],
    /// The call that opens a page.
    open_ns: AtomicU64,
    /// Compressing a page.
    pack_ns: AtomicU64,
    /// Comparing a page with its copy.
    compare_ns: AtomicU64,
    /// Written pages protected between two victims; stores to such.
    between: Recent,
    /// Pages compared with their copies; those that had not changed.
    compared: Recent,
    /// Calls of the background thread that changed the program's page tables.
    interrupts: AtomicU64,
    /// Time that it evicted, nanoseconds.
    background_ns: AtomicU64,
    /// 0 while comparing pages with their copies is worth it, else 1 more than the epoch
    /// in which it ceased to be.
    ceased: Alone<AtomicU32>,
}

/// On cache lines of its own: each restore reads it.
#[repr(align(128))]
struct Alone<T>(T);

/// Adds a sample to a running median, in which 0 is none.
fn sample(to: &AtomicU64, ns: u64) {
    to.store(
        median(to.load(Ordering::Relaxed), ns.max(1)),
        Ordering::Relaxed,
    );
}

impl CostMeter {
    pub(crate) const fn new() -> Self {
        Self {
            call_ns: [const { AtomicU64::new(0) }; 2],
            page_ns: [const { AtomicU64::new(0) }; 2],
            open_ns: AtomicU64::new(0),
            pack_ns: AtomicU64::new(0),
            compare_ns: AtomicU64::new(0),
            between: Recent::new(),
            compared: Recent::new(),
            interrupts: AtomicU64::new(0),
            background_ns: AtomicU64::new(0),
            ceased: Alone(AtomicU32::new(0)),
        }
    }

    /// Calls protected victims of a batch, and `between` written pages that stay.
    pub(crate) fn protected(&self, by: Evictor, made: &Protected, between: u64) {
        let price = CallPrice {
            call_ns: self.call_ns(by),
            page_ns: self.page_ns(by),
        };
        let after = price.after(made);
        self.call_ns[by as usize].store(after.call_ns, Ordering::Relaxed);
        self.page_ns[by as usize].store(after.page_ns, Ordering::Relaxed);
        self.between.tried(between);
        self.changed(by, made.all_calls());
    }

    /// `calls` calls changed the program's page tables.
    pub(crate) fn changed(&self, by: Evictor, calls: u64) {
        if by == Evictor::Background {
            self.interrupts.fetch_add(calls, Ordering::Relaxed);
        }
    }

    /// A page was opened; `between`: it was no victim.
    pub(crate) fn opened(&self, ns: u64, between: bool) {
        sample(&self.open_ns, ns);
        self.between.hit(u64::from(between));
    }

    /// `pages` pages were compressed.
    pub(crate) fn packed(&self, pages: u64, ns: u64) {
        if let Some(each) = ns.checked_div(pages) {
            sample(&self.pack_ns, each);
        }
    }

    /// `pages` pages were compared with their copies, and `unchanged` were the same;
    /// `now` is the epoch.
    pub(crate) fn compared(&self, (pages, unchanged): (u64, u64), ns: u64, now: u16) {
        let Some(each) = ns.checked_div(pages) else {
            return;
        };
        sample(&self.compare_ns, each);
        self.compared.hit(unchanged);
        self.compared.tried(pages);
        let compares = self.of(Evictor::Faulting).compares();
        if compares != self.compares() {
            let ceased = if compares { 0 } else { u32::from(now) + 1 };
            self.ceased.0.store(ceased, Ordering::Relaxed);
        }
    }

    /// Whether comparing pages with their copies is worth it, as of the last batch.
    pub(crate) fn compares(&self) -> bool {
        self.ceased().is_none()
    }

    /// The epoch in which comparing pages ceased to be worth it, if it is not.
    pub(crate) fn ceased(&self) -> Option<u16> {
        let ceased = self.ceased.0.load(Ordering::Relaxed);
        ceased.checked_sub(1).map(|epoch| epoch as u16)
    }

    /// The background thread evicted for so long.
    pub(crate) fn evicted_in_background(&self, ns: u64) {
        self.background_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub(crate) fn background_ns(&self) -> u64 {
        self.background_ns.load(Ordering::Relaxed)
    }

    /// A call that protects a run, beside what its pages take, nanoseconds; 0: none was
    /// made.
    pub(crate) fn call_ns(&self, by: Evictor) -> u64 {
        self.call_ns[by as usize].load(Ordering::Relaxed)
    }

    fn page_ns(&self, by: Evictor) -> u64 {
        self.page_ns[by as usize].load(Ordering::Relaxed)
    }

    /// A store to a protected page, nanoseconds; 0: there was none.
    pub(crate) fn open_ns(&self) -> u64 {
        match self.open_ns.load(Ordering::Relaxed) {
            0 => 0,
            ns => ns + SIGNAL_NS,
        }
    }

    /// What an evictor goes by.
    pub(crate) fn of(&self, by: Evictor) -> Costs {
        let costs = Costs {
            call_ns: self.call_ns(by),
            page_ns: self.page_ns(by),
            open_ns: self.open_ns(),
            pack_ns: self.pack_ns.load(Ordering::Relaxed),
            compare_ns: self.compare_ns.load(Ordering::Relaxed),
            stored: self.between.chance(STORED_GUESS),
            unchanged: self.compared.chance(UNCHANGED_GUESS),
        };
        costs.or_guessed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_measured_by_who_makes_them() {
        let meter = CostMeter::new();
        let calls = |calls, ns| Protected {
            calls,
            pages: calls,
            ns,
            alone_ns: 0,
        };
        meter.protected(Evictor::Background, &calls(4, 4 * 17_060), 0);
        meter.protected(Evictor::Faulting, &calls(10, 10 * 960), 0);
        meter.protected(Evictor::Faulting, &calls(0, 50), 0);
        assert_eq!(meter.of(Evictor::Background).call_ns, 17_000);
        assert_eq!(meter.of(Evictor::Faulting).call_ns, 900);
        assert_eq!(meter.interrupts(), 4);
    }

    #[test]
    fn when_comparing_ceased_to_be_worth_it_is_known_until_it_is_again() {
        let meter = CostMeter::new();
        let compared = |unchanged, now| meter.compared((4096, unchanged), 4096 * 1600, now);
        meter.packed(1, 5000);
        compared(4096, 7);
        assert!(meter.compares());
        (8..11).for_each(|now| compared(0, now));
        assert_eq!((meter.compares(), meter.ceased()), (false, Some(9)));
        compared(0, u16::MAX);
        assert_eq!(meter.ceased(), Some(9), "it was not before");
        (0..8).for_each(|now| compared(4096, now));
        assert_eq!(meter.ceased(), None);
        (0..8).for_each(|_| compared(0, u16::MAX));
        assert_eq!(meter.ceased(), Some(u16::MAX));
    }

    #[test]
    fn pages_between_that_are_stored_to_are_told_from_those_that_are_not() {
        let meter = CostMeter::new();
        let stored = || meter.of(Evictor::Faulting).stored;
        let made = Protected {
            calls: 1,
            pages: 201,
            ns: 900,
            alone_ns: 900,
        };
        assert_eq!(stored(), STORED_GUESS);
        for _ in 0..100 {
            meter.protected(Evictor::Faulting, &made, 200);
            (0..20).for_each(|_| meter.opened(2000, true));
        }
        assert!((90..115).contains(&stored()), "{} of 1024", stored());
        // Another program phase: all of them.
        for _ in 0..100 {
            meter.protected(Evictor::Faulting, &made, 200);
            (0..200).for_each(|_| meter.opened(2000, true));
        }
        assert!(stored() > 900, "{} of 1024", stored());
        assert_eq!(meter.open_ns(), 2000 + SIGNAL_NS);
    }
}

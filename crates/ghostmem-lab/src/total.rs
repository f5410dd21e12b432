//! Ours at equal total memory: what is compressed counts, too, and so do copies.
//!
//! ```text
//!   total   resident pages, a slot for each page that is away, a slot for each copy
//!   time    what each fault and each eviction costs, by what a page needs when it leaves
//! ```
//! A copy takes memory that could hold pages, and saves its page's compression. Which of
//! the two is worth more differs from program to program: here rules are compared by the
//! time that a trace would take with each, and by pages brought in. Prices are those
//! measured on one machine, and every page is compressed to the same part.

use ghostmem_policy::balance::{self, Copies};
use ghostmem_policy::costs::Costs;
use ghostmem_policy::worth::{CopiesShare, Counted};

use crate::FaultPolicy;
use crate::hand::{Credits, Events, Hand};
use crate::trace::Touch;

/// Fewest pages that stay resident.
const LEAST_PAGES: usize = 256;

/// What things cost, nanoseconds, and how pages are.
#[derive(Debug, Clone, Copy)]
pub struct Prices {
    /// A touch of an absent page, its signal included.
    pub fault_ns: u64,
    /// A page brought in beside it.
    pub ahead_ns: u64,
    /// A store to a clean page.
    pub open_ns: u64,
    /// Compressing a page.
    pub pack_ns: u64,
    /// Comparing a page with its copy.
    pub compare_ns: u64,
    /// Of a hundred pages that are compared, those that are what they were.
    pub unchanged_percent: u64,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Bytes of a slot.
    pub slot_bytes: usize,
}

impl Prices {
    /// As measured (docs/benchmarks.md), for pages of 4 KiB that are compressed to
    /// `slot_bytes`.
    #[must_use]
    pub const fn measured(slot_bytes: usize, unchanged_percent: u64) -> Self {
        Self {
            fault_ns: 3700,
            ahead_ns: 2000,
            open_ns: 3300,
            pack_ns: 4400,
            compare_ns: 1600,
            unchanged_percent,
            page_bytes: 4096,
            slot_bytes,
        }
    }

    /// What happened cost, nanoseconds.
    #[must_use]
    pub const fn time_ns(&self, events: &Events) -> u64 {
        events.faults * self.fault_ns
            + events.ahead * self.ahead_ns
            + events.opened * self.open_ns
            + events.packed * self.pack_ns
            + events.compared * self.compare_ns
            + events.compared * (100 - self.unchanged_percent) * self.pack_ns / 100
    }
}

/// Which copies are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// None.
    None,
    /// What the engine does under a bound on the process.
    Engine,
    /// All, and resident pages have what that leaves.
    All,
}

/// Our hand, with what the total leaves for resident pages.
#[derive(Debug)]
pub struct Bounded {
    hand: Hand<Credits>,
    prices: Prices,
    total_bytes: usize,
    rule: Rule,
    /// What copies may have under the engine's rule, and what had happened when that was
    /// decided.
    share: CopiesShare,
    weighed: Events,
}

impl Bounded {
    /// For pages below `pages`, within `total_bytes` of memory.
    #[must_use]
    pub fn new(pages: u32, total_bytes: usize, rule: Rule, prices: Prices) -> Self {
        let mut hand = Hand::new(Credits, pages, (total_bytes / prices.page_bytes).max(1));
        hand.keep_copies(rule != Rule::None);
        Self {
            hand,
            prices,
            total_bytes,
            rule,
            share: CopiesShare::START,
            weighed: Events::default(),
        }
    }

    /// The hand.
    #[must_use]
    pub const fn hand(&self) -> &Hand<Credits> {
        &self.hand
    }

    /// What all pages take now, bytes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        let slots = self.hand.away() + self.hand.copies();
        self.hand.resident() * self.prices.page_bytes + slots * self.prices.slot_bytes
    }

    /// What copies may have from now on.
    fn weigh(&mut self) {
        let events = *self.hand.events();
        let since = events.since(&self.weighed);
        if since.evictions() < CopiesShare::evictions(self.hand.evictions_per_epoch()) {
            return;
        }
        self.weighed = events;
        let counted = Counted {
            clean: since.dropped + since.compared * self.prices.unchanged_percent / 100,
            packed: since.packed + since.compared * (100 - self.prices.unchanged_percent) / 100,
            compared: since.compared,
            opened: since.opened,
            early: since.early,
            faults: since.faults,
            fault_ns: since.faults * self.prices.fault_ns,
        };
        let costs = Costs {
            pack_ns: self.prices.pack_ns,
            compare_ns: self.prices.compare_ns,
            open_ns: self.prices.open_ns,
            // Not asked for.
            call_ns: 0,
            page_ns: 0,
            stored: 0,
            unchanged: 0,
        };
        let in_place = self.hand.copies() * self.prices.slot_bytes / self.prices.page_bytes;
        let resident = self.hand.limit() as u64;
        self.share = self
            .share
            .after(&counted, &costs, in_place as u64, resident);
    }

    /// Copies within their share, and resident pages within what is left.
    fn fit(&mut self) {
        if self.rule == Rule::Engine {
            let copied = self.hand.copies() * self.prices.slot_bytes;
            let least = self.hand.limit() <= LEAST_PAGES;
            self.weigh();
            match balance::copies_beside(self.share.of(self.total_bytes), copied, least) {
                Copies::Keep => self.hand.keep_copies(true),
                Copies::Leave => {}
                Copies::GiveUp(bytes) => {
                    self.hand.keep_copies(false);
                    self.hand.shed(bytes / self.prices.slot_bytes + 1);
                }
            }
        }
        let slots = self.hand.away() + self.hand.copies();
        let left = self
            .total_bytes
            .saturating_sub(slots * self.prices.slot_bytes);
        self.hand
            .set_limit((left / self.prices.page_bytes).max(LEAST_PAGES));
    }
}

impl FaultPolicy for Bounded {
    fn is_resident(&self, page: u32) -> bool {
        self.hand.is_resident(page)
    }

    fn fault(&mut self, touch: Touch) -> u32 {
        let restored = self.hand.fault(touch);
        self.fit();
        restored
    }

    fn store(&mut self, page: u32) {
        self.hand.store(page);
    }

    fn resident(&self) -> usize {
        self.hand.resident()
    }
}

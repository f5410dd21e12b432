//! The engine's clock hand, without an engine.
//!
//! What decides how often a program faults is asked of `ghostmem-policy`, as the engine
//! asks it: the walk ([`ghostmem_policy::hand`]) with its windows, batches, sweeps and
//! watermarks, which pages keep a copy, readahead, and the 16 policy bits of each page.
//! Here these are applied to plain numbers.
//!
//! What only costs time is left out: the reclaimer is always fast enough, nothing is
//! compressed, no eviction is cancelled, and first stores to clean pages, which the
//! engine counts apart, are no faults. (They are sightings, here as there.) No page has
//! one value all over. The memory limit has room for every copy; how many there are is
//! counted ([`Hand::copies_per_frame`]), as at equal total memory each takes the place of
//! a part of a frame.

use ghostmem_policy::hand::{self, Judgement, Position, Walk};
use ghostmem_policy::writes::{self, CopyKept};
use ghostmem_policy::{EpochClock, Heat, Past, Runs, stream};

use crate::FaultPolicy;
use crate::trace::Touch;

mod events;
mod judge;

pub use events::Events;
pub use judge::{Credits, Judge, Plain, Reason};

const THREADS: usize = 8;

/// What is known of a page beside whether it is resident.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Of the policy.
    bits: u16,
    /// It was evicted before, or is resident.
    stored: bool,
    /// It is resident, keeps a copy, and cannot be stored to unseen.
    clean: bool,
    /// It is resident and keeps a copy, whether clean or writable.
    copied: bool,
    /// It was stored to while it kept a copy.
    write_hot: bool,
}

/// The hand, with the pages it keeps.
#[derive(Debug)]
pub struct Hand<J> {
    judge: J,
    clock: EpochClock,
    /// By page.
    known: Vec<Known>,
    /// One bit for each page.
    resident: Vec<u64>,
    pages: u32,
    used: usize,
    limit: usize,
    /// The limit that `clock` has.
    clock_limit: usize,
    hand: Position,
    sweep: u64,
    /// Dirty pages met in this sweep, less the clean ones.
    dirty_lead: i64,
    /// Most pages met in the last sweep were dirty.
    mostly_dirty: bool,
    never_dirty: bool,
    /// Pages that are stored to keep copies, too, which are compared.
    compares: bool,
    /// The credit from which dirty pages are spared.
    spares_from: u8,
    /// Resident pages that keep a copy; and the sum of that over all faults.
    copies: usize,
    copies_seen: u64,
    /// Pages that come back may keep copies.
    keeps: bool,
    /// Pages that are evicted now.
    away: usize,
    events: Events,
    /// Pages that a walk takes.
    victims: Vec<usize>,
    looks: u64,
    runs: [Runs; THREADS],
}

/// There is one region.
const REGIONS: usize = 1;

impl<J: Judge> Hand<J> {
    /// For pages below `pages`, `limit` (at least 1) of them resident, where a call that
    /// protects pages is cheap, and comparing pages with their copies worth it: what the
    /// engine takes for granted before it has measured.
    #[must_use]
    pub fn new(judge: J, pages: u32, limit: usize) -> Self {
        Self {
            judge,
            clock: EpochClock::new(limit as u64),
            known: vec![Known::default(); pages as usize],
            resident: vec![0; pages.div_ceil(64) as usize],
            pages,
            used: 0,
            limit,
            clock_limit: limit,
            hand: Position::START,
            sweep: 0,
            dirty_lead: 0,
            mostly_dirty: true,
            never_dirty: false,
            compares: true,
            spares_from: 1,
            copies: 0,
            copies_seen: 0,
            keeps: true,
            away: 0,
            events: Events::default(),
            victims: Vec::new(),
            looks: 0,
            runs: [Runs::default(); THREADS],
        }
    }

    /// The same hand for a program whose pages all keep a copy whatever it does: what
    /// the rules for dirty pages change is the difference.
    #[must_use]
    pub fn never_dirty(self) -> Self {
        Self {
            never_dirty: true,
            ..self
        }
    }

    /// The same hand where pages that are stored to keep no copy: comparing them would
    /// cost more than it saves.
    #[must_use]
    pub fn never_comparing(self) -> Self {
        Self {
            compares: false,
            ..self
        }
    }

    /// The same hand, sparing dirty pages from so much credit on
    /// ([`ghostmem_policy::costs::Costs::spares_from`]).
    #[must_use]
    pub fn sparing_dirty_from(self, credit: u8) -> Self {
        Self {
            spares_from: credit,
            ..self
        }
    }

    /// Of the frames in use, the part whose pages keep a copy: the mean over all faults.
    #[must_use]
    pub fn copies_per_frame(&self) -> f64 {
        self.copies_seen as f64 / self.events.faults as f64 / self.limit as f64
    }

    /// Resident pages looked at for each page evicted so far.
    #[must_use]
    pub fn looks_per_eviction(&self) -> f64 {
        self.looks as f64 / self.events.evictions() as f64
    }

    /// The first resident page at or after `from`.
    fn next(&self, from: usize) -> Option<usize> {
        if from >= self.pages as usize {
            return None;
        }
        let mut word = from / 64;
        let mut bits = self.resident[word] & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.resident.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// Evictions from one epoch to the next.
    #[must_use]
    pub const fn evictions_per_epoch(&self) -> u64 {
        self.clock.evictions_per_epoch()
    }

    fn now(&self) -> u16 {
        self.clock.epoch(self.events.evictions())
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.used)
    }

    /// What happened so far.
    #[must_use]
    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// Resident pages that keep a copy.
    #[must_use]
    pub const fn copies(&self) -> usize {
        self.copies
    }

    /// Pages that are evicted now.
    #[must_use]
    pub const fn away(&self) -> usize {
        self.away
    }

    /// Pages that may be resident.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// From now on so many pages, at least 1, may be resident. Turnovers are counted by a
    /// limit that follows in steps of a quarter, as in the engine.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
        let clock = self.clock_limit;
        if self.limit.abs_diff(clock) > clock / 4 {
            self.clock_limit = self.limit;
            self.clock = EpochClock::new(self.limit as u64);
        }
        while self.used > self.limit {
            self.reclaim(Walk::new(self.used - self.limit));
        }
    }

    /// From now on pages that come back may keep copies, or not.
    pub const fn keep_copies(&mut self, keeps: bool) {
        self.keeps = keeps;
    }

    /// Gives up the copies of up to `wanted` pages, from the hand on.
    pub fn shed(&mut self, wanted: usize) {
        let mut shed = 0;
        for _ in 0..2 * (self.used / hand::EVICT_BATCH_PAGES + 1) {
            if shed >= wanted {
                return;
            }
            let window = hand::window(self.hand.page, hand::EVICT_BATCH_PAGES, |from| {
                self.next(from)
            });
            self.pass(&window);
            let mut from = window.start;
            while let Some(page) = self.next(from).filter(|&page| page < window.end) {
                from = page + 1;
                let known = &mut self.known[page];
                if std::mem::take(&mut known.copied) {
                    known.clean = self.never_dirty;
                    self.copies -= 1;
                    shed += 1;
                }
            }
        }
    }

    /// The hand goes past a window.
    fn pass(&mut self, window: &std::ops::Range<usize>) {
        self.hand = self.hand.past(window, REGIONS);
        if self.hand == Position::START {
            let lead = std::mem::take(&mut self.dirty_lead);
            self.mostly_dirty = hand::is_mostly_dirty(lead);
            self.sweep += 1;
        }
    }

    /// Evicts what a walk finds; how many pages it was.
    fn reclaim(&mut self, walk: Walk) -> usize {
        let mut walk = walk.sparing_dirty_from(self.spares_from);
        let mut victims = std::mem::take(&mut self.victims);
        while let Some(wanted) = walk.wants(REGIONS) {
            let window = hand::window(self.hand.page, wanted, |from| self.next(from));
            self.pass(&window);
            if window.is_empty() {
                walk.end_of_region();
                continue;
            }
            let takes_dirty = hand::takes_dirty(self.sweep, self.mostly_dirty);
            let mut from = window.start;
            while let Some(page) = self.next(from).filter(|&page| page < window.end) {
                from = page + 1;
                self.looks += 1;
                let known = &mut self.known[page];
                let look = walk.look(known.clean, takes_dirty);
                match look.judge(Heat::from_bits(known.bits)) {
                    Judgement::Take => {
                        walk.take(known.clean);
                        victims.push(page);
                    }
                    Judgement::Spare(heat) => known.bits = heat.to_bits(),
                    Judgement::Leave => {}
                }
            }
        }
        self.dirty_lead += walk.dirty_lead();
        let now = self.now();
        let mut gone = 0;
        for page in victims.drain(..) {
            let (word, bit) = (page / 64, 1 << (page % 64));
            // A hand that wrapped may have taken it twice.
            if self.resident[word] & bit == 0 {
                continue;
            }
            self.resident[word] &= !bit;
            let known = &mut self.known[page];
            known.bits = Heat::from_bits(known.bits).evict(now).to_bits();
            let events = &mut self.events;
            match (known.clean, known.copied) {
                (true, _) => events.dropped += 1,
                (false, true) => events.compared += 1,
                (false, false) => events.packed += 1,
            }
            self.copies -= usize::from(known.copied);
            (known.clean, known.copied) = (false, false);
            gone += 1;
        }
        self.victims = victims;
        self.used -= gone;
        self.away += gone;
        gone
    }

    /// Brings one page in, for a store or not. A frame is taken already.
    fn restore(&mut self, page: u32, write: bool, ahead: bool) {
        let now = self.now();
        let known = &mut self.known[page as usize];
        let reason = match (known.stored, ahead) {
            (false, _) => Reason::Fresh,
            (true, false) => Reason::Refault,
            (true, true) => Reason::Ahead,
        };
        self.away -= usize::from(known.stored);
        let is_early = reason == Reason::Refault && Past::from_bits(known.bits).left_in(now);
        self.events.early += u64::from(is_early);
        self.events.ahead += u64::from(ahead);
        let copy = match known.stored && self.keeps {
            true => {
                let (write_hot, compares) = (known.write_hot, self.compares);
                writes::Return {
                    write,
                    write_hot,
                    tracks_writes: true,
                    compares,
                    now,
                }
                .copy()
            }
            false => CopyKept::GivenUp,
        };
        *known = Known {
            bits: self
                .judge
                .restore(known.bits, reason, self.clock, now)
                .to_bits(),
            clean: self.never_dirty || copy == CopyKept::Protected,
            copied: copy != CopyKept::GivenUp,
            write_hot: match copy {
                CopyKept::Protected => false,
                CopyKept::Writable => true,
                CopyKept::GivenUp => writes::stays_write_hot(write, known.write_hot, now),
            },
            stored: true,
        };
        self.copies += usize::from(known.copied);
        self.resident[page as usize / 64] |= 1 << (page % 64);
    }
}

impl<J: Judge> FaultPolicy for Hand<J> {
    fn is_resident(&self, page: u32) -> bool {
        self.resident[page as usize / 64] >> (page % 64) & 1 == 1
    }

    fn fault(&mut self, touch: Touch) -> u32 {
        self.copies_seen += self.copies as u64;
        self.events.faults += 1;
        let first = touch.page();
        let fresh = !self.known[first as usize].stored;
        let limit = self.limit as i64;
        while self.free() == 0 {
            self.reclaim(Walk::direct(limit));
        }
        let thread = touch.thread() as usize;
        let plan = self.runs[thread].fault(u64::from(first));
        let extra = i64::from(plan.count - 1).min(stream::ahead_pages_max(limit));
        let frames = extra as usize + 1;
        if frames > self.free() {
            self.reclaim(Walk::new(frames - self.free()));
        }
        let frames = frames.min(self.free());
        let (mut restored, mut covered) = (0, 0);
        for step in 0..plan.count {
            let page = i64::from(first) + i64::from(step) * i64::from(plan.stride);
            if restored == frames || page < 0 || page >= i64::from(self.pages) {
                break;
            }
            let page = page as u32;
            if step > 0 {
                if self.is_resident(page) {
                    continue;
                }
                // Fresh pages follow only a fresh page that is written.
                let stored = self.known[page as usize].stored;
                if stored == fresh || (fresh && !touch.is_write()) {
                    break;
                }
            }
            self.used += 1;
            self.restore(page, touch.is_write(), step > 0);
            restored += 1;
            covered = step + 1;
        }
        if covered < plan.count {
            self.runs[thread].cut_short(plan, u64::from(first), covered);
        }
        let low = hand::low_watermark(limit);
        if (self.free() as i64) < low {
            let high = hand::high_watermark(low);
            while (self.free() as i64) < high
                && self.reclaim(Walk::new(hand::EVICT_BATCH_PAGES)) > 0
            {}
        }
        restored as u32
    }

    fn store(&mut self, page: u32) {
        let known = &mut self.known[page as usize];
        // Stores to dirty pages are not seen.
        if !known.clean || self.never_dirty {
            return;
        }
        known.write_hot = true;
        known.clean = false;
        self.copies -= usize::from(std::mem::take(&mut known.copied));
        self.events.opened += 1;
        let bits = Heat::from_bits(known.bits);
        known.bits = self.judge.sighted(bits).to_bits();
    }

    fn resident(&self) -> usize {
        self.used
    }
}

//! The engine's clock hand, without an engine.
//!
//! What decides how often a program faults is asked of `ghostmem-policy`, as the engine
//! asks it: the walk ([`ghostmem_policy::hand`]) with its windows, batches, sweeps and
//! watermarks, which pages keep a copy, readahead, and the 16 policy bits of each page.
//! Here these are applied to plain numbers.
//!
//! What only costs time is left out: the reclaimer is always fast enough, nothing is
//! compressed, no eviction is cancelled, and first stores to clean pages, which the
//! engine counts apart, are no faults. No page has one value all over, and the memory
//! limit has room for every copy.

use ghostmem_policy::hand::{self, Judgement, Position, Walk};
use ghostmem_policy::{EpochClock, Heat, Past, Stream, stream, writes};

use crate::FaultPolicy;
use crate::trace::Touch;

const THREADS: usize = 8;

/// Why a page comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It holds nothing yet.
    Fresh,
    /// It was evicted and is touched.
    Refault,
    /// Readahead wants it.
    Ahead,
}

/// What a page is worth when it comes in.
pub trait Judge {
    /// Its heat, by the 16 bits it kept while it was away.
    fn restore(&self, bits: u16, reason: Reason, clock: EpochClock, now: u16) -> Heat;
}

/// What the engine does.
#[derive(Debug, Clone, Copy)]
pub struct Credits;

impl Judge for Credits {
    fn restore(&self, bits: u16, reason: Reason, clock: EpochClock, now: u16) -> Heat {
        let past = Past::from_bits(bits);
        match reason {
            Reason::Fresh => Heat::FRESH,
            Reason::Refault => past.refault(clock, now),
            Reason::Ahead => past.ahead(),
        }
    }
}

/// No credit at all: the hand takes whatever it meets.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Judge for Plain {
    fn restore(&self, _: u16, _: Reason, _: EpochClock, _: u16) -> Heat {
        Heat::COLD
    }
}

/// What is known of a page beside whether it is resident.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// Of the policy.
    bits: u16,
    /// It was evicted before, or is resident.
    stored: bool,
    /// It is resident and keeps a copy.
    clean: bool,
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
    hand: Position,
    sweep: u64,
    /// Dirty pages met in this sweep, less the clean ones.
    dirty_lead: i64,
    /// Most pages met in the last sweep were dirty.
    mostly_dirty: bool,
    never_dirty: bool,
    /// Pages that a walk takes.
    victims: Vec<usize>,
    evictions: u64,
    looks: u64,
    streams: [Stream; THREADS],
}

/// There is one region.
const REGIONS: usize = 1;

impl<J: Judge> Hand<J> {
    /// For pages below `pages`, `limit` (at least 1) of them resident.
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
            hand: Position::START,
            sweep: 0,
            dirty_lead: 0,
            mostly_dirty: true,
            never_dirty: false,
            victims: Vec::new(),
            evictions: 0,
            looks: 0,
            streams: [Stream::default(); THREADS],
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

    /// Resident pages looked at for each page evicted so far.
    #[must_use]
    pub fn looks_per_eviction(&self) -> f64 {
        self.looks as f64 / self.evictions as f64
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

    fn now(&self) -> u16 {
        self.clock.epoch(self.evictions)
    }

    fn free(&self) -> usize {
        self.limit - self.used
    }

    /// Evicts what a walk finds; how many pages it was.
    fn reclaim(&mut self, mut walk: Walk) -> usize {
        let mut victims = std::mem::take(&mut self.victims);
        while let Some(wanted) = walk.wants(REGIONS) {
            let window = hand::window(self.hand.page, wanted, |from| self.next(from));
            self.hand = self.hand.past(&window, REGIONS);
            if self.hand == Position::START {
                let lead = std::mem::take(&mut self.dirty_lead);
                self.mostly_dirty = hand::is_mostly_dirty(lead);
                self.sweep += 1;
            }
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
            known.clean = false;
            gone += 1;
        }
        self.victims = victims;
        self.used -= gone;
        self.evictions += gone as u64;
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
        *known = Known {
            bits: self
                .judge
                .restore(known.bits, reason, self.clock, now)
                .to_bits(),
            clean: self.never_dirty || known.stored && writes::keeps_copy(write, known.write_hot),
            write_hot: writes::stays_write_hot(write, known.write_hot, now),
            stored: true,
        };
        self.resident[page as usize / 64] |= 1 << (page % 64);
    }
}

impl<J: Judge> FaultPolicy for Hand<J> {
    fn is_resident(&self, page: u32) -> bool {
        self.resident[page as usize / 64] >> (page % 64) & 1 == 1
    }

    fn fault(&mut self, touch: Touch) -> u32 {
        let first = touch.page();
        let fresh = !self.known[first as usize].stored;
        let limit = self.limit as i64;
        while self.free() == 0 {
            self.reclaim(Walk::direct(limit));
        }
        let thread = touch.thread() as usize;
        let (plan, stream) = self.streams[thread].fault(u64::from(first));
        self.streams[thread] = stream;
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
            self.streams[thread] = stream.cut_short(plan, u64::from(first), covered);
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
        known.write_hot |= known.clean;
        known.clean = self.never_dirty;
    }

    fn resident(&self) -> usize {
        self.used
    }
}

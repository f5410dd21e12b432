//! The engine's clock hand, without an engine.
//!
//! What decides how often a program faults is here as it is there: the walk in
//! address order, windows of as many resident pages as are wanted, batches of
//! at most 256, the watermarks of the background reclaimer, readahead by
//! `ghostmem-policy`'s streams, and the 16 policy bits of each page. What only
//! costs time is not: the reclaimer is always fast enough, nothing is
//! compressed, no eviction is cancelled, and first writes to clean pages, which
//! the engine counts apart, are no faults.

use ghostmem_policy::{EpochClock, Heat, Past, Stream};

use crate::FaultPolicy;
use crate::trace::Touch;

/// Most pages evicted in one batch.
const BATCH_PAGES: usize = 256;
/// Looks per page wanted, and the last looks, which take any page when none was
/// found before.
const LOOKS_PER_PAGE: usize = 32;
const FORCED_LOOKS: usize = 256;
/// Below this limit there is no background reclaimer.
const BACKGROUND_LIMIT_PAGES: usize = 1024;
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

/// The decisions a hand makes about one page's 16 bits.
pub trait Judge {
    /// The page comes in.
    fn restore(&self, bits: u16, reason: Reason, clock: EpochClock, now: u16) -> u16;
    /// The hand passes; `None`: the page goes.
    fn pass(&self, bits: u16) -> Option<u16>;
    /// The page goes.
    fn evict(&self, bits: u16, now: u16) -> u16;
}

/// What the engine does.
#[derive(Debug, Clone, Copy)]
pub struct Credits;

impl Judge for Credits {
    fn restore(&self, bits: u16, reason: Reason, clock: EpochClock, now: u16) -> u16 {
        let past = Past::from_bits(bits);
        let heat = match reason {
            Reason::Fresh => Heat::FRESH,
            Reason::Refault => past.refault(clock, now),
            Reason::Ahead => past.ahead(),
        };
        heat.to_bits()
    }

    fn pass(&self, bits: u16) -> Option<u16> {
        Heat::from_bits(bits).pass().map(Heat::to_bits)
    }

    fn evict(&self, bits: u16, now: u16) -> u16 {
        Heat::from_bits(bits).evict(now).to_bits()
    }
}

/// No credit at all: the hand takes whatever it meets.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Judge for Plain {
    fn restore(&self, bits: u16, _: Reason, _: EpochClock, _: u16) -> u16 {
        bits
    }

    fn pass(&self, _: u16) -> Option<u16> {
        None
    }

    fn evict(&self, bits: u16, _: u16) -> u16 {
        bits
    }
}

/// The hand, with the pages it keeps.
#[derive(Debug)]
pub struct Hand<J> {
    judge: J,
    clock: EpochClock,
    /// By page.
    bits: Vec<u16>,
    stored: Vec<bool>,
    /// One bit for each page.
    resident: Vec<u64>,
    pages: u32,
    used: usize,
    limit: usize,
    /// Fewer free frames than this wake the reclaimer.
    low: usize,
    hand: u32,
    evictions: u64,
    looks: u64,
    streams: [Stream; THREADS],
}

impl<J: Judge> Hand<J> {
    /// For pages below `pages`, `limit` (at least 1) of them resident.
    #[must_use]
    pub fn new(judge: J, pages: u32, limit: usize) -> Self {
        Self {
            judge,
            clock: EpochClock::new(limit as u64),
            bits: vec![0; pages as usize],
            stored: vec![false; pages as usize],
            resident: vec![0; pages.div_ceil(64) as usize],
            pages,
            used: 0,
            limit,
            low: if limit < BACKGROUND_LIMIT_PAGES {
                0
            } else {
                (limit / 64).clamp(64, 256)
            },
            hand: 0,
            evictions: 0,
            looks: 0,
            streams: [Stream::default(); THREADS],
        }
    }

    /// Resident pages looked at for each page evicted so far.
    #[must_use]
    pub fn looks_per_eviction(&self) -> f64 {
        self.looks as f64 / self.evictions as f64
    }

    /// The first resident page at or after `from`.
    fn next(&self, from: u32) -> Option<u32> {
        if from >= self.pages {
            return None;
        }
        let mut word = from as usize / 64;
        let mut bits = self.resident[word] & (u64::MAX << (from % 64));
        while bits == 0 {
            word += 1;
            bits = *self.resident.get(word)?;
        }
        Some(word as u32 * 64 + bits.trailing_zeros())
    }

    fn now(&self) -> u16 {
        self.clock.epoch(self.evictions)
    }

    fn free(&self) -> usize {
        self.limit - self.used
    }

    /// Evicts up to about `wanted` pages; how many it was.
    fn reclaim(&mut self, wanted: usize) -> usize {
        let wanted = wanted.clamp(1, BATCH_PAGES);
        let mut looks = wanted * LOOKS_PER_PAGE + FORCED_LOOKS;
        let (mut freed, mut wraps) = (0, 0);
        while freed < wanted && looks > 0 && wraps <= 1 {
            let Some(start) = self.next(self.hand) else {
                self.hand = 0;
                wraps += 1;
                continue;
            };
            let mut end = start + 1;
            for _ in 1..wanted - freed {
                match self.next(end) {
                    Some(page) => end = page + 1,
                    None => break,
                }
            }
            self.hand = end;
            let now = self.now();
            let before = freed;
            let mut from = start;
            while let Some(page) = self.next(from).filter(|&page| page < end) {
                from = page + 1;
                looks = looks.saturating_sub(1);
                self.looks += 1;
                let force = freed == 0 && looks < FORCED_LOOKS;
                let bits = &mut self.bits[page as usize];
                match self.judge.pass(*bits).filter(|_| !force) {
                    Some(spared) => *bits = spared,
                    None => {
                        *bits = self.judge.evict(*bits, now);
                        self.resident[page as usize / 64] &= !(1 << (page % 64));
                        freed += 1;
                    }
                }
            }
            self.used -= freed - before;
            self.evictions += (freed - before) as u64;
        }
        freed
    }

    /// Brings one page in. A frame is taken already.
    fn restore(&mut self, page: u32, ahead: bool) {
        let stored = std::mem::replace(&mut self.stored[page as usize], true);
        let reason = match (stored, ahead) {
            (false, _) => Reason::Fresh,
            (true, false) => Reason::Refault,
            (true, true) => Reason::Ahead,
        };
        let bits = self.bits[page as usize];
        self.bits[page as usize] = self.judge.restore(bits, reason, self.clock, self.now());
        self.resident[page as usize / 64] |= 1 << (page % 64);
    }
}

impl<J: Judge> FaultPolicy for Hand<J> {
    fn is_resident(&self, page: u32) -> bool {
        self.resident[page as usize / 64] >> (page % 64) & 1 == 1
    }

    fn fault(&mut self, touch: Touch) -> u32 {
        let first = touch.page();
        let fresh = !self.stored[first as usize];
        while self.free() == 0 {
            self.reclaim((self.limit / 16).clamp(1, BATCH_PAGES));
        }
        let thread = touch.thread() as usize;
        let (plan, stream) = self.streams[thread].fault(u64::from(first));
        self.streams[thread] = stream;
        let frames = (plan.count as usize).min(self.limit / 8 + 1);
        if frames > self.free() {
            self.reclaim(frames - self.free());
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
                let stored = self.stored[page as usize];
                if stored == fresh || (fresh && !touch.is_write()) {
                    break;
                }
            }
            self.used += 1;
            self.restore(page, step > 0);
            restored += 1;
            covered = step + 1;
        }
        if covered < plan.count {
            self.streams[thread] = stream.cut_short(plan, u64::from(first), covered);
        }
        if self.free() < self.low {
            while self.free() < 2 * self.low && self.reclaim(BATCH_PAGES) > 0 {}
        }
        restored as u32
    }

    fn resident(&self) -> usize {
        self.used
    }
}

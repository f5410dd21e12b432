//! Replacement policies side by side, on deterministic traces.
//!
//! Two kinds of policy, told apart by their types. A [`Policy`] is shown every
//! access: the kernel, a cache, the rivals of the literature. A [`FaultPolicy`]
//! is shown nothing but touches of absent pages and stores to clean ones, as is any
//! pager in user space; [`Blind`] makes a [`Policy`] of it and keeps hits from it. Ours
//! is [`hand::Hand`]: plain numbers around the walk and the decisions of
//! `ghostmem-policy`, which the engine runs too.
//!
//! Everything here is a pure function of its arguments: no clock, no operating
//! system, no randomness but from seeds.
#![forbid(unsafe_code)]

pub mod blind;
pub mod hand;
pub mod informed;
mod list;
pub mod opt;
pub mod recorded;
pub mod rivals;
pub mod rng;
pub mod total;
pub mod trace;

use ghostmem_policy::hand::DIRTY_CREDIT_MIN;
use trace::{Touch, Trace};

/// A policy that is shown every access, with the pages it keeps.
pub trait Policy {
    /// The program touches a page. How many pages were brought in for it: 0
    /// for a hit, 1 for a miss, more when the policy reads ahead.
    fn touch(&mut self, touch: Touch) -> u32;

    /// Pages resident now.
    fn resident(&self) -> usize;
}

/// A policy that is shown only faults.
pub trait FaultPolicy {
    /// Whether a page is resident. Asked of every touch; must not change what
    /// the policy knows.
    fn is_resident(&self, page: u32) -> bool;

    /// The program touches an absent page. How many pages were brought in.
    fn fault(&mut self, touch: Touch) -> u32;

    /// The program stores to a resident page. A pager sees the first store to a
    /// page that keeps a copy, and must do nothing about the others.
    fn store(&mut self, _page: u32) {}

    /// Pages resident now.
    fn resident(&self) -> usize;
}

/// Shows a [`FaultPolicy`] the faults of a trace, and stores, and nothing else.
#[derive(Debug)]
pub struct Blind<P>(pub P);

impl<P: FaultPolicy> Policy for Blind<P> {
    fn touch(&mut self, touch: Touch) -> u32 {
        if !self.0.is_resident(touch.page()) {
            return self.0.fault(touch);
        }
        if touch.is_write() {
            self.0.store(touch.page());
        }
        0
    }

    fn resident(&self) -> usize {
        self.0.resident()
    }
}

/// What a policy did in the measured part of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    /// Measured touches.
    pub touches: u64,
    /// Those that missed.
    pub faults: u64,
    /// Pages brought in, readahead included.
    pub restores: u64,
}

impl Score {
    /// Pages brought in per touch. The same as faults per touch for policies
    /// without readahead, and no readahead makes it smaller by itself.
    #[must_use]
    pub fn restores_per_touch(self) -> f64 {
        self.restores as f64 / self.touches as f64
    }

    /// Faults per touch.
    #[must_use]
    pub fn faults_per_touch(self) -> f64 {
        self.faults as f64 / self.touches as f64
    }
}

/// Runs a policy over a trace.
pub fn run(policy: &mut dyn Policy, trace: &Trace) -> Score {
    let (history, rest) = trace.touches.split_at(trace.measured.start);
    for &touch in history {
        policy.touch(touch);
    }
    let measured = &rest[..trace.measured.len()];
    let mut score = Score {
        touches: measured.len() as u64,
        faults: 0,
        restores: 0,
    };
    for &touch in measured {
        let restored = policy.touch(touch);
        score.faults += u64::from(restored > 0);
        score.restores += u64::from(restored);
    }
    score
}

/// The policies of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// The engine's hand with the credits of `ghostmem-policy`.
    Ours,
    /// The same where calls that protect pages are dear: dirty pages with little credit
    /// are not spared.
    OursDear,
    /// The engine's hand with no credits: faults-only CLOCK in address order.
    PlainHand,
    /// First in, first out; needs to see nothing but faults.
    Fifo,
    /// Faults-only 2Q.
    BlindTwoQ,
    /// Least recently used.
    Lru,
    /// One reference bit.
    Clock,
    /// Full 2Q.
    TwoQ,
    /// S3-FIFO.
    S3Fifo,
    /// SIEVE.
    Sieve,
    /// Clairvoyant optimum.
    Opt,
}

impl Contender {
    /// All, in the order of tables.
    pub const ALL: [Self; 11] = [
        Self::Ours,
        Self::OursDear,
        Self::PlainHand,
        Self::Fifo,
        Self::BlindTwoQ,
        Self::Lru,
        Self::Clock,
        Self::TwoQ,
        Self::S3Fifo,
        Self::Sieve,
        Self::Opt,
    ];

    /// Those that see every access and not the future.
    pub const SIGHTED: [Self; 5] = [
        Self::Lru,
        Self::Clock,
        Self::TwoQ,
        Self::S3Fifo,
        Self::Sieve,
    ];

    /// Those that see only faults, but ours.
    pub const BLIND: [Self; 3] = [Self::PlainHand, Self::Fifo, Self::BlindTwoQ];

    /// Name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursDear => "ours, dear calls",
            Self::PlainHand => "hand",
            Self::Fifo => "FIFO",
            Self::BlindTwoQ => "2Q blind",
            Self::Lru => "LRU",
            Self::Clock => "CLOCK",
            Self::TwoQ => "2Q",
            Self::S3Fifo => "S3-FIFO",
            Self::Sieve => "SIEVE",
            Self::Opt => "OPT",
        }
    }

    /// A fresh one for `trace`, with at most `limit` pages resident.
    #[must_use]
    pub fn start(self, trace: &Trace, limit: usize) -> Box<dyn Policy> {
        let pages = trace.pages;
        match self {
            Self::Ours => Box::new(Blind(hand::Hand::new(hand::Credits, pages, limit))),
            Self::OursDear => {
                let hand = hand::Hand::new(hand::Credits, pages, limit);
                Box::new(Blind(hand.sparing_dirty_from(DIRTY_CREDIT_MIN)))
            }
            Self::PlainHand => Box::new(Blind(hand::Hand::new(hand::Plain, pages, limit))),
            Self::Fifo => Box::new(Blind(blind::Fifo::new(pages, limit))),
            Self::BlindTwoQ => Box::new(Blind(blind::BlindTwoQ::new(pages, limit))),
            Self::Lru => Box::new(rivals::Lru::new(pages, limit)),
            Self::Clock => Box::new(rivals::Clock::new(pages, limit)),
            Self::TwoQ => Box::new(rivals::TwoQ::new(pages, limit)),
            Self::S3Fifo => Box::new(rivals::S3Fifo::new(pages, limit)),
            Self::Sieve => Box::new(rivals::Sieve::new(pages, limit)),
            Self::Opt => Box::new(opt::Opt::new(pages, limit, &trace.touches)),
        }
    }
}

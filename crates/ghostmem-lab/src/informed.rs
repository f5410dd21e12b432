//! How far faults alone can go: a policy that is told the law the program
//! draws from, and only has to find out which page has which rank.
//!
//! For each page it keeps how often the page faulted and how long it was away
//! in all; that is all that faults say about a page whose touches are
//! independent. From these and the law follows the expected rate of the page
//! (Bayes), and the resident page of the lowest rate leaves. It explores
//! nothing, so it is not the optimum among blind policies, but no practical one
//! knows as much.

use std::collections::BTreeSet;

use crate::FaultPolicy;
use crate::trace::Touch;

/// Steps of the tabulated law, each a fifth wider in rank than the one before.
const STEP: f64 = 1.2;

/// The informed policy. Pages start absent.
#[derive(Debug)]
pub struct Informed {
    limit: usize,
    /// Rates (touches of the page per touch) and how many pages have them.
    law: Vec<(f64, f64)>,
    pages: Vec<Known>,
    /// Resident pages by expected rate.
    queue: BTreeSet<(u64, u32)>,
    evictions: u64,
    /// Touches per eviction, assumed: the policy has no other clock.
    touches_per_eviction: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    faults: u32,
    away: f64,
    evicted: u64,
    rate: u64,
    resident: bool,
}

impl Informed {
    /// For `pages` pages under a zipf law of exponent `theta`.
    #[must_use]
    pub fn new(pages: u32, limit: usize, theta: f64, touches_per_eviction: f64) -> Self {
        let total: f64 = (1..=pages).map(|rank| f64::from(rank).powf(-theta)).sum();
        let mut law = Vec::new();
        let mut rank = 1;
        while rank <= pages {
            let end = ((f64::from(rank) * STEP) as u32 + 1).min(pages + 1);
            let middle = f64::from(rank + end - 1) / 2.0;
            law.push((middle.powf(-theta) / total, f64::from(end - rank)));
            rank = end;
        }
        Self {
            limit,
            law,
            pages: vec![Known::default(); pages as usize],
            queue: BTreeSet::new(),
            evictions: 0,
            touches_per_eviction,
        }
    }

    /// Expected rate of a page that faulted so often after so long away.
    fn rate(&self, faults: u32, away: f64) -> f64 {
        let likelihood =
            |rate: f64, pages: f64| pages.ln() + f64::from(faults) * rate.ln() - rate * away;
        let most = self
            .law
            .iter()
            .map(|&(rate, pages)| likelihood(rate, pages))
            .fold(f64::MIN, f64::max);
        let (mut weights, mut rates) = (0.0, 0.0);
        for &(rate, pages) in &self.law {
            let weight = (likelihood(rate, pages) - most).exp();
            weights += weight;
            rates += weight * rate;
        }
        rates / weights
    }
}

impl FaultPolicy for Informed {
    fn is_resident(&self, page: u32) -> bool {
        self.pages[page as usize].resident
    }

    fn fault(&mut self, touch: Touch) -> u32 {
        if self.queue.len() == self.limit
            && let Some((_, victim)) = self.queue.pop_first()
        {
            let victim = &mut self.pages[victim as usize];
            victim.resident = false;
            victim.evicted = self.evictions;
        }
        // Frames that are still empty count as evictions: time goes on.
        self.evictions += 1;
        let mut known = self.pages[touch.page() as usize];
        known.faults += 1;
        known.away += (self.evictions - known.evicted) as f64 * self.touches_per_eviction;
        known.rate = (self.rate(known.faults, known.away) * 1e15) as u64;
        known.resident = true;
        self.pages[touch.page() as usize] = known;
        self.queue.insert((known.rate, touch.page()));
        1
    }

    fn resident(&self) -> usize {
        self.queue.len()
    }
}

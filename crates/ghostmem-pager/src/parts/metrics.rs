//! Counters and the fault latency histogram: lock-free, sharded by thread,
//! read without stopping anybody. What is counted: `figures`.

use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_os::thread;

pub(crate) use crate::parts::figures::Counter;
use crate::parts::latency::LatencyHistogram;
use crate::parts::peak::Peak;

const SHARDS: usize = 8;

#[repr(align(128))]
struct Shard {
    counters: [AtomicU64; Counter::COUNT],
    latency: [AtomicU64; LatencyHistogram::BUCKETS],
}

pub(crate) struct Metrics {
    shards: [Shard; SHARDS],
    /// What the looks under a bound found.
    pub(crate) peak: Peak,
}

impl Metrics {
    pub(crate) const fn new() -> Self {
        Self {
            shards: [const {
                Shard {
                    counters: [const { AtomicU64::new(0) }; Counter::COUNT],
                    latency: [const { AtomicU64::new(0) }; LatencyHistogram::BUCKETS],
                }
            }; SHARDS],
            peak: Peak::new(),
        }
    }

    fn shard(&self) -> &Shard {
        &self.shards[thread::shard(SHARDS)]
    }

    /// Counts: one addition to a cell of the thread's own shard.
    pub(crate) fn add(&self, counter: Counter, amount: u64) {
        if amount > 0 {
            self.shard().counters[counter as usize].fetch_add(amount, Ordering::Relaxed);
        }
    }

    pub(crate) fn record_latency(&self, ns: u64) {
        self.shard().latency[LatencyHistogram::bucket(ns)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sum(&self, counter: Counter) -> u64 {
        self.shards
            .iter()
            .map(|s| s.counters[counter as usize].load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn latency(&self) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::default();
        for shard in &self.shards {
            for (to, from) in histogram.buckets.iter_mut().zip(&shard.latency) {
                *to += from.load(Ordering::Relaxed);
            }
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_ordered_and_exact_for_small_numbers() {
        let metrics = Metrics::new();
        for ns in [1, 2, 3, 4, 1000] {
            metrics.record_latency(ns);
        }
        let latency = metrics.latency();
        assert_eq!(
            (
                latency.count(),
                latency.percentile(50.0),
                latency.percentile(0.0)
            ),
            (5, 3, 1)
        );
        assert!(latency.percentile(99.0) >= 1000);
    }
}

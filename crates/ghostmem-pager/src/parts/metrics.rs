//! Counters and the fault latency histogram: lock-free, a shard for each processor,
//! read without stopping anybody. What is counted: `figures`.

use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_os::map::ZeroArray;
use ghostmem_os::shards::LINE_BYTES;
use ghostmem_os::{OsError, thread};

pub(crate) use crate::parts::figures::Counter;
use crate::parts::latency::LatencyHistogram;
use crate::parts::peak::Peak;

/// Words of a shard: the counters, then the histogram's buckets, in whole lines.
const WORDS: usize =
    (Counter::COUNT + LatencyHistogram::BUCKETS).next_multiple_of(LINE_BYTES / size_of::<u64>());

pub(crate) struct Metrics {
    /// Two KiB and a half each, of which exist those that a processor counted in.
    shards: ZeroArray<[AtomicU64; WORDS]>,
    /// What the looks under a bound found.
    pub(crate) peak: Peak,
}

impl Metrics {
    /// # Errors
    /// The kernel's refusal of memory.
    pub(crate) fn new(shards: usize) -> Result<Self, OsError> {
        Ok(Self {
            shards: ZeroArray::new(shards)?,
            peak: Peak::new(),
        })
    }

    fn shard(&self) -> &[AtomicU64; WORDS] {
        &self.shards[thread::shard(self.shards.len())]
    }

    /// Counts: one addition to a cell of the processor's own shard.
    pub(crate) fn add(&self, counter: Counter, amount: u64) {
        if amount > 0 {
            self.shard()[counter as usize].fetch_add(amount, Ordering::Relaxed);
        }
    }

    pub(crate) fn record_latency(&self, ns: u64) {
        let bucket = Counter::COUNT + LatencyHistogram::bucket(ns);
        self.shard()[bucket].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sum(&self, counter: Counter) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard[counter as usize].load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn latency(&self) -> LatencyHistogram {
        let mut histogram = LatencyHistogram::default();
        for shard in self.shards.iter() {
            let buckets = &shard[Counter::COUNT..];
            for (to, from) in histogram.buckets.iter_mut().zip(buckets) {
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
        let metrics = Metrics::new(2).unwrap();
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

    #[test]
    fn what_threads_counted_on_any_processor_is_in_the_sum_once() {
        for shards in [1, 2, 256] {
            let metrics = Metrics::new(shards).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    let metrics = &metrics;
                    scope.spawn(move || {
                        for step in 0..2000 {
                            metrics.add(Counter::faults, 1);
                            metrics.add(Counter::refaults, step % 2);
                            metrics.record_latency(thread);
                        }
                    });
                }
            });
            assert_eq!(metrics.sum(Counter::faults), 16_000);
            assert_eq!(metrics.sum(Counter::refaults), 8000);
            assert_eq!(metrics.latency().count(), 16_000);
            assert_eq!(metrics.latency().buckets[..8], [2000; 8]);
        }
    }
}

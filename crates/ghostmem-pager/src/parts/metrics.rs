//! Counters and the fault latency histogram: lock-free, sharded by thread,
//! read without stopping anybody.

use core::sync::atomic::{AtomicU64, Ordering};

use ghostmem_os::thread;

const SHARDS: usize = 8;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What is counted.
        #[derive(Debug, Clone, Copy)]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        pub(crate) enum Counter { $($name),* }
        /// A sum of all counters at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64),* }
        const COUNTERS: usize = [$(Counter::$name),*].len();
        impl Counts {
            fn of(sum: impl Fn(Counter) -> u64) -> Self {
                Self { $($name: sum(Counter::$name)),* }
            }
        }
    };
}

counters! {
    /// Faults that put at least one page in place.
    faults,
    /// Of those, on pages that had been evicted.
    refaults,
    /// Faults that found the page already being handled by another thread.
    fault_races,
    /// First stores to clean pages.
    write_faults,
    /// Pages evicted without compressing them again.
    evictions_clean,
    /// Pages evicted by compressing them.
    evictions_dirty,
    /// Evictions cancelled by a touch.
    evictions_cancelled,
    /// Pages put in place ahead of a touch.
    readahead_pages,
    /// Of those, pages whose run went on past them.
    readahead_hits,
    /// Evictions done by a faulting thread because no frame was free.
    direct_reclaims,
    /// Frames taken beyond the limit so that a thread could go on.
    overdrafts,
    /// Pages of one repeated value that took no slot when evicted.
    filled_pages_evicted,
    /// Pages stored without compression.
    raw_pages_evicted,
    /// Clean copies given up to make room in the store.
    copies_shed,
    /// Pages moved from the store to the file.
    pages_spilled,
    /// Pages that were touched while they were written to the file, and stayed
    /// in the store.
    spills_in_vain,
    /// Pages read from the file for a fault or ahead of one.
    spilled_reads,
    /// Reads of a page from the file that failed.
    spilled_read_errors,
    /// Batches that could not be written to the file.
    spill_write_errors,
    /// Times a fault that had to evict waited for the file.
    spill_waits,
    /// Nanoseconds spent compressing.
    compress_ns,
    /// Pages compressed.
    compressed_pages,
    /// Nanoseconds spent decompressing, of sampled pages.
    decompress_ns,
    /// Sampled decompressions.
    decompress_samples,
}

#[repr(align(128))]
struct Shard {
    counters: [AtomicU64; COUNTERS],
    latency: [AtomicU64; LatencyHistogram::BUCKETS],
}

pub(crate) struct Metrics {
    shards: [Shard; SHARDS],
}

impl Metrics {
    pub(crate) const fn new() -> Self {
        Self {
            shards: [const {
                Shard {
                    counters: [const { AtomicU64::new(0) }; COUNTERS],
                    latency: [const { AtomicU64::new(0) }; LatencyHistogram::BUCKETS],
                }
            }; SHARDS],
        }
    }

    fn shard(&self) -> &Shard {
        &self.shards[thread::shard(SHARDS)]
    }

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

    pub(crate) fn counts(&self) -> Counts {
        Counts::of(|counter| self.sum(counter))
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

/// How long faults took inside the engine (the kernel's signal delivery, a
/// little over a microsecond, comes on top): counts in buckets whose bounds
/// grow by an eighth of a power of two.
#[derive(Debug, Clone, Copy)]
pub struct LatencyHistogram {
    buckets: [u64; Self::BUCKETS],
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            buckets: [0; Self::BUCKETS],
        }
    }
}

impl LatencyHistogram {
    /// Eight buckets for each power of two up to about 17 seconds.
    const BUCKETS: usize = 8 * 32;

    const fn bucket(ns: u64) -> usize {
        if ns < 8 {
            return ns as usize;
        }
        let power = 63 - ns.leading_zeros();
        let index = (power as usize - 2) * 8 + (ns >> (power - 3) & 7) as usize;
        if index < Self::BUCKETS {
            index
        } else {
            Self::BUCKETS - 1
        }
    }

    /// Upper bound of a bucket, nanoseconds.
    const fn bound(bucket: usize) -> u64 {
        if bucket < 8 {
            return bucket as u64;
        }
        let power = (bucket / 8 + 2) as u32;
        (1 << power) + ((bucket as u64 % 8) + 1) * (1 << (power - 3)) - 1
    }

    /// Number of faults counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Time of all faults together, nanoseconds, each rounded up by at most
    /// an eighth.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        let buckets = self.buckets.iter().enumerate();
        buckets.fold(0, |sum: u64, (bucket, &count)| {
            sum.saturating_add(Self::bound(bucket).saturating_mul(count))
        })
    }

    /// A latency that `percent` (0 to 100) of the faults did not exceed, in
    /// nanoseconds, rounded up by at most an eighth; 0 without faults.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> u64 {
        let count = self.count();
        if count == 0 {
            return 0;
        }
        let rank = (count as f64 * (percent / 100.0).clamp(0.0, 1.0))
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0;
        for (bucket, &n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Self::bound(bucket);
            }
        }
        Self::bound(Self::BUCKETS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_falls_in_a_bucket_whose_bound_is_close_above() {
        for shift in 0..34 {
            for ns in [1_u64 << shift, (1 << shift) + 1, (1 << shift) * 3 / 2] {
                let bound = LatencyHistogram::bound(LatencyHistogram::bucket(ns));
                assert!(bound >= ns && bound <= ns + ns / 7 + 1, "{ns} -> {bound}");
            }
        }
    }

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

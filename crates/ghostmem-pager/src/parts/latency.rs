//! How long faults took, in buckets.

/// How long faults took inside the engine (the kernel's signal delivery, a
/// little over a microsecond, comes on top): counts in buckets whose bounds
/// grow by an eighth of a power of two.
#[derive(Debug, Clone, Copy)]
pub struct LatencyHistogram {
    pub(super) buckets: [u64; Self::BUCKETS],
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
    pub(super) const BUCKETS: usize = 8 * 32;

    pub(super) const fn bucket(ns: u64) -> usize {
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
}

//! Pseudo-random choices that are functions of a seed and an operation number.
//!
//! No state is carried from one operation to the next, so the same operations are made whatever
//! the number of threads, and their effect can be computed again without having been recorded.

/// Mixes two words into one that looks random (the finalizer of splitmix64).
pub(crate) fn mix(seed: u64, number: u64) -> u64 {
    let mut z = seed ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Maps a random word to `0..count` without a division.
pub(crate) fn below(random: u64, count: u64) -> u64 {
    ((u128::from(random) * u128::from(count)) >> 64) as u64
}

/// Ranks that follow Zipf's law with exponent 0.99, as the YCSB benchmark draws them
/// (Gray et al., "Quickly generating billion-record synthetic databases", SIGMOD 1994).
pub(crate) struct Zipf {
    count: f64,
    zeta: f64,
    eta: f64,
    second: f64,
}

const THETA: f64 = 0.99;

impl Zipf {
    /// Prepares ranks `0..count`.
    pub(crate) fn new(count: u64) -> Self {
        let zeta = zeta(count);
        let zeta_two = zeta_exact(count.min(2));
        let count = count as f64;
        Self {
            count,
            zeta,
            eta: (1.0 - (2.0 / count).powf(1.0 - THETA)) / (1.0 - zeta_two / zeta),
            second: 1.0 + 0.5f64.powf(THETA),
        }
    }

    /// The rank (0 is the most frequent) for one random word.
    pub(crate) fn rank(&self, random: u64) -> u64 {
        let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
        let scaled = uniform * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < self.second {
            return 1.min(self.count as u64 - 1);
        }
        let rank = self.count * (self.eta * (uniform - 1.0) + 1.0).powf(1.0 / (1.0 - THETA));
        (rank as u64).min(self.count as u64 - 1)
    }
}

fn zeta_exact(count: u64) -> f64 {
    (1..=count).map(|i| (i as f64).powf(-THETA)).sum()
}

/// Sum of `i^-0.99`; beyond 10000 terms the integral replaces the sum (error below 1e-6).
fn zeta(count: u64) -> f64 {
    const EXACT: u64 = 10_000;
    if count <= EXACT {
        return zeta_exact(count);
    }
    let power = 1.0 - THETA;
    let tail = ((count as f64 + 0.5).powf(power) - (EXACT as f64 + 0.5).powf(power)) / power;
    zeta_exact(EXACT) + tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_stays_in_range_and_reaches_both_ends() {
        assert_eq!(below(0, 7), 0);
        assert_eq!(below(u64::MAX, 7), 6);
        assert!((0..1000).all(|i| below(mix(1, i), 3) < 3));
    }

    #[test]
    fn zipf_ranks_stay_in_range_and_prefer_low_ranks() {
        for count in [1, 2, 3, 1000, 100_000] {
            let zipf = Zipf::new(count);
            assert!((0..10_000).all(|i| zipf.rank(mix(7, i)) < count), "{count}");
        }
        let zipf = Zipf::new(100_000);
        let draws = 100_000;
        let top = (0..draws).filter(|&i| zipf.rank(mix(3, i)) < 1000).count();
        // zeta(1000) / zeta(100000) is 0.63 at this exponent.
        assert!((0.58..0.68).contains(&(top as f64 / draws as f64)), "{top}");
    }

    #[test]
    fn the_integral_agrees_with_the_sum() {
        let exact = zeta_exact(200_000);
        assert!((zeta(200_000) - exact).abs() < 1e-5);
    }
}

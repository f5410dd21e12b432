//! Random numbers that are the same on every machine: the streams decide which
//! page is touched next, so every contender must get the same ones.

/// Mixes 64 bits into 64 bits so that neighbouring inputs give unrelated
/// outputs (the finaliser of SplitMix64; a bijection).
#[must_use]
pub const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A SplitMix64 stream.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The stream of `seed`.
    pub const fn new(seed: u64) -> Self {
        Self { state: mix(seed) }
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        let out = mix(self.state);
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        out
    }

    /// A number below `bound`, uniform to within 2^-32 for bounds that fit 32
    /// bits. `bound` of zero gives zero.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }

    /// A number in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A random order of `0..count`.
    pub fn permutation(&mut self, count: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.below(last as u64 + 1) as usize);
        }
        order
    }
}

/// Ranks drawn with probability proportional to `1 / (rank + 1)^theta`, by the
/// method of Gray et al., "Quickly generating billion-record synthetic
/// databases" (SIGMOD 1994), as YCSB does.
#[derive(Debug, Clone)]
pub struct Zipf {
    count: u64,
    theta: f64,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    /// Ranks `0..count` with exponent `theta`, which lies strictly between 0
    /// and 1.
    pub fn new(count: u64, theta: f64) -> Self {
        let zeta = |n: u64| (1..=n).map(|rank| (rank as f64).powf(-theta)).sum::<f64>();
        let all = zeta(count);
        let two = zeta(count.min(2));
        Self {
            count,
            theta,
            alpha: 1.0 / (1.0 - theta),
            zeta: all,
            eta: (1.0 - (2.0 / count as f64).powf(1.0 - theta)) / (1.0 - two / all),
        }
    }

    /// The next rank, 0 the most frequent.
    pub fn sample(&self, rng: &mut Rng) -> u64 {
        let u = rng.unit();
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(self.theta) {
            return 1.min(self.count - 1);
        }
        let rank = self.count as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha);
        (rank as u64).min(self.count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that a permutation holds every number once.
    #[test]
    fn permutation_is_complete() {
        let mut order = Rng::new(1).permutation(1000);
        assert_ne!(order, (0..1000).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
    }

    /// Proves that the frequencies follow the law: rank 0 against rank 9, and
    /// the share of the hottest tenth.
    #[test]
    fn zipf_follows_its_law() {
        let zipf = Zipf::new(10_000, 0.99);
        let mut rng = Rng::new(7);
        let mut hits = vec![0_u32; 10_000];
        for _ in 0..1_000_000 {
            hits[zipf.sample(&mut rng) as usize] += 1;
        }
        let ratio = f64::from(hits[0]) / f64::from(hits[9]);
        let expected = 10_f64.powf(0.99);
        assert!(
            (ratio / expected - 1.0).abs() < 0.15,
            "{ratio} against {expected}"
        );
        let hot: u32 = hits[..1000].iter().sum();
        let law = |n: u32| (1..=n).map(|r| f64::from(r).powf(-0.99)).sum::<f64>();
        let share = f64::from(hot) / 1e6;
        assert!((share - law(1000) / law(10_000)).abs() < 0.02, "{share}");
    }
}

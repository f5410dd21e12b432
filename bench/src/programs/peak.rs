//! The total of a run: the most that it held at one moment.
//!
//! The sum is taken at each look, and the highest sum counts. Two peaks of different
//! moments are never added: a program that is resident first and swapped out later never
//! held both.

/// The highest sum so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Peak {
    /// Processes and zram together, bytes.
    pub(super) total: u64,
    /// Of it what zram held at that look, bytes.
    pub(super) zram: u64,
}

impl Peak {
    /// Takes what was seen at one look, bytes.
    pub(super) const fn see(&mut self, processes: u64, zram: u64) {
        let total = processes.saturating_add(zram);
        if total > self.total {
            *self = Self { total, zram };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peak(looks: &[(u64, u64)]) -> Peak {
        let mut peak = Peak::default();
        looks
            .iter()
            .for_each(|&(processes, zram)| peak.see(processes, zram));
        peak
    }

    /// Proves that the total is of one look: the peaks of both parts would be 230.
    #[test]
    fn the_total_is_the_highest_sum_of_one_look() {
        let looks = [(150, 0), (120, 20), (100, 80), (90, 70), (0, 0)];
        assert_eq!(
            peak(&looks),
            Peak {
                total: 180,
                zram: 80
            }
        );
        assert_eq!(peak(&[]), Peak::default());
    }

    /// Proves that what zram holds alone is seen, and that of equal sums the first stays.
    #[test]
    fn the_first_of_equal_sums_stays() {
        assert_eq!(peak(&[(0, 50)]).total, 50);
        assert_eq!(peak(&[(60, 40), (40, 60)]).zram, 40);
        assert_eq!(peak(&[(u64::MAX, 1)]).total, u64::MAX);
    }
}

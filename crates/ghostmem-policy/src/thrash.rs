//! Whether a program does little but fault: for a word to its user, who may take it for
//! one that hangs.

/// Shorter times between two looks say nothing.
const LOOK_NS: u64 = 500_000_000;
/// For so long it has to last.
const LONG_NS: u64 = 4_000_000_000;

/// What was counted up to a moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// The moment, nanoseconds.
    pub now_ns: u64,
    /// Time in faults and in the thread that evicts for them, of all threads.
    pub faults_ns: u64,
    /// Processor time of the process.
    pub processor_ns: u64,
}

/// What was seen of a program.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thrash {
    last: Spent,
    since_ns: Option<u64>,
    is_told: bool,
}

impl Thrash {
    /// Whether the next look may say something.
    #[must_use]
    pub const fn is_due(&self, now_ns: u64) -> bool {
        !self.is_told && now_ns.saturating_sub(self.last.now_ns) >= LOOK_NS
    }

    /// A look; `true`, once, when for 4 s faults took more than half of the time, and of
    /// the processor time. A fault is timed from its handler on, and what the kernel
    /// takes around that is half as much again (a third of a page's whole time under
    /// `inline`): half by this clock is three quarters. Time in faults passes on where
    /// others have the processors.
    #[must_use]
    pub fn look(&mut self, now: Spent) -> bool {
        let last = core::mem::replace(&mut self.last, now);
        let time = now.now_ns.saturating_sub(last.now_ns);
        let faults = now.faults_ns.saturating_sub(last.faults_ns);
        let processor = now.processor_ns.saturating_sub(last.processor_ns);
        let is_first = last.now_ns == 0;
        if is_first || faults <= time / 2 || faults <= processor / 2 {
            self.since_ns = None;
            return false;
        }
        let since = *self.since_ns.get_or_insert(last.now_ns);
        let is_long = now.now_ns.saturating_sub(since) >= LONG_NS;
        let tells = is_long && !self.is_told;
        self.is_told |= tells;
        tells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Seconds, each with so many milliseconds in faults and of the processor, after
    /// which something is told.
    fn told(seconds: &[(u64, u64)]) -> Vec<usize> {
        let mut thrash = Thrash::default();
        let mut now = Spent {
            now_ns: 77 * MS,
            ..Spent::default()
        };
        assert!(!thrash.look(now));
        let mut told = Vec::new();
        for (second, &(faults, processor)) in seconds.iter().enumerate() {
            assert!(!thrash.is_due(now.now_ns + 1));
            now.now_ns += 1000 * MS;
            now.faults_ns += faults * MS;
            now.processor_ns += processor * MS;
            assert_eq!(thrash.is_due(now.now_ns), told.is_empty());
            if thrash.look(now) {
                told.push(second);
            }
        }
        told
    }

    #[test]
    fn a_program_that_faults_all_the_time_is_told_once() {
        assert_eq!(told(&[(900, 1000); 20]), [3]);
        // As the clock of a handler sees it.
        assert_eq!(told(&[(650, 1000); 20]), [3]);
        // Two threads.
        assert_eq!(told(&[(1900, 2000); 20]), [3]);
    }

    #[test]
    fn work_between_rest_and_short_bursts_are_left_alone() {
        assert_eq!(told(&[(500, 1000); 20]), [0; 0]);
        assert_eq!(told(&[(600, 1300); 20]), [0; 0]);
        assert_eq!(told(&[(100, 100); 20]), [0; 0]);
        let burst = [(900, 1000), (900, 1000), (900, 1000), (100, 1000)];
        assert_eq!(told(&burst.repeat(5)), [0; 0]);
        let late = [&[(0, 1000); 5][..], &[(900, 1000); 5]].concat();
        assert_eq!(told(&late), [8]);
    }
}

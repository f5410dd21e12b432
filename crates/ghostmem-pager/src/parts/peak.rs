//! What a process consisted of when it took most, as the looks under a bound found it.

use core::sync::atomic::{AtomicUsize, Ordering};

/// What a process takes, bytes of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ProcessParts {
    /// All of it.
    pub(crate) total: usize,
    /// Uncompressed pages.
    pub(crate) resident: usize,
    /// Compressed pages.
    pub(crate) stored: usize,
    /// Copies of uncompressed pages.
    pub(crate) copies: usize,
    /// Tables.
    pub(crate) tables: usize,
    /// Everything that is not the heap's.
    pub(crate) other: usize,
    /// All of it, were every page uncompressed.
    pub(crate) plain: usize,
}

/// The parts at the peak, and the peak of what there would be without compression.
#[derive(Debug)]
pub(crate) struct Peak {
    parts: [AtomicUsize; 6],
    plain: AtomicUsize,
}

impl Peak {
    pub(crate) const fn new() -> Self {
        Self {
            parts: [const { AtomicUsize::new(0) }; 6],
            plain: AtomicUsize::new(0),
        }
    }

    /// Notes a look. Looks come one after the other.
    pub(crate) fn note(&self, now: &ProcessParts) {
        self.plain.fetch_max(now.plain, Ordering::Relaxed);
        if now.total <= self.parts[0].load(Ordering::Relaxed) {
            return;
        }
        let parts = [
            now.total,
            now.resident,
            now.stored,
            now.copies,
            now.tables,
            now.other,
        ];
        for (place, bytes) in self.parts.iter().zip(parts) {
            place.store(bytes, Ordering::Relaxed);
        }
    }

    /// The parts at the look that found most; all 0 before the first.
    pub(crate) fn parts(&self) -> ProcessParts {
        let [total, resident, stored, copies, tables, other] =
            [0, 1, 2, 3, 4, 5].map(|at: usize| self.parts[at].load(Ordering::Relaxed));
        ProcessParts {
            total,
            resident,
            stored,
            copies,
            tables,
            other,
            plain: self.plain.load(Ordering::Relaxed),
        }
    }

    /// In a forked child: what was found was the parent's.
    pub(crate) fn forget(&self) {
        for place in self.parts.iter().chain([&self.plain]) {
            place.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_those_of_the_largest_look() {
        let look = |total, resident, plain| ProcessParts {
            total,
            resident,
            plain,
            ..ProcessParts::default()
        };
        let peak = Peak::new();
        for seen in [look(10, 5, 30), look(20, 8, 25), look(15, 14, 60)] {
            peak.note(&seen);
        }
        assert_eq!(peak.parts(), look(20, 8, 60));
        peak.forget();
        assert_eq!(peak.parts(), ProcessParts::default());
    }
}

//! How often pages came, and left in which way.

/// How pages came and left so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// Touches of absent pages.
    pub faults: u64,
    /// Those of pages that had left in the same epoch.
    pub early: u64,
    /// Pages that readahead brought in.
    pub ahead: u64,
    /// First stores to clean pages.
    pub opened: u64,
    /// Pages evicted that had no copy.
    pub packed: u64,
    /// Pages evicted that had a copy and were writable.
    pub compared: u64,
    /// Pages evicted that were clean.
    pub dropped: u64,
}

impl Events {
    /// Pages evicted.
    #[must_use]
    pub const fn evictions(&self) -> u64 {
        self.packed + self.compared + self.dropped
    }

    /// Pages brought in.
    #[must_use]
    pub const fn restores(&self) -> u64 {
        self.faults + self.ahead
    }

    /// What happened since `before`.
    #[must_use]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            faults: self.faults - before.faults,
            early: self.early - before.early,
            ahead: self.ahead - before.ahead,
            opened: self.opened - before.opened,
            packed: self.packed - before.packed,
            compared: self.compared - before.compared,
            dropped: self.dropped - before.dropped,
        }
    }
}

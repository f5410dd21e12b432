//! What this process takes of the machine: not measured on Windows.

/// What memory is taken from: a level of groups, or the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// All of it, bytes.
    pub limit_bytes: u64,
    /// What is left, or can be had without harm.
    pub left_bytes: u64,
    /// Bytes that can be swapped out when nothing is left.
    pub swap_bytes: u64,
}

/// Sees nothing.
#[derive(Debug, Default)]
pub struct Meter(());

impl Meter {
    /// One that has nothing open.
    #[must_use]
    pub const fn new() -> Self {
        Self(())
    }

    /// Opens nothing.
    pub const fn open(&self, _supplies: bool) {}

    /// Opens nothing.
    pub const fn open_parts(&self) {}

    /// Not known.
    #[must_use]
    pub const fn part_bytes(&self) -> Option<u64> {
        None
    }

    /// Forgets nothing: there are no forks.
    pub const fn after_fork_in_child(&self) {}

    /// Not known.
    #[must_use]
    pub const fn process_bytes(&self) -> Option<u64> {
        None
    }

    /// No supply can be seen.
    pub fn supplies(&self, _each: impl FnMut(Supply)) -> bool {
        false
    }

    /// There is no limit.
    #[must_use]
    pub const fn own_limit_bytes(&self) -> Option<u64> {
        None
    }
}

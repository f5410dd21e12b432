//! Is this still the process that set things up? Windows has no fork: always.

/// Whether the process was claimed, rather than copied from one that was.
#[must_use]
pub const fn is_ours() -> bool {
    true
}

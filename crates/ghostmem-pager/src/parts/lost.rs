//! A page whose bytes cannot be brought back, and what the program says to that.

use core::fmt;

use ghostmem_store::tier::TierError;

/// A page whose bytes cannot be brought back.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LostPage {
    /// First address of the page.
    pub address: usize,
    /// The region it is in: the number of one of the heap's address ranges.
    pub region: u32,
    /// Its number in the region.
    pub page: usize,
    /// Why its tier could not give it back.
    pub cause: TierError,
    /// How often it has been tried, this time included.
    pub tries: u32,
}

impl fmt::Display for LostPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            region,
            page,
            cause,
            ..
        } = self;
        write!(
            f,
            "page {page} of region {region} ({address:#x}): {cause}; its contents cannot be \
             brought back"
        )
    }
}

/// What becomes of an access to a page that cannot be brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LostDecision {
    /// A line on standard error, and the signal of the fault (SIGBUS, or
    /// SIGSEGV with the guard backend) for the program: without a handler of
    /// its own for that, the process ends at the access.
    Stop,
    /// Read it once more.
    Retry,
}

/// Asked when a page cannot be brought back: in the fault handler, signals
/// blocked, the page claimed. It may only do what is async-signal-safe and must
/// not touch ghost memory.
pub type LostHandler = fn(&LostPage) -> LostDecision;

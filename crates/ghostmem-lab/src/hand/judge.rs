//! What a page is worth when it comes in, by the engine's rules or without any.

use ghostmem_policy::{EpochClock, Heat, Past};

/// Why a page comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It holds nothing yet.
    Fresh,
    /// It was evicted and is touched.
    Refault,
    /// Readahead wants it.
    Ahead,
}

/// What a page is worth when it comes in.
pub trait Judge {
    /// Its heat, by the 16 bits it kept while it was away.
    fn restore(&self, bits: u16, reason: Reason, clock: EpochClock, now: u16) -> Heat;

    /// Its heat once it was seen to be stored to.
    fn sighted(&self, heat: Heat) -> Heat;
}

/// What the engine does.
#[derive(Debug, Clone, Copy)]
pub struct Credits;

impl Judge for Credits {
    fn restore(&self, bits: u16, reason: Reason, clock: EpochClock, now: u16) -> Heat {
        let past = Past::from_bits(bits);
        match reason {
            Reason::Fresh => Heat::FRESH,
            Reason::Refault => past.refault(clock, now),
            Reason::Ahead => past.ahead(),
        }
    }

    fn sighted(&self, heat: Heat) -> Heat {
        heat.sighted()
    }
}

/// No credit at all: the hand takes whatever it meets.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Judge for Plain {
    fn restore(&self, _: u16, _: Reason, _: EpochClock, _: u16) -> Heat {
        Heat::COLD
    }

    fn sighted(&self, _: Heat) -> Heat {
        Heat::COLD
    }
}

//! Reclaim: from a resident page to a slot, on a thread that faults or on the reclaimer's.

pub(crate) mod batch;
pub(crate) mod choose;
pub(crate) mod pack;
pub(crate) mod reclaimer;
mod slowdown;

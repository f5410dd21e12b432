//! What a heap is made of: the ground floor. Nothing here knows what happens to a page;
//! every other folder stands on it.

pub mod blocks;
pub(crate) mod bound;
pub(crate) mod budget;
pub(crate) mod cold;
pub(crate) mod config;
pub(crate) mod engine;
pub(crate) mod figures;
pub(crate) mod hand;
pub(crate) mod latency;
pub(crate) mod lost;
pub(crate) mod mappings;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod peak;
pub(crate) mod place;
pub(crate) mod protecting;
pub(crate) mod quiet;
pub(crate) mod reach;
pub(crate) mod region;
pub(crate) mod resident;
pub(crate) mod ring;
pub(crate) mod spin;
pub(crate) mod tally;
pub(crate) mod threads;
pub(crate) mod token;
pub(crate) mod wake;

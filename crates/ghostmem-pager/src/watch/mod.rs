//! What a heap holds and did, for those who look on.

pub(crate) mod stats;

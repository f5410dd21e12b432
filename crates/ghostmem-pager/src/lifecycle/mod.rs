//! How an engine begins and ends, what it is told of faults, and how a fork takes it along.

pub(crate) mod fork;
pub(crate) mod sink;
pub(crate) mod start;
pub(crate) mod threads;

//! What a program may have: what its allocations are asked against.

pub(crate) mod admission;
mod balloon;

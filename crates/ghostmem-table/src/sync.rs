//! The one atomic type used, switched to loom's under `--cfg loom`.

#[cfg(loom)]
pub use loom::sync::atomic::AtomicU64;
#[cfg(not(loom))]
pub use std::sync::atomic::AtomicU64;

pub(crate) use core::sync::atomic::Ordering;

//! The atomic word of the live bitmaps, switched to loom's under `--cfg loom`
//! where the model includes [`crate::live`].

pub(crate) use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

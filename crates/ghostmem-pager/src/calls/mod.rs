//! What a program may ask for: blocks, advice on ranges, pins, other limits.
//!
//! Calls run on the program's threads, outside fault handlers. A signal handler that
//! touched a page that such a call owns would wait for the thread it interrupted: every
//! signal is blocked meanwhile, and the call runs on a stack of the engine's own.

pub(crate) mod advice;
pub(crate) mod blocks;
pub(crate) mod discard;
pub(crate) mod free;
#[cfg(not(windows))]
pub(crate) mod hand_over;
pub(crate) mod holes;
pub(crate) mod pins;
pub(crate) mod resize;

//! Every operating-system memory call GhostMem makes.
//!
//! The innermost room, and one of the few where `unsafe` is allowed: it knows
//! nothing of pages' states, heaps or policy. What it hands outwards is either
//! safe to use in any order, or says exactly what the caller owes.

#[cfg(not(all(
    target_os = "linux",
    target_endian = "little",
    target_pointer_width = "64"
)))]
compile_error!("GhostMem runs on 64-bit little-endian Linux for now");

pub mod buffer;
pub mod bytes;
pub mod clock;
pub mod descriptor;
pub mod error;
pub mod file;
pub mod futex;
pub mod ghost;
pub mod guard;
pub mod lineage;
pub mod lock;
pub mod machine;
pub mod map;
pub mod message;
mod nesting;
pub mod random;
pub mod saved;
pub mod scratch;
pub mod shared;
pub mod signal;
pub mod thread;
pub mod touched;
pub mod uffd;
pub mod vault;

pub use error::OsError;
pub use map::PAGE_SIZE;

//! Every operating-system memory call GhostMem makes.
//!
//! The innermost room, and one of the few where `unsafe` is allowed: it knows
//! nothing of pages' states, heaps or policy. What it hands outwards is either
//! safe to use in any order, or says exactly what the caller owes.

#[cfg(not(all(
    any(target_os = "linux", windows),
    target_endian = "little",
    target_pointer_width = "64"
)))]
compile_error!("GhostMem runs on 64-bit little-endian Linux and Windows for now");

mod access;
#[cfg(not(windows))]
pub mod apart;
pub mod bits;
pub mod buffer;
pub mod bytes;
#[cfg(not(windows))]
pub mod calls;
#[cfg_attr(windows, path = "windows/clock.rs")]
pub mod clock;
#[cfg(not(windows))]
pub mod descriptor;
#[cfg(not(windows))]
pub mod doorway;
#[cfg_attr(windows, path = "windows/errno.rs")]
mod errno;
pub mod error;
#[cfg(not(windows))]
pub mod file;
#[cfg_attr(windows, path = "windows/found.rs")]
pub mod found;
#[cfg(windows)]
#[path = "windows/frame.rs"]
pub mod frame;
#[cfg_attr(windows, path = "windows/futex.rs")]
pub mod futex;
pub mod ghost;
#[cfg(not(windows))]
pub mod guard;
#[cfg(not(windows))]
pub mod kept;
#[cfg(not(windows))]
pub mod kernel;
#[cfg(windows)]
#[path = "windows/lazy.rs"]
mod lazy;
#[cfg_attr(windows, path = "windows/lineage.rs")]
pub mod lineage;
pub mod loader;
pub mod lock;
#[cfg_attr(windows, path = "windows/machine.rs")]
pub mod machine;
pub mod map;
#[cfg(not(windows))]
pub mod medium;
pub mod message;
#[cfg_attr(windows, path = "windows/meter.rs")]
pub mod meter;
#[cfg(not(windows))]
mod nesting;
#[cfg(windows)]
#[path = "windows/placeholder.rs"]
pub mod placeholder;
#[cfg(not(windows))]
pub mod random;
#[cfg(not(windows))]
pub mod ranges;
#[cfg(not(windows))]
pub mod report;
#[cfg_attr(windows, path = "windows/reservation.rs")]
mod reservation;
#[cfg(not(windows))]
pub mod room;
#[cfg(not(windows))]
pub mod saved;
pub mod scratch;
pub mod shards;
#[cfg_attr(windows, path = "windows/shared.rs")]
pub mod shared;
#[cfg_attr(windows, path = "windows/signal.rs")]
pub mod signal;
#[cfg(all(feature = "sim", not(windows)))]
pub mod sim;
#[cfg(not(windows))]
pub mod stack;
#[cfg_attr(windows, path = "windows/stop.rs")]
pub mod stop;
#[cfg_attr(windows, path = "windows/thread.rs")]
pub mod thread;
#[cfg(not(windows))]
pub mod told;
pub mod touched;
#[cfg_attr(windows, path = "windows/tree.rs")]
pub mod tree;
#[cfg(not(windows))]
pub mod trial;
#[cfg(not(windows))]
pub mod uffd;
#[cfg(not(windows))]
pub mod vault;

pub use error::OsError;
pub use map::PAGE_SIZE;

//! The *sim* backend: no operating system, one thread, everything from one seed.
//!
//! Only in builds with the feature `sim`, for tests of what stands on this crate. A region's
//! memory is the simulation's own; the addresses of its reservation are numbers that nobody
//! touches. The program's threads are numbers, too:
//!
//! ```text
//!   test ── load, store ──► page as mapped?  ── yes ──► bytes of the frame
//!                             │ no: a trap
//!                             ▼
//!                          FaultSink, on the caller's stack, inside the gate
//!                             │
//!                             ▼  install, protect, drop ...
//!                          the simulated kernel: Done, Refused or Part, by script or odds;
//!                          before and after each call the hook, where others may act
//! ```
//!
//! # Time and waiting
//! Nothing blocks and no thread is started. The clock is a number that waits and slow
//! calls advance (`ghostmem_os::sim`). A fault whose verdict is to wait comes back as
//! [`Outcome::WouldWait`], and its thread is run again later.
//!
//! # Interleavings
//! An actor on a stack of its own ([`Fibre`]) gives way wherever a scheduler wants it to:
//! the hook is one of the places, waits ([`ghostmem_os::sim`]) and page words
//! (`ghostmem_table::sim`) are the others. It waits as a thread does.
//!
//! Without such stacks, whoever acts in the hook does so in the middle of the call that is interrupted, on top
//! of its stack, and runs to its end: as a thread does that takes the processor away. What
//! is interrupted cannot go on meanwhile, so a thread that would have to wait for it must
//! come back instead. Loads and stores, reclaim and compaction do; a pin, a discard and a
//! free wait, and are for the top of the stack only.
//!
//! # What is found
//! [`Simulation::broken`] says what a backend must never be asked. A test compares bytes,
//! frames and slots itself. The seed is printed with any panic on the simulation's thread;
//! what ends a process otherwise ([`crate::die()`]) is a panic there.

mod fibre;
mod kernel;
mod program;
mod space;

pub use fibre::{Fibre, Stop, give_way};
pub use kernel::{Answer, Call, Odds, Simulation};
pub use program::{Outcome, Thread};
pub use space::Manner;
pub(crate) use space::Sim;

//! The engine in a simulation: what runs is the engine itself, on a backend without an
//! operating system (`ghostmem_fault::sim`), on one thread, from a seed.
//!
//! `world` is the program: blocks, threads that are numbers, and a plain map of what every
//! page must hold. `verbs_*` tests each folder of the pager by itself, `walk` all of them
//! together.

#![allow(clippy::unwrap_used)] // a test ends at the first failure

mod verbs_calls;
mod verbs_evict;
mod verbs_fault;
mod verbs_fork;
mod verbs_limits;
mod verbs_tiers;
mod walk;
mod world;

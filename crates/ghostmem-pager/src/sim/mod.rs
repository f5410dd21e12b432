//! The engine in a simulation: what runs is the engine itself, on a backend without an
//! operating system (`ghostmem_fault::sim`), on one thread, from a seed.
//!
//! ```text
//!   soak       the command: runs from one seed after the other, scripts that are kept
//!   shrink     a run that fails, made shorter
//!   run        a stack for each actor, which are resumed in turn
//!   schedule   which actor goes on, at each point that one comes to
//!   machine    the program: its operations, and what must hold
//!   audit      what words, frames, slots and copies say of each other
//!   disk       a file that fails, lies and forgets
//!   oracle     what each page must hold: a plain map
//!   plan       a setting, operations, decisions: from a seed or a script
//! ```
//! `verbs_*` and `walk` are older and simpler: there a test calls the engine, and others
//! act on top of its stack in the middle of a call. `world` is their program. `verbs_*`
//! tests each folder of the pager by itself, `walk` all of them together.

#![allow(clippy::unwrap_used)] // a test ends at the first failure

mod audit;
mod disk;
mod machine;
mod oracle;
mod plan;
mod run;
mod schedule;
mod shrink;
pub mod soak;
#[cfg(test)]
mod verbs_calls;
#[cfg(test)]
mod verbs_evict;
#[cfg(test)]
mod verbs_fault;
#[cfg(test)]
mod verbs_fork;
#[cfg(test)]
mod verbs_limits;
#[cfg(test)]
mod verbs_tiers;
#[cfg(test)]
mod walk;
#[cfg(test)]
mod world;

//! The C interface of GhostMem: `libghostmem.so`, `libghostmem.a` and
//! `include/ghostmem.h`, which is made from these sources.
//!
//! Invariants:
//! * **Nothing unwinds into C.** Every function is `extern "C"`, where Rust
//!   ends the process at a panic that would leave it; none is known to panic.
//! * **No pointer is trusted further than its `# Safety` section.** Null is
//!   answered with a status or ignored, never followed; numbers that stand for
//!   choices are checked, so that a C program cannot make an invalid enum.
//! * **Structures grow at their end only.** Their first field, or a parameter,
//!   is the size the caller was compiled with; fields beyond it are neither
//!   read nor written.
//! * A refused request changes nothing, and says why through
//!   `ghostmem_last_error` of the calling thread.
//!
//! This library never allocates from ghost memory. Making a heap or a pin calls
//! malloc(3): a program whose `malloc` stands on this library must serve that
//! call from elsewhere.

pub mod config;
pub mod default_heap;
pub mod heap;
pub mod memory;
pub mod range;
pub mod stats;
pub mod status;

/// Bytes of a page, the unit of residence.
pub const GHOSTMEM_PAGE_SIZE: usize = 4096;

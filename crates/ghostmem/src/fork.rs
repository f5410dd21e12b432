//! The moment of a fork, for a library that serves `malloc` from a heap.
//!
//! A heap takes care of fork(2) by handlers of pthread_atfork(3). Between those
//! and the system call libc does work of its own on what it allocated; where
//! that is ghost memory, the work must happen while pages can still move, and in
//! the child when its memory is there. A library that gets between libc and the
//! kernel calls [`freeze_at_the_call`] once, and the other two around the call:
//!
//! ```no_run
//! # fn system_call() -> isize { 0 }
//! let ready = ghostmem::fork::before_call();
//! let answer = system_call();
//! if ready {
//!     ghostmem::fork::after_call(answer == 0);
//! }
//! ```
//! Everything else needs none of this.

pub use ghostmem_fault::fork::{after_call, before_call, freeze_at_the_call};

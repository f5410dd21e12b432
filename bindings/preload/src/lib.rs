//! The library that `ghostmem run` loads into a program (LD_PRELOAD): its
//! malloc, and the system calls of its C library, on ghost memory.
//!
//! | module | does |
//! |---|---|
//! | `start`, `begin` | from the environment to a heap in use, when one is needed |
//! | `family`, `ghost`, `cache`, `ordinary`, `pool` | malloc and its kin |
//! | `accounts` | what they say of themselves, and give back |
//! | `entries` | libc's own free, for those who find that one |
//! | `scan`, `patch`, `window`, `plan`, `stub`, `objects` | redirect libc's system call instructions |
//! | `namespaces` | and those of a second C library (dlmopen) |
//! | `calls`, `guarded` | stand-ins for ghost buffers while the kernel works |
//! | `confine`, `front` | a program's own filters of system calls |
//! | `signals` | SIGBUS and SIGSEGV shared with the program |
//! | `endings` | signals that end it, where a report comes first |
//! | `threads`, `users`, `report` | threads, groups, figures |
//! | `own_limits` | limits of the process that the program sets |
//! | `mappings`, `foreign`, `attached` | mappings as blocks, and others in their place |
//! | `tree` | one bound for all processes of a run |
//!
//! # What it must never do
//! * Take from the heap it serves: its own Rust code allocates from libc, and
//!   code inside the engine is marked (see `thread`) so that whatever libc
//!   allocates there is ordinary memory.
//! * Change a program that was not started by `ghostmem run`: without the
//!   variable in the environment every function passes straight on to libc.
//! * Unwind into the program, or keep a lock over the program's own code.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")))]
compile_error!("`ghostmem run` works on 64-bit x86 Linux with glibc for now");

mod accounts;
mod alone;
mod attached;
mod begin;
mod bounce;
mod cache;
mod calls;
mod confine;
mod descriptors;
mod endings;
mod entries;
mod family;
mod foreign;
mod front;
mod ghost;
mod guarded;
mod heirs;
mod holds;
mod keys;
mod lifted;
mod mappings;
mod moving;
mod names;
mod namespaces;
mod objects;
mod ordinary;
mod own_limits;
mod patch;
mod places;
mod plan;
mod pool;
mod put_off;
mod raised;
mod raw;
mod refusal;
mod refused_fork;
mod report;
mod scan;
mod settings;
mod signals;
mod start;
mod stub;
mod taken;
mod thread;
mod threads;
mod tree;
mod users;
mod window;

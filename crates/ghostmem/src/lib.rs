//! User-space compressed memory: one process, more memory than it has.
//!
//! A [`Heap`] hands out *ghost memory*. Pages that have not been used for a
//! while are compressed and their frames given back to the kernel; the next
//! touch faults, is caught in user space, and the page is back, bit for bit,
//! before the instruction retries. No root, no swap device, no kernel module.
//!
//! ```
//! use ghostmem::Heap;
//!
//! // At most 1 MiB of it is ever uncompressed in memory.
//! let heap = Heap::builder().resident_limit(1 << 20).build()?;
//! let mut words = allocator_api2::vec::Vec::new_in(&heap);
//! for i in 0..1_000_000_u32 {
//!     words.push(i / 3);
//! }
//! assert_eq!(words[999_999], 333_333);
//! assert!(heap.stats().resident_bytes <= 1 << 20);
//! # Ok::<(), ghostmem::Error>(())
//! ```
//!
//! * [`Heap::builder`]: limits, backend, codec.
//! * [`Heap::global`] and [`GhostAlloc`]: one heap for the whole program.
//! * [`Spill`]: a file for what memory has no room for.
//! * [`Heap::stats`]: what it holds and what it cost.
//! * [`Heap::pin`]: memory for raw system calls. With every backend but
//!   `monitor`, a system call given an absent page fails with `EFAULT`.
//! * [`doctor::probe`]: what this machine allows.
//! * [`fork`]: only for libraries that serve other programs' `malloc`.
//!
//! # What a program must not do
//! * Block SIGBUS or SIGSEGV on a thread that touches ghost memory: the kernel
//!   then ends the process at the next fault. After installing handlers for
//!   them itself, call [`Heap::rearm`].
//! * Call madvise(2), mprotect(2), mremap(2) or munmap(2) on ghost memory.

mod alloc;
mod block;
mod builder;
#[cfg_attr(windows, path = "windows/doctor.rs")]
pub mod doctor;
mod error;
#[cfg(not(windows))]
pub mod fork;
mod heap;
mod memory_size;
mod resize;
#[cfg(not(windows))]
#[doc(hidden)]
pub mod settings;
#[doc(hidden)]
pub mod size;
mod slice;
mod spill;

pub use alloc::GhostAlloc;
pub use block::SmallObjects;
pub use builder::{Backend, Codec, HeapBuilder};
pub use error::Error;
pub use ghostmem_file::OpenError;
#[doc(hidden)]
pub use ghostmem_pager::FIRST_LOOK;
pub use ghostmem_pager::{Figure, FigureKind, FigureUnit, Hole, LatencyHistogram, Stats};
pub use ghostmem_pager::{LostDecision, LostHandler, LostPage, TierCause, TierError, UnusableTier};
pub use heap::{Heap, Pinned};
pub use memory_size::{MemorySize, MemorySizeError};
#[doc(hidden)]
pub use memory_size::{from_environment, slowdown_from_environment};
pub use slice::GhostSlice;
pub use spill::Spill;

/// Recording which pages a program touches, for [`Heap::record`].
pub mod record {
    pub use ghostmem_pager::{Recorder, Recording, SeenTouch};
}

//! Where cold pages live on disk: a sealed log in one file.
//!
//! [`FileTier`] keeps payloads of 1 to 4096 bytes (a page, packed) in a file and
//! names them by slots ([`ghostmem_store::tier::TierSlot`]). It is a
//! [`ColdTier`](ghostmem_store::tier::ColdTier), and keeps to what is said there. It
//! knows nothing of page words, codecs or heaps: an owner is 40 bits, a codec eight,
//! and both come back as they were given.
//!
//! Windows has no such tier yet: there is only how one would be asked for.
//!
//! # Layout
//! ```text
//!  file   ┌────────┬───────────────┬───────────────┬─ ─ ─ ─┬───────────────┐
//!         │ header │   segment 1   │   segment 2   │ hole  │   segment n   │
//!         └────────┴───────────────┴───────────────┴─ ─ ─ ─┴───────────────┘
//!         segment  batch: records, padding │ batch: records, padding │ ...
//!         record   sealed(owner, packed bytes) │ tag
//!
//!  RAM    row of a segment, 64 bytes    live bytes │ generation │ file │ blocks
//!         entry of a record, 8 bytes    in use │ codec │ length │ offset
//!  slot   ┌──────────────┬──────────────────┐
//!         │ segment (22) │ record in it (10)│   never all ones
//!         └──────────────┴──────────────────┘
//! ```
//! Segments are 1 MiB of file. Records are appended in batches, one large write
//! each, and never changed. A slot names its segment, so that no list of free
//! slots, no map from places to slots and no owners are kept in memory: cleaning
//! reads a thin segment, learns the owners from the records themselves, writes
//! what is alive elsewhere and gives the whole segment back (`clean.rs`).
//!
//! # What is sealed, and how
//! * AES-256-GCM, or ChaCha20-Poly1305 on a processor without AES (`ring`: it
//!   allocates nothing, uses the processor's vector units and was about 2.5 times
//!   faster than `aes-gcm` on records of 1.4 KiB: 210 against 570 ns). Keys come
//!   from the kernel and live in locked memory that is left out of core dumps and
//!   wiped (`ghostmem_os::vault`). They are never written anywhere.
//! * A nonce is the number of the segment's filling and the number of the record in
//!   it. Both only count up, whether writes succeed or not; at the counter's end, or
//!   in a forked child, there is a new key.
//! * Slot, generation (the filling), codec and length are associated data; the
//!   owner is sealed with the bytes and compared. They come from memory, not from the
//!   file: a block that was replayed, swapped or left from earlier is refused.
//! * Without encryption an XXH3 checksum over all of that stands in the tag's place.
//!   It finds accidents, not attackers.
//!
//! # Invariants
//! * [`FileTier::read`], [`read_run`](FileTier::read_run) and
//!   [`remove`](FileTier::remove) are async-signal-safe, take no lock, allocate
//!   nothing and share no cache line that a write holds for long. They run in fault
//!   handlers on any number of threads, beside a write.
//! * [`FileTier::write`] and [`FileTier::clean`] are for one background thread. They
//!   allocate nothing either.
//! * Whoever got a slot owns it alone until it is removed, exactly once, after its
//!   last read. A slot's number is given out again only by `write` and `clean`.
//! * Bytes are handed out only after their tag was checked. What fails says which
//!   file, which offset and why.
//! * Space that a forked child may still read is neither used again nor given back
//!   (`fork.rs`).
#![forbid(unsafe_code)]

#[cfg(not(windows))]
mod clean;
#[cfg(not(windows))]
mod cold;
mod error;
mod faults;
#[cfg(not(windows))]
mod files;
#[cfg(not(windows))]
mod fork;
mod options;
#[cfg(not(windows))]
mod read;
#[cfg(not(windows))]
mod seal;
#[cfg(not(windows))]
mod segments;
#[cfg(not(windows))]
mod stats;
#[cfg(not(windows))]
mod table;
#[cfg(not(windows))]
mod tier;
#[cfg(not(windows))]
mod write;

pub use error::OpenError;
pub use faults::{Faults, Injected};
pub use options::Options;
#[cfg(not(windows))]
pub use read::WORK_BYTES;
#[cfg(not(windows))]
pub use table::SEGMENT_BYTES;
#[cfg(not(windows))]
pub use tier::{FileTier, Findings};

//! The page word is the lock.
//!
//! Every page of a region has one atomic 64-bit word that holds its state and
//! everything needed to bring it back. Every transition is one
//! compare-and-swap on that word; whoever wins it holds a *claim*, and only a
//! claim lets the mapping of the page be changed. Pages share nothing.
//!
//! ```text
//!            claim                install, release
//!   Empty ───────────► Claimed ──────────────────────► Resident
//!   Stored ──────────►   │  ▲                             │  │
//!   Filled ──────────►   │  │ write to a protected page,  │  │ begin_evict
//!                        │  │ discard, pin                │  ▼
//!                        │  └─────────────────────────────┤ Evicting ──┐
//!                        │  ▲                             │    │       │ touched:
//!                        │  └─────────────────────────────│────┼───────┘ claim (= cancel)
//!                        ▼ release                        │    │ commit
//!              Empty, Resident, Stored, Filled            ▼    ▼
//!                                   begin_drop (clean) ► Dropping ──finish──► Stored, Filled
//! ```
//!
//! * *Claimed* and *Dropping* belong to one thread; others wait on the word.
//! * *Evicting* belongs to the evicting thread until somebody touches the
//!   page: a claim taken from *Evicting* cancels the eviction, and the evictor
//!   learns of it when it tries to commit. While it copies the page it steadies it
//!   ([`PageTable::steady`]: *Claimed* for a moment), so that the mapping cannot
//!   be cancelled away under the copy.
//! * A thread that changes a mapping always holds *Claimed* or *Dropping*, or
//!   has protected the page while holding *Evicting*, so two changes of one
//!   mapping never overlap.
//!
//! * A page that is *kept* ([`Word::is_kept`]) is resident and writable, and owns the slot
//!   it came from. Only an eviction may use that slot, after it has protected the page and
//!   compared the bytes; meanwhile the slot is the evictor's
//!   ([`PageTable::begin_evict`]).
//!
//! * Bytes of a *Stored* page can be copied to another tier without keeping it
//!   claimed meanwhile: a mark in its word ([`Word::is_marked`]) says, when the
//!   copy is there, that they are the same still.
//!
//! This crate knows no system call and no clock. Waiting is the caller's
//! business: [`PageTable::announce_wait`] marks the word so that the owner
//! knows that somebody sleeps on it.
#![forbid(unsafe_code)]

#[cfg(all(feature = "sim", not(loom)))]
pub mod sim;
mod sync;
mod table;
mod word;

pub use sync::AtomicU64;
pub use table::{Claim, DropClaim, EvictClaim, PageTable, Waiters};
pub use word::{PAYLOAD_MAX, PageState, Word};

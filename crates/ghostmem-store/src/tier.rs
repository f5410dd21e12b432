//! [`ColdTier`]: what keeps the packed pages that the store in memory has no room
//! for.
//!
//! ```text
//!   engine                                        tier
//!   demoting thread   write a batch ───────────►  a slot for each page, or nothing
//!                     tend          ───────────►  moves pages, asks for each: still there?
//!   faulting threads  read, read_run ──────────►  codec and packed bytes, or why not
//!                     ask            ──────────►  "not yet", and `news` when there is more
//!                     remove         ──────────►  the slot is free
//!   a forking thread  before, after in parent, after in child, cancelled
//! ```
//! The engine knows a page there by its [`TierId`] and [`TierSlot`]
//! ([`Place::Cold`](crate::Place::Cold)). A tier knows owners, codec numbers and
//! bytes; it looks into none of them, and gives all three back as they were given.
//!
//! # What a tier keeps to
//! * [`write`](ColdTier::write) takes all pages of a batch or none. What it has taken
//!   comes back bit by bit, or not at all: a tier hands out bytes only when it has
//!   checked that they are the ones it was given, for this owner. Why a page does not
//!   come back is said by a [`TierError`], for that page alone.
//! * `write` and [`tend`](ColdTier::tend) are one background thread's, and allocate
//!   nothing. All else is anybody's, at any time, beside them.
//! * [`read`](ColdTier::read), [`read_run`](ColdTier::read_run),
//!   [`undecodable`](ColdTier::undecodable) and [`remove`](ColdTier::remove) of a tier
//!   with [`Access::Direct`] run in fault handlers: async-signal-safe, no lock, no
//!   allocation, no panic, no touch of ghost memory. Of one with [`Access::Ask`] that
//!   holds for [`ask`](ColdTier::ask) and `remove`.
//! * A slot is its getter's until it is removed, once, after the last read. Its number
//!   comes again only from a later `write` or `tend`.
//! * After a fork, parent and child have the pages of before, and neither sees nor
//!   disturbs what the other does from then on. A child's pages stay readable when
//!   its parent has removed or moved its own.
//! * A tier ends by being dropped. Nothing of what it kept is left anywhere.
//!
//! The suite that tries all of it, on any tier, is `conformance`
//! (the feature of that name).

mod error;

use core::fmt::Debug;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use ghostmem_os::futex;

use crate::MAX_SLOT_BYTES;

pub use crate::handle::{TierId, TierSlot};
pub use error::{TierCause, TierError, WriteError};

/// A page to be written.
#[derive(Debug, Clone, Copy)]
pub struct Packed<'a> {
    /// Whose it is: 40 bits.
    pub owner: u64,
    /// How it is packed.
    pub codec: u8,
    /// The packed bytes, 1 to [`MAX_SLOT_BYTES`].
    pub bytes: &'a [u8],
}

/// How a faulting thread comes by a page of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It reads: [`ColdTier::read`] may be called in a fault handler.
    Direct,
    /// It can only ask, and wait for somebody who may read: [`ColdTier::ask`].
    Ask,
}

/// A page that was read: its codec, and how many packed bytes it has.
pub type Read = Result<(u8, usize), TierError>;

/// What the pages of a run are handed to: index, and codec and packed bytes.
pub type EachRead<'a> = dyn FnMut(usize, Result<(u8, &[u8]), TierError>) + 'a;

/// Asked for each page that a tier has moved: owner, old slot and new slot. Whether
/// the page is at the new one now.
pub type Moved<'a> = dyn FnMut(u64, TierSlot, TierSlot) -> bool + 'a;

/// What a call of [`ColdTier::tend`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tended {
    /// Packed bytes of pages that now lie elsewhere.
    pub moved_bytes: u64,
    /// Packed bytes written for that, some of them in vain: their pages had moved on.
    pub written_bytes: u64,
    /// Pages that now have another slot.
    pub moved_pages: u64,
    /// Parts of the tier that were read for it.
    pub segments: u64,
    /// There is more to do.
    pub is_behind: bool,
}

/// Figures of a tier at one moment; each is right, together they may be of
/// neighbouring moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Packed bytes of the pages that are in the tier.
    pub live_bytes: u64,
    /// Pages in the tier.
    pub slots: u64,
    /// Bytes the process's own part of the tier takes where it is: of a file, blocks
    /// on the disk.
    pub file_bytes: u64,
    /// Of these, bytes that would be free if no forked child could still read them.
    pub frozen_bytes: u64,
    /// What `file_bytes` may be; `u64::MAX` when the tier has no limit of its own.
    pub limit_bytes: u64,
    /// Memory that tables and buffers take, bytes.
    pub metadata_bytes: u64,
    /// Pages written since the tier was opened, moved ones not counted.
    pub pages_written: u64,
    /// Bytes written, padding and moved pages included.
    pub bytes_written: u64,
    /// Pages that tending has moved.
    pub pages_moved: u64,
    /// Pages read.
    pub pages_read: u64,
    /// Pages that could not be read.
    pub read_errors: u64,
    /// Batches that could not be written.
    pub write_errors: u64,
    /// Keys made.
    pub keys: u64,
}

/// A place for cold pages. What it keeps to is the [module](self)'s to say.
pub trait ColdTier: Debug + Send + Sync {
    /// The tier as messages name it.
    fn title(&self) -> &'static str;

    /// How a faulting thread comes by its pages.
    fn access(&self) -> Access {
        Access::Direct
    }

    /// Bytes of buffer with which any page can be read.
    fn work_bytes(&self) -> usize;

    /// Reads a page: its packed bytes into the front of `out`; the rest of `out` is
    /// left as it is. The caller owns the slot. A tier with [`Access::Ask`] makes the
    /// caller wait, who must be no fault handler.
    ///
    /// `work` is at least [`work_bytes`](Self::work_bytes) of the caller's, what is in
    /// it is overwritten.
    ///
    /// # Errors
    /// Why the tier does not give the page back.
    fn read(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Read;

    /// As [`read`](Self::read), for who may not wait inside a tier: `None` when there is
    /// no answer yet. The first call for a slot is the question. Further ones look for
    /// its answer, which is given once. Who gives up waiting either comes back for the
    /// answer or removes the slot, which takes the question back.
    fn ask(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Option<Read> {
        Some(self.read(slot, owner, work, out))
    }

    /// Counts up, and wakes who sleeps on it, when there is an answer for somebody who
    /// [asked](Self::ask). A futex word of the tier's: nothing of a waiter is ever known
    /// to it. `None` with [`Access::Direct`].
    fn news(&self) -> Option<&AtomicU64> {
        None
    }

    /// Reads several pages, those that are neighbours in the tier together: `each` is
    /// called once for every one of `pages`, with its index, its codec and its packed
    /// bytes, in an order of the tier's choice. One page's error is no other's. The
    /// caller owns the slots.
    ///
    /// `work` is at least [`work_bytes`](Self::work_bytes); the longer it is, the more
    /// may be read at once.
    fn read_run(&self, pages: &[(TierSlot, u64)], work: &mut [u8], each: &mut EachRead<'_>);

    /// The error of a page whose packed bytes are as they were written, but mean
    /// nothing to its codec. Counts it.
    fn undecodable(&self, slot: TierSlot) -> TierError;

    /// Gives a page's place up. The caller owns the slot, does so exactly once, and
    /// does not use it again.
    fn remove(&self, slot: TierSlot);

    /// Writes pages, in order and near to each other, and fills `slots` with one for
    /// each.
    ///
    /// # Errors
    /// Why not; then no page was written, and no slot is filled.
    fn write(&self, pages: &[Packed<'_>], slots: &mut [Option<TierSlot>])
    -> Result<(), WriteError>;

    /// Makes the tier smaller where it is thin, writing about `budget_bytes` at most.
    ///
    /// `moved(owner, from, to)` is called for every page that has been written again,
    /// after it was. It makes `to` the page's slot if `from` still is, and returns
    /// whether it did; `from` is removed then, and `to` otherwise. It must not call
    /// `write` or `tend`.
    fn tend(&self, budget_bytes: u64, moved: &mut Moved<'_>) -> Tended;

    /// What there is and what has happened. Takes no lock.
    fn stats(&self) -> TierStats;

    /// Before fork(2): keeps the background thread's half still. `false` when it is
    /// at work right now; try again later.
    #[must_use]
    fn try_before_fork(&self) -> bool;

    /// The fork does not take place.
    fn cancel_fork(&self);

    /// After the fork, in the parent; also when it failed.
    fn after_fork_in_parent(&self);

    /// After the fork, in the child: before anything else is done with the tier.
    fn after_fork_in_child(&self);
}

/// Looks for an answer at least so often.
const LOOK: Duration = Duration::from_millis(20);

/// Reads a page by asking for it and sleeping until there is news: what a tier with
/// [`Access::Ask`] does for [`ColdTier::read`], and a caller may do outside a tier.
///
/// # Errors
/// Why the tier does not give the page back.
pub fn ask_and_wait<T: ColdTier + ?Sized>(
    tier: &T,
    slot: TierSlot,
    owner: u64,
    work: &mut [u8],
    out: &mut [u8; MAX_SLOT_BYTES],
) -> Read {
    let none = AtomicU64::new(0);
    let news = tier.news().unwrap_or(&none);
    loop {
        // Before the look: what comes after it ends the sleep.
        let seen = news.load(Ordering::Acquire);
        if let Some(answer) = tier.ask(slot, owner, work, out) {
            return answer;
        }
        futex::wait(news, seen as u32, LOOK);
    }
}

//! A page that is writable and keeps the slot it came from.
//!
//! ```text
//!  compare   load ─ begin_evict ─ protect ─ steady ─ copy ─ let_go
//!              ─ compare with the slot ─┬─ same: the slot stays
//!                                       └─ else: free slot ─ put
//!              ─ commit ─┬─ Some: unmap ─ finish
//!                        └─ None: free what the page would have had
//!  abandon   load ─ begin_evict ─ protect ─ abandon ─┬─ done: the page has its slot
//!                                                    └─ cancelled: free slot
//!  shed      load ─ claim ─ release without copy ─ free slot
//! ```
//! Each rule can be taken out, to see that the model notices.

use ghostmem_table::PageState;

use super::World;
use super::protocol::{Evicted, PAGE};

/// What makes a comparing eviction right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The page is protected before its bytes are copied.
    ProtectFirst,
    /// The slot is used only if its bytes are the page's.
    Compare,
    /// An evictor that was cancelled frees the slot: the word does not have it.
    FreeWhenCancelled,
    /// An evictor that gave up frees the slot only if it was cancelled before.
    KeepWhenAbandoned,
}

impl World {
    /// A page restored writable, its slot kept.
    pub(crate) fn kept(content: u64) -> Self {
        let world = Self::stored(content);
        let word = world.word();
        let Some(claim) = world.claim(word) else {
            panic!("nobody else is there");
        };
        world
            .mapping
            .map(&claim, world.store.get(word.payload()), false);
        world.release(claim, word.with_state(PageState::Resident).with_kept());
        world
    }

    /// Evicts the page, by comparing if it is kept.
    pub(crate) fn evict_comparing(&self, nonce: u64) -> Evicted {
        self.evict_comparing_without(nonce, None)
    }

    /// The same by an evictor that does not keep to a rule.
    pub(crate) fn evict_comparing_without(&self, nonce: u64, without: Option<Rule>) -> Evicted {
        let keeps_to = |rule| without != Some(rule);
        let word = self.table().load(PAGE);
        if word.state() != PageState::Resident || !word.is_kept() || word.is_pinned() {
            return self.evict(nonce);
        }
        let Ok(claim) = self.table().begin_evict(PAGE, word, nonce) else {
            return Evicted::Skipped;
        };
        if keeps_to(Rule::ProtectFirst) {
            self.mapping.protect();
        }
        let kept = word.payload();
        let Some(content) = self.copy_steadied(&claim) else {
            if keeps_to(Rule::FreeWhenCancelled) {
                self.store.free(kept);
            }
            return Evicted::Cancelled;
        };
        let same = !keeps_to(Rule::Compare) || self.store.get(kept) == content;
        let slot = if same {
            kept
        } else {
            self.store.free(kept);
            self.store.put(content)
        };
        let Some(claim) = self.table().commit_evict(claim) else {
            if keeps_to(Rule::FreeWhenCancelled) {
                self.store.free(slot);
            }
            return Evicted::Cancelled;
        };
        let stored = word.with_state(PageState::Stored).with_clean(false);
        self.take_away(claim, stored.with_payload(slot));
        if same {
            Evicted::Dropped
        } else {
            Evicted::Committed
        }
    }

    /// Begins to evict a page that is kept, and thinks better of it; whether the page
    /// has its slot again.
    pub(crate) fn abandon_kept(&self, nonce: u64, without: Option<Rule>) -> bool {
        let word = self.table().load(PAGE);
        if word.state() != PageState::Resident || !word.is_kept() {
            return false;
        }
        let Ok(claim) = self.table().begin_evict(PAGE, word, nonce) else {
            return false;
        };
        self.mapping.protect();
        let again = self.table().abandon(claim, word);
        if !again || without == Some(Rule::KeepWhenAbandoned) {
            self.store.free(word.payload());
        }
        again
    }

    /// Gives up the copy of a resident page; whether there was one.
    pub(crate) fn shed(&self) -> bool {
        let word = self.table().load(PAGE);
        if word.state() != PageState::Resident || !word.has_copy() {
            return false;
        }
        let Some(claim) = self.claim(word) else {
            return false;
        };
        self.release(claim, word.without_copy());
        self.free(word.payload());
        true
    }
}

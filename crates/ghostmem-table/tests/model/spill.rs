//! Moving a stored page to another place: from memory to the file, or from
//! slot to slot.
//!
//! ```text
//!  spill     load ─ claim ─ copy ─ release marked ─ write (no claim held)
//!              ─ load ─┬─ marked: claim ─ release Stored(file) ─ free slot
//!                      └─ else: free what was written
//!  relocate  load ─ claim ─ copy to another slot ─ free slot ─ release
//! ```
//! A relocation in the middle of a spill changes the slot and not the bytes: it
//! keeps the mark.

use ghostmem_table::State;

use super::World;
use super::protocol::{FILE, PAGE};

/// How an attempt to spill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spilled {
    /// Not a stored page, or one in the file already.
    Skipped,
    /// The page was touched while its bytes were written.
    Touched,
    /// It is in the file.
    Moved,
}

/// What tells a spiller that the page is as it was.
enum Proof {
    Mark,
    Slot,
}

impl World {
    /// A page in the file.
    pub(crate) fn spilled(content: u64) -> Self {
        let world = Self::stored(content);
        assert_eq!(world.spill(), Spilled::Moved);
        world
    }

    /// Moves the page to the file, if it is stored.
    pub(crate) fn spill(&self) -> Spilled {
        self.spill_trusting(Proof::Mark)
    }

    /// [`World::spill`] by one who goes by the slot instead of the mark.
    pub(crate) fn spill_by_slot(&self) -> Spilled {
        self.spill_trusting(Proof::Slot)
    }

    fn spill_trusting(&self, proof: Proof) -> Spilled {
        let word = self.table().load(PAGE);
        if word.state() != State::Stored || word.payload() >= FILE {
            return Spilled::Skipped;
        }
        let Some(claim) = self.claim(word) else {
            return Spilled::Skipped;
        };
        let content = self.store.get(word.payload());
        self.release(claim, word.with_marked(true));
        // The write: anything may happen to the page meanwhile.
        let place = self.file.put(content);
        loop {
            let now = self.table().load(PAGE);
            let same = now.state() == State::Stored
                && match proof {
                    Proof::Mark => now.is_marked(),
                    Proof::Slot => now.payload() == word.payload(),
                };
            if !same {
                self.file.free(place);
                return Spilled::Touched;
            }
            // Lost to a relocation, which leaves the mark, or to a touch.
            let Some(claim) = self.claim(now) else {
                loom::thread::yield_now();
                if self.table().load(PAGE).state() == State::Claimed {
                    self.file.free(place);
                    return Spilled::Touched;
                }
                continue;
            };
            self.release(claim, now.with_marked(false).with_payload(FILE + place));
            self.store.free(now.payload());
            return Spilled::Moved;
        }
    }

    /// Moves a stored page, or the copy of a clean one, to another slot of the
    /// same tier; whether it did.
    pub(crate) fn relocate(&self) -> bool {
        let word = self.table().load(PAGE);
        let owns =
            word.state() == State::Stored || (word.state() == State::Resident && word.is_clean());
        if !owns {
            return false;
        }
        let Some(claim) = self.claim(word) else {
            return false;
        };
        let content = self.get(word.payload());
        let moved = if word.payload() >= FILE {
            FILE + self.file.put(content)
        } else {
            self.store.put(content)
        };
        self.free(word.payload());
        self.release(claim, word.with_payload(moved));
        true
    }
}

//! Moving a stored page to another place: from memory to the file, or from
//! slot to slot.
//!
//! ```text
//!  demote    load ─ claim ─ copy ─ release marked ─ write (no claim held)
//!              ─ load ─┬─ marked: claim ─ release Stored(file) ─ free slot
//!                      └─ else: free what was written
//!  relocate  load ─ claim ─ copy to another slot ─ free slot ─ release
//! ```
//! A relocation in the middle of a demotion changes the slot and not the bytes: it
//! keeps the mark. The mark says that the page is as it was when it was marked
//! last: a batch must not have an older copy of it.

use ghostmem_table::PageState;

use super::World;
use super::protocol::{FILE, PAGE};

/// How an attempt to demote ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Demoted {
    /// Not a stored page, or one in the file already.
    Skipped,
    /// The page was touched while its bytes were written.
    Touched,
    /// It is in the file.
    Moved,
}

/// A copy of the page in a batch.
struct Copied {
    /// Where in the file it is.
    place: u64,
    /// The slot it was read from.
    slot: u64,
}

/// What tells a demoter that the page is as it was.
enum Proof {
    Mark,
    Slot,
}

impl World {
    /// A page in the file.
    pub(crate) fn demoted(content: u64) -> Self {
        let world = Self::stored(content);
        assert_eq!(world.demote(), Demoted::Moved);
        world
    }

    /// Moves the page to the file, if it is stored.
    pub(crate) fn demote(&self) -> Demoted {
        self.demote_trusting(Proof::Mark)
    }

    /// [`World::demote`] by one who goes by the slot instead of the mark.
    pub(crate) fn demote_by_slot(&self) -> Demoted {
        self.demote_trusting(Proof::Slot)
    }

    /// [`World::demote`] with a batch that has the page twice: the walk came by
    /// again before the batch was written.
    pub(crate) fn demote_twice_in_a_batch(&self) -> Demoted {
        let copies = [self.look(), self.look()];
        let ends = copies
            .map(|copy| copy.map_or(Demoted::Skipped, |copy| self.repoint(&copy, &Proof::Mark)));
        ends.into_iter().max().unwrap_or(Demoted::Skipped)
    }

    /// [`World::demote`] after a batch that could not be written, and whose marks
    /// nobody took back.
    pub(crate) fn demote_after_a_failed_write(&self) -> Demoted {
        if let Some(unwritten) = self.look() {
            self.file.free(unwritten.place);
        }
        self.demote()
    }

    fn demote_trusting(&self, proof: Proof) -> Demoted {
        match self.look() {
            Some(copy) => self.repoint(&copy, &proof),
            None => Demoted::Skipped,
        }
    }

    /// The walk comes by: the page's bytes on their way to the file, the page
    /// marked. `None` when it is not a stored page.
    fn look(&self) -> Option<Copied> {
        let word = self.table().load(PAGE);
        if word.state() != PageState::Stored || word.payload() >= FILE {
            return None;
        }
        let claim = self.claim(word)?;
        let content = self.store.get(word.payload());
        self.release(claim, word.with_marked(true));
        // The write: anything may happen to the page meanwhile.
        let place = self.file.put(content);
        Some(Copied {
            place,
            slot: word.payload(),
        })
    }

    /// Points the page to what was written, if it is as it was.
    fn repoint(&self, copy: &Copied, proof: &Proof) -> Demoted {
        let place = copy.place;
        loop {
            let now = self.table().load(PAGE);
            let same = now.state() == PageState::Stored
                && now.payload() < FILE
                && match proof {
                    Proof::Mark => now.is_marked(),
                    Proof::Slot => now.payload() == copy.slot,
                };
            if !same {
                self.file.free(place);
                return Demoted::Touched;
            }
            // Lost to a relocation, which leaves the mark, or to a touch.
            let Some(claim) = self.claim(now) else {
                loom::thread::yield_now();
                if self.table().load(PAGE).state() == PageState::Claimed {
                    self.file.free(place);
                    return Demoted::Touched;
                }
                continue;
            };
            self.release(claim, now.with_marked(false).with_payload(FILE + place));
            self.store.free(now.payload());
            return Demoted::Moved;
        }
    }

    /// Moves a stored page, or the copy of a resident one, to another slot of the
    /// same tier; whether it did.
    pub(crate) fn relocate(&self) -> bool {
        let word = self.table().load(PAGE);
        let owns = word.state() == PageState::Stored
            || (word.state() == PageState::Resident && word.has_copy());
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

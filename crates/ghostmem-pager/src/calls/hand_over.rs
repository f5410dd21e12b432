//! Pages that become another mapping with what they hold, while threads use them.
//!
//! ```text
//!   claim      a stretch, empty pages too: a touch of one waits from here on, and nobody
//!              closes one along with its neighbours (the words say *pinned*)
//!   wait       for those who protect pages of the region: one may still name ours
//!   protect    resident ones: what is copied stays what it is
//!   copy       to the room, from the frame or from where the page is stored
//!   replace    one mremap(2): the room is where the pages were, and they are away
//!   release    words say Empty, holes say Closed: who waited tries again
//! ```
//! So a store comes before the copy, or waits and goes to the room. Whatever is refused
//! before the room has moved leaves the pages as they were: at worst protected, which the
//! next touch that minds ends.

use core::sync::atomic::{Ordering, fence};

use ghostmem_fault::Scratch;
use ghostmem_os::error::{EAGAIN, EINVAL, EIO};
use ghostmem_os::room::Room;
use ghostmem_os::{OsError, PAGE_SIZE};
use ghostmem_table::{Claim, PageState};

use crate::calls::discard::{STRETCH, close};
use crate::parts::engine::Engine;
use crate::parts::holes::Hole;
use crate::parts::region::Region;

/// Pages that are pinned, or cannot be protected.
const BUSY: OsError = OsError::new("hand_over", EAGAIN);
/// No pages of a block, or holes.
const NO_PAGES: OsError = OsError::new("hand_over", EINVAL);
/// The bytes of a page cannot be had.
const LOST: OsError = OsError::new("hand_over", EIO);

/// Pages from one on, and the room for them.
#[derive(Clone, Copy)]
struct Part {
    first: usize,
    room: Room,
}

impl Part {
    const fn end(&self) -> usize {
        self.first + self.room.pages()
    }
}

impl Engine {
    /// Has a room take the place of as many pages at an address, with what they hold: of
    /// the first 64 of them at most, or of more where none ever held anything.
    /// How many bytes it was; the rest of the room stays the caller's. The pages are then
    /// as after [`Engine::give_away`].
    ///
    /// # Errors
    /// `EINVAL` when the first page is no open page of a block of this engine's, or was
    /// given away; `EAGAIN` when it is pinned; `EIO` when it is lost; the system's refusal.
    /// Nothing has changed.
    pub fn hand_over(&self, address: usize, room: Room) -> Result<usize, OsError> {
        let bytes = room.pages() * PAGE_SIZE;
        let (region, first, end) = self.pages_of("hand_over", address, bytes)?;
        if first == end || region.blocks.is_none() || !region.is_allocated(first) {
            return Err(NO_PAGES);
        }
        let end = region.mapped.next_away(first, end, true);
        let end = region.holes.run_end(first, end);
        loop {
            let written = region.resident.next_written(first, end);
            let (written, group_end) = written.unwrap_or((end, end));
            let until = match first < written {
                true => written,
                false => group_end.min(first + STRETCH),
            };
            let room = room.part(0, until - first);
            let part = Part { first, room };
            let pages = match first < written {
                true => self.quietly_in(region, part, |engine, region, part, _| {
                    engine.hand_over_fresh(region, part)
                }),
                false => self.quietly_in(region, part, Self::hand_over_stretch),
            }??;
            if pages > 0 {
                return Ok(pages * PAGE_SIZE);
            }
        }
    }

    /// Pages that nothing was ever in; 0: somebody brings one in just now.
    fn hand_over_fresh(&self, region: &Region, part: Part) -> Result<usize, OsError> {
        let (first, end) = (part.first, part.end());
        let made = region.holes.make(first, end, Hole::Closed);
        self.note_freed(made * PAGE_SIZE);
        // As in `make_holes`: a fault sees the hole, or we see that it wrote a word.
        fence(Ordering::SeqCst);
        let replaced = match region.resident.next_written(first, end) {
            Some(_) => Ok(0),
            None => region
                .mapped
                .replace(first, part.room)
                .map(|()| end - first),
        };
        match replaced {
            Ok(pages) if pages > 0 => self.note_closed(made),
            _ => self.note_allocated(region.holes.fill(first, end) * PAGE_SIZE),
        }
        replaced
    }

    /// As many pages of a part as can be claimed one after the other.
    fn hand_over_stretch(
        &self,
        region: &Region,
        part: Part,
        scratch: &mut Scratch,
    ) -> Result<usize, OsError> {
        // What is not the heap's grows by it.
        let _raised = self.look();
        let mut claims: [Option<Claim>; STRETCH] = [const { None }; STRETCH];
        let count = self.claim_stretch(region, part, &mut claims)?;
        let (first, end) = (part.first, part.first + count);
        let room = part.room.part(0, count);
        let claims = &mut claims[..count];
        if let Err(error) = self.replace_claimed(region, claims, Part { first, room }, scratch) {
            for claim in claims.iter_mut().filter_map(Option::take) {
                let before = claim.before();
                self.release(region, claim, before);
            }
            return Err(error);
        }
        let made = region.holes.make(first, end, Hole::Closed);
        self.note_freed(made * PAGE_SIZE);
        let mut dropped = 0;
        for claim in claims.iter_mut().filter_map(Option::take) {
            dropped += i64::from(claim.before().state() == PageState::Resident);
            self.release_empty(region, claim);
        }
        self.budget.give_back(dropped);
        self.note_closed(made);
        Ok(count)
    }

    /// Claims pages from a part's first one on, up to one that cannot be had; how many.
    fn claim_stretch(
        &self,
        region: &Region,
        part: Part,
        claims: &mut [Option<Claim>; STRETCH],
    ) -> Result<usize, OsError> {
        let (first, mut page) = (part.first, part.first);
        let mut refused = NO_PAGES;
        while page < part.end() {
            let word = region.table.load(page);
            match word.state() {
                // Whoever holds claims waits for nobody's.
                PageState::Claimed | PageState::Dropping if page > first => break,
                PageState::Claimed | PageState::Dropping => self.wait_for(region, page, word),
                PageState::Lost => {
                    refused = LOST;
                    break;
                }
                _ if word.is_pinned() => {
                    refused = BUSY;
                    break;
                }
                _ => {
                    if let Ok(claim) = region.table.claim_to_replace(page, word) {
                        claims[page - first] = Some(claim);
                        page += 1;
                    }
                }
            }
        }
        // As in `keep_allocated`: who frees the block sees our claims, and waits.
        fence(Ordering::SeqCst);
        let is_gone = |&page: &usize| !region.is_allocated(page);
        let end = (first..page).find(is_gone).unwrap_or(page);
        for claim in claims[end - first..].iter_mut().filter_map(Option::take) {
            let before = claim.before();
            self.release(region, claim, before);
        }
        if end == first {
            return Err(refused);
        }
        Ok(end - first)
    }

    /// Has the room, filled with what the claimed pages hold, take their place.
    fn replace_claimed(
        &self,
        region: &Region,
        claims: &[Option<Claim>],
        part: Part,
        scratch: &mut Scratch,
    ) -> Result<(), OsError> {
        // One who lost a page to us may be about to protect it: the room's bytes would go
        // by that. Those inside wait for no claim, and who comes later sees ours.
        region.protecting.wait_for_those_inside();
        if !self.protect_claimed(region, claims, part) {
            return Err(BUSY);
        }
        for claim in claims.iter().flatten() {
            let page = claim.page();
            let is_had = match claim.before().state() {
                // What the room has as well.
                PageState::Empty => continue,
                PageState::Resident => region.mapped.read(page, &mut scratch.run[0]),
                _ => self.bring_bytes(region, claim, scratch),
            };
            if !is_had {
                return Err(LOST);
            }
            part.room.fill(page - part.first, &scratch.run[0]);
        }
        region.mapped.replace(part.first, part.room)
    }

    /// Protects the resident ones among claimed pages, which are neighbours.
    fn protect_claimed(&self, region: &Region, claims: &[Option<Claim>], part: Part) -> bool {
        let resident = || {
            let all = claims.iter().flatten();
            all.filter(|claim| claim.before().state() == PageState::Resident)
                .map(Claim::page)
        };
        let (Some(first), Some(last)) = (resident().next(), resident().next_back()) else {
            return true;
        };
        let range = Some((part.first, part.end()));
        region.mapped.protect(first, last + 1 - first).is_ok()
            || resident().all(|page| {
                region.mapped.protect(page, 1).is_ok()
                    || (region.mapped.protects_from_loads() && close(self, region, page, range))
            })
    }
}

//! What both programs of the simulation hold the engine to: words, frames, slots and copies
//! agree.

use std::collections::HashSet;

use ghostmem_os::PAGE_SIZE;
use ghostmem_store::Place;
use ghostmem_table::PageState;

use crate::parts::engine::Engine;
use crate::parts::region::Region;

/// Frames beyond the limit that [`crate::fault::frame`] may take when nothing can leave.
const OVERDRAFT_MAX: i64 = 68;

/// The same of a limit.
pub(super) fn overdraft_most(limit_pages: i64) -> i64 {
    OVERDRAFT_MAX.max(limit_pages / 8)
}

/// The pages of a region that may be anything but empty.
pub(super) fn touched_pages(region: &Region) -> impl Iterator<Item = usize> {
    region.resident.touched_words().pages().flat_map(|group| {
        let first = group * PAGE_SIZE / 8;
        first..(first + PAGE_SIZE / 8).min(region.pages())
    })
}

/// What the words of all pages say together.
#[derive(Default)]
pub(super) struct Words {
    resident: i64,
    /// Resident pages that keep a copy.
    copies: usize,
    pub(super) pinned: usize,
    slots: HashSet<u64>,
    /// Places in the file.
    places: HashSet<u64>,
}

impl Words {
    /// Counts while nobody is in the middle of anything. A page may be lost where that
    /// `may_be`.
    ///
    /// # Panics
    /// Where a page is in between two states, or in the place of another.
    pub(super) fn of(engine: &Engine, lost_may_be: bool) -> Self {
        let mut words = Self::default();
        for region in engine.regions() {
            for page in touched_pages(region) {
                let word = region.table.load(page);
                let state = word.state();
                let copied = state == PageState::Resident && word.has_copy();
                words.resident += i64::from(state == PageState::Resident);
                words.copies += usize::from(copied);
                words.pinned += usize::from(word.is_pinned());
                let rests = matches!(
                    state,
                    PageState::Empty | PageState::Filled | PageState::Resident | PageState::Stored
                );
                let lost = state == PageState::Lost && lost_may_be;
                assert!(rests || lost, "page {page} was left {state:?}");
                if copied || state == PageState::Stored {
                    let place = Place::from_bits(word.payload());
                    let new = match place.expect("a place") {
                        Place::Store(slot) => words.slots.insert(slot.bits()),
                        Place::Cold(..) => words.places.insert(word.payload()),
                    };
                    assert!(new, "page {page} shares the place of another one");
                }
            }
        }
        words
    }

    /// Holds what the engine counts against them. A page of zeros that nobody has touched
    /// yet is a hole in guard's file: with holes there may be fewer `frames`.
    ///
    /// # Panics
    /// Where they do not agree.
    pub(super) fn agree(&self, engine: &Engine, frames: i64, has_holes: bool) {
        let resident = self.resident;
        assert_eq!(
            engine.budget.used(),
            resident,
            "frames taken, pages resident"
        );
        let agree = frames == resident || (has_holes && frames < resident);
        assert!(agree, "{frames} frames mapped, {resident} pages resident");
        assert_eq!(
            engine.copies.sum(),
            self.copies,
            "copies counted, pages with one"
        );
        let stats = engine.stats();
        assert_eq!(stats.stored_pages, self.slots.len(), "slots, of pages");
        assert_eq!(
            stats.file_pages,
            self.places.len(),
            "places in the file, of pages"
        );
    }
}

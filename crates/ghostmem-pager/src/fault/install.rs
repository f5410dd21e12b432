//! Mapping restored pages, and the end of those whose bytes are gone.

use ghostmem_fault::{Installed, Scratch, die, die_of};
use ghostmem_os::PAGE_SIZE;
use ghostmem_os::error::EEXIST;
use ghostmem_table::{Claim, PageState};

use crate::fault::run::Run;
use crate::parts::engine::Engine;
use crate::parts::region::Region;

impl Engine {
    /// Maps the pages of a run: as few calls as runs of neighbours with equal
    /// protection.
    pub(crate) fn install<const MOST: usize>(&self, run: &Run<'_, MOST>, scratch: &Scratch) {
        if run.count == 1 && run.fresh && !run.write {
            match self.with_mappings(|| run.region.mapped.install_zero(run.page(0))) {
                Ok(_) => return,
                Err(error) => die_of("a page cannot be put in place", error),
            }
        }
        let mut place = 0;
        while place < run.count {
            let word = run.words[run.place(place)];
            // Steps that were passed over have the word of no page.
            if word.state() != PageState::Resident {
                place += 1;
                continue;
            }
            let goes_along = |place: usize| {
                let next = run.words[run.place(place)];
                next.state() == PageState::Resident && next.is_clean() == word.is_clean()
            };
            let mut end = place + 1;
            while run.stride.unsigned_abs() == 1 && end < run.count && goes_along(end) {
                end += 1;
            }
            let page = run.page(run.place(place));
            let data = scratch.run[place..end].as_flattened();
            self.install_at(run.region, page, data, word.is_clean());
            place = end;
        }
    }

    /// Maps whole pages from `page` on, protected from stores or not.
    fn install_at(&self, region: &Region, page: usize, data: &[u8], protect: bool) {
        let mut done = 0;
        while done < data.len() {
            let first = page + done / PAGE_SIZE;
            match self.with_mappings(|| region.mapped.install(first, &data[done..], protect)) {
                Ok(Installed::Bytes(bytes)) => done += bytes,
                Ok(Installed::Exists) => {
                    die("a page is mapped that the page table says is not", EEXIST)
                }
                Err(error) => die_of("a page cannot be put in place", error),
            }
        }
    }

    /// The bytes of page `lost` of a run are gone: say so in its word, and
    /// leave the others as they were.
    pub(crate) fn lose(&self, region: &Region, claims: &mut [Option<Claim>], lost: usize) {
        for (step, claim) in claims.iter_mut().enumerate() {
            if let Some(claim) = claim.take() {
                let before = claim.before();
                if step != lost {
                    self.release(region, claim, before);
                    continue;
                }
                let word = before.with_state(PageState::Lost).with_clean(false);
                self.release(region, claim, word.with_payload(0));
                // Nobody can ask for it again, and a place in the file that is
                // nobody's would keep cleaning busy for ever.
                self.free_slot(before);
            }
        }
    }
}

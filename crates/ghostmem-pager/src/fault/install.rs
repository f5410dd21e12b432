//! Mapping restored pages, and the end of those whose bytes are gone.

use ghostmem_fault::{Installed, Scratch, die, die_of};
use ghostmem_os::PAGE_SIZE;
use ghostmem_table::{Claim, State, Word};

use crate::parts::engine::Engine;
use crate::parts::region::Region;

impl Engine {
    /// Maps the restored pages: as few calls as runs of neighbours with equal
    /// protection.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn install(
        &self,
        region: &Region,
        count: usize,
        stride: i32,
        page_of: impl Fn(usize) -> usize,
        words: &[Word],
        write: bool,
        fresh: bool,
        scratch: &Scratch,
    ) {
        if count == 1 && fresh && !write {
            match self.with_mappings(|| region.mapped.install_zero(page_of(0))) {
                Ok(_) => return,
                Err(error) => die_of("a page cannot be put in place", error),
            }
        }
        // Places in address order, whatever the direction of the run.
        let step_at = |place: usize| if stride < 0 { count - 1 - place } else { place };
        let mut place = 0;
        // Steps that were passed over have the word of no page.
        let goes_in = |place: usize| words[step_at(place)].state() == State::Resident;
        while place < count {
            if !goes_in(place) {
                place += 1;
                continue;
            }
            let clean = words[step_at(place)].is_clean();
            let mut end = place + 1;
            while stride.unsigned_abs() == 1
                && end < count
                && goes_in(end)
                && words[step_at(end)].is_clean() == clean
            {
                end += 1;
            }
            let data = scratch.run[place..end].as_flattened();
            let page = page_of(step_at(place));
            let mut done = 0;
            while done < data.len() {
                let first = page + done / PAGE_SIZE;
                match self.with_mappings(|| region.mapped.install(first, &data[done..], clean)) {
                    Ok(Installed::Bytes(bytes)) => done += bytes,
                    Ok(Installed::Exists) => {
                        die("a page is mapped that the page table says is not", 17)
                    }
                    Err(error) => die_of("a page cannot be put in place", error),
                }
            }
            place = end;
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
                let word = before.with_state(State::Lost).with_clean(false);
                self.release(region, claim, word.with_payload(0));
                // Nobody can ask for it again, and a place in the file that is
                // nobody's would keep cleaning busy for ever.
                self.free_slot(before);
            }
        }
    }
}

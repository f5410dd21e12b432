//! What a touch needs: a page brought back, opened, or nothing any more.

use ghostmem_fault::{AccessKind, Fault, Installed, Scratch, Verdict, die_of};
use ghostmem_os::clock;
use ghostmem_policy::Heat;
use ghostmem_table::{PageState, Word};

use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::region::Region;

impl Engine {
    /// Resolves a fault, and counts the time that takes.
    pub(crate) fn serve(&self, fault: &Fault, scratch: &mut Scratch) -> Verdict {
        let start = match fault.waits.since_ns {
            0 => clock::now_ns(),
            since => since,
        };
        let verdict = self.resolve(fault, scratch);
        if verdict == Verdict::Resolved {
            let took = clock::now_ns() - start;
            self.metrics.record_latency(took);
            self.metrics.add(Counter::fault_ns, took);
            self.note_touch(fault);
        }
        verdict
    }

    pub(crate) fn resolve(&self, fault: &Fault, scratch: &mut Scratch) -> Verdict {
        let Some(region) = self.region(fault.region as usize) else {
            return Verdict::Refused;
        };
        let page = fault.page;
        // An access of unknown kind may be a store.
        let write = fault.access != AccessKind::Read;
        if write {
            region.mapped.note_store();
        }
        loop {
            let word = region.table.load(page);
            match word.state() {
                PageState::Empty if !region.is_allocated(page) => return Verdict::Refused,
                PageState::Empty | PageState::Stored | PageState::Filled => {
                    return self.restore(region, word, write, fault, scratch);
                }
                PageState::Lost => return Verdict::Refused,
                PageState::Resident | PageState::Evicting
                    if region.mapped.protects_from_loads()
                        || (fault.present && (write || word.state() == PageState::Resident)) =>
                {
                    if self.open(region, page, word) {
                        return Verdict::Resolved;
                    }
                }
                PageState::Resident
                    if self
                        .threads
                        .is_stale_again(fault.thread, region.id(page).get()) =>
                {
                    return self.verify_mapping(region, page, word);
                }
                PageState::Resident | PageState::Evicting => {
                    // Another thread was faster, or the page is mapped still.
                    self.metrics.add(Counter::fault_races, 1);
                    return Verdict::Retry;
                }
                PageState::Claimed | PageState::Dropping => {
                    self.metrics.add(Counter::fault_races, 1);
                    self.wait_for(region, page, word);
                    return Verdict::Retry;
                }
            }
        }
    }

    /// Lets the program store to a resident page: the first store to a clean
    /// one, or one that cancels an eviction. `false`: the word has changed.
    fn open(&self, region: &Region, page: usize, word: Word) -> bool {
        let Ok(claim) = region.table.claim(page, word) else {
            return false;
        };
        let start = clock::now_ns();
        if let Err(error) = self.unprotect(region, page, 1) {
            die_of("a page cannot be opened for the program", error);
        }
        let before = claim.before();
        let cancelled = word.state() == PageState::Evicting;
        let between = !cancelled && !before.is_clean();
        self.costs.opened(clock::now_ns() - start, between);
        let opened = if before.is_clean() {
            before.without_copy().with_write_hot(true)
        } else {
            // A copy that it keeps is compared before it leaves.
            before
        };
        let heat = Heat::from_bits(before.heat());
        let heat = match cancelled {
            // Pages that stay because they are hot are not seen.
            _ if self.is_recorded() => heat,
            true => heat.held_back(),
            false => heat.sighted(),
        };
        self.release(region, claim, opened.with_heat(heat.to_bits()));
        if before.is_clean() {
            self.free_slot(before);
        }
        let counter = match (cancelled, before.is_clean()) {
            (true, _) => Counter::evictions_cancelled,
            (false, true) => Counter::write_faults,
            (false, false) => Counter::opened_between,
        };
        self.metrics.add(counter, 1);
        true
    }

    /// The word says resident, yet the thread faults again and again: the
    /// program itself took the mapping away (madvise). Zeros are what the
    /// kernel would give.
    fn verify_mapping(&self, region: &Region, page: usize, word: Word) -> Verdict {
        let Ok(claim) = region.table.claim(page, word) else {
            return Verdict::Retry;
        };
        match region.mapped.install_zero(page) {
            Ok(Installed::Exists) => {
                let before = claim.before();
                self.release(region, claim, before);
                Verdict::Retry
            }
            Ok(Installed::Bytes(_)) => {
                let before = claim.before();
                self.release(region, claim, before.without_copy());
                if before.has_copy() {
                    self.free_slot(before);
                }
                Verdict::Resolved
            }
            Err(error) => die_of("a page cannot be put in place", error),
        }
    }
}

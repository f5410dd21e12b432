//! A fault, from the touch to the page in place.

use core::sync::atomic::Ordering;

use ghostmem_codec as codec;
use ghostmem_fault::{AccessKind, Fault, Installed, RUN_PAGES, Scratch, Verdict, die, die_of};
use ghostmem_os::{PAGE_SIZE, clock, futex};
use ghostmem_policy::{Heat, Past, Plan};
use ghostmem_store::Place;
use ghostmem_table::{Claim, State, Word};

use crate::engine::Engine;
use crate::gather::slot_of_stored;
use crate::metrics::Counter;
use crate::overdraft::WAIT;
use crate::region::Region;
use crate::threads::PAGES_PER_INSTRUCTION;

/// Looks at a claimed word before going to sleep on it: about the time a
/// restore takes, which is far less than a sleep and a wake.
const SPINS: u32 = 200;

/// Pages that mimalloc takes at once for small objects of one size, and gives
/// back at once (its arena slice, 64 KiB).
const GROUP_PAGES: usize = 16;

/// The smallest limit, pages, that can be so far from reached that pages are
/// put in place before anybody asks.
const AMPLE_PAGES_MIN: i64 = 1024;

/// Where a page's bytes came from.
#[derive(Clone, Copy)]
enum Source {
    Memory,
    /// The file: so many, packed.
    File(usize),
}

impl Engine {
    /// Resolves a fault, and counts the time that takes.
    pub(crate) fn serve(&self, fault: &Fault, scratch: &mut Scratch) -> Verdict {
        let start = match fault.waits.since_ns {
            0 => clock::now_ns(),
            since => since,
        };
        let verdict = self.resolve(fault, scratch);
        if verdict == Verdict::Resolved {
            self.metrics.record_latency(clock::now_ns() - start);
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
        loop {
            let word = region.table.load(page);
            match word.state() {
                State::Empty if !region.is_allocated(page) => return Verdict::Refused,
                State::Empty | State::Stored | State::Filled => {
                    return self.restore(region, word, write, fault, scratch);
                }
                State::Lost => return Verdict::Refused,
                State::Resident | State::Evicting
                    if region.mapped.protects_from_loads()
                        || (fault.present && (write || word.state() == State::Resident)) =>
                {
                    if self.open(region, page, word) {
                        return Verdict::Resolved;
                    }
                }
                State::Resident
                    if self
                        .threads
                        .is_stale_again(fault.thread, self.number(region, page)) =>
                {
                    return self.verify_mapping(region, page, word);
                }
                State::Resident | State::Evicting => {
                    // Another thread was faster, or the page is mapped still.
                    self.metrics.add(Counter::fault_races, 1);
                    return Verdict::Retry;
                }
                State::Claimed | State::Dropping => {
                    self.metrics.add(Counter::fault_races, 1);
                    self.wait_for(region, page, word);
                    return Verdict::Retry;
                }
            }
        }
    }

    /// A page's number, unique in the heap.
    pub(crate) fn number(&self, region: &Region, page: usize) -> u64 {
        region.owner(page).get()
    }

    /// Lets the program store to a resident page: the first store to a clean
    /// one, or one that cancels an eviction. `false`: the word has changed.
    fn open(&self, region: &Region, page: usize, word: Word) -> bool {
        let Ok(claim) = region.table.claim(page, word) else {
            return false;
        };
        if let Err(error) = self.unprotect(region, page, 1) {
            die_of("a page cannot be opened for the program", error);
        }
        let before = claim.before();
        let opened = before.with_clean(false).with_payload(0);
        let opened = if before.is_clean() {
            opened.with_write_hot(true)
        } else {
            opened
        };
        self.release(region, claim, opened);
        if before.is_clean() {
            self.free_slot(before);
            self.metrics.add(Counter::write_faults, 1);
        }
        if word.state() == State::Evicting {
            self.metrics.add(Counter::evictions_cancelled, 1);
        }
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
                self.release(region, claim, before.with_clean(false).with_payload(0));
                if before.is_clean() {
                    self.free_slot(before);
                }
                Verdict::Resolved
            }
            Err(error) => die_of("a page cannot be put in place", error),
        }
    }

    /// Ends a claim and wakes whoever slept on it.
    pub(crate) fn release(&self, region: &Region, claim: Claim, word: Word) {
        let page = claim.page();
        if region.table.release(claim, word).0 {
            futex::wake_all(region.table.futex(page));
        }
    }

    /// Frees the slot, or the place in a file, that a word names.
    pub(crate) fn free_slot(&self, word: Word) {
        if word.state() == State::Resident && word.is_clean() {
            self.copies.sub(1);
        }
        match Place::from_bits(word.payload()) {
            Some(Place::Store(slot)) => self.store.remove(slot),
            Some(Place::Elsewhere(number)) => self.remove_spilled(number),
            None => {}
        }
    }

    /// Waits, for a while, until a claimed or dropping page moves on.
    pub(crate) fn wait_for(&self, region: &Region, page: usize, seen: Word) {
        let mut seen = seen;
        for _ in 0..SPINS {
            core::hint::spin_loop();
            seen = region.table.load(page);
            if !matches!(seen.state(), State::Claimed | State::Dropping) {
                return;
            }
        }
        if let Some(marked) = region.table.announce_wait(page, seen) {
            futex::wait(region.table.futex(page), marked.low_half(), WAIT);
        }
    }

    /// Gets one frame, evicting if there is none; `Err`: the fault is to wait
    /// for one, which it does without buffers.
    fn take_frame(
        &self,
        fault: &Fault,
        refault: bool,
        scratch: &mut Scratch,
    ) -> Result<(), Verdict> {
        // Without the program counter, a thread that merely works on more
        // pages than the limit looks stuck: ask only where it can be.
        let tiny = self.budget.limit() <= 2 * i64::from(PAGES_PER_INSTRUCTION);
        let suspect = fault.instant != 0 || (tiny && refault);
        // A fault that has waited was counted the first time.
        if fault.waits.count == 0 {
            // Asked first: `is_stuck` makes this fault the thread's last.
            let moved_on = self.threads.moved_on(fault.thread, fault.instant);
            if suspect && self.threads.is_stuck(fault, refault) {
                self.grant_privilege(fault.thread);
            } else if moved_on && self.stuck.load(Ordering::Relaxed) == fault.thread {
                self.end_privilege(fault.thread);
            }
        }
        loop {
            let privileged = self.privileged();
            if privileged == fault.thread {
                // Nobody evicts while this thread collects what its
                // instruction needs.
                if self.overdraw_privileged() {
                    return Ok(());
                }
                // No instruction needs so many: it was not stuck.
                self.end_privilege(fault.thread);
                continue;
            }
            if privileged != 0 {
                return Err(Verdict::Wait {
                    barren: false,
                    most: WAIT,
                });
            }
            if self.budget.take_up_to(1) == 1 {
                return Ok(());
            }
            self.wake_worker();
            if fault.waits.barren == 0 && fault.access != AccessKind::Read {
                self.wait_for_spill();
            }
            self.metrics.add(Counter::direct_reclaims, 1);
            let freed = self.reclaim_directly(scratch);
            self.help_tidying();
            if freed == 0 {
                return self.after_barren(fault.waits.barren + 1);
            }
        }
    }

    /// Puts an absent page in place, and with it what readahead asks for.
    #[inline(never)]
    fn restore(
        &self,
        region: &Region,
        word: Word,
        write: bool,
        fault: &Fault,
        scratch: &mut Scratch,
    ) -> Verdict {
        let page = fault.page;
        let refault = word.state() != State::Empty;
        if let Some(slot) = slot_of_stored(word) {
            // Cold memory, while there is other work: stale by the time of
            // the claim at worst.
            self.store.prefetch(slot);
        }
        if let Err(wait) = self.take_frame(fault, refault, scratch) {
            return wait;
        }
        let number = self.number(region, page);
        let plan = if self.config.readahead {
            self.threads.plan(fault.thread, number)
        } else {
            Plan {
                stride: 1,
                count: 1,
                proven: 0,
            }
        };
        let plan = self.ample(region, page, refault || !write, plan);
        // Readahead never fills more than an eighth of the limit.
        let extra = i64::from(plan.count.min(RUN_PAGES as u32)) - 1;
        let extra = extra.min(self.budget.limit() / 8).max(0);
        let mut frames = 1;
        if extra > 0 {
            frames += self.budget.take_up_to(extra);
            if frames <= extra {
                // The reclaimer is behind. A run restored page by page would
                // cost a fault for each: one batch evicted here costs less.
                self.reclaim((extra + 1 - frames) as usize, scratch);
                frames += self.budget.take_up_to(extra + 1 - frames);
            }
        }
        let (stride, most) = (plan.stride, frames as usize);
        let steps = plan.count as usize;
        let restored = if most == 1 {
            self.restore_run::<1>(region, page, word, stride, (1, 1), write, scratch)
        } else {
            self.restore_run::<RUN_PAGES>(region, page, word, stride, (steps, most), write, scratch)
        };
        let (restored, covered) = match restored {
            Ok(counts) => counts,
            Err(verdict) => {
                self.budget.give_back(frames);
                return verdict;
            }
        };
        self.budget.give_back(frames - restored as i64);
        self.metrics.add(Counter::faults, 1);
        self.metrics.add(Counter::refaults, u64::from(refault));
        self.metrics
            .add(Counter::readahead_pages, restored as u64 - 1);
        self.metrics
            .add(Counter::readahead_hits, u64::from(plan.proven));
        if (covered as u32) < plan.count {
            self.threads
                .cut_short(fault.thread, plan, number, covered as u32);
        }
        if self.budget.free() < self.low_watermark() {
            self.wake_worker();
        }
        Verdict::Resolved
    }

    /// A plan for a page of small objects that is stored to for the first time,
    /// while there is room for everything: up to the end of its group. Their
    /// allocator goes through all of a group, but through many of them in turn,
    /// which looks like no run.
    fn ample(&self, region: &Region, page: usize, used: bool, plan: Plan) -> Plan {
        let limit = self.budget.limit();
        let place = (region.base() / PAGE_SIZE + page) % GROUP_PAGES;
        let count = (GROUP_PAGES - place) as u32;
        let wanted = !used
            && region.blocks.is_none()
            && self.config.readahead
            && plan.count < count
            && limit >= AMPLE_PAGES_MIN
            && self.budget.free() > limit / 2;
        if !wanted {
            return plan;
        }
        Plan {
            stride: 1,
            count,
            ..plan
        }
    }

    /// Restores up to `frames` pages among the `steps` that are `stride` apart
    /// from `first` on; the frames are taken already. Pages that are resident
    /// are passed over. How many it was, the first always among them, and how
    /// many steps that covered. `MOST` bounds the run, and the stack it takes.
    #[allow(clippy::too_many_arguments)]
    fn restore_run<const MOST: usize>(
        &self,
        region: &Region,
        first: usize,
        word: Word,
        stride: i32,
        (steps, frames): (usize, usize),
        write: bool,
        scratch: &mut Scratch,
    ) -> Result<(usize, usize), Verdict> {
        let mut claims: [Option<Claim>; MOST] = [const { None }; MOST];
        claims[0] = Some(
            region
                .table
                .claim(first, word)
                .map_err(|_| Verdict::Retry)?,
        );
        let fresh = word.state() == State::Empty;
        // Steps up to the last one claimed, and how many those were.
        let (mut count, mut restored) = (1, 1);
        for (step, slot) in claims.iter_mut().enumerate().take(steps).skip(1) {
            if restored == frames {
                break;
            }
            let Some(page) = first
                .checked_add_signed(step as isize * stride as isize)
                .filter(|&page| page < region.pages())
            else {
                break;
            };
            let word = region.table.load(page);
            let wanted = match word.state() {
                State::Stored | State::Filled => !fresh,
                // Fresh pages follow only a fresh page: a program that fills
                // its memory, not one that reads what is there.
                State::Empty => fresh && write && region.is_allocated(page),
                State::Resident | State::Evicting => continue,
                _ => false,
            };
            if !wanted {
                break;
            }
            let Ok(claim) = region.table.claim(page, word) else {
                break;
            };
            *slot = Some(claim);
            (count, restored) = (step + 1, restored + 1);
        }
        if fresh {
            (count, restored) = self.keep_allocated(region, &mut claims[..count]);
            if count == 0 {
                return Err(Verdict::Refused);
            }
        }
        // Pages are laid out in the buffer in address order, so that
        // neighbours go in with one call.
        let place = |step: usize| if stride < 0 { count - 1 - step } else { step };
        // A run's pages in the file are read together; those ahead that cannot
        // be read stay where they are.
        let mut fetched = 0;
        if MOST > 1 && !fresh {
            let failed;
            (fetched, failed) = self.fetch_run(region, &claims[..count], place, scratch);
            restored -= self.let_go_of(region, &mut claims[..count], failed);
        }
        let now = self.clock().epoch(self.evictions());
        let mut words = [Word::EMPTY; MOST];
        for (step, word) in words.iter_mut().enumerate().take(count) {
            let Some(claim) = &claims[step] else {
                continue;
            };
            // Cold memory, while this page is decompressed.
            let ahead = claims.get(step + 1).and_then(Option::as_ref);
            if let Some(next) = ahead.and_then(|next| slot_of_stored(next.before())) {
                self.store.prefetch(next);
            }
            let before = claim.before();
            let source = if fetched >> step & 1 == 1 {
                // Of a run: it stays where readahead finds it together.
                Some(Source::Memory)
            } else {
                self.contents(region, claim, place(step), scratch)
            };
            let Some(source) = source else {
                self.lose(region, &mut claims[..count], step);
                // The faulting page itself, or only one of those ahead of it.
                return Err(if step == 0 {
                    Verdict::Refused
                } else {
                    Verdict::Retry
                });
            };
            let past = Past::from_bits(before.heat());
            let clean = before.state() == State::Stored
                && !write
                && region.mapped.tracks_writes()
                && self.may_keep_copy(before)
                && !before.is_write_hot()
                && !matches!(source, Source::File(len) if self.belongs_in_memory(past, len, now));
            let heat = match (before.state(), step) {
                (State::Empty, _) => Heat::FRESH,
                // Pages that stay because they are hot are not seen.
                _ if self.is_recorded() => Heat::FRESH,
                (_, 0) => past.refault(self.clock(), now),
                _ => past.ahead(),
            };
            // Being hot for writing wears off with reads: half of them find the
            // page's copy kept again, and cost one more fault should a store
            // follow after all.
            let forget = !write && now & 1 == 0;
            *word = before
                .with_state(State::Resident)
                .with_clean(clean)
                .with_payload(if clean { before.payload() } else { 0 })
                .with_write_hot(before.is_write_hot() && !forget)
                .with_heat(heat.to_bits());
        }
        let page_of = |step: usize| first.wrapping_add_signed(step as isize * stride as isize);
        self.install(
            region, count, stride, page_of, &words, write, fresh, scratch,
        );
        // Counted before anybody can give one of them up.
        let copies = words[..count].iter().filter(|word| word.is_clean()).count();
        self.copies.add(copies);
        for step in 0..count {
            let Some(claim) = claims[step].take() else {
                continue;
            };
            let before = claim.before();
            region.resident.insert(claim.page());
            self.release(region, claim, words[step]);
            if before.state() == State::Stored && !words[step].is_clean() {
                self.free_slot(before);
            }
        }
        Ok((restored, count))
    }

    /// Brings the bytes of a page into place `place` of the buffer: where they
    /// came from. `None` when they cannot be had.
    fn contents(
        &self,
        region: &Region,
        claim: &Claim,
        place: usize,
        scratch: &mut Scratch,
    ) -> Option<Source> {
        let word = claim.before();
        let out = &mut scratch.run[place];
        match word.state() {
            State::Stored => {
                let slot = match Place::from_bits(word.payload()) {
                    Some(Place::Store(slot)) => slot,
                    Some(Place::Elsewhere(number)) => {
                        return self
                            .fetch(region, claim.page(), number, place, scratch)
                            .map(Source::File);
                    }
                    None => return None,
                };
                let info = self.store.read(slot, &mut scratch.packed);
                // The clock costs a few per cent of a restore.
                let sampled = place == 0 && (slot.bits() ^ slot.bits() >> 16) & 7 == 0;
                let start = if sampled { clock::now_ns() } else { 0 };
                let ok = codec::decode(info.codec, &scratch.packed[..info.len], out).is_ok();
                if sampled {
                    self.metrics
                        .add(Counter::decompress_ns, clock::now_ns() - start);
                    self.metrics.add(Counter::decompress_samples, 1);
                }
                ok.then_some(Source::Memory)
            }
            State::Filled => {
                codec::fill(word.payload() as u32, out);
                Some(Source::Memory)
            }
            _ => {
                out.fill(0);
                Some(Source::Memory)
            }
        }
    }

    /// Maps the restored pages: as few calls as runs of neighbours with equal
    /// protection.
    #[allow(clippy::too_many_arguments)]
    fn install(
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
    fn lose(&self, region: &Region, claims: &mut [Option<Claim>], lost: usize) {
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

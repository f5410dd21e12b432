//! Reclaim: choosing cold pages and turning their frames into slots.
//!
//! ```text
//!   sweep      the clock hand walks resident pages in address order and
//!              takes those without credit
//!   protect    dirty victims are write-protected, neighbours in one call
//!   compress   each into a slot; a touch meanwhile cancels
//!   seal       victims nobody touched (and clean ones, which have a slot)
//!   drop       one vectored call takes all their mappings away
//!   finish     words say Stored, frames go back to the budget
//! ```
//! Taking mappings away interrupts every processor the program runs on, so it
//! is done for a whole batch at once.

use core::sync::atomic::Ordering;

use ghostmem_codec::{self as codec, Codec, Encoding};
use ghostmem_fault::{Batch, Scratch};
use ghostmem_os::scratch::STACK_BYTES;
use ghostmem_os::{clock, futex};
use ghostmem_policy::Heat;
use ghostmem_store::Slot;
use ghostmem_table::{DropClaim, EvictClaim, State, Word};

use crate::engine::Engine;
use crate::metrics::Counter;
use crate::region::Region;

/// Most pages evicted in one batch. Dropping mappings interrupts the other
/// processors once for each batch, which costs as much as evicting some 40
/// clean pages.
pub(crate) const BATCH_PAGES: usize = 256;

/// Most dirty pages in one batch: their frames come free only when the last of
/// them is compressed.
const DIRTY_PAGES_MAX: usize = 128;

/// Resident pages the hand looks at for each page it is asked to evict,
/// before it takes what it has.
pub(crate) const LOOKS_PER_PAGE: usize = 32;

/// The last of those looks ignore credit when no page has been found before.
const FORCED_LOOKS: usize = 256;

/// The same for a batch that a faulting thread evicts: it waits a third of a
/// millisecond for them.
const DIRECT_DIRTY_PAGES_MAX: usize = 64;

/// Dirty pages are spared from this credit on. Below it, the chance that they
/// are written again before the hand is back does not pay for the interrupts of
/// lifting their write protection.
const DIRTY_CREDIT_MIN: u8 = 16;

/// Dirty pages leave in one sweep of the hand out of so many, unless most pages are
/// dirty. Each sweep that takes some write-protects all others between them, and
/// these then fault at their next store, for longer than a restore takes.
const DIRTY_SWEEPS: u64 = 4;

/// Two dirty victims at most this many pages apart are protected in one call:
/// walking absent pages is cheaper than another round of interrupts.
const PROTECT_GAP_PAGES: usize = 1024;

/// A victim: its page and the word that was seen.
#[derive(Clone, Copy)]
struct Victim {
    page: usize,
    word: Word,
}

/// What became of a compressed victim.
#[derive(Clone, Copy)]
enum Packed {
    /// It is in this slot now.
    Slot(Slot, bool),
    /// One value all over.
    Filled(u32),
    /// Not possible (the store is full), or cancelled already.
    Not,
}

/// What a batch takes of a handler's stack, bytes.
const BATCH_BYTES: usize = BATCH_PAGES
    * (size_of::<Victim>()
        + size_of::<Option<EvictClaim>>()
        + size_of::<Packed>()
        + size_of::<Option<DropClaim>>()
        + size_of::<bool>())
    + size_of::<Batch>();
// The other half is for the rest of the way from the fault to the kernel, and
// for the copies that unoptimised builds make.
const _: () = assert!(BATCH_BYTES <= STACK_BYTES / 2);

impl Engine {
    /// Evicts up to about `wanted` cold pages; how many it was. Lock-free,
    /// runs in fault handlers and in the background.
    pub(crate) fn reclaim(&self, wanted: usize, scratch: &mut Scratch) -> usize {
        self.reclaim_up_to(wanted, DIRTY_PAGES_MAX, scratch)
    }

    /// As [`Engine::reclaim`], for a faulting thread that found no frame: it
    /// takes many pages as long as that costs no more than dropping them, and
    /// few that must be compressed first.
    pub(crate) fn reclaim_directly(&self, scratch: &mut Scratch) -> usize {
        let wanted = (self.budget.limit() / 16).clamp(1, BATCH_PAGES as i64);
        self.reclaim_up_to(wanted as usize, DIRECT_DIRTY_PAGES_MAX, scratch)
    }

    fn reclaim_up_to(&self, wanted: usize, dirty_most: usize, scratch: &mut Scratch) -> usize {
        if self.privileged() != 0 {
            return 0;
        }
        let wanted = wanted.clamp(1, BATCH_PAGES);
        let mut looks = wanted * LOOKS_PER_PAGE + FORCED_LOOKS;
        let mut victims = [Victim {
            page: 0,
            word: Word::EMPTY,
        }; BATCH_PAGES];
        // Victims of one region, gathered over as many windows as it takes:
        // spared pages must not make the batch small, as each batch costs a
        // round of interrupts.
        let (mut from_region, mut count, mut dirty) = (None, 0, 0);
        let mut dirty_lead = 0;
        let mut freed = 0;
        let mut wraps = 0;
        let regions = self.region_count();
        while freed + count < wanted && dirty < dirty_most && looks > 0 && wraps <= regions {
            let Some((region, start, end)) = self.next_window(wanted - freed - count) else {
                break;
            };
            let same = from_region.is_some_and(|before: &Region| core::ptr::eq(before, region));
            if count > 0 && !same {
                freed += self.evict_gathered(from_region, &mut victims[..count], scratch);
                count = 0;
            }
            from_region = Some(region);
            if start == end {
                wraps += 1;
                continue;
            }
            let with_dirty = self.takes_dirty();
            let mut from = start;
            while let Some(page) = region.resident.next(from).filter(|&page| page < end) {
                from = page + 1;
                looks = looks.saturating_sub(1);
                // So many pages in a row with credit: take what comes, or the
                // caller would wait for all of it to run out.
                let force = freed + count == 0 && looks < FORCED_LOOKS;
                let word = region.table.load(page);
                dirty_lead += if word.is_clean() { -1 } else { 1 };
                if !(word.is_clean() || with_dirty || force) {
                    continue;
                }
                if let Some(victim) = self.judge(region, page, word, force) {
                    victims[count] = victim;
                    count += 1;
                    dirty += usize::from(!victim.word.is_clean());
                    if count == BATCH_PAGES {
                        break;
                    }
                }
            }
        }
        self.dirty_lead.fetch_add(dirty_lead, Ordering::Relaxed);
        freed + self.evict_gathered(from_region, &mut victims[..count], scratch)
    }

    /// Whether dirty pages leave in this sweep of the hand.
    fn takes_dirty(&self) -> bool {
        self.dirty_rules.load(Ordering::Relaxed)
            || self
                .sweeps
                .load(Ordering::Relaxed)
                .is_multiple_of(DIRTY_SWEEPS)
    }

    /// A sweep begins.
    fn next_sweep(&self) {
        let dirty_lead = self.dirty_lead.swap(0, Ordering::Relaxed);
        self.dirty_rules.store(dirty_lead > 0, Ordering::Relaxed);
        self.sweeps.fetch_add(1, Ordering::Relaxed);
    }

    /// Evicts the victims gathered from one region.
    fn evict_gathered(
        &self,
        region: Option<&Region>,
        victims: &mut [Victim],
        scratch: &mut Scratch,
    ) -> usize {
        let Some(region) = region else { return 0 };
        // The hand may have wrapped within the region.
        if !victims.is_sorted_by_key(|victim| victim.page) {
            victims.sort_unstable_by_key(|victim| victim.page);
        }
        self.evict_batch(region, victims, scratch)
    }

    /// Moves the hand past the next few resident pages, which are then this
    /// caller's to judge. An empty window: the hand went on to the next
    /// region. `None`: there are no regions.
    pub(crate) fn next_window(&self, wanted: usize) -> Option<(&Region, usize, usize)> {
        loop {
            let hand = self.hand.load(Ordering::Acquire);
            let (index, from) = ((hand >> 40) as usize, (hand & ((1 << 40) - 1)) as usize);
            let count = self.region_count();
            if count == 0 {
                return None;
            }
            let index = if index >= count { 0 } else { index };
            let region = self.region(index)?;
            let start = region.resident.next(from);
            let mut end = start.map_or(0, |page| page + 1);
            if start.is_some() {
                for _ in 1..wanted.min(BATCH_PAGES) {
                    match region.resident.next(end) {
                        Some(page) => end = page + 1,
                        None => break,
                    }
                }
            }
            let next = match start {
                Some(_) => ((index as u64) << 40) | end as u64,
                None => (((index + 1) % count) as u64) << 40,
            };
            if self
                .hand
                .compare_exchange(hand, next, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                if next == 0 {
                    self.next_sweep();
                }
                return Some((region, start.unwrap_or(0), end));
            }
        }
    }

    /// Whether the hand takes a page; one it spares loses a credit. `force`:
    /// whatever its credit.
    fn judge(&self, region: &Region, page: usize, word: Word, force: bool) -> Option<Victim> {
        if word.state() != State::Resident || word.is_pinned() {
            return None;
        }
        let heat = Heat::from_bits(word.heat());
        // A dirty page that is spared between two that are not gets write
        // protected with them, and its next store costs more than a restore.
        let spare = word.is_clean() || heat.credit() >= DIRTY_CREDIT_MIN;
        match heat.pass() {
            Some(spared) if spare && !force && !self.backend.splits_mappings() => {
                // Somebody else changed the word: spared all the same.
                let spared = word.with_heat(spared.to_bits());
                let _raced = region.table.amend(page, word, spared);
                None
            }
            _ => Some(Victim { page, word }),
        }
    }

    /// Evicts pages of one region, given in address order; how many it was.
    #[inline(never)]
    fn evict_batch(&self, region: &Region, victims: &[Victim], scratch: &mut Scratch) -> usize {
        let mut claims: [Option<EvictClaim>; BATCH_PAGES] = [const { None }; BATCH_PAGES];
        let mut packed = [Packed::Not; BATCH_PAGES];
        let nonce = self.nonce.fetch_add(1, Ordering::Relaxed) & ((1 << 40) - 1);
        let mut dirty = 0;
        // A pin waits until the pages are protected.
        let protecting = victims
            .iter()
            .any(|victim| !victim.word.is_clean())
            .then(|| region.protecting.enter());
        for (claim, victim) in claims.iter_mut().zip(victims) {
            if !victim.word.is_clean() {
                *claim = region
                    .table
                    .begin_evict(victim.page, victim.word, nonce)
                    .ok();
                dirty += usize::from(claim.is_some());
            }
        }
        if dirty > 0 {
            self.protect(region, &mut claims[..victims.len()]);
        }
        drop(protecting);
        if dirty > 0 {
            self.pack_all(region, &claims[..victims.len()], &mut packed, scratch);
        }
        self.drop_sealed(region, victims, &mut claims, &packed)
    }

    /// Write-protects the pages of `claims`, neighbours in one call, and gives up
    /// those that the kernel does not protect. Who calls it entered `protecting`
    /// before: either we see a pin, or it waits for us.
    fn protect(&self, region: &Region, claims: &mut [Option<EvictClaim>]) {
        let exact = region.mapped.protects_exactly() || region.has_pins();
        let page_of = |claim: &Option<EvictClaim>| claim.as_ref().map(EvictClaim::page);
        let mut from = 0;
        while from < claims.len() {
            let Some(start) = page_of(&claims[from]) else {
                from += 1;
                continue;
            };
            let (mut to, mut end) = (from + 1, start + 1);
            for (index, claim) in claims.iter().enumerate().skip(from + 1) {
                let Some(page) = page_of(claim) else { continue };
                if page != end && (exact || page - end > PROTECT_GAP_PAGES) {
                    break;
                }
                (to, end) = (index + 1, page + 1);
            }
            if region.mapped.protect(start, end - start).is_err() {
                self.protect_each(region, &mut claims[from..to]);
            }
            from = to;
        }
    }

    /// As [`Engine::protect`], for pages some of which the kernel does not protect:
    /// guard markers are refused on locked memory (mlock), and a mapping may not be
    /// split when there are too many. The others still go.
    fn protect_each(&self, region: &Region, claims: &mut [Option<EvictClaim>]) {
        for claim in claims {
            let Some(page) = claim.as_ref().map(EvictClaim::page) else {
                continue;
            };
            if region.mapped.protect(page, 1).is_ok() || self.close_around_from_inside(region, page)
            {
                continue;
            }
            if let Some(claim) = claim.take() {
                let word = claim.before();
                region.table.abandon(claim, word);
            }
        }
    }

    /// Compresses the pages of `claims` into the store.
    fn pack_all(
        &self,
        region: &Region,
        claims: &[Option<EvictClaim>],
        packed: &mut [Packed],
        scratch: &mut Scratch,
    ) {
        let start = clock::now_ns();
        let mut compressed = 0;
        for (claim, packed) in claims.iter().zip(packed) {
            let Some(claim) = claim else { continue };
            let page = claim.page();
            // A touch may have cancelled it, and then the mapping may be gone:
            // copy only what is held in place.
            if !region.table.hold(claim) {
                continue;
            }
            let read = region.mapped.read(page, &mut scratch.page);
            if region.table.let_go(claim).0 {
                futex::wake_all(region.table.futex(page));
            }
            if !read {
                continue;
            }
            compressed += 1;
            *packed = self.pack(region, page, claim.before(), scratch);
        }
        self.metrics
            .add(Counter::compress_ns, clock::now_ns() - start);
        self.metrics.add(Counter::compressed_pages, compressed);
    }

    fn pack(&self, region: &Region, page: usize, before: Word, scratch: &mut Scratch) -> Packed {
        if let Some(pattern) = codec::fill_pattern(&scratch.page) {
            return Packed::Filled(pattern);
        }
        // A page that did not shrink last time is tried again only now and
        // then.
        let hopeless = !self.config.compress
            || (before.is_incompressible() && self.nonce.load(Ordering::Relaxed) & 7 != 0);
        let len = if hopeless {
            None
        } else {
            self.config
                .codec
                .compress(&mut scratch.codec.0, &scratch.page, &mut scratch.packed)
        };
        let owner = region.owner(page);
        let insert = |scratch: &Scratch| match len {
            Some(len) => self
                .store
                .insert(owner, Encoding::Lz4 as u8, &scratch.packed[..len]),
            None => self.store.insert(owner, Encoding::Raw as u8, &scratch.page),
        };
        let slot = insert(scratch).or_else(|| {
            // No room: copies of resident pages are the first to go.
            self.shed_copies(BATCH_PAGES);
            insert(scratch)
        });
        slot.map_or(Packed::Not, |slot| Packed::Slot(slot, len.is_none()))
    }

    /// Seals what was not touched meanwhile, drops all of it at once and
    /// finishes the words.
    fn drop_sealed(
        &self,
        region: &Region,
        victims: &[Victim],
        claims: &mut [Option<EvictClaim>; BATCH_PAGES],
        packed: &[Packed; BATCH_PAGES],
    ) -> usize {
        let mut drops: [Option<DropClaim>; BATCH_PAGES] = [const { None }; BATCH_PAGES];
        let mut batch = Batch::new();
        let epoch = self.clock().epoch(self.evictions());
        for (index, victim) in victims.iter().enumerate() {
            let sealed = if victim.word.is_clean() {
                region.table.begin_drop(victim.page, victim.word).ok()
            } else if let Some(claim) = claims[index].take() {
                match packed[index] {
                    Packed::Not => {
                        // The page may stay protected: the next touch that
                        // minds opens it.
                        let word = claim.before();
                        region.table.abandon(claim, word);
                        None
                    }
                    Packed::Filled(_) => region.table.seal(claim),
                    Packed::Slot(slot, _) => {
                        let sealed = region.table.seal(claim);
                        if sealed.is_none() {
                            // Touched after it was compressed.
                            self.store.remove(slot);
                        }
                        sealed
                    }
                }
            } else {
                None
            };
            if sealed.is_some() {
                region.mapped.add_to(&mut batch, victim.page, 1);
            }
            drops[index] = sealed;
        }
        let mut kept = [false; BATCH_PAGES];
        region.mapped.drop_batch(&mut batch, false, &mut |page| {
            // A hand that wrapped may have taken a page twice, and either of
            // the two may be the one that was sealed.
            for (kept, victim) in kept.iter_mut().zip(victims) {
                *kept |= victim.page == page;
            }
        });
        let (mut freed, mut clean, mut filled, mut raw) = (0, 0, 0, 0);
        for (index, claim) in drops.iter_mut().enumerate() {
            let Some(claim) = claim.take() else { continue };
            let before = claim.before();
            let past = Heat::from_bits(before.heat()).evict(epoch);
            let stored = before.with_clean(false).with_heat(past.to_bits());
            let word = match (!kept[index], before.is_clean(), packed[index]) {
                // The kernel kept the mapping (locked memory): so do we.
                (false, true, _) => before,
                (false, false, outcome) => {
                    if let Packed::Slot(slot, _) = outcome {
                        self.store.remove(slot);
                    }
                    before
                }
                (true, true, _) => {
                    clean += 1;
                    stored.with_state(State::Stored)
                }
                (true, false, Packed::Slot(slot, is_raw)) => {
                    raw += u64::from(is_raw);
                    stored
                        .with_state(State::Stored)
                        .with_incompressible(is_raw)
                        .with_payload(slot.bits())
                }
                (true, false, Packed::Filled(pattern)) => {
                    filled += 1;
                    let payload = u64::from(pattern);
                    stored
                        .with_state(State::Filled)
                        .with_incompressible(false)
                        .with_payload(payload)
                }
                (true, false, Packed::Not) => before,
            };
            if word.state() != State::Resident {
                region.resident.remove(claim.page());
                freed += 1;
            }
            let page = claim.page();
            if region.table.finish(claim, word).0 {
                futex::wake_all(region.table.futex(page));
            }
        }
        self.budget.give_back(freed);
        // Those pages have one place again, not two.
        self.copies.sub(clean as usize);
        let evictions = self.count_evictions(freed as u64);
        self.metrics.add(Counter::evictions_clean, clean);
        self.metrics
            .add(Counter::evictions_dirty, freed as u64 - clean);
        self.metrics.add(Counter::filled_pages_evicted, filled);
        self.metrics.add(Counter::raw_pages_evicted, raw);
        self.wake_spiller();
        self.fit_copies(evictions, evictions + freed as u64);
        freed as usize
    }

    /// Evicts the resident pages of a range now, whatever their credit; how
    /// many it was.
    pub(crate) fn evict_pages(
        &self,
        region: &Region,
        start: usize,
        end: usize,
        scratch: &mut Scratch,
    ) -> usize {
        let mut victims = [Victim {
            page: 0,
            word: Word::EMPTY,
        }; BATCH_PAGES];
        let (mut count, mut freed, mut from) = (0, 0, start);
        while let Some(page) = region.resident.next(from).filter(|&page| page < end) {
            from = page + 1;
            let word = region.table.load(page);
            if word.state() == State::Resident && !word.is_pinned() {
                victims[count] = Victim { page, word };
                count += 1;
                if count == BATCH_PAGES {
                    freed += self.evict_batch(region, &victims, scratch);
                    count = 0;
                }
            }
        }
        freed + self.evict_batch(region, &victims[..count], scratch)
    }
}

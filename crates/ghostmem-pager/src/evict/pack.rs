//! From a steadied page to a slot.

use core::sync::atomic::Ordering;

use ghostmem_codec::{self as codec, AnyCodec, Codec, WORTHWHILE_BYTES};
use ghostmem_fault::Scratch;
use ghostmem_os::{clock, futex};
use ghostmem_policy::hand::EVICT_BATCH_PAGES;
use ghostmem_store::Slot;
use ghostmem_table::{EvictClaim, Word};

use crate::parts::engine::Engine;
use crate::parts::metrics::Counter;
use crate::parts::region::Region;

/// A victim: its page and the word that was seen.
#[derive(Clone, Copy)]
pub(crate) struct Victim {
    pub(crate) page: usize,
    pub(crate) word: Word,
    /// Written pages that stay, between this victim and the one before.
    pub(crate) between: u32,
}

impl Victim {
    pub(crate) const NONE: Self = Self {
        page: 0,
        word: Word::EMPTY,
        between: 0,
    };
}

/// What became of a compressed victim.
#[derive(Clone, Copy)]
pub(crate) enum Packed {
    /// It is in this slot now.
    Slot(Slot, bool),
    /// One value all over.
    Filled(u32),
    /// It was kept, and its copy has the very same bytes.
    Same,
    /// The store has no room. A copy that it had is gone.
    Full,
    /// Cancelled already, or it could not be read. A copy that it had is still there.
    Not,
}

impl Engine {
    /// Compresses the pages of `claims` into the store, but for those that are what their
    /// copies say.
    pub(crate) fn pack_all(
        &self,
        region: &Region,
        claims: &[Option<EvictClaim>],
        packed: &mut [Packed],
        scratch: &mut Scratch,
    ) {
        let start = clock::now_ns();
        let (mut compressed, mut compared, mut unchanged) = (0, 0, 0);
        let mut compare_ns = 0;
        for (claim, packed) in claims.iter().zip(packed) {
            let Some(claim) = claim else { continue };
            let page = claim.page();
            // A touch may have cancelled it, and then the mapping may be gone:
            // copy only what is steadied.
            if !region.table.steady(claim) {
                continue;
            }
            let read = region.mapped.read(page, &mut scratch.page);
            if region.table.let_go(claim).0 {
                futex::wake_all(region.table.futex(page));
            }
            if !read {
                continue;
            }
            let before = claim.before();
            if before.is_kept() {
                let begin = clock::now_ns();
                let same = self.is_unchanged(before, scratch);
                compare_ns += clock::now_ns() - begin;
                compared += 1;
                if same {
                    unchanged += 1;
                    *packed = Packed::Same;
                    continue;
                }
                // The slot is ours while the page is evicted.
                self.free_slot(before);
            }
            compressed += 1;
            *packed = self.pack(region, page, before, scratch);
        }
        let took = (clock::now_ns() - start).saturating_sub(compare_ns);
        // By the same clock: where the thread is interrupted, both take longer.
        self.costs.packed(compressed, took);
        let now = self.clock().epoch(self.evictions());
        self.costs.compared((compared, unchanged), compare_ns, now);
        self.metrics.add(Counter::verified_unchanged, unchanged);
        self.metrics
            .add(Counter::verified_changed, compared - unchanged);
        self.metrics.add(Counter::compress_ns, took);
        self.metrics.add(Counter::compressed_pages, compressed);
    }

    /// Whether a page that was copied out while it was held is, byte for byte, what the
    /// copy says that it kept.
    fn is_unchanged(&self, before: Word, scratch: &mut Scratch) -> bool {
        let Some(slot) = Slot::from_bits(before.payload()) else {
            return false;
        };
        let info = self.store.read(slot, &mut scratch.packed);
        let kept = &mut scratch.run[0];
        codec::decode(info.codec, &scratch.packed[..info.len], kept).is_ok()
            && *kept == scratch.page
    }

    fn pack(&self, region: &Region, page: usize, before: Word, scratch: &mut Scratch) -> Packed {
        if let Some(pattern) = codec::fill_pattern(&scratch.page) {
            return Packed::Filled(pattern);
        }
        // A page that did not shrink last time is tried again only now and
        // then.
        let hopeless = !self.config.compress
            || (before.is_incompressible() && self.nonce.load(Ordering::Relaxed) & 7 != 0);
        let codec = self.config.codec;
        let len = if hopeless {
            None
        } else {
            let out = &mut scratch.packed[..WORTHWHILE_BYTES];
            codec.compress(&mut scratch.codec, &scratch.page, out)
        };
        let owner = region.id(page).owner();
        let insert = |scratch: &Scratch| {
            let (codec, bytes) = match len {
                Some(len) => (codec, &scratch.packed[..len]),
                None => (AnyCodec::Raw, &scratch.page[..]),
            };
            self.store.insert(owner, codec.encoding().id(), bytes)
        };
        let slot = insert(scratch).or_else(|| {
            // No room: copies of resident pages are the first to go.
            self.shed_copies(EVICT_BATCH_PAGES);
            insert(scratch)
        });
        slot.map_or(Packed::Full, |slot| Packed::Slot(slot, len.is_none()))
    }
}

//! A tier and a plain map that must agree with it.

use std::collections::HashMap;

use crate::MAX_SLOT_BYTES;
use crate::tier::{ColdTier, Packed, Tended, TierError, TierSlot, WriteError};

/// A small generator of random numbers, the same for the same seed.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub const fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub const fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Yes once in `n` times.
    pub const fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Bytes that belong to one version of one page and to nothing else.
#[must_use]
pub fn payload(owner: u64, version: u64, len: usize) -> Vec<u8> {
    let mut random = Random(owner.wrapping_mul(31) ^ version.wrapping_mul(0xABCD_EF12_3457));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What a page in a tier must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Where it is.
    pub slot: TierSlot,
    /// Which [`payload`] it has.
    pub version: u64,
    /// Packed bytes.
    pub len: usize,
    /// Codec number.
    pub codec: u8,
}

/// A tier and what it must hold.
#[derive(Debug)]
pub struct Pair<T> {
    /// The tier.
    pub tier: T,
    /// The pages in it, by owner.
    pub pages: HashMap<u64, Page>,
    /// The last version that was written.
    pub versions: u64,
    work: Vec<u8>,
}

impl<T: ColdTier> Pair<T> {
    /// A tier that holds nothing yet.
    pub fn new(tier: T) -> Self {
        let work = vec![0; (80 << 12).max(tier.work_bytes())];
        Self {
            tier,
            pages: HashMap::new(),
            versions: 0,
            work,
        }
    }

    /// Writes one new version of each of these pages; on an error nothing must have
    /// changed.
    ///
    /// # Errors
    /// The tier's refusal.
    pub fn write(&mut self, pages: &[(u64, usize, u8)]) -> Result<(), WriteError> {
        self.versions += 1;
        let version = self.versions;
        let bytes: Vec<Vec<u8>> = pages
            .iter()
            .map(|&(owner, len, _)| payload(owner, version, len))
            .collect();
        let packed: Vec<Packed<'_>> = pages
            .iter()
            .zip(&bytes)
            .map(|(&(owner, _, codec), bytes)| Packed {
                owner,
                codec,
                bytes,
            })
            .collect();
        let mut slots = vec![None; pages.len()];
        let before = self.tier.stats();
        let result = self.tier.write(&packed, &mut slots);
        if result.is_err() {
            assert!(
                slots.iter().all(Option::is_none),
                "a slot of an unwritten page"
            );
            let after = self.tier.stats();
            assert_eq!(before.slots, after.slots);
            assert_eq!(before.live_bytes, after.live_bytes);
            return result;
        }
        for (&(owner, len, codec), slot) in pages.iter().zip(slots) {
            let page = Page {
                slot: slot.expect("a slot for each page"),
                version,
                len,
                codec,
            };
            if let Some(old) = self.pages.insert(owner, page) {
                self.tier.remove(old.slot);
            }
        }
        Ok(())
    }

    /// Removes a page, if it is there.
    pub fn remove(&mut self, owner: u64) {
        if let Some(page) = self.pages.remove(&owner) {
            self.tier.remove(page.slot);
        }
    }

    /// Reads a page: right bytes or an error.
    ///
    /// # Errors
    /// Why the tier does not give it back.
    pub fn read(&mut self, owner: u64) -> Result<(), TierError> {
        let page = self.pages[&owner];
        let mut out = [0xEE; MAX_SLOT_BYTES];
        let least = self.tier.work_bytes();
        let (codec, len) = self
            .tier
            .read(page.slot, owner, &mut self.work[..least], &mut out)?;
        assert_eq!((codec, len), (page.codec, page.len), "owner {owner}");
        assert_eq!(
            out[..len],
            payload(owner, page.version, len)[..],
            "owner {owner}"
        );
        assert!(out[len..].iter().all(|&byte| byte == 0xEE));
        Ok(())
    }

    /// Reads pages together; the errors by owner.
    pub fn read_run(&mut self, owners: &[u64]) -> Vec<(u64, TierError)> {
        let wanted: Vec<(TierSlot, u64)> = owners
            .iter()
            .map(|owner| (self.pages[owner].slot, *owner))
            .collect();
        let mut seen = vec![0; owners.len()];
        let mut errors = Vec::new();
        let Self {
            tier, pages, work, ..
        } = self;
        tier.read_run(&wanted, work, &mut |index, read| {
            seen[index] += 1;
            let owner = owners[index];
            let page = pages[&owner];
            match read {
                Ok((codec, bytes)) => {
                    assert_eq!((codec, bytes.len()), (page.codec, page.len));
                    assert_eq!(*bytes, payload(owner, page.version, page.len)[..]);
                }
                Err(error) => errors.push((owner, error)),
            }
        });
        assert!(
            seen.iter().all(|&times| times == 1),
            "each page once: {seen:?}"
        );
        errors
    }

    /// Tends the tier, and lets it move what it wants to.
    pub fn tend(&mut self, budget: u64) -> Tended {
        let pages = &mut self.pages;
        self.tier.tend(budget, &mut |owner, from, to| {
            let Some(page) = pages.get_mut(&owner).filter(|page| page.slot == from) else {
                return false;
            };
            page.slot = to;
            true
        })
    }

    /// Everything is there; the owners in the order of the map.
    pub fn check_all(&mut self) {
        let mut owners: Vec<u64> = self.pages.keys().copied().collect();
        owners.sort_unstable();
        // One by one takes as long as the disk takes for each.
        let every = owners.len().div_ceil(200).max(1);
        for &owner in owners.iter().step_by(every) {
            if let Err(error) = self.read(owner) {
                panic!("owner {owner}: {error}");
            }
        }
        for run in owners.chunks(50) {
            let errors = self.read_run(run);
            assert!(errors.is_empty(), "{errors:?}");
        }
        let stats = self.tier.stats();
        assert_eq!(stats.slots, self.pages.len() as u64);
        let live: usize = self.pages.values().map(|page| page.len).sum();
        assert_eq!(stats.live_bytes, live as u64);
    }
}

//! The tier for cold pages as the engine keeps it: which tiers there are, the one of a
//! heap, its thread, and the store's share.
//!
//! [`Cold`] is a closed set: a fault finds its tier by a match, not through a table of
//! functions, and nothing else in the engine names one. Another tier is one more
//! variant, its row in `of_each!`, and how it is opened.
//!
//! The store's share of memory, and where moving to the tier begins and ends, is
//! [`ghostmem_policy::balance`]'s to say.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

#[cfg(not(windows))]
use ghostmem_file::FileTier;
use ghostmem_file::{OpenError, Options};
use ghostmem_os::lock::Lock;
use ghostmem_os::scratch::IO_PAGES;
use ghostmem_os::thread::EngineThread;
use ghostmem_os::{PAGE_SIZE, futex};
use ghostmem_policy::balance::StoreShare;
use ghostmem_store::tier::{
    Access, ColdTier, EachRead, Moved, Packed, Read, Tended, TierError, TierId, TierSlot,
    TierStats, WriteError,
};
use ghostmem_store::{MAX_SLOT_BYTES, Place};

use crate::parts::demote_batch::DEMOTE_BATCH_BYTES;

/// The tiers that cold pages can go to.
#[derive(Debug)]
pub enum Cold {
    /// A file on a disk.
    #[cfg(not(windows))]
    File(FileTier),
}

/// What each of the tiers says to `$call`.
macro_rules! of_each {
    ($cold:ident, $tier:ident => $call:expr) => {
        match *$cold {
            #[cfg(not(windows))]
            Cold::File(ref $tier) => $call,
        }
    };
}

impl Cold {
    /// Opens a file for cold pages.
    ///
    /// # Errors
    /// What cannot be made or used. Windows has no such file yet.
    #[cfg(not(windows))]
    pub fn file(options: &Options) -> Result<Self, OpenError> {
        FileTier::open(options).map(Self::File)
    }

    /// Opens a file for cold pages.
    ///
    /// # Errors
    /// What cannot be made or used. Windows has no such file yet.
    #[cfg(windows)]
    pub const fn file(_options: &Options) -> Result<Self, OpenError> {
        Err(OpenError::Os(ghostmem_os::OsError::new(
            "a file for cold pages (disk backing)",
            ghostmem_os::error::ENOSYS,
        )))
    }
}

#[cfg_attr(windows, allow(unused_variables, reason = "there is no tier to tell"))]
impl ColdTier for Cold {
    fn title(&self) -> &'static str {
        of_each!(self, tier => tier.title())
    }

    fn access(&self) -> Access {
        of_each!(self, tier => tier.access())
    }

    fn work_bytes(&self) -> usize {
        of_each!(self, tier => tier.work_bytes())
    }

    fn read(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Read {
        of_each!(self, tier => tier.read(slot, owner, work, out))
    }

    fn ask(
        &self,
        slot: TierSlot,
        owner: u64,
        work: &mut [u8],
        out: &mut [u8; MAX_SLOT_BYTES],
    ) -> Option<Read> {
        of_each!(self, tier => tier.ask(slot, owner, work, out))
    }

    fn news(&self) -> Option<&AtomicU64> {
        of_each!(self, tier => tier.news())
    }

    fn read_run(&self, pages: &[(TierSlot, u64)], work: &mut [u8], each: &mut EachRead<'_>) {
        of_each!(self, tier => tier.read_run(pages, work, each));
    }

    fn undecodable(&self, slot: TierSlot) -> TierError {
        of_each!(self, tier => tier.undecodable(slot))
    }

    fn remove(&self, slot: TierSlot) {
        of_each!(self, tier => tier.remove(slot));
    }

    fn write(
        &self,
        pages: &[Packed<'_>],
        slots: &mut [Option<TierSlot>],
    ) -> Result<(), WriteError> {
        of_each!(self, tier => tier.write(pages, slots))
    }

    fn tend(&self, budget_bytes: u64, moved: &mut Moved<'_>) -> Tended {
        of_each!(self, tier => tier.tend(budget_bytes, moved))
    }

    fn stats(&self) -> TierStats {
        of_each!(self, tier => tier.stats())
    }

    fn try_before_fork(&self) -> bool {
        of_each!(self, tier => tier.try_before_fork())
    }

    fn cancel_fork(&self) {
        of_each!(self, tier => tier.cancel_fork());
    }

    fn after_fork_in_parent(&self) {
        of_each!(self, tier => tier.after_fork_in_parent());
    }

    fn after_fork_in_child(&self) {
        of_each!(self, tier => tier.after_fork_in_child());
    }
}

/// A tier that the engine has no way to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnusableTier {
    /// A fault could only ask it for a page and wait.
    MustBeAsked {
        /// The tier.
        tier: &'static str,
    },
    /// A fault has fewer bytes of buffer than reading a page from it takes.
    ReadsTooMuch {
        /// The tier.
        tier: &'static str,
        /// What it takes, bytes.
        work_bytes: usize,
    },
}

impl UnusableTier {
    fn of(tier: &impl ColdTier) -> Option<Self> {
        let (title, work_bytes) = (tier.title(), tier.work_bytes());
        match tier.access() {
            Access::Ask => Some(Self::MustBeAsked { tier: title }),
            Access::Direct if work_bytes > IO_PAGES * PAGE_SIZE => Some(Self::ReadsTooMuch {
                tier: title,
                work_bytes,
            }),
            Access::Direct => None,
        }
    }
}

impl fmt::Display for UnusableTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MustBeAsked { tier } => write!(
                f,
                "cold pages cannot go to {tier}: a fault would have to ask for a page and wait, \
                 and the engine has no way to do so yet; choose another tier"
            ),
            Self::ReadsTooMuch { tier, work_bytes } => write!(
                f,
                "cold pages cannot go to {tier}: reading one takes {work_bytes} bytes of buffer, \
                 and a fault has {}; choose another tier",
                IO_PAGES * PAGE_SIZE
            ),
        }
    }
}

impl core::error::Error for UnusableTier {}

/// A tier and how it is used.
#[derive(Debug)]
pub struct ColdSettings {
    tier: Cold,
    store_limit_bytes: Option<usize>,
}

impl ColdSettings {
    /// Where pages go, and bytes that the store in memory may hold before its
    /// coldest pages go there; 0: as soon as they are evicted. `None`: what the
    /// memory limit leaves beside resident pages and tables, or as much as may be
    /// resident where there is none.
    ///
    /// # Errors
    /// The tier is one that a fault could not read from.
    pub fn new(tier: Cold, store_limit_bytes: Option<usize>) -> Result<Self, UnusableTier> {
        match UnusableTier::of(&tier) {
            Some(unusable) => Err(unusable),
            None => Ok(Self {
                tier,
                store_limit_bytes,
            }),
        }
    }
}

/// What the engine keeps of its tier.
pub(crate) struct ColdTiers {
    pub(crate) tier: Cold,
    /// What page words call it.
    id: TierId,
    pub(crate) store_limit_bytes: Option<u64>,
    /// What the store may hold; follows the limits and the size of the tables.
    pub(crate) share_bytes: AtomicU64,
    pub(crate) thread: Lock<Option<EngineThread>>,
    /// Held from a write until its pages point to the file: a child must not
    /// inherit places that only the thread it lost knew of.
    pub(crate) moving: Lock<()>,
    /// 1 while the thread sleeps and wants to be woken.
    pub(crate) asleep: AtomicU64,
    /// Batches that went through: faults that wait sleep on it.
    pub(crate) progress: AtomicU64,
    /// The tier takes nothing at the moment.
    pub(crate) failing: AtomicBool,
    /// Pages at least this dispensable go; 0 before there was a ranking.
    pub(crate) rank: AtomicU8,
}

impl ColdTiers {
    pub(crate) fn new(settings: ColdSettings) -> Self {
        Self {
            tier: settings.tier,
            id: TierId::new(0),
            store_limit_bytes: settings.store_limit_bytes.map(|bytes| bytes as u64),
            share_bytes: AtomicU64::new(0),
            thread: Lock::new(None),
            moving: Lock::new(()),
            asleep: AtomicU64::new(0),
            progress: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            rank: AtomicU8::new(0),
        }
    }

    /// The tier that page words call so, if it is this one.
    pub(crate) fn named(&self, id: TierId) -> Option<&Cold> {
        (id == self.id).then_some(&self.tier)
    }

    /// Where a page of the tier is, in its word.
    pub(crate) const fn place(&self, slot: TierSlot) -> u64 {
        Place::Cold(self.id, slot).bits()
    }

    /// How dispensable what goes is, at least, by the last ranking.
    pub(crate) fn rank(&self) -> u8 {
        self.rank.load(Ordering::Relaxed)
    }

    pub(crate) fn set_rank(&self, rank: u8) {
        self.rank.store(rank, Ordering::Relaxed);
    }

    /// The store's share of memory, as it is now.
    pub(crate) fn share(&self) -> StoreShare {
        StoreShare::from_bytes(self.share_bytes.load(Ordering::Relaxed))
    }

    /// Whether the store is so far over its share that what makes it grow must
    /// wait.
    pub(crate) fn is_behind(&self, held_bytes: u64) -> bool {
        held_bytes > self.share().behind_bytes(DEMOTE_BATCH_BYTES as u64) && !self.is_failing()
    }

    /// Whether the store is within its share, or will soon be.
    pub(crate) fn has_room(&self, held_bytes: u64) -> bool {
        held_bytes <= self.share().bytes() && !self.is_failing()
    }

    /// Whether the tier takes nothing at the moment.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn wake(&self) {
        if self.asleep.load(Ordering::Relaxed) == 1 && self.asleep.swap(0, Ordering::AcqRel) == 1 {
            futex::wake_all(&self.asleep);
        }
    }

    pub(crate) fn try_take_for_fork(&self) -> bool {
        if !self.thread.try_take_for_fork() {
            return false;
        }
        if !self.moving.try_take_for_fork() {
            self.thread.release_after_fork();
            return false;
        }
        if !self.tier.try_before_fork() {
            self.moving.release_after_fork();
            self.thread.release_after_fork();
            return false;
        }
        true
    }

    pub(crate) fn cancel_fork(&self) {
        self.tier.cancel_fork();
        self.moving.release_after_fork();
        self.thread.release_after_fork();
    }

    pub(crate) fn after_fork_in_parent(&self) {
        self.tier.after_fork_in_parent();
        self.moving.release_after_fork();
        self.thread.release_after_fork();
    }

    pub(crate) fn after_fork_in_child(&self) {
        self.tier.after_fork_in_child();
        self.moving.release_after_fork();
        self.failing.store(false, Ordering::Relaxed);
        self.thread.release_after_fork();
    }
}

#[cfg(test)]
mod tests {
    use ghostmem_store::conformance::{Asking, Faulty, Rates};

    use super::*;

    #[test]
    fn a_tier_that_must_be_asked_is_refused_and_the_error_says_so() {
        let asking = Asking::default();
        let refused = UnusableTier::of(&asking).unwrap();
        let tier = asking.title();
        assert_eq!(refused, UnusableTier::MustBeAsked { tier });
        assert_eq!(
            refused.to_string(),
            format!(
                "cold pages cannot go to {tier}: a fault would have to ask for a page and wait, \
                 and the engine has no way to do so yet; choose another tier"
            )
        );
        let behind = Faulty::new(asking, 1, Rates::CALM);
        assert_eq!(UnusableTier::of(&behind), Some(refused));
    }

    /// A number in a word of another tier is not looked up in this one.
    #[cfg(not(windows))]
    #[test]
    fn a_page_word_names_its_own_tier_only() {
        let tier = Cold::file(&Options::unnamed(std::env::temp_dir())).unwrap();
        let cold = ColdTiers::new(ColdSettings::new(tier, None).unwrap());
        let slot = TierSlot::from_number(77);
        let Some(Place::Cold(own, found)) = Place::from_bits(cold.place(slot)) else {
            panic!("a place in a tier");
        };
        assert_eq!(found, slot);
        for id in (0..TierId::COUNT).map(TierId::new) {
            assert_eq!(cold.named(id).is_some(), id == own);
        }
    }

    /// Each method is the tier's of that name, and what the engine would use is usable.
    #[cfg(not(windows))]
    #[test]
    fn the_set_of_tiers_keeps_to_what_a_tier_does() {
        use ghostmem_store::conformance;

        let options = Options::unnamed(std::env::temp_dir()).limit_bytes(24 << 20);
        let open = || Cold::file(&options).unwrap();
        assert_eq!(UnusableTier::of(&open()), None);
        conformance::edges(open);
        conformance::model(open, 1, 60, 700);
        conformance::limit(open);
        let (stats, reads) = conformance::parallel(
            || Cold::file(&Options::unnamed(std::env::temp_dir())).unwrap(),
            40,
        );
        assert!(stats.pages_moved > 0 && reads > 100, "{reads} {stats:?}");
    }

    #[cfg(windows)]
    #[test]
    fn there_is_no_tier_here_and_the_error_says_so() {
        let refused = Cold::file(&Options::unnamed("C:\\")).unwrap_err();
        assert!(refused.to_string().contains("ENOSYS"), "{refused}");
    }
}

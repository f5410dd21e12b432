//! The array of page words and the claims on them.

use core::ops::Deref;

use crate::sync::{AtomicU64, Ordering};
use crate::word::{PageState, Word};

/// Lets a simulation run other threads first; nothing in all other builds.
macro_rules! seam {
    ($moment:ident) => {
        #[cfg(all(feature = "sim", not(loom)))]
        crate::sim::at(crate::sim::Moment::$moment);
    };
}

/// Whether a released word had sleepers that the releaser must wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "sleepers that are not woken sleep on"]
pub struct Waiters(pub bool);

/// The right to change one page: its word says `Claimed` until this is
/// released. Everything the word said before is in [`Claim::before`].
#[derive(Debug)]
#[must_use = "a page stays claimed until its claim is released"]
pub struct Claim {
    page: usize,
    before: Word,
}

/// The right to commit a page that is being evicted, unless a touch cancels it.
#[derive(Debug)]
#[must_use = "an eviction is committed or abandoned"]
pub struct EvictClaim {
    page: usize,
    before: Word,
    evicting: Word,
}

/// The right to take away the mapping of a committed page.
#[derive(Debug)]
#[must_use = "a page stays committed until its drop is finished"]
pub struct DropClaim {
    page: usize,
    before: Word,
}

impl Claim {
    /// The page.
    #[must_use]
    pub const fn page(&self) -> usize {
        self.page
    }

    /// The word as it was when the claim was won.
    #[must_use]
    pub const fn before(&self) -> Word {
        self.before
    }
}

impl EvictClaim {
    /// The page.
    #[must_use]
    pub const fn page(&self) -> usize {
        self.page
    }

    /// The word as it was when the eviction began.
    #[must_use]
    pub const fn before(&self) -> Word {
        self.before
    }
}

impl DropClaim {
    /// The page.
    #[must_use]
    pub const fn page(&self) -> usize {
        self.page
    }

    /// The word as it was before the page was committed.
    #[must_use]
    pub const fn before(&self) -> Word {
        self.before
    }
}

/// The page words of one region.
#[derive(Debug)]
pub struct PageTable<A> {
    words: A,
}

impl<A: Deref<Target = [AtomicU64]>> PageTable<A> {
    /// A table over `words`, one for each page.
    pub const fn new(words: A) -> Self {
        Self { words }
    }

    /// Number of pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.words.len()
    }

    /// The array behind the table.
    pub const fn array(&self) -> &A {
        &self.words
    }

    /// The word of a page, as of now.
    #[must_use]
    pub fn load(&self, page: usize) -> Word {
        seam!(Look);
        Word(self.words[page].load(Ordering::Acquire))
    }

    /// The atomic itself, to sleep on.
    #[must_use]
    pub fn futex(&self, page: usize) -> &AtomicU64 {
        &self.words[page]
    }

    fn swap(&self, page: usize, from: Word, to: Word) -> Result<(), Word> {
        seam!(Change);
        self.words[page]
            .compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(Word)
    }

    /// Claims a page that is `Empty`, `Resident`, `Evicting` (which cancels
    /// the eviction), `Stored`, `Filled` or `Lost` and whose word is still `seen`.
    ///
    /// # Errors
    /// The word as it is now, when it has changed.
    ///
    /// # Panics
    /// When `seen` is a state that belongs to another thread.
    pub fn claim(&self, page: usize, seen: Word) -> Result<Claim, Word> {
        self.claim_as(page, seen, seen)
    }

    /// A claim of a page whose word is `seen`, and has the flags of `word` from then on.
    #[inline]
    fn claim_as(&self, page: usize, seen: Word, word: Word) -> Result<Claim, Word> {
        assert!(
            !matches!(seen.state(), PageState::Claimed | PageState::Dropping),
            "only its owner moves a claimed page on"
        );
        self.swap(page, seen, word.with_state(PageState::Claimed))?;
        let before = if seen.state() == PageState::Evicting {
            // The nonce of the cancelled eviction means nothing any more.
            seen.with_state(PageState::Resident).with_payload(0)
        } else {
            seen
        };
        Ok(Claim { page, before })
    }

    /// As [`PageTable::claim`], of a page whose mapping another one takes the place of: as
    /// long as it is claimed its word says *pinned*, so that nobody protects it along with
    /// its neighbours. [`Claim::before`] does not have that.
    ///
    /// # Errors
    /// The word as it is now, when it has changed.
    ///
    /// # Panics
    /// When `seen` is a state that belongs to another thread.
    pub fn claim_to_replace(&self, page: usize, seen: Word) -> Result<Claim, Word> {
        self.claim_as(page, seen, seen.with_pinned(true))
    }

    /// Ends a claim: the page is now what `word` says (its waiters flag aside).
    pub fn release(&self, claim: Claim, word: Word) -> Waiters {
        debug_assert!(!matches!(
            word.state(),
            PageState::Claimed | PageState::Dropping | PageState::Evicting
        ));
        self.publish(claim.page, word)
    }

    /// Changes policy bits (credit, pin, ...) of a page in place, without
    /// claiming it. Not while it is evicted: the evictor would no longer know
    /// the word for its own, and the page would stay `Evicting` with no owner.
    ///
    /// # Errors
    /// The word as it is now, when it is no longer `seen`.
    ///
    /// # Panics
    /// When state, slot or cleanness would change, or the page is on its way
    /// from one state to another.
    pub fn amend(&self, page: usize, seen: Word, word: Word) -> Result<(), Word> {
        assert!(
            seen.state() == word.state()
                && seen.payload() == word.payload()
                && seen.has_copy() == word.has_copy()
                && seen.is_clean() == word.is_clean()
                && !matches!(
                    seen.state(),
                    PageState::Claimed | PageState::Dropping | PageState::Evicting
                ),
            "amend changes policy bits only"
        );
        self.swap(page, seen, word)
    }

    /// Begins to evict a resident page that is not clean. The page stays readable and,
    /// until it is protected, writable.
    ///
    /// The slot of a page that is kept is the evictor's from here on: the word does not
    /// have it, so whoever cancels finds a dirty page. It becomes the page's again when
    /// the eviction is committed with it or abandoned in time; otherwise the evictor
    /// frees it.
    ///
    /// `nonce` must differ between any two evictions that can be under way
    /// while a third is: the evictor uses the number of its batch. Without it
    /// an evictor that slept through a cancelled eviction *and* the start of
    /// the next would commit the page with bytes that are no longer its own.
    ///
    /// # Errors
    /// The word as it is now, when it is no longer `seen`.
    ///
    /// # Panics
    /// When `seen` is not a resident, dirty, unpinned page, or `nonce` is more
    /// than [`PAYLOAD_MAX`](crate::PAYLOAD_MAX).
    pub fn begin_evict(&self, page: usize, seen: Word, nonce: u64) -> Result<EvictClaim, Word> {
        assert!(
            seen.state() == PageState::Resident && !seen.is_pinned() && !seen.is_clean(),
            "only dirty, unpinned resident pages are evicted this way"
        );
        let evicting = seen
            .with_state(PageState::Evicting)
            .with_clean(false)
            .with_payload(nonce);
        self.swap(page, seen, evicting)?;
        Ok(EvictClaim {
            page,
            before: seen,
            evicting,
        })
    }

    /// Keeps the page of an eviction in place for a moment, so that its bytes
    /// can be copied: until [`PageTable::let_go`], nobody can cancel, and so
    /// nobody can take the mapping away. `false` when the eviction is
    /// cancelled already.
    #[must_use]
    pub fn steady(&self, claim: &EvictClaim) -> bool {
        let steadied = claim.evicting.with_state(PageState::Claimed);
        self.swap(claim.page, claim.evicting, steadied).is_ok()
    }

    /// Ends [`PageTable::steady`]: the page can be touched and the eviction
    /// cancelled again.
    pub fn let_go(&self, claim: &EvictClaim) -> Waiters {
        self.publish(claim.page, claim.evicting)
    }

    /// Commits an eviction: from now on a touch waits. `None` when a
    /// touch, a pin or a discard cancelled it: its bytes must not be dropped.
    #[must_use]
    pub fn commit_evict(&self, claim: EvictClaim) -> Option<DropClaim> {
        self.swap(
            claim.page,
            claim.evicting,
            claim.before.with_state(PageState::Dropping),
        )
        .ok()?;
        Some(DropClaim {
            page: claim.page,
            before: claim.before,
        })
    }

    /// Gives an eviction up: the page is resident again and what `word` says, unless a
    /// touch already made it so. It may stay write-protected; the next store finds
    /// out. `false`: it was cancelled, and what the page kept is the caller's to free.
    #[must_use = "the slot of a page that was kept is freed by nobody else"]
    pub fn abandon(&self, claim: EvictClaim, word: Word) -> bool {
        debug_assert_eq!(word.state(), PageState::Resident);
        // Nobody sleeps on an evicting page, so there is nobody to wake.
        self.swap(claim.page, claim.evicting, word).is_ok()
    }

    /// Commits a clean page at once: it has been write-protected since it was
    /// restored, so its slot holds its bytes.
    ///
    /// # Errors
    /// The word as it is now, when it is no longer `seen`.
    ///
    /// # Panics
    /// When `seen` is not a resident, clean, unpinned page.
    pub fn begin_drop(&self, page: usize, seen: Word) -> Result<DropClaim, Word> {
        assert!(
            seen.state() == PageState::Resident && seen.is_clean() && !seen.is_pinned(),
            "only clean, unpinned resident pages are dropped this way"
        );
        self.swap(page, seen, seen.with_state(PageState::Dropping))?;
        Ok(DropClaim { page, before: seen })
    }

    /// Ends a drop: the mapping is gone and the page is what `word` says.
    pub fn finish(&self, claim: DropClaim, word: Word) -> Waiters {
        debug_assert!(matches!(
            word.state(),
            PageState::Stored | PageState::Filled | PageState::Empty | PageState::Resident
        ));
        self.publish(claim.page, word)
    }

    /// The owner's final store; takes the waiters flag off.
    fn publish(&self, page: usize, word: Word) -> Waiters {
        seam!(Change);
        let before = Word(self.words[page].swap(word.with_waiters(false).0, Ordering::AcqRel));
        Waiters(before.has_waiters())
    }

    /// Says that the caller is about to sleep until a claimed or dropping page
    /// moves on. Returns the word to sleep on, or `None` when it has moved on
    /// already.
    #[must_use]
    pub fn announce_wait(&self, page: usize, seen: Word) -> Option<Word> {
        if !matches!(seen.state(), PageState::Claimed | PageState::Dropping) {
            return None;
        }
        if seen.has_waiters() {
            return Some(seen);
        }
        let marked = seen.with_waiters(true);
        self.swap(page, seen, marked).ok().map(|()| marked)
    }

    /// Overwrites the word of a page no other thread can reach: a forked
    /// child putting its tables in order.
    pub fn repair_after_fork(&self, page: usize, word: Word) {
        self.words[page].store(word.0, Ordering::Release);
    }
}

//! The pager's protocols, step by step, on the real table.
//!
//! ```text
//!  fault     load ─ claim ─ read slot ─ map filled ─ free slot (write) ─ release
//!  upgrade   load ─ claim ─ unprotect ─ free slot (clean) ─ release
//!  evict     load ─ begin_evict ─ protect ─ steady ─ copy ─ let_go ─ put
//!              ─ commit ─┬─ Some: unmap ─ finish
//!                      └─ None: free what was put
//!  drop      load ─ begin_drop ─ unmap ─ finish (same slot)
//!  discard   load ─ claim ─ unmap ─ free slot ─ release Empty
//!  pin       load ─ claim ─ install or unprotect ─ count ─ release pinned
//!              ─ wait for evictors that protect ─ claim ─ unprotect ─ release
//!  protect   enter ─ begin_evict ─ pins? exactly : neighbours too ─ leave
//! ```
//! What moves stored pages from one place to another is in `demote`.
//!
//! Whoever meets `Claimed` or `Dropping` announces itself and sleeps.

use ghostmem_table::{
    AtomicU64, Claim, DropClaim, EvictClaim, PageState, PageTable, Waiters, Word,
};
use loom::sync::atomic::{AtomicUsize, Ordering, fence};
use loom::thread;

use super::futex::Futex;
use super::mapping::{Fault, Mapping};
use super::store::Store;
use super::{Access, SAME_FILLED_END};

/// The one page there is.
pub(super) const PAGE: usize = 0;

/// Payloads of stored pages from here on are places in the file.
pub(super) const FILE: u64 = 1 << 20;

/// How an attempt to evict ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Evicted {
    /// Not a page to evict, or no longer.
    Skipped,
    /// Begun, and cancelled by a touch, a pin or a discard.
    Cancelled,
    /// Compressed and unmapped.
    Committed,
    /// Clean, and unmapped.
    Dropped,
}

/// One page and everything around it.
#[derive(Debug)]
pub(crate) struct World {
    words: PageTable<Box<[AtomicU64]>>,
    pub(super) mapping: Mapping,
    /// Slots in memory.
    pub(super) store: Store,
    /// Places in a file: payloads from [`FILE`] on.
    pub(super) file: Store,
    futex: Futex,
    /// Evictors that protect pages just now.
    protecting: AtomicUsize,
    /// Pages of the region that are pinned.
    pins: AtomicUsize,
}

impl World {
    // The worlds that tests start from.

    /// A page never touched.
    pub(crate) fn empty() -> Self {
        Self {
            words: PageTable::new(Box::new([AtomicU64::new(0)])),
            mapping: Mapping::new(),
            store: Store::new(),
            file: Store::new(),
            futex: Futex::new(),
            protecting: AtomicUsize::new(0),
            pins: AtomicUsize::new(0),
        }
    }

    /// A page that is resident, writable and has no slot.
    pub(crate) fn dirty(content: u64) -> Self {
        let world = Self::empty();
        world.write(content);
        world
    }

    /// A page in the store, or in its word when `content` is same-filled.
    pub(crate) fn stored(content: u64) -> Self {
        let world = Self::dirty(content);
        assert_eq!(world.evict(0), Evicted::Committed);
        world
    }

    /// A page restored by a read: protected, its slot kept.
    pub(crate) fn clean(content: u64) -> Self {
        let world = Self::stored(content);
        assert_eq!(world.read(), content);
        assert!(world.word().is_clean());
        world
    }

    // What the program does.

    /// A load, retried by the hardware until it goes through.
    pub(crate) fn read(&self) -> u64 {
        loop {
            match self.mapping.load() {
                Ok(content) => return content,
                Err(fault) => self.fault(Access::Read, fault),
            }
        }
    }

    /// A store, retried by the hardware until it goes through.
    pub(crate) fn write(&self, content: u64) {
        while let Err(fault) = self.mapping.store(content) {
            self.fault(Access::Write, fault);
        }
    }

    /// A store by the kernel on the program's behalf: it faults for nobody.
    pub(crate) fn kernel_write(&self, content: u64) {
        let written = self.mapping.store(content);
        assert_eq!(written, Ok(()), "a pinned page refused the kernel");
    }

    // The fault handler.

    /// Does something about a fault, then lets the access be retried.
    ///
    /// A backend that cannot tell `Protected` from `Missing` treats every
    /// store to a present page as the former: more claims, the same states.
    fn fault(&self, access: Access, fault: Fault) {
        let word = self.table().load(PAGE);
        let store_refused = access == Access::Write && fault == Fault::Protected;
        match word.state() {
            PageState::Empty | PageState::Stored | PageState::Filled => {
                if let Some(claim) = self.claim(word) {
                    let word = self.install(&claim, access);
                    self.release(claim, word);
                }
            }
            // From `Evicting` this claim is the cancellation.
            PageState::Resident | PageState::Evicting if store_refused => {
                if let Some(claim) = self.claim(word) {
                    let word = self.open(&claim);
                    self.release(claim, word);
                }
            }
            // Lost a race, or still readable: the access goes through now. The
            // yield only keeps loom from replaying one stale load for ever.
            PageState::Resident | PageState::Evicting => thread::yield_now(),
            PageState::Claimed | PageState::Dropping => self.sleep(word),
            PageState::Lost => panic!("no page of the model is lost"),
        }
    }

    /// Brings the bytes of a claimed, absent page back; returns what its word
    /// is to say. Filled first, visible after. A read keeps the slot and the
    /// protection that tells of the first write.
    fn install(&self, claim: &Claim, access: Access) -> Word {
        let before = claim.before();
        // The mark of a demoter, which shares the bit, goes.
        let resident = before.with_state(PageState::Resident).with_clean(false);
        match before.state() {
            PageState::Stored => {
                let content = self.get(before.payload());
                let clean = access == Access::Read;
                self.mapping.map(claim, content, clean);
                if clean {
                    resident.with_clean(true)
                } else {
                    self.free(before.payload());
                    resident.with_payload(0)
                }
            }
            PageState::Filled => {
                self.mapping.map(claim, before.payload(), false);
                resident.with_payload(0)
            }
            PageState::Empty => {
                self.mapping.map(claim, 0, false);
                resident
            }
            state => panic!("nothing to install on a page that was {state:?}"),
        }
    }

    /// Makes a claimed, present page writable; returns what its word is to
    /// say. The slot of a clean page goes: its bytes are about to be old. One that is
    /// kept stays: the page is compared before it is used.
    fn open(&self, claim: &Claim) -> Word {
        let before = claim.before();
        assert_eq!(before.state(), PageState::Resident);
        self.mapping.unprotect(claim);
        if before.is_kept() {
            return before;
        }
        if before.is_clean() {
            self.free(before.payload());
        }
        before.without_copy()
    }

    // The reclaimer.

    /// Evicts the page if it may leave. `nonce` names the batch.
    pub(crate) fn evict(&self, nonce: u64) -> Evicted {
        let word = self.table().load(PAGE);
        if word.state() == PageState::Resident && !word.is_pinned() && word.is_clean() {
            return self.drop_clean(word);
        }
        let Some(claim) = self.begin(word, nonce) else {
            return Evicted::Skipped;
        };
        let Some(content) = self.copy_steadied(&claim) else {
            return Evicted::Cancelled;
        };
        self.commit(claim, content)
    }

    /// [`World::evict`] by an evictor that trusts the page to be there still.
    pub(crate) fn evict_without_steadying(&self, nonce: u64) -> Evicted {
        let word = self.table().load(PAGE);
        let Some(claim) = self.begin(word, nonce) else {
            return Evicted::Skipped;
        };
        let content = self.mapping.copy_out();
        self.commit(claim, content)
    }

    /// Begins to evict and thinks better of it.
    pub(crate) fn evict_and_abandon(&self, nonce: u64) {
        let word = self.table().load(PAGE);
        if let Some(claim) = self.begin(word, nonce) {
            let _put_back = self.table().abandon(claim, word);
        }
    }

    /// Begins to evict a dirty page and protects it. From here until the commit
    /// anybody may cancel, so nothing is certain: the protection may come
    /// late, to a page that is open again, gone, or somebody else's.
    fn begin(&self, word: Word, nonce: u64) -> Option<EvictClaim> {
        if word.state() != PageState::Resident || word.is_pinned() || word.has_copy() {
            return None;
        }
        let claim = self.table().begin_evict(PAGE, word, nonce).ok()?;
        self.mapping.protect();
        Some(claim)
    }

    /// Copies a page that is being evicted, which nobody can cancel for the
    /// moment; `None` when somebody has. Protected since this very eviction
    /// began, the page cannot change under the copy.
    pub(super) fn copy_steadied(&self, claim: &EvictClaim) -> Option<u64> {
        if !self.table().steady(claim) {
            return None;
        }
        self.mapping.enter();
        let content = self.mapping.copy_out();
        self.mapping.leave();
        self.wake(self.table().let_go(claim));
        Some(content)
    }

    /// Puts a copied page away and takes its mapping, unless it was touched.
    fn commit(&self, claim: EvictClaim, content: u64) -> Evicted {
        let (state, payload) = if content < SAME_FILLED_END {
            (PageState::Filled, content)
        } else {
            (PageState::Stored, self.store.put(content))
        };
        if let Some(claim) = self.table().commit_evict(claim) {
            let word = claim.before().with_state(state).with_payload(payload);
            self.take_away(claim, word);
            Evicted::Committed
        } else {
            if state == PageState::Stored {
                self.store.free(payload);
            }
            Evicted::Cancelled
        }
    }

    /// Drops a page whose slot still holds its bytes.
    fn drop_clean(&self, word: Word) -> Evicted {
        let Ok(claim) = self.table().begin_drop(PAGE, word) else {
            return Evicted::Skipped;
        };
        let stored = claim
            .before()
            .with_state(PageState::Stored)
            .with_clean(false);
        self.take_away(claim, stored);
        Evicted::Dropped
    }

    pub(super) fn take_away(&self, claim: DropClaim, word: Word) {
        self.mapping.enter();
        self.mapping.unmap(&claim);
        self.mapping.leave();
        self.wake(self.table().finish(claim, word));
    }

    /// [`World::evict`] by an evictor that [`World::pin`] can wait for: until the
    /// page is protected, no longer.
    pub(crate) fn evict_batch(&self, nonce: u64) -> Evicted {
        let word = self.table().load(PAGE);
        if word.state() == PageState::Resident && !word.is_pinned() && word.is_clean() {
            return self.drop_clean(word);
        }
        self.enter_protecting();
        let claim = self.begin(word, nonce);
        self.leave_protecting();
        let Some(claim) = claim else {
            return Evicted::Skipped;
        };
        let Some(content) = self.copy_steadied(&claim) else {
            return Evicted::Cancelled;
        };
        self.commit(claim, content)
    }

    /// Protects the pages around this one, which lies between them, unless the
    /// region has pins.
    pub(crate) fn protect_around(&self) {
        self.enter_protecting();
        if self.pins.load(Ordering::Relaxed) == 0 {
            self.mapping.protect();
        }
        self.leave_protecting();
    }

    /// The same by an evictor that asks for pins before a pin can see it.
    pub(crate) fn ask_then_protect_around(&self) {
        let pins = self.pins.load(Ordering::Relaxed);
        self.enter_protecting();
        if pins == 0 {
            self.mapping.protect();
        }
        self.leave_protecting();
    }

    fn enter_protecting(&self) {
        self.protecting.fetch_add(1, Ordering::Acquire);
        fence(Ordering::SeqCst);
    }

    fn leave_protecting(&self) {
        self.protecting.fetch_sub(1, Ordering::Release);
    }

    // The rest of the API.

    /// Forgets the page, whatever it holds: deallocation, or advice.
    pub(crate) fn discard(&self) {
        let claim = self.claim_any();
        let before = claim.before();
        if before.state() == PageState::Resident {
            self.mapping.unmap(&claim);
        }
        if before.state() == PageState::Stored || before.has_copy() {
            self.free(before.payload());
        }
        self.release(claim, Word::EMPTY);
    }

    /// Makes the page present and writable for code that cannot fault, until
    /// it is unpinned. The order matters: pinned first, so that no further
    /// eviction begins, and no evictor of others protects it with them; opened for
    /// good once those that may still protect it are through.
    pub(crate) fn pin(&self) {
        self.pin_without_waiting();
        fence(Ordering::SeqCst);
        while self.protecting.load(Ordering::Acquire) != 0 {
            thread::yield_now();
        }
        let claim = self.claim_any();
        let word = self.open(&claim);
        self.release(claim, word);
    }

    /// The first half of [`World::pin`]: present and never to be evicted, but
    /// a late evictor may leave it protected.
    pub(crate) fn pin_without_waiting(&self) {
        let claim = self.claim_any();
        let word = if claim.before().state() == PageState::Resident {
            self.open(&claim)
        } else {
            self.install(&claim, Access::Write)
        };
        self.pins.fetch_add(1, Ordering::AcqRel);
        let word = if word.is_kept() {
            self.free(word.payload());
            word.without_copy()
        } else {
            word
        };
        self.release(claim, word.with_pinned(true));
    }

    /// Changes policy bits of a resident page in place, as advice and the
    /// clock hand do. True when the change went in.
    pub(crate) fn amend(&self, change: impl FnOnce(Word) -> Word) -> bool {
        let word = self.table().load(PAGE);
        word.state() == PageState::Resident && self.table().amend(PAGE, word, change(word)).is_ok()
    }

    // Places of stored pages, of either kind.

    pub(super) fn get(&self, payload: u64) -> u64 {
        match payload.checked_sub(FILE) {
            Some(place) => self.file.get(place),
            None => self.store.get(payload),
        }
    }

    pub(super) fn free(&self, payload: u64) {
        match payload.checked_sub(FILE) {
            Some(place) => self.file.free(place),
            None => self.store.free(payload),
        }
    }

    // Claims, and what the model notes about them.

    /// The table, for one operation: a step of its own.
    pub(super) fn table(&self) -> &PageTable<Box<[AtomicU64]>> {
        self.mapping.tick();
        &self.words
    }

    pub(super) fn claim(&self, seen: Word) -> Option<Claim> {
        let claim = self.table().claim(PAGE, seen).ok()?;
        self.mapping.enter();
        Some(claim)
    }

    /// Claims the page from whatever state it is in, sleeping while it is
    /// somebody else's.
    fn claim_any(&self) -> Claim {
        loop {
            let word = self.table().load(PAGE);
            if matches!(word.state(), PageState::Claimed | PageState::Dropping) {
                self.sleep(word);
            } else if let Some(claim) = self.claim(word) {
                return claim;
            }
        }
    }

    pub(super) fn release(&self, claim: Claim, word: Word) {
        self.mapping.leave();
        self.wake(self.table().release(claim, word));
    }

    fn wake(&self, waiters: Waiters) {
        if waiters.0 {
            self.futex.wake();
        }
    }

    /// Sleeps until the owner of the page moves it on, or not at all when it
    /// has already.
    fn sleep(&self, seen: Word) {
        match self.table().announce_wait(PAGE, seen) {
            Some(word) => self.futex.wait(self.words.futex(PAGE), word),
            None => thread::yield_now(),
        }
    }

    // What must hold.

    /// The word as of now.
    pub(crate) fn word(&self) -> Word {
        self.words.load(PAGE)
    }

    /// Whether a store would be refused now.
    pub(crate) fn is_protected(&self) -> bool {
        self.mapping.at_rest().protected
    }

    /// Checks the page when every thread is through: nobody owns it, and its
    /// mapping and slots are what its word says. Returns what it reads as.
    pub(crate) fn content_at_rest(&self) -> u64 {
        let word = self.word();
        let rest = self.mapping.at_rest();
        assert!(!word.has_waiters(), "a waiter was forgotten: {word:?}");
        let (resident, slot) = match word.state() {
            PageState::Resident => (true, word.has_copy()),
            PageState::Stored => (false, true),
            PageState::Empty | PageState::Filled => (false, false),
            state => panic!("left in {state:?} with no owner"),
        };
        assert_eq!(rest.present, resident, "mapping against {word:?}");
        if resident && word.is_clean() {
            assert!(rest.protected, "a clean page is open: {word:?}");
            let kept = self.get(word.payload());
            assert_eq!(kept, rest.content, "clean, yet changed: {word:?}");
        }
        let owned = if slot { vec![word.payload()] } else { vec![] };
        let in_file = self.file.in_use().into_iter().map(|place| place + FILE);
        let in_use: Vec<u64> = self.store.in_use().into_iter().chain(in_file).collect();
        assert_eq!(in_use, owned, "slots against {word:?}");
        self.read()
    }
}

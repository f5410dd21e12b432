//! Which transitions of the page word are legal, which lose, which panic:
//! every operation on every word.
#![cfg(not(loom))]

use std::panic::{AssertUnwindSafe, catch_unwind};

use ghostmem_table::{AtomicU64, PAYLOAD_MAX, PageState, PageTable, Word};

const PAGE: usize = 0;
const NONCE: u64 = 77;

const STATES: [PageState; 8] = [
    PageState::Empty,
    PageState::Resident,
    PageState::Evicting,
    PageState::Dropping,
    PageState::Stored,
    PageState::Filled,
    PageState::Claimed,
    PageState::Lost,
];

type Table = PageTable<Box<[AtomicU64]>>;

fn table(word: Word) -> Table {
    let table = PageTable::new(Box::from([AtomicU64::new(0)]));
    table.repair_after_fork(PAGE, word);
    table
}

/// Every state with every flag, with and without a payload and a credit.
fn words() -> impl Iterator<Item = Word> {
    STATES.into_iter().flat_map(|state| {
        (0..128_u8).map(move |bits| {
            let bit = |n: u8| bits >> n & 1 != 0;
            Word::EMPTY
                .with_state(state)
                .with_waiters(bit(0))
                .with_clean(bit(1))
                .with_pinned(bit(2))
                .with_write_hot(bit(3))
                .with_incompressible(bit(4))
                .with_payload(if bit(5) { 5 } else { 0 })
                .with_heat(if bit(6) { 3 } else { 0 })
        })
    })
}

/// What `act` gives, or `None` when it panics.
fn attempt<T>(act: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(act)).ok()
}

fn owned(word: Word) -> bool {
    matches!(word.state(), PageState::Claimed | PageState::Dropping)
}

/// A page can be claimed from every state nobody owns, and remembers what it
/// was; claiming an owned page is a bug in the caller.
#[test]
fn claim_takes_what_nobody_owns() {
    for word in words() {
        let table = table(word);
        let Some(claim) = attempt(|| table.claim(PAGE, word)) else {
            assert!(owned(word), "{word:?} could not be claimed");
            assert_eq!(table.load(PAGE), word, "a panic changed the word");
            continue;
        };
        assert!(!owned(word), "{word:?} was claimed twice");
        let claim = claim.unwrap();
        assert_eq!(table.load(PAGE), word.with_state(PageState::Claimed));
        let before = if word.state() == PageState::Evicting {
            // A cancelled eviction: resident again, and no nonce left behind.
            word.with_state(PageState::Resident).with_payload(0)
        } else {
            word
        };
        assert_eq!((claim.page(), claim.before()), (PAGE, before));
    }
}

/// A claim of a page that another mapping takes the place of is one like any other, but that
/// its word says *pinned* until it is released.
#[test]
fn claim_to_replace_looks_pinned() {
    for word in words() {
        let table = table(word);
        let Some(claim) = attempt(|| table.claim_to_replace(PAGE, word)) else {
            assert!(owned(word), "{word:?} could not be claimed");
            continue;
        };
        assert!(!owned(word), "{word:?} was claimed twice");
        let claimed = word.with_state(PageState::Claimed).with_pinned(true);
        assert_eq!(table.load(PAGE), claimed);
        let before = claim.unwrap().before();
        assert_eq!(before.is_pinned(), word.is_pinned(), "{word:?}");
        assert!(!owned(before) && before.heat() == word.heat(), "{word:?}");
    }
}

/// Only dirty, unpinned resident pages are evicted, only clean, unpinned ones
/// dropped.
#[test]
fn evictions_begin_on_resident_unpinned_pages() {
    for word in words() {
        let free = word.state() == PageState::Resident && !word.is_pinned();

        let table_evict = table(word);
        let evict = attempt(|| table_evict.begin_evict(PAGE, word, NONCE));
        assert_eq!(evict.is_some(), free && !word.is_clean(), "{word:?}");
        let after = match evict {
            Some(claim) => {
                assert_eq!(claim.unwrap().before(), word);
                // What a kept page has is the evictor's.
                word.with_state(PageState::Evicting)
                    .with_clean(false)
                    .with_payload(NONCE)
            }
            None => word,
        };
        assert_eq!(table_evict.load(PAGE), after);

        let table_drop = table(word);
        let drop = attempt(|| table_drop.begin_drop(PAGE, word));
        assert_eq!(drop.is_some(), free && word.is_clean(), "{word:?}");
        let after = match drop {
            Some(claim) => {
                assert_eq!(claim.unwrap().before(), word);
                word.with_state(PageState::Dropping)
            }
            None => word,
        };
        assert_eq!(table_drop.load(PAGE), after);
    }
}

/// A nonce that does not fit is refused, not cut: two cut nonces could be
/// equal.
#[test]
fn nonces_have_a_limit() {
    let word = Word::EMPTY.with_state(PageState::Resident);
    let table = table(word);
    assert!(attempt(|| table.begin_evict(PAGE, word, PAYLOAD_MAX + 1)).is_none());
    assert_eq!(table.load(PAGE), word);
    assert!(table.begin_evict(PAGE, word, PAYLOAD_MAX).is_ok());
}

/// An evictor goes on exactly when the word is the one it wrote: whatever
/// else is there, neither steady, commit nor abandon touches it.
#[test]
fn evictors_know_their_own_word() {
    let resident = Word::EMPTY.with_state(PageState::Resident).with_heat(3);
    let own = resident.with_state(PageState::Evicting).with_payload(NONCE);
    let next = own.with_payload(NONCE + 1);
    for word in words().chain([own, next]) {
        let begin = || {
            let table = table(resident);
            let claim = table.begin_evict(PAGE, resident, NONCE).unwrap();
            table.repair_after_fork(PAGE, word);
            (table, claim)
        };
        let after = |own_word: Word| if word == own { own_word } else { word };

        let (table, claim) = begin();
        let committed = table.commit_evict(claim);
        assert_eq!(committed.is_some(), word == own, "committed {word:?}");
        assert_eq!(
            table.load(PAGE),
            after(resident.with_state(PageState::Dropping))
        );
        if let Some(committed) = committed {
            assert_eq!(committed.before(), resident);
        }

        let (table, claim) = begin();
        assert_eq!(table.abandon(claim, resident), word == own);
        assert_eq!(table.load(PAGE), after(resident));

        let (table, claim) = begin();
        assert_eq!(table.steady(&claim), word == own, "steadied {word:?}");
        assert_eq!(table.load(PAGE), after(own.with_state(PageState::Claimed)));
    }
}

/// Somebody who waits while a page is steadied for its copy is reported, and the
/// eviction goes on as if nothing had been.
#[test]
fn a_steadied_page_can_be_waited_for() {
    for waits in [false, true] {
        let resident = Word::EMPTY.with_state(PageState::Resident);
        let table = table(resident);
        let claim = table.begin_evict(PAGE, resident, NONCE).unwrap();
        let evicting = table.load(PAGE);
        assert!(table.steady(&claim));
        if waits {
            assert!(table.announce_wait(PAGE, table.load(PAGE)).is_some());
        }
        assert_eq!(table.let_go(&claim).0, waits);
        assert_eq!(table.load(PAGE), evicting);
        assert!(table.commit_evict(claim).is_some());
    }
}

/// Policy bits change in place on pages at rest; nothing else does, and never
/// under somebody's hands.
#[test]
fn amend_changes_policy_bits_of_pages_at_rest() {
    for word in words() {
        let at_rest = !owned(word) && word.state() != PageState::Evicting;
        let policy = word
            .with_heat(0x4907)
            .with_pinned(!word.is_pinned())
            .with_incompressible(!word.is_incompressible());
        // Beside a copy this bit says what the copy is worth.
        let policy = match word.has_copy() {
            true => policy,
            false => policy.with_write_hot(!word.is_write_hot()),
        };
        let table = table(word);
        let amended = attempt(|| table.amend(PAGE, word, policy));
        assert_eq!(amended, at_rest.then_some(Ok(())), "{word:?}");
        assert_eq!(table.load(PAGE), if at_rest { policy } else { word });

        table.repair_after_fork(PAGE, word);
        let elsewhere = match word.state() {
            PageState::Empty => PageState::Resident,
            _ => PageState::Empty,
        };
        for more in [
            word.with_state(elsewhere),
            word.with_payload(word.payload() + 1),
            word.with_clean(!word.has_copy()),
            match word.is_kept() {
                true => word.with_clean(true),
                false => word.with_kept(),
            },
        ] {
            assert_eq!(attempt(|| table.amend(PAGE, word, more)), None, "{word:?}");
            assert_eq!(table.load(PAGE), word);
        }
    }
}

/// One waits for owned pages only.
#[test]
fn only_owned_pages_are_waited_for() {
    for word in words() {
        let table = table(word);
        let marked = word.with_waiters(true);
        let announced = table.announce_wait(PAGE, word);
        assert_eq!(announced, owned(word).then_some(marked));
        assert_eq!(table.load(PAGE), if owned(word) { marked } else { word });
    }
}

/// Whoever looked at an older word loses, learns the word as it is, and
/// changes nothing.
#[test]
fn stale_words_lose() {
    let seen = Word::EMPTY.with_state(PageState::Resident).with_payload(1);
    let clean = seen.with_clean(true);
    for now in words() {
        let table = table(now);
        assert_eq!(table.claim(PAGE, seen).err(), Some(now));
        assert_eq!(table.begin_evict(PAGE, seen, NONCE).err(), Some(now));
        assert_eq!(
            table.begin_drop(PAGE, clean.with_payload(1)).err(),
            Some(now)
        );
        assert_eq!(table.amend(PAGE, seen, seen.with_heat(1)), Err(now));
        let claimed = seen.with_state(PageState::Claimed);
        assert_eq!(table.announce_wait(PAGE, claimed), None);
        assert_eq!(table.load(PAGE), now);
    }
}

/// In debug builds a claim cannot end in a state that needs another owner.
#[test]
#[cfg(debug_assertions)]
fn claims_end_at_rest() {
    for state in STATES {
        let word = Word::EMPTY.with_state(state);

        let empty = table(Word::EMPTY);
        let claim = empty.claim(PAGE, Word::EMPTY).unwrap();
        let released = attempt(|| empty.release(claim, word)).is_some();
        let legal = !owned(word) && state != PageState::Evicting;
        assert_eq!(released, legal, "release as {state:?}");

        let seen = Word::EMPTY.with_state(PageState::Resident).with_clean(true);
        let clean = table(seen);
        let claim = clean.begin_drop(PAGE, seen).unwrap();
        let finished = attempt(|| clean.finish(claim, word)).is_some();
        let legal = legal && state != PageState::Lost;
        assert_eq!(finished, legal, "finish as {state:?}");
    }
}

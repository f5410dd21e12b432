//! Every short sequence of operations on one page word, against a model that
//! knows only who owns the page and which eviction is on.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use ghostmem_table::{AtomicU64, Claim, DropClaim, EvictClaim, PageState, PageTable, Word};

const PAGE: usize = 0;

/// What one of the actors on the page does next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Claim,
    ReleaseEmpty,
    ReleaseStored,
    ReleaseClean,
    ReleaseDirty,
    /// Each eviction that begins has the next nonce.
    BeginEvict,
    SteadyOldest,
    LetGo,
    CommitOldest,
    CommitNewest,
    AbandonOldest,
    BeginDrop,
    Finish,
    Wait,
}

const STEPS: [Step; 14] = [
    Step::Claim,
    Step::ReleaseEmpty,
    Step::ReleaseStored,
    Step::ReleaseClean,
    Step::ReleaseDirty,
    Step::BeginEvict,
    Step::SteadyOldest,
    Step::LetGo,
    Step::CommitOldest,
    Step::CommitNewest,
    Step::AbandonOldest,
    Step::BeginDrop,
    Step::Finish,
    Step::Wait,
];

/// The real table and the claims on it, beside what they ought to be.
struct Walk {
    table: PageTable<Box<[AtomicU64]>>,
    claim: Option<Claim>,
    drop: Option<DropClaim>,
    /// With the nonce of each.
    evictions: Vec<(u64, EvictClaim)>,
    nonce: u64,
    // The model.
    state: PageState,
    clean: bool,
    waits: bool,
    /// The eviction that is on: only it may be steadied and committed.
    live: Option<u64>,
    /// The owner of `Claimed` is the live evictor, at its copy.
    steadied: bool,
}

impl Walk {
    fn new() -> Self {
        Self {
            table: PageTable::new(Box::from([AtomicU64::new(0)])),
            claim: None,
            drop: None,
            evictions: Vec::new(),
            nonce: 0,
            state: PageState::Empty,
            clean: false,
            waits: false,
            live: None,
            steadied: false,
        }
    }

    /// Does a step; `false` when no actor is in a position to.
    fn step(&mut self, step: Step) -> bool {
        let word = self.table.load(PAGE);
        match step {
            Step::Claim => {
                if matches!(word.state(), PageState::Claimed | PageState::Dropping) {
                    return false;
                }
                self.claim = Some(self.table.claim(PAGE, word).unwrap());
                (self.state, self.live) = (PageState::Claimed, None);
            }
            Step::ReleaseEmpty => return self.release(PageState::Empty, false),
            Step::ReleaseStored => return self.release(PageState::Stored, false),
            Step::ReleaseClean => return self.release(PageState::Resident, true),
            Step::ReleaseDirty => return self.release(PageState::Resident, false),
            Step::BeginEvict => {
                if word.state() != PageState::Resident || word.is_clean() {
                    return false;
                }
                self.nonce += 1;
                let claim = self.table.begin_evict(PAGE, word, self.nonce).unwrap();
                self.evictions.push((self.nonce, claim));
                (self.state, self.live) = (PageState::Evicting, Some(self.nonce));
            }
            Step::SteadyOldest => {
                let Some((nonce, claim)) = self.evictions.first() else {
                    return false;
                };
                if self.steadied {
                    return false;
                }
                let steadied = self.table.steady(claim);
                assert_eq!(steadied, self.live == Some(*nonce), "steady");
                if steadied {
                    (self.state, self.steadied) = (PageState::Claimed, true);
                }
            }
            Step::LetGo => {
                if !self.steadied {
                    return false;
                }
                let waiters = self.table.let_go(&self.evictions[0].1);
                assert_eq!(waiters.0, self.waits, "let_go");
                (self.state, self.steadied, self.waits) = (PageState::Evicting, false, false);
            }
            Step::CommitOldest | Step::CommitNewest | Step::AbandonOldest => {
                let index = match step {
                    Step::CommitNewest => self.evictions.len().saturating_sub(1),
                    _ => 0,
                };
                if self.evictions.is_empty() || (self.steadied && index == 0) {
                    return false;
                }
                let (nonce, claim) = self.evictions.remove(index);
                let own = self.live == Some(nonce);
                if matches!(step, Step::AbandonOldest) {
                    let word = claim.before();
                    assert_eq!(self.table.abandon(claim, word), own, "abandon");
                    if own {
                        (self.state, self.live) = (PageState::Resident, None);
                    }
                } else {
                    let committed = self.table.commit_evict(claim);
                    assert_eq!(committed.is_some(), own, "commit");
                    if own {
                        self.drop = committed;
                        (self.state, self.live) = (PageState::Dropping, None);
                    }
                }
            }
            Step::BeginDrop => {
                if word.state() != PageState::Resident || !word.is_clean() {
                    return false;
                }
                self.drop = Some(self.table.begin_drop(PAGE, word).unwrap());
                (self.state, self.clean) = (PageState::Dropping, false);
            }
            Step::Finish => {
                let Some(claim) = self.drop.take() else {
                    return false;
                };
                let stored = Word::EMPTY.with_state(PageState::Stored).with_payload(4);
                assert_eq!(self.table.finish(claim, stored).0, self.waits, "finish");
                (self.state, self.waits) = (PageState::Stored, false);
            }
            Step::Wait => {
                let announced = self.table.announce_wait(PAGE, word).is_some();
                let owned = matches!(self.state, PageState::Claimed | PageState::Dropping);
                assert_eq!(announced, owned, "announce_wait");
                self.waits |= announced;
            }
        }
        true
    }

    fn release(&mut self, state: PageState, clean: bool) -> bool {
        let Some(claim) = self.claim.take() else {
            return false;
        };
        let payload = if clean || state == PageState::Stored {
            4
        } else {
            0
        };
        let word = Word::EMPTY
            .with_state(state)
            .with_clean(clean)
            .with_payload(payload);
        assert_eq!(self.table.release(claim, word).0, self.waits, "release");
        (self.state, self.clean, self.waits) = (state, clean, false);
        true
    }

    /// The word says what the model says, or this panics.
    fn check(&self) -> bool {
        let word = self.table.load(PAGE);
        assert_eq!(word.state(), self.state);
        assert_eq!(word.has_waiters(), self.waits);
        if self.state == PageState::Resident {
            assert_eq!(word.is_clean(), self.clean);
        }
        if let Some(nonce) = self.live {
            assert_eq!(word.payload(), nonce);
        }
        let owners = [
            self.claim.is_some(),
            self.drop.is_some(),
            self.live.is_some(),
        ];
        assert!(owners.iter().filter(|&&owner| owner).count() <= 1);
        true
    }
}

/// Counts the possible sequences of [`DEPTH`] steps that begin with `path`,
/// checking each step. All are tried from scratch: claims cannot be copied.
fn walk(path: &mut Vec<Step>, ends: &mut usize) {
    for step in STEPS {
        let mut actors = Walk::new();
        for &earlier in path.iter() {
            assert!(actors.step(earlier));
        }
        path.push(step);
        let possible = catch_unwind(AssertUnwindSafe(|| actors.step(step) && actors.check()));
        assert!(possible.is_ok(), "the model disagrees after {path:?}");
        if matches!(possible, Ok(false)) {
            path.pop();
            continue;
        }
        if path.len() == DEPTH {
            *ends += 1;
        } else {
            walk(path, ends);
        }
        path.pop();
    }
}

/// Long enough for an eviction to begin, be cancelled, another to begin, and
/// the first to try its commit.
const DEPTH: usize = 10;

/// No sequence of operations leads where the model does not expect it: one
/// owner at most, no commit but of the live eviction, no waiter unreported.
#[test]
fn every_short_sequence_follows_the_model() {
    let mut ends = 0;
    walk(&mut Vec::new(), &mut ends);
    assert!(ends > 100_000, "only {ends} sequences were tried");
}

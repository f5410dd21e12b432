//! The suite for tiers on one that can only be asked, as it is and behind one that
//! fails on purpose.
#![cfg(target_os = "linux")] // the calls of a fork

use std::sync::Mutex;

use ghostmem_store::conformance::forks::{self, Calls};
use ghostmem_store::conformance::{self, Asking, Faulty, Rates};
use ghostmem_store::tier::{Access, ColdTier};

/// One test at a time: a fork duplicates what other threads are in the middle of.
static ALONE: Mutex<()> = Mutex::new(());

const CALLS: Calls = Calls {
    // SAFETY: the suite's child uses nothing that another thread may hold.
    fork: || unsafe { libc::fork() },
    // SAFETY: ends the child.
    exit: |code| unsafe { libc::_exit(code) },
    ended_well: |pid| {
        let mut status = 0;
        // SAFETY: our own child and a valid place.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    },
};

fn slow() -> Faulty<Asking> {
    Faulty::new(Asking::default(), 5, Rates::SLOW)
}

#[test]
fn it_can_only_be_asked() {
    let _alone = ALONE.lock();
    assert_eq!(Asking::default().access(), Access::Ask);
    assert_eq!(slow().access(), Access::Ask);
}

#[test]
fn edges() {
    let _alone = ALONE.lock();
    conformance::edges(Asking::default);
    conformance::edges(slow);
}

#[test]
fn it_agrees_with_a_map() {
    let _alone = ALONE.lock();
    for seed in 0..4 {
        conformance::model(Asking::default, seed, 60, 4096);
        conformance::model(slow, seed, 60, 4096);
    }
}

#[test]
fn readers_beside_a_writer() {
    let _alone = ALONE.lock();
    for (stats, reads) in [
        conformance::parallel(Asking::default, 60),
        conformance::parallel(slow, 60),
    ] {
        assert!(stats.pages_moved > 0 && reads > 100, "{reads} {stats:?}");
    }
}

#[test]
fn tending_ends_when_no_page_may_be_moved() {
    let _alone = ALONE.lock();
    let (_, asked, report) = conformance::tending_without_leave(Asking::default);
    assert!(asked > 100, "{asked} pages, {report:?}");
    let (_, asked, report) = conformance::tending_without_leave(slow);
    assert!(asked > 100, "{asked} pages, {report:?}");
}

#[test]
fn the_limit_holds() {
    let _alone = ALONE.lock();
    conformance::limit(|| Asking::new(24 << 20));
    conformance::limit(|| Faulty::new(Asking::new(24 << 20), 6, Rates::SLOW));
}

#[test]
fn whatever_fails_no_page_is_lost() {
    let _alone = ALONE.lock();
    for seed in 0..4 {
        let open = || Faulty::new(Asking::default(), seed, Rates::CALM);
        let refusals = conformance::storm(open, seed, 500);
        assert!(refusals > 300, "{refusals}");
    }
}

#[test]
fn forks() {
    let _alone = ALONE.lock();
    forks::both_sides_go_on(CALLS, Asking::default);
    forks::generations(CALLS, Asking::default);
    forks::many_children(CALLS, Asking::default, |_| {});
}

#[test]
fn forks_that_must_try_again() {
    let _alone = ALONE.lock();
    let rates = Rates {
        others: 2,
        ..Rates::SLOW
    };
    let open = || Faulty::new(Asking::default(), 7, rates);
    forks::both_sides_go_on(CALLS, open);
    forks::generations(CALLS, open);
    forks::many_children(CALLS, open, |_| {});
}

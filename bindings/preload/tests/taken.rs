//! The table of mapped ranges, against a naive model. The library itself cannot be linked
//! into a test: its malloc would be the test's.
#![allow(dead_code, reason = "the library uses all of it")]

use taken::{Range, Table};

#[path = "../src/alone.rs"]
mod alone;
#[path = "../src/taken.rs"]
mod taken;

/// What the module uses of the library.
mod bounce {
    pub(crate) fn map(bytes: usize) -> Option<usize> {
        Some(Box::leak(vec![0_u64; bytes / 8].into_boxed_slice()).as_ptr() as usize)
    }
}
mod thread {
    use core::cell::Cell;

    #[derive(Default)]
    pub(crate) struct Thread {
        pub(crate) tried_again: Cell<[usize; 3]>,
    }
    pub(crate) struct Undisturbed;
    impl Undisturbed {
        pub(crate) fn new(_thread: &'static Thread) -> Self {
            Self
        }
    }
    pub(crate) fn current() -> &'static Thread {
        thread_local! {
            static OWN: &'static Thread = Box::leak(Box::default());
        }
        OWN.with(|own| *own)
    }
}

fn range(block: usize, start: usize, end: usize) -> Range {
    Range { block, start, end }
}

/// The count of changes is the whole process's.
static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn a_refused_touch_is_tried_once_more_for_each_change() {
    use core::sync::atomic::{AtomicBool, Ordering};
    static DONE: AtomicBool = AtomicBool::new(false);
    let _alone = ONE_AT_A_TIME.lock();
    let twice = |address| [(); 2].map(|()| taken::is_to_be_tried_again(address));
    assert_eq!(twice(64), [true, false]);
    assert_eq!(twice(128), [true, false]);
    taken::with(|_| ());
    assert_eq!(twice(128), [true, false]);
    // Who makes the change does not wait for itself.
    assert_eq!(taken::with(|_| twice(64)), [false; 2]);
    // Others do.
    let other = taken::with(|_| {
        let other = std::thread::spawn(|| {
            let again = taken::is_to_be_tried_again(64);
            (again, DONE.load(Ordering::Relaxed))
        });
        DONE.store(true, Ordering::Relaxed);
        other
    });
    assert_eq!(other.join().ok(), Some((true, true)));
    // Nobody waits for a fork: that one waits for those who allocate.
    let still = taken::hold_still();
    assert_eq!(twice(64), [true, false]);
    let other = std::thread::spawn(move || twice(64));
    assert_eq!(other.join().ok(), Some([true, false]));
    drop(still);
    // A child is forked while another thread makes a change.
    core::mem::forget(taken::hold_still());
    taken::forget_others();
    assert_eq!(twice(128), [true, false]);
}

#[test]
fn a_touch_that_is_refused_for_ever_ends_beside_changes_without_an_end() {
    let _alone = ONE_AT_A_TIME.lock();
    let tries = (0..1000)
        .take_while(|_| {
            taken::with(|_| ());
            taken::is_to_be_tried_again(192)
        })
        .count();
    assert_eq!(tries, 16);
    // Later ones are looked at anew.
    assert!(taken::is_to_be_tried_again(256));
    taken::with(|_| ());
    assert!(taken::is_to_be_tried_again(192));
}

#[test]
fn the_table_is_as_the_naive_model_has_it() {
    const BLOCKS: usize = 8;
    const EACH: usize = 64;
    let mut table = Table::new();
    let mut model = [false; BLOCKS * EACH];
    let mut seed = 7_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    for _ in 0..20_000 {
        let (a, b) = (random(BLOCKS * EACH), random(BLOCKS * EACH + 1));
        let (start, end) = (a.min(b), a.max(b));
        if random(2) == 0 {
            let block = start / EACH * EACH;
            let end = end.min(block + EACH);
            if start < end {
                assert!(table.insert(range(block + 1, start, end)));
                model[start..end].fill(true);
            }
        } else {
            while let Some(piece) = table.cut(start, end) {
                assert!(model[piece.start..piece.end].iter().all(|&mapped| mapped));
                model[piece.start..piece.end].fill(false);
                let block = piece.block - 1;
                let more = model[block..block + EACH].contains(&true);
                assert_eq!(piece.is_last, !more);
            }
            assert!(!model[start..end].contains(&true));
        }
        let mapped = model[start..end].iter().all(|&mapped| mapped);
        assert_eq!(table.covers(start, end), mapped);
        let ranges = table.ranges();
        assert!(ranges.iter().all(|range| range.start < range.end));
        assert!(ranges.windows(2).all(|pair| {
            pair[0].end < pair[1].start
                || (pair[0].end == pair[1].start && pair[0].block != pair[1].block)
        }));
    }
}

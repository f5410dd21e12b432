//! Each policy does, on traces small enough to follow by hand, what its paper
//! says; and nobody beats the clairvoyant optimum.

use ghostmem_lab::blind::{BlindTwoQ, Fifo};
use ghostmem_lab::hand::{Hand, Plain};
use ghostmem_lab::opt::Opt;
use ghostmem_lab::rivals::{Clock, Lru, S3Fifo, Sieve, TwoQ};
use ghostmem_lab::rng::Rng;
use ghostmem_lab::trace::{self, Touch, Trace};
use ghostmem_lab::{Blind, Contender, Policy, run};

/// Pages of the traces written by hand.
const PAGES: u32 = 16;

fn touches(pages: &[u32]) -> Vec<Touch> {
    pages.iter().map(|&page| Touch::read(page, 0)).collect()
}

/// One character a touch: `.` for a hit, `x` for a miss.
fn outcome(policy: &mut dyn Policy, pages: &[u32]) -> String {
    touches(pages)
        .into_iter()
        .map(|touch| match policy.touch(touch) {
            0 => '.',
            _ => 'x',
        })
        .collect()
}

#[test]
fn fifo_forgets_hits() {
    let mut fifo = Blind(Fifo::new(PAGES, 3));
    // 1 is hit and still the first to go.
    assert_eq!(outcome(&mut fifo, &[1, 2, 3, 1, 4, 2, 1, 2]), "xxx.x.xx");
}

#[test]
fn lru_keeps_what_was_used_last() {
    let mut lru = Lru::new(PAGES, 3);
    // 4 takes the place of 2, 2 that of 3.
    assert_eq!(outcome(&mut lru, &[1, 2, 3, 1, 4, 1, 2, 3]), "xxx.x.xx");
}

#[test]
fn clock_gives_one_more_round() {
    let mut clock = Clock::new(PAGES, 3);
    // 4 passes over 1, which was used, and takes 2; 5 takes 3.
    assert_eq!(
        outcome(&mut clock, &[1, 2, 3, 1, 4, 1, 3, 5, 2]),
        "xxx.x..xx"
    );
}

#[test]
fn sieve_moves_its_hand_past_survivors() {
    let mut sieve = Sieve::new(PAGES, 3);
    // 4 passes over 1 and takes 2; the hand stays at 3, so 5 takes 3 although
    // 1 is older and unused since.
    assert_eq!(outcome(&mut sieve, &[1, 2, 3, 1, 4, 5, 1, 3]), "xxx.xx.x");
}

#[test]
fn s3_fifo_lets_pages_through_that_were_used_twice() {
    // The small queue holds one page.
    let mut s3 = S3Fifo::new(PAGES, 4);
    // 1 is used twice more and moves to the main queue when it comes up; 2, 3
    // and 4 pass through the small queue.
    assert_eq!(
        outcome(&mut s3, &[1, 1, 1, 2, 3, 4, 5, 6, 7, 1]),
        "x..xxxxxx."
    );
    // 3 was evicted from the small queue and is remembered: to the main queue,
    // where a scan does not reach it.
    assert_eq!(outcome(&mut s3, &[3, 8, 9, 10, 11, 3]), "xxxxx.");
}

#[test]
fn two_q_promotes_pages_that_come_back() {
    // One page of the first queue, two remembered.
    let mut full = TwoQ::new(PAGES, 4);
    assert_eq!(outcome(&mut full, &[1, 2, 3, 4, 5]), "xxxxx");
    // 1 was pushed out by 5 and is remembered; now it survives a scan.
    assert_eq!(outcome(&mut full, &[1, 6, 7, 8, 9, 1]), "xxxxx.");
    // 2 was forgotten meanwhile: it is new again, and does not survive.
    assert_eq!(outcome(&mut full, &[2, 10, 11, 12, 2]), "xxxxx");
}

#[test]
fn blind_two_q_does_the_same_without_hits() {
    let mut blind = Blind(BlindTwoQ::new(PAGES, 4));
    assert_eq!(outcome(&mut blind, &[1, 2, 3, 4, 5]), "xxxxx");
    assert_eq!(outcome(&mut blind, &[1, 6, 7, 8, 9, 1]), "xxxxx.");
}

#[test]
fn the_plain_hand_walks_in_address_order() {
    let mut hand = Blind(Hand::new(Plain, PAGES, 3));
    // 12 takes 3, the lowest, though 9 is the oldest; 1 lies behind the hand
    // and takes 6; 14 takes 9.
    assert_eq!(outcome(&mut hand, &[9, 6, 3, 12, 1, 14, 1, 12]), "xxxxxx..");
}

#[test]
fn opt_looks_ahead() {
    let pages = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5];
    // The example of Belady's anomaly: 7 misses with 3 frames at best, where
    // FIFO has 9, and 10 with one frame more.
    let mut opt = Opt::new(PAGES, 3, &touches(&pages));
    assert_eq!(outcome(&mut opt, &pages), "xxxx..x..xx.");
    let misses = |limit| {
        outcome(&mut Blind(Fifo::new(PAGES, limit)), &pages)
            .matches('x')
            .count()
    };
    assert_eq!((misses(3), misses(4)), (9, 10));
}

#[test]
fn nobody_beats_opt_or_the_limit() {
    const LIMITS: [u32; 3] = [64, 256, 1024];
    let pages = 4096;
    let mut traces = trace::all(pages);
    let mut rng = Rng::new(3);
    // Short random walks: more shapes than the lab's own traces have.
    let walk = |rng: &mut Rng| {
        let mut at = rng.below(pages.into()) as u32;
        (0..20_000)
            .map(|_| {
                at = match rng.below(16) {
                    0 => rng.below(pages.into()) as u32,
                    step => (at + step as u32) % pages,
                };
                Touch::read(at, 0)
            })
            .collect::<Vec<_>>()
    };
    for _ in 0..3 {
        let touches = walk(&mut rng);
        traces.push(Trace {
            name: "walk".into(),
            pages,
            distinct: pages,
            measured: 0..touches.len(),
            touches,
        });
    }
    for trace in &mut traces {
        // The optimum is one of the whole trace, not of a part.
        trace.measured = 0..trace.touches.len();
        for limit in LIMITS {
            let limit = limit as usize;
            let best = run(&mut *Contender::Opt.start(trace, limit), trace);
            for contender in Contender::ALL {
                let mut policy = contender.start(trace, limit);
                let mut most = 0;
                let mut restores = 0;
                for &touch in &trace.touches {
                    restores += u64::from(policy.touch(touch));
                    most = most.max(policy.resident());
                }
                let name = contender.name();
                assert!(
                    restores >= best.restores,
                    "{name} on {} with {limit}: {restores}, OPT {}",
                    trace.name,
                    best.restores
                );
                assert!(most <= limit, "{name} held {most} of {limit}");
            }
        }
    }
}

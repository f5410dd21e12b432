//! Ours at equal total memory: the bound holds, and copies are what they are said to be.

use ghostmem_lab::hand::Events;
use ghostmem_lab::total::{Bounded, Prices, Rule};
use ghostmem_lab::trace::{self, Trace};
use ghostmem_lab::{Blind, Contender, FaultPolicy, Policy, run};

const PAGES: u32 = 16_384;
const PRICES: Prices = Prices::measured(1400, 80);
const RULES: [Rule; 3] = [Rule::None, Rule::Engine, Rule::All];

/// Replays a trace within so many percent of its pages; the policy, and what happened in
/// the measured part.
fn replay(trace: &Trace, percent: usize, rule: Rule) -> (Bounded, Events) {
    let total = trace.distinct as usize * PRICES.page_bytes / 100 * percent;
    let mut policy = Blind(Bounded::new(trace.pages, total, rule, PRICES));
    let mut before = Events::default();
    for (at, &touch) in trace.touches.iter().enumerate() {
        if at == trace.measured.start {
            before = *policy.0.hand().events();
        }
        policy.touch(touch);
        let held = policy.0.held_bytes();
        assert!(held <= total, "{}: {held} of {total} bytes", trace.name);
    }
    let events = policy.0.hand().events().since(&before);
    (policy.0, events)
}

/// Slots of evicted pages and copies count, whatever the program does.
#[test]
fn what_is_held_stays_within_the_total() {
    for trace in trace::all(PAGES) {
        for rule in RULES {
            let (policy, _) = replay(&trace, 60, rule);
            let hand = policy.hand();
            let slots = hand.away() + hand.copies();
            assert_eq!(
                policy.held_bytes(),
                hand.resident() * PRICES.page_bytes + slots * 1400
            );
            match rule {
                Rule::None => assert_eq!(hand.copies(), 0),
                // A quarter of the total at most, and what one fault brings in.
                Rule::Engine => {
                    let most = trace.distinct as usize * PRICES.page_bytes / 100 * 60 / 4;
                    assert!(hand.copies() * 1400 <= most);
                }
                Rule::All => {}
            }
        }
    }
}

/// Where nearly everything fits, copies take the place of pages that would not be missed
/// at all; where little does, they save more than they take.
#[test]
fn copies_pay_where_memory_is_scarce() {
    let trace = trace::uniform(PAGES);
    let time = |percent, rule| PRICES.time_ns(&replay(&trace, percent, rule).1);
    assert!(time(90, Rule::None) < time(90, Rule::All) * 3 / 4);
    assert!(time(90, Rule::Engine) < time(90, Rule::None) * 11 / 10);
    assert!(time(45, Rule::Engine) < time(45, Rule::None) * 3 / 4);
    let brought_in = |rule| replay(&trace, 90, rule).1.restores();
    assert!(2 * brought_in(Rule::None) < brought_in(Rule::All));
    let (policy, _) = replay(&trace, 90, Rule::All);
    assert!(policy.hand().copies() * 10 > policy.hand().resident() * 9);
}

/// What copies may have follows what they are worth: whatever a program does, they cost it
/// little, and where half of it fits they save most programs a fifth.
#[test]
fn copies_cost_no_program_much_and_save_most_a_lot() {
    let mut saved = 0;
    let traces = trace::all(PAGES);
    for trace in &traces {
        for percent in [75, 50] {
            let time = |rule| PRICES.time_ns(&replay(trace, percent, rule).1);
            let [none, ours, all] = RULES.map(time);
            let told = format!("{} within {percent} %: {ours} ns", trace.name);
            assert!(ours * 100 <= none * 105, "{told}, {none} without copies");
            // Where few copies tell nothing of what many would be worth.
            assert!(ours * 10 <= none.min(all) * 14, "{told}, {all} with all");
            saved += usize::from(percent == 50 && ours * 5 <= none * 4);
        }
    }
    assert!(saved * 2 > traces.len(), "{saved} of {}", traces.len());
}

/// At equal frames a database brings in what it does with policies that see every access:
/// at most 6 % more, where calls that protect are cheap.
#[test]
fn a_database_misses_no_more_than_with_lru() {
    let trace = trace::database(PAGES);
    for part in [8, 4, 2] {
        let limit = (PAGES / part) as usize;
        let misses = |contender: Contender| {
            run(&mut *contender.start(&trace, limit), &trace).restores_per_touch()
        };
        let (ours, lru) = (misses(Contender::Ours), misses(Contender::Lru));
        assert!(ours <= 1.06 * lru, "1/{part}: {ours:.4}, LRU {lru:.4}");
        let dear = misses(Contender::OursDear);
        assert!(dear <= 1.1 * lru, "1/{part}: {dear:.4}, LRU {lru:.4}");
    }
}

//! The demo's job from start to end: load, index, tabulate, scan, sort, look up, update, verify,
//! free; timed phase by phase.
//!
//! The same code runs with GhostMem's allocator and with the ordinary one; every result is compared
//! with what [`super::content`] computed from the files, and both runs must agree.

use std::time::Instant;

use allocator_api2::alloc::Allocator;
use serde::{Deserialize, Serialize};

use super::collections::{Index, NoRoom};
use super::data::Plan;
use super::phases::{self, Choice, Context};
use super::random::{Zipf, mix};
use crate::failure::Failure;

/// The phase that loads the documents, whose units are their bytes.
pub(crate) const LOAD: &str = "load";

/// What to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The documents.
    pub(crate) plan: Plan,
    /// Source of every random choice.
    pub(crate) seed: u64,
    /// Threads that work.
    pub(crate) threads: usize,
}

/// Follows the work from outside: progress, memory, faults.
pub(crate) trait Observer: Sync {
    /// A phase begins that will [`advance`](Self::advance) by about `units`.
    fn begin(&self, phase: &str, units: u64);
    /// So much more is done.
    fn advance(&self, units: u64);
    /// Faults so far.
    fn faults(&self) -> u64;
    /// All data is held and verified, and is about to be freed.
    fn full(&self);
}

/// Why the work did not come to its end.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// Memory does not hold the data.
    NoRoom,
    /// Anything else.
    Failed(Failure),
}

impl From<NoRoom> for Stopped {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// How long a phase took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PhaseTime {
    /// Name for people.
    pub(crate) name: String,
    /// Wall-clock time in seconds.
    pub(crate) seconds: f64,
    /// Ghost faults meanwhile.
    pub(crate) faults: u64,
}

/// Something that was verified.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Check {
    /// What was compared.
    pub(crate) name: String,
    /// Whether it was right.
    pub(crate) ok: bool,
    /// The numbers.
    pub(crate) detail: String,
}

/// What the work came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Phases in order.
    pub(crate) phases: Vec<PhaseTime>,
    /// Verifications in order.
    pub(crate) checks: Vec<Check>,
    /// Bytes that the collections had asked for when everything was held.
    pub(crate) held_bytes: u64,
    /// Records in the table.
    pub(crate) records: u64,
    /// Words in the index, repetitions included.
    pub(crate) indexed_words: u64,
    /// Different words in the index.
    pub(crate) distinct_words: u64,
    /// Look-ups made, both kinds together.
    pub(crate) lookups: u64,
    /// Records updated.
    pub(crate) updates: u64,
    /// Sum over all results: equal for equal work.
    pub(crate) digest: u64,
}

impl Outcome {
    /// Seconds of all phases.
    pub(crate) fn seconds(&self) -> f64 {
        self.phases.iter().map(|phase| phase.seconds).sum()
    }

    /// Faults of all phases.
    pub(crate) fn faults(&self) -> u64 {
        self.phases.iter().map(|phase| phase.faults).sum()
    }

    /// Whether every check held.
    pub(crate) fn verified(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }
}

struct Clock<'a> {
    observer: &'a dyn Observer,
    phases: Vec<PhaseTime>,
}

impl Clock<'_> {
    fn time<T>(&mut self, name: &str, units: u64, work: impl FnOnce() -> T) -> T {
        self.observer.begin(name, units);
        let faults = self.observer.faults();
        let start = Instant::now();
        let result = work();
        self.phases.push(PhaseTime {
            name: name.to_string(),
            seconds: start.elapsed().as_secs_f64(),
            faults: self.observer.faults() - faults,
        });
        result
    }
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn equal(&mut self, name: &str, found: u64, expected: u64) {
        let ok = found == expected;
        let detail = if ok {
            found.to_string()
        } else {
            format!("{found}, expected {expected}")
        };
        self.0.push(Check {
            name: name.to_string(),
            ok,
            detail,
        });
    }
}

/// Does the whole job with memory from `allocator`.
///
/// # Errors
/// A file could not be read or changed since it was surveyed, or memory does not hold the data.
pub(crate) fn run<A>(job: &Job, allocator: &A, observer: &dyn Observer) -> Result<Outcome, Stopped>
where
    A: Allocator + Clone + Send + Sync,
{
    let plan = &job.plan;
    let totals = &plan.totals;
    let count = plan.pieces.len() as u64;
    let advance = |units| observer.advance(units);
    let context = Context {
        plan,
        seed: job.seed,
        threads: job.threads,
        advance: &advance,
    };
    let mut clock = Clock {
        observer,
        phases: Vec::new(),
    };
    let mut checks = Checks::default();

    let loaded = clock.time(LOAD, plan.bytes(), || phases::load(&context, allocator));
    let (mut documents, changed) = loaded?;
    if changed > 0 {
        let line = "of the files changed while the demo was reading them; run it again";
        return Err(Failure::new(format!("{changed} {line}")).into());
    }
    let index = Index::new(allocator.clone());
    clock.time("index words", count, || {
        phases::index_words(&context, &documents, &index)
    })?;
    let table = clock.time("build table", count, || {
        phases::build_table(&context, &documents, allocator)
    })?;

    let scan = clock.time("scan", plan.bytes(), || {
        phases::scan(&context, &documents, false)
    });
    checks.equal(
        "documents whose checksum differs after loading",
        scan.wrong,
        0,
    );
    checks.equal("bytes counted", scan.bytes, totals.bytes);
    checks.equal("lines counted", scan.lines, totals.lines);
    checks.equal("words counted", scan.words, totals.words);

    let rows = table.len() as u64;
    checks.equal("records", rows, totals.records);
    let table = clock.time("sort", rows * 2, || {
        phases::sort(&context, table, allocator)
    })?;

    let lookups = (rows / 8).max(1000);
    let uniform = clock.time("look up, uniform", lookups, || {
        phases::look_up(
            &context,
            &documents,
            &table,
            &index,
            &Choice::Uniform,
            lookups,
        )
    });
    let zipf = Choice::Zipf(Zipf::new(rows));
    let popular = clock.time("look up, zipf 0.99", lookups, || {
        phases::look_up(&context, &documents, &table, &index, &zipf, lookups)
    });
    checks.equal("wrong answers to look-ups", uniform.1 + popular.1, 0);

    let updates = (rows / 4).max(1000);
    clock.time("update records", updates, || {
        phases::update_records(&context, &table, updates)
    });
    clock.time("edit documents", count, || {
        phases::edit(&context, &mut documents, allocator)
    })?;

    let (scan, rows_found, words_found) = clock.time("verify all", plan.bytes() + rows, || {
        (
            phases::scan(&context, &documents, true),
            phases::audit_table(&context, &table),
            phases::audit_index(&context, &index),
        )
    });
    checks.equal(
        "documents whose checksum differs after the edits",
        scan.wrong,
        0,
    );
    checks.equal("records out of order", rows_found.unordered, 0);
    checks.equal(
        "checksum of all records",
        rows_found.record_sum,
        totals.record_sum,
    );
    let touched = phases::expected_updates(job.seed, updates, rows);
    checks.equal("checksum of all updates", rows_found.touched_sum, touched);
    checks.equal("words in the index", words_found.indexed, totals.indexed);
    checks.equal(
        "checksum of the index",
        words_found.postings,
        totals.postings,
    );

    observer.full();
    let results = [
        uniform.0,
        popular.0,
        words_found.distinct,
        words_found.postings,
        rows_found.record_sum,
        rows_found.touched_sum,
        scan.bytes,
        scan.lines,
        scan.words,
    ];
    let list_bytes = (size_of_val(&documents[..]) + size_of_val(&table[..])) as u64;
    clock.time("free", 1, || drop((documents, index, table)));
    Ok(Outcome {
        phases: clock.phases,
        checks: checks.0,
        held_bytes: scan.held_bytes + words_found.bytes + list_bytes,
        records: rows,
        indexed_words: words_found.indexed,
        distinct_words: words_found.distinct,
        lookups: lookups * 2,
        updates,
        digest: results.into_iter().fold(job.seed, mix),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use allocator_api2::alloc::Global;

    use super::*;

    struct Silent;

    impl Observer for Silent {
        fn begin(&self, _: &str, _: u64) {}
        fn advance(&self, _: u64) {}
        fn faults(&self) -> u64 {
            0
        }
        fn full(&self) {}
    }

    fn job(threads: usize) -> Job {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let mut plan = Plan::collect(&[folder], Some(1 << 20)).unwrap();
        plan.survey(5, threads, &|_| ()).unwrap();
        Job {
            plan,
            seed: 5,
            threads,
        }
    }

    #[test]
    fn all_checks_hold_and_results_do_not_depend_on_threads() {
        let one = run(&job(1), &Global, &Silent).unwrap();
        let three = run(&job(3), &Global, &Silent).unwrap();
        assert!(one.verified(), "{:?}", one.checks);
        assert!(three.verified(), "{:?}", three.checks);
        assert_eq!(one.digest, three.digest);
        assert_eq!(one.phases.len(), 11);
        assert!(one.held_bytes > 1 << 20 && one.distinct_words > 500);
    }

    #[test]
    fn another_seed_does_other_work() {
        let first = run(&job(2), &Global, &Silent).unwrap();
        let mut other = job(2);
        other.seed = 6;
        other.plan.survey(6, 2, &|_| ()).unwrap();
        let other = run(&other, &Global, &Silent).unwrap();
        assert!(other.verified());
        assert_ne!(first.digest, other.digest);
    }

    #[test]
    fn wrong_expectations_are_noticed() {
        let broken: [fn(&mut Plan); 5] = [
            |plan| plan.pieces[3].facts.after ^= 1,
            |plan| plan.totals.record_sum ^= 1,
            |plan| plan.totals.postings ^= 1,
            |plan| plan.totals.words += 1,
            |plan| plan.totals.indexed += 1,
        ];
        for change in broken {
            let mut job = job(2);
            change(&mut job.plan);
            let outcome = run(&job, &Global, &Silent).unwrap();
            assert_eq!(outcome.checks.iter().filter(|check| !check.ok).count(), 1);
        }
    }

    #[test]
    fn a_file_that_changed_ends_the_work() {
        let mut job = job(2);
        job.plan.pieces[0].facts.before ^= 1;
        match run(&job, &Global, &Silent) {
            Err(Stopped::Failed(failure)) => {
                let line = failure.to_string();
                assert!(line.contains("changed while"), "{line}");
            }
            other => panic!("{other:?}"),
        }
    }
}

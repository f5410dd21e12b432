//! `ghostmem demo`: real files in ordinary collections on a heap with a small limit.
//!
//! In order: choose files ([`data`]) and note their checksums ([`content`]); do the work without
//! GhostMem in a child process ([`baseline`]); do it on a ghost heap ([`work`]) while the kernel's
//! figures for this process are sampled ([`measure`]); compare and print ([`report`]).

pub(crate) mod baseline;
mod collections;
mod content;
mod data;
mod measure;
mod phases;
mod progress;
mod random;
mod report;
mod room;
mod threads;
mod work;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use self::data::Plan;
use self::measure::{Meter, Sampler};
use self::progress::Progress;
use self::report::{Data, Limits, Report, Run};
use self::room::Room;
use self::work::{Job, Observer, Stopped};
use crate::cli::DemoArgs;
use crate::engine::{Engine, Snapshot};
use crate::failure::Failure;
use crate::size::{Amount, Bytes};

/// The limit without an option, hundredths of the data.
const LIMIT_PERCENT: f64 = 12.5;

/// The smallest limit the demo chooses by itself when the data is tiny: 5 pages.
const LIMIT_MIN_BYTES: u64 = 5 * 4096;

/// Runs the demo and prints its report.
///
/// # Errors
/// Bad input, unreadable files, no heap with this limit and backend on this machine, or data that
/// `--memory` does not hold.
pub(crate) fn run(args: &DemoArgs) -> Result<ExitCode, Failure> {
    let limit = match (args.limit, args.memory) {
        (Some(limit), _) => limit,
        // As much of the bound as there is use for.
        (None, Some(bytes)) => Amount::Bytes(bytes),
        (None, None) => Amount::Percent(LIMIT_PERCENT),
    };
    if let Amount::Bytes(limit) = limit {
        // A limit that cannot work is refused before anything is read.
        Engine::start(limit, args.memory, args.backend.into(), &args.spill)?;
    }
    let threads = args.threads.map_or_else(default_threads, usize::from);
    let mut plan = Plan::collect(&args.paths, args.size)?;
    {
        let progress = Progress::new("before");
        progress.begin("read and checksum", plan.bytes());
        plan.survey(args.seed, threads, &|bytes| progress.advance(bytes))?;
    }
    let limit_bytes = match limit {
        Amount::Bytes(bytes) => bytes,
        percent @ Amount::Percent(_) => percent.of(plan.bytes()).max(LIMIT_MIN_BYTES),
    };
    let job = Job {
        plan,
        seed: args.seed,
        threads,
    };
    let baseline = if args.no_baseline {
        Err("left out on request".to_string())
    } else {
        baseline::run(&job)?
    };
    let (backend, ghost) = with_ghost(&job, limit_bytes, args)?;
    let report = Report::new(
        Data::of(&job.plan),
        backend,
        &job,
        Limits {
            resident_bytes: limit_bytes,
            process_bytes: args.memory,
        },
        ghost,
        baseline,
        args.spill.spill.is_some(),
    );
    let text = if args.json {
        report.json()?
    } else {
        report.text()
    };
    writeln!(std::io::stdout(), "{text}").map_err(Failure::new)?;
    Ok(if report.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// "Several threads" even on one processor.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 16))
}

/// Does the job on a ghost heap.
fn with_ghost(job: &Job, limit_bytes: u64, args: &DemoArgs) -> Result<(String, Run), Failure> {
    let before = Meter::open().map_err(Failure::new)?.read().now_bytes;
    let engine = Engine::start(limit_bytes, args.memory, args.backend.into(), &args.spill)?;
    let watched = engine.clone();
    let heap = move || watched.bytes();
    let sampler = Sampler::start(before, limit_bytes, Some(heap)).map_err(Failure::new)?;
    let title = format!("limit {}", Bytes(limit_bytes));
    let watch = Watch {
        progress: Progress::new(&title),
        engine: &engine,
        full: Mutex::default(),
        loaded_bytes: AtomicU64::new(0),
        loads: AtomicBool::new(false),
    };
    let outcome = work::run(job, &engine.allocator(), &watch).map_err(|stopped| match stopped {
        Stopped::Failed(failure) => failure,
        Stopped::NoRoom => {
            let room = Room {
                memory_bytes: args.memory,
                before_bytes: before,
                data_bytes: job.plan.bytes(),
                loaded_bytes: watch.loaded_bytes.load(Ordering::Relaxed),
            };
            room.refused()
        }
    })?;
    let full = watch
        .full
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let run = Run {
        outcome,
        memory: sampler.stop(),
        full,
        end: engine.snapshot(),
    };
    Ok((engine.backend(), run))
}

/// Follows the work on a ghost heap.
struct Watch<'a> {
    progress: Progress,
    engine: &'a Engine,
    full: Mutex<Snapshot>,
    /// Bytes of the documents that are in memory.
    loaded_bytes: AtomicU64,
    /// The phase that loads them goes on.
    loads: AtomicBool,
}

impl Observer for Watch<'_> {
    fn begin(&self, phase: &str, units: u64) {
        self.loads.store(phase == work::LOAD, Ordering::Relaxed);
        self.progress.begin(phase, units);
    }
    fn advance(&self, units: u64) {
        if self.loads.load(Ordering::Relaxed) {
            self.loaded_bytes.fetch_add(units, Ordering::Relaxed);
        }
        self.progress.advance(units);
    }
    fn faults(&self) -> u64 {
        self.engine.faults()
    }
    fn full(&self) {
        *self.full.lock().unwrap_or_else(PoisonError::into_inner) = self.engine.snapshot();
    }
}

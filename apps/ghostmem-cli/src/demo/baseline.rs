//! The same work without GhostMem, in a process of its own so that its memory is its own.
//!
//! The parent runs its own program again, sends the job as JSON and gets the result as JSON. The
//! job carries plan and checksums: both processes work on exactly the same documents.

use std::io::{BufReader, BufWriter, Write};
use std::process::{Command, ExitCode, Stdio};

use allocator_api2::alloc::Global;
use serde::{Deserialize, Serialize};

use super::measure::{Memory, Meter, Sampler, available_bytes};
use super::progress::Progress;
use super::work::{self, Job, Observer, Outcome, Stopped};
use crate::engine::HeapBytes;
use crate::failure::Failure;
use crate::size::Bytes;

/// What the child reports.
#[derive(Serialize, Deserialize)]
pub(crate) struct Baseline {
    pub(crate) outcome: Outcome,
    pub(crate) memory: Memory,
}

/// Runs the job in a child process; `Err` in the inner result says why there is no baseline
/// although the demo can go on.
///
/// # Errors
/// The child could not do the work for a reason that concerns the demo as well.
pub(crate) fn run(job: &Job) -> Result<Result<Baseline, String>, Failure> {
    // Collections beside the documents come to about a third more, and sorting needs a second table.
    let needed = job.plan.bytes() / 2 * 3 + (64 << 20);
    if let Some(available) = available_bytes().filter(|&available| available < needed) {
        return Ok(Err(format!(
            "it needs about {}, only {} are free",
            Bytes(needed),
            Bytes(available)
        )));
    }
    let fail = |error: &dyn std::fmt::Display| {
        Failure::new(format!("cannot run the baseline process: {error}"))
    };
    let program = std::env::current_exe().map_err(|error| fail(&error))?;
    let mut child = Command::new(program)
        .arg("demo-baseline")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| fail(&error))?;
    let sent = child.stdin.take().map(|pipe| {
        let mut pipe = BufWriter::new(pipe);
        serde_json::to_writer(&mut pipe, job).map_err(std::io::Error::from)?;
        pipe.flush()
    });
    let result: Result<Baseline, _> = match child.stdout.take() {
        Some(pipe) => {
            serde_json::from_reader(BufReader::new(pipe)).map_err(|error| error.to_string())
        }
        None => Err("no pipe".to_string()),
    };
    let status = child.wait().map_err(|error| fail(&error))?;
    match (status.code(), result) {
        (Some(0), Ok(baseline)) => Ok(Ok(baseline)),
        // The child has said why, in one line, on the same standard error.
        (Some(code), _) => {
            let sending = sent
                .and_then(Result::err)
                .map(|error| format!(" ({error})"));
            Err(fail(&format!(
                "it ended with code {code}{}",
                sending.unwrap_or_default()
            )))
        }
        (None, _) => Ok(Err(format!(
            "the process was stopped ({status}), perhaps for lack of memory"
        ))),
    }
}

struct Watch(Progress);

impl Observer for Watch {
    fn begin(&self, phase: &str, units: u64) {
        self.0.begin(phase, units);
    }
    fn advance(&self, units: u64) {
        self.0.advance(units);
    }
    fn faults(&self) -> u64 {
        0
    }
    fn full(&self) {}
}

/// The child's side: a job on standard input, the result on standard output.
///
/// # Errors
/// The job cannot be read or done.
pub(crate) fn child() -> Result<ExitCode, Failure> {
    let job: Job = serde_json::from_reader(BufReader::new(std::io::stdin().lock()))
        .map_err(|error| Failure::new(format!("expected a job on standard input: {error}")))?;
    let watch = Watch(Progress::new("without GhostMem"));
    warm_up(job.plan.bytes(), &watch.0);
    let before = Meter::open().map_err(Failure::new)?.read().now_bytes;
    let sampler = Sampler::start(before, 0, None::<fn() -> HeapBytes>).map_err(Failure::new)?;
    let outcome = work::run(&job, &Global, &watch).map_err(|stopped| match stopped {
        Stopped::Failed(failure) => failure,
        Stopped::NoRoom => Failure::new("the machine refuses the memory for the demo's data"),
    })?;
    let baseline = Baseline {
        outcome,
        memory: sampler.stop(),
    };
    drop(watch);
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &baseline).map_err(Failure::new)?;
    out.flush().map_err(Failure::new)?;
    Ok(ExitCode::SUCCESS)
}

/// Touches as much memory as the work will need and gives it back. In a virtual machine the first
/// use of memory ever costs several times as much as the next; without this, whichever run comes
/// first would pay for it.
fn warm_up(bytes: u64, progress: &Progress) {
    progress.begin("warm up", 1);
    let mut block = vec![0u8; usize::try_from(bytes / 2 * 3).unwrap_or(0)];
    block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    drop(std::hint::black_box(block));
}

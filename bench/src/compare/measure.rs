//! Every contender in turn, in processes of their own, into one record.

use super::progress::Progress;
use super::rig::Rig;
use super::{Record, Setup, mix_json, page, records, report_mix, tables};
use crate::child::{Job, Line, Run, bound, bound_of_all};
use crate::contenders::Kind;
use crate::data::DataSet;
use crate::error::{Error, Result};
use crate::report;
use crate::small;
use crate::sys::{self, Mapping};

/// How often a contender is started that the kernel kills.
const ATTEMPTS: u32 = 3;
/// Rounds of the small patterns in one repetition.
const SMALL_ROUNDS: u32 = 200;

pub(super) fn measure_all(setup: &Setup, call: &[&str]) -> Result<()> {
    let common = &setup.common;
    sys::catch_signals().map_err(|err| Error::io("sigaction", &err))?;
    if setup.repetitions == 0 || setup.contenders.is_empty() {
        return Err(Error::Failed("nothing to measure".into()));
    }
    let threads_max = common.threads.iter().copied().max().unwrap_or(1);
    let (data, mix) = setup.data.build(threads_max)?;
    report_mix(&mix, setup.data.size.0);
    if !common.no_warm {
        warm(setup.data.size.0)?;
    }
    let mut record = Record {
        machine: report::machine(),
        mix: mix_json(&mix),
        data_bytes: u64::from(data.pages()) * crate::buffer::PAGE_SIZE as u64,
        runs: Vec::new(),
        small: Vec::new(),
        skipped: Vec::new(),
    };
    if let Some(path) = &common.continued {
        record = go_on(path, record)?;
    }
    let first = record.repetitions();
    let steps = setup.patterns.len() * common.threads.len() + 1;
    let children = setup.repetitions as usize * setup.limits.len() * setup.contenders.len();
    let progress = Progress::new((steps * children) as u64);
    for repetition in first..first + setup.repetitions {
        for &limit in &setup.limits {
            let mut order = setup.contenders.clone();
            if repetition % 2 == 1 {
                order.reverse();
            }
            for kind in order {
                // One limit is all that memory without a limit needs, and one
                // repetition all that the slow ones get.
                let again = kind == Kind::Plain && limit != setup.limits[0];
                let slow = kind.is_slow() && repetition > first;
                let out = record
                    .skipped
                    .iter()
                    .any(|(skipped, at, _)| *skipped == kind && *at == limit);
                if !(again || slow || out) {
                    let ratio = setup.data.size.0 as f64 / limit as f64;
                    progress.begin(&kind, ratio, repetition);
                    match measure(setup, call, &data, mix.ratio, &kind, limit, &progress) {
                        Ok(mut run) => {
                            run.repetition = repetition;
                            record.runs.push(run);
                        }
                        Err(Error::Skipped(why)) => record.skipped.push((kind, limit, why)),
                        Err(err) => return Err(err),
                    }
                }
                progress.child_done(steps as u64);
            }
        }
        if !setup.peer.is_empty() {
            let mut order = vec![Kind::Plain, Kind::INLINE, Kind::Peer];
            if repetition % 2 == 1 {
                order.reverse();
            }
            for kind in order {
                match measure_small(setup, call, &data, &kind, &progress) {
                    Ok(outcome) => record.small.push((kind, repetition, outcome)),
                    Err(Error::Skipped(why)) => record.skipped.push((kind, 0, why)),
                    Err(err) => return Err(err),
                }
            }
        }
    }
    drop(progress);
    tables::print(&record, &setup.patterns);
    if let Some(path) = &common.json {
        let value = serde_json::to_value(&record)
            .map_err(|err| Error::Failed(format!("the record as JSON: {err}")))?;
        report::write_json(path, &value)?;
    }
    if let Some(path) = &common.csv {
        records::write_csv(path, &record)?;
    }
    if let Some(path) = &common.html {
        page::write(path, &record)?;
    }
    if record.runs.is_empty() {
        return Err(Error::Skipped("no contender could be measured".into()));
    }
    Ok(())
}

/// The record at `path`, if what is measured now can be added to it.
fn go_on(path: &std::path::Path, now: Record) -> Result<Record> {
    let text = std::fs::read(path).map_err(|err| Error::io(path.display(), &err))?;
    let wrong = |why: String| Error::Failed(format!("--continue {}: {why}", path.display()));
    let before: Record = serde_json::from_slice(&text)
        .map_err(|err| wrong(format!("no record of this command: {err}")))?;
    for (what, then, now) in [
        ("kernel", &before.machine["kernel"], &now.machine["kernel"]),
        (
            "revision",
            &before.machine["revision"],
            &now.machine["revision"],
        ),
    ] {
        if then != now {
            return Err(wrong(format!("another {what}: {then} then, {now} now")));
        }
    }
    // Files of the machine may have changed a little.
    let ratio = |record: &Record| record.mix["lz4_ratio"].as_f64().unwrap_or(0.0);
    let same = (ratio(&before) / ratio(&now) - 1.0).abs() < 0.01;
    if before.data_bytes != now.data_bytes || !same {
        return Err(wrong(format!(
            "another data set, of {} bytes and LZ4 ratio {:.2}",
            before.data_bytes,
            ratio(&before)
        )));
    }
    Ok(before)
}

/// Touches memory the machine may not have used yet: a guest's first touch of
/// a page can cost many times the later ones, and would hit whoever is first.
fn warm(size: u64) -> Result<()> {
    let available = report::meminfo_bytes("MemAvailable");
    let bytes = (size * 3).min(available / 10 * 8) as usize;
    eprintln!("warming {} MiB of the machine's memory", bytes >> 20);
    let mapping = Mapping::anonymous(bytes).map_err(|err| Error::io("mmap", &err))?;
    mapping
        .populate()
        .map_err(|err| Error::io("populating memory", &err))
}

fn job(setup: &Setup, data: &DataSet, kind: &Kind, limit: u64, rig: &Rig) -> Job {
    let slow = if kind.is_slow() { 8.0 } else { 1.0 };
    Job {
        kind: kind.clone(),
        fd: data.fd(),
        pages: data.pages(),
        slots: data.slots(),
        resident: limit,
        bound: 0,
        threads: setup.common.threads.clone(),
        scale: setup.common.scale / slow,
        workloads: setup
            .patterns
            .iter()
            .map(|pattern| pattern.name().to_owned())
            .collect(),
        cgroup: rig.group_dir(),
        device: rig.device(),
        scratch: setup.common.scratch.clone(),
        peer: setup.peer.clone(),
        small_rounds: None,
    }
}

/// Measures one contender in a child process.
fn measure(
    setup: &Setup,
    call: &[&str],
    data: &DataSet,
    lz4_ratio: f64,
    kind: &Kind,
    limit: u64,
    progress: &Progress,
) -> Result<Run> {
    for _ in 0..ATTEMPTS {
        let rig = Rig::set_up(kind, setup.data.size.0, &setup.common.scratch)?;
        let job = Job {
            bound: match kind {
                Kind::Spill => bound_of_all(limit),
                _ => bound(data.pages(), limit, lz4_ratio),
            },
            ..job(setup, data, kind, limit, &rig)
        };
        match rig.child(call, &job, setup.common.timeout, progress) {
            Ok(Line::Run(run)) => return Ok(*run),
            Ok(_) => return Err(Error::Failed(format!("{kind}: an answer of another kind"))),
            // GhostMem has to keep within its bound; the kernel at times finds
            // nothing to reclaim although most could be swapped out.
            Err(Error::Killed(doing)) if !kind.is_ghost() => {
                eprintln!("{kind}: killed for lack of memory in its cgroup, at {doing}");
            }
            Err(err) => return Err(err),
        }
    }
    Err(Error::Skipped(format!(
        "the kernel killed it {ATTEMPTS} times for lack of memory in its cgroup"
    )))
}

fn measure_small(
    setup: &Setup,
    call: &[&str],
    data: &DataSet,
    kind: &Kind,
    progress: &Progress,
) -> Result<small::Outcome> {
    let rig = Rig::none();
    let job = Job {
        small_rounds: Some(SMALL_ROUNDS),
        ..job(setup, data, kind, 0, &rig)
    };
    match rig.child(call, &job, setup.common.timeout, progress)? {
        Line::Small(outcome) => Ok(outcome),
        _ => Err(Error::Failed(format!("{kind}: an answer of another kind"))),
    }
}

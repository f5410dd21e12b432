//! `ghostmem bench programs`: real programs at equal limits, start to end.
//!
//! ```text
//!   for each program   once, plain, uncounted   its peak, and what it must print
//!   then in rounds     plain                    no limit
//!                      ghost at each limit      `ghostmem run --limit`
//!                      zram at each limit       a control group that swaps to zram
//! ```
//! A limit is a share of the plain peak. It bounds different things: GhostMem's limit
//! the uncompressed pages of the heap, the group's limit the process without what is
//! compressed. So what came of it is measured for both: the total, compressed pages
//! and tables included, and the time.
//!
//! Every second round runs in reverse order. A program whose output differs from the
//! plain one ends the bench.

mod args;
mod attempt;
mod list;
mod records;
mod swap;

use std::fs;
use std::path::{Path, PathBuf};

use crate::compare::Directory;
use crate::error::{Error, Result};
use crate::report;
use crate::sys;
use args::Contender;
pub(crate) use args::ProgramsArgs;
use attempt::{Attempt, Ended};
use list::{Program, Ready};
use records::{Record, Row};

/// How often a program is started that the kernel kills in its group, or that has more
/// than its limit there.
const ATTEMPTS: u32 = 3;
/// Least of a limit, bytes.
const LIMIT_MIN: u64 = 1 << 20;

/// One thing to run in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    contender: Contender,
    /// Share of the plain peak, percent; of plain itself none.
    percent: Option<u32>,
}

/// A program that can run here, and what is known of it.
struct Known {
    program: &'static Program,
    command: Vec<String>,
    /// Of the first run.
    peak: u64,
    output: attempt::Output,
}

/// Runs the command. `inside`: this executable is the `ghostmem` command itself.
pub(crate) fn run(args: &ProgramsArgs, inside: bool) -> Result<()> {
    let contenders = args.contenders();
    if args.repetitions == 0 || args.limit_percent.is_empty() {
        return Err(Error::Failed("nothing to measure".into()));
    }
    let ghostmem = args.ghostmem(inside)?;
    sys::catch_signals().map_err(|err| Error::io("sigaction", &err))?;
    let work = Directory::create()?;
    let mut record = Record::new();
    let ready = prepare(args, work.path(), &mut record)?;
    let mut known = Vec::new();
    for (program, command) in ready {
        eprintln!("{}: first run, not counted", program.name);
        let first = match Attempt::plain(&command, work.path()).run(args.timeout) {
            Ok(first) => first.succeeded(program.name, "plain")?,
            Err(Error::Skipped(why)) => {
                record.leave_out_program(program.name, &why);
                continue;
            }
            Err(err) => return Err(err),
        };
        known.push(Known {
            program,
            command,
            peak: first.total_bytes,
            output: first.output,
        });
    }
    let mut turns = vec![Turn {
        contender: Contender::Plain,
        percent: None,
    }];
    for &percent in &args.limit_percent {
        turns.extend(contenders.iter().map(|&contender| Turn {
            contender,
            percent: Some(percent),
        }));
    }
    for repetition in 0..args.repetitions {
        for known in &known {
            let mut order = turns.clone();
            if repetition % 2 == 1 {
                order.reverse();
            }
            for turn in order {
                if record.is_out(known.program.name, turn.contender, turn.percent) {
                    continue;
                }
                let limit = turn.percent.map_or(0, |percent| limit(known.peak, percent));
                announce(known, turn, limit, repetition);
                match measure(args, known, turn.contender, limit, &ghostmem, work.path()) {
                    Ok(ended) => record.rows.push(Row {
                        program: known.program.name,
                        contender: turn.contender,
                        limit_percent: turn.percent,
                        limit_bytes: limit,
                        repetition,
                        ended,
                    }),
                    Err(Error::Skipped(why)) => {
                        record.leave_out(known.program.name, turn.contender, turn.percent, &why);
                    }
                    Err(err) => return Err(err),
                }
            }
        }
    }
    record.print();
    if let Some(path) = &args.csv {
        record.write_csv(path)?;
    }
    if record.rows.is_empty() {
        return Err(Error::Skipped("no program could be measured".into()));
    }
    Ok(())
}

/// The programs that were asked for and can run here, written to `work`.
fn prepare(
    args: &ProgramsArgs,
    work: &Path,
    record: &mut Record,
) -> Result<Vec<(&'static Program, Vec<String>)>> {
    let mut ready = Vec::new();
    for program in args.programs()? {
        match program.ready() {
            Ready::Here(interpreter) => {
                let file = work.join(program.file);
                fs::write(&file, program.source).map_err(|err| Error::io(file.display(), &err))?;
                let words = [interpreter, file];
                let mut command: Vec<String> = words
                    .iter()
                    .map(|word| word.to_string_lossy().into_owned())
                    .collect();
                command.push(args.scale.to_string());
                ready.push((program, command));
            }
            Ready::Missing(what, package) => {
                let why = format!("{what} is missing: apt-get install {package}");
                record.leave_out_program(program.name, &why);
            }
        }
    }
    Ok(ready)
}

/// The limit for a share of the plain peak, whole pages.
fn limit(peak: u64, percent: u32) -> u64 {
    let page = crate::buffer::PAGE_SIZE as u64;
    (peak * u64::from(percent) / 100).max(LIMIT_MIN) / page * page
}

fn announce(known: &Known, turn: Turn, limit: u64, repetition: u32) {
    let name = known.program.name;
    let round = repetition + 1;
    match turn.percent {
        None => eprintln!("{round}: {name}, {}", turn.contender),
        Some(percent) => eprintln!(
            "{round}: {name}, {}, limit {percent} %: {} MiB",
            turn.contender,
            report::mib(limit)
        ),
    }
}

fn measure(
    args: &ProgramsArgs,
    known: &Known,
    contender: Contender,
    limit: u64,
    ghostmem: &Path,
    work: &Path,
) -> Result<Ended> {
    let name = known.program.name;
    let what = contender.to_string();
    let ended = match contender {
        Contender::Plain => Attempt::plain(&known.command, work).run(args.timeout)?,
        Contender::Ghost => {
            let options = known.program.options;
            Attempt::ghost(ghostmem, limit, options, &known.command, work).run(args.timeout)?
        }
        Contender::Zram => swapping(args, known, limit, work)?,
    };
    let ended = ended.succeeded(name, &what)?;
    if ended.output != known.output {
        return Err(Error::Failed(format!(
            "{name}, {what}: its output is not that of the plain program"
        )));
    }
    Ok(ended)
}

/// A run in a group that swaps to zram; again when the kernel kills it, or does not take
/// back what it was lent.
fn swapping(args: &ProgramsArgs, known: &Known, limit: u64, work: &Path) -> Result<Ended> {
    let name = known.program.name;
    for _ in 0..ATTEMPTS {
        let place = swap::SwapGroup::set_up(limit, known.peak)?;
        let attempt = Attempt::in_group(&place, &known.command, work);
        let (ended, lent) = place.lending(|| attempt.run(args.timeout));
        let ended = Ended { lent, ..ended? };
        if ended.was_killed() {
            eprintln!("{name}: the kernel killed it in its group");
        } else if lent.spoil(ended.seconds) {
            let (lasted, all) = (lent.lasted.as_secs_f64(), ended.seconds);
            eprintln!("{name}: it had more than its limit for {lasted:.1} s of {all:.1}");
        } else {
            return Ok(ended);
        }
    }
    Err(Error::Skipped(format!(
        "in {ATTEMPTS} runs the kernel killed it for lack of memory in its group, or left it \
         more than its limit"
    )))
}

/// Looks for an executable file in the folders of `PATH`.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

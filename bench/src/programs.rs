//! `ghostmem bench programs`: real programs at equal total memory, start to end.
//!
//! ```text
//!   for each program   once, plain, uncounted   its total, and what it must print
//!   then in rounds     plain                    no limit
//!                      zram at each limit       a control group that swaps to zram; its
//!                                               total of the first round is T
//!                      ghost at each limit      `ghostmem run --memory T`
//! ```
//! A limit of the group is a share of the plain total. The group's limit does not hold what
//! is compressed, and `--memory` does: so equal limits would say little. What is equal is
//! the *total*, the highest sum of one look ([`peak`]), taken in the same way of all three
//! ([`processes`]). Where GhostMem held more than zram the row does not count ([`summary`]).
//!
//! Every second round runs in reverse order. A program whose output differs from the
//! plain one ends the bench.

mod args;
mod attempt;
mod list;
mod peak;
mod plots;
mod processes;
mod records;
mod summary;
mod swap;
mod tables;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::compare::Directory;
use crate::error::{Error, Result};
use crate::report;
use crate::sys;
use args::Contender;
pub(crate) use args::ProgramsArgs;
use attempt::{Attempt, Ended, Figures};
use list::{Found, Ready};
use records::{Record, Row};

/// How often a program is started that fails in its group, where the kernel kills, or that
/// has more than its limit there.
const ATTEMPTS: u32 = 3;
/// Least of a limit, bytes.
const LIMIT_MIN: u64 = 1 << 20;
/// How many times as long as a plain run one takes that has little memory: what the first
/// guess of the whole time goes by.
const SLOWER: f64 = 4.0;

/// One thing to run in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    contender: Contender,
    /// Share of the plain total, percent; of plain itself none.
    percent: Option<u32>,
}

/// A program that can run here, and what is known of it.
struct Known {
    name: String,
    command: Vec<String>,
    /// Of the first run.
    figures: Figures,
    output: attempt::Output,
}

/// What all runs need.
struct Bench<'a> {
    args: &'a ProgramsArgs,
    ghostmem: PathBuf,
    work: &'a Path,
    record: Record,
}

/// Runs the command. `inside`: this executable is the `ghostmem` command itself.
pub(crate) fn run(args: &ProgramsArgs, inside: bool) -> Result<()> {
    if args.repetitions == 0 || args.limit_percent.is_empty() {
        return Err(Error::Failed("nothing to measure".into()));
    }
    let ghostmem = args.ghostmem(inside)?;
    sys::catch_signals().map_err(|err| Error::io("sigaction", &err))?;
    sys::adopt_orphans().map_err(|err| Error::io("prctl", &err))?;
    let work = Directory::create()?;
    let mut bench = Bench {
        args,
        ghostmem,
        work: work.path(),
        record: Record::new(),
    };
    let known = bench.first_runs()?;
    let turns = turns(&args.limit_percent, &args.contenders());
    say_guess(&known, &turns, args.repetitions);
    let start = Instant::now();
    for repetition in 0..args.repetitions {
        for known in &known {
            let mut order = turns.clone();
            if repetition % 2 == 1 {
                order.reverse();
            }
            for turn in order {
                bench.take(known, turn, repetition)?;
            }
        }
        let left = f64::from(args.repetitions - repetition - 1);
        if left > 0.0 && !known.is_empty() {
            let each = start.elapsed().as_secs_f64() / f64::from(repetition + 1);
            eprintln!("about {:.0} minutes are left", (left * each / 60.0).ceil());
        }
    }
    let record = bench.record;
    tables::print(&record);
    if let Some(path) = &args.csv {
        record.write_csv(path)?;
    }
    if let Some(folder) = &args.plots {
        plots::write(folder, &record)?;
    }
    if record.rows.is_empty() {
        return Err(Error::Skipped("no program could be measured".into()));
    }
    Ok(())
}

/// What a round runs, in order. zram is before ghost, which needs its total.
fn turns(percents: &[u32], contenders: &[Contender]) -> Vec<Turn> {
    let plain = Turn {
        contender: Contender::Plain,
        percent: None,
    };
    let squeezed = percents.iter().flat_map(|&percent| {
        contenders.iter().map(move |&contender| Turn {
            contender,
            percent: Some(percent),
        })
    });
    std::iter::once(plain).chain(squeezed).collect()
}

/// Says how long all of it will take, about.
fn say_guess(known: &[Known], turns: &[Turn], repetitions: u32) {
    let plain: f64 = known.iter().map(|known| known.figures.seconds).sum();
    let round = plain * SLOWER.mul_add(turns.len() as f64 - 1.0, 1.0);
    let minutes = (round * f64::from(repetitions) / 60.0).ceil();
    eprintln!(
        "about {minutes:.0} minutes for {repetitions} rounds, if a run with little memory takes \
         {SLOWER:.0} times as long as a plain one"
    );
}

/// The limit for a share of the plain total, whole pages.
fn limit(plain: u64, percent: u32) -> u64 {
    let page = crate::buffer::PAGE_SIZE as u64;
    (plain * u64::from(percent) / 100).max(LIMIT_MIN) / page * page
}

impl Bench<'_> {
    /// The programs that were asked for and can run here, each run once.
    fn first_runs(&mut self) -> Result<Vec<Known>> {
        let mut known = Vec::new();
        for ready in self.ready()? {
            let name = ready.name.clone();
            match self.first_run(ready) {
                Ok(first) => known.push(first),
                Err(Error::Skipped(why)) => self.record.leave_out_program(&name, &why),
                Err(err) => return Err(err),
            }
        }
        Ok(known)
    }

    fn ready(&mut self) -> Result<Vec<Ready>> {
        let mut all = Vec::new();
        // A program may change its user.
        fs::set_permissions(self.work, fs::Permissions::from_mode(0o755))
            .map_err(|err| Error::io(self.work.display(), &err))?;
        for program in self.args.programs()? {
            match program.find(self.args.scale, self.work)? {
                Found::Here(ready) => all.push(ready),
                Found::Missing(what, package) => {
                    let why = format!("{what} is missing: apt-get install {package}");
                    self.record.leave_out_program(program.name, &why);
                }
            }
        }
        let commands = self.args.commands.iter().enumerate();
        all.extend(commands.map(|(index, command)| Ready::of_user(index + 1, command)));
        Ok(all)
    }

    fn first_run(&self, ready: Ready) -> Result<Known> {
        let timeout = self.args.timeout;
        let name = &ready.name;
        let failed = |what: &str, why: String| Error::Failed(format!("{name}, {what}: {why}"));
        if let Some(command) = ready.preparation() {
            eprintln!("{name}: is prepared");
            let ended = Attempt::plain(&command, self.work).run(timeout)?;
            ended
                .succeeded()
                .map_err(|why| failed("preparation", why))?;
        }
        eprintln!("{name}: first run, not counted");
        let first = Attempt::plain(&ready.command, self.work).run(timeout)?;
        let first = first.succeeded().map_err(|why| failed("plain", why))?;
        Ok(Known {
            figures: first.figures,
            output: first.output,
            name: ready.name,
            command: ready.command,
        })
    }

    /// Runs one turn of a program, and records it or why it is left out.
    fn take(&mut self, known: &Known, turn: Turn, repetition: u32) -> Result<()> {
        let Turn { contender, percent } = turn;
        if self.record.is_out(&known.name, contender, percent) {
            return Ok(());
        }
        let plain = known.figures.peak.total;
        let limit_bytes = match (contender, percent) {
            (_, None) | (Contender::Plain, _) => 0,
            (Contender::Zram, Some(percent)) => limit(plain, percent),
            // Without zram there is no total to keep to, and nothing to compare with.
            (Contender::Ghost, Some(percent)) => self
                .record
                .zram_total(&known.name, percent)
                .unwrap_or_else(|| limit(plain, percent)),
        };
        announce(&known.name, turn, limit_bytes, repetition);
        match self.measure(known, contender, limit_bytes) {
            Ok(figures) => self.record.rows.push(Row {
                program: known.name.clone(),
                contender,
                limit_percent: percent,
                limit_bytes,
                repetition,
                figures,
            }),
            Err(Error::Skipped(why)) => {
                self.record.leave_out(&known.name, contender, percent, &why);
            }
            Err(err) => return Err(err),
        }
        Ok(())
    }

    fn measure(&self, known: &Known, contender: Contender, limit: u64) -> Result<Figures> {
        let (args, work) = (self.args, self.work);
        let ended = match contender {
            Contender::Plain => Attempt::plain(&known.command, work).run(args.timeout)?,
            Contender::Zram => self.swapping(known, limit)?,
            Contender::Ghost => {
                let options = &args.run_options;
                Attempt::ghost(&self.ghostmem, limit, options, &known.command, work)
                    .run(args.timeout)?
            }
        };
        // What a program cannot do in so little memory is a result, and not an error.
        let ended = ended.succeeded().map_err(Error::Skipped)?;
        if ended.output != known.output {
            return Err(Error::Failed(format!(
                "{}, {contender}: its output is not that of the plain program",
                known.name
            )));
        }
        Ok(ended.figures)
    }

    /// A run in a group that swaps to zram; again when the kernel kills in it, or does not
    /// take back what it was lent.
    fn swapping(&self, known: &Known, limit: u64) -> Result<Ended> {
        let name = &known.name;
        for _ in 0..ATTEMPTS {
            let place = swap::SwapGroup::set_up(limit, known.figures.peak.total)?;
            let attempt = Attempt::in_group(&place, &known.command, self.work);
            let (ended, lent) = place.lending(|| attempt.run(self.args.timeout));
            let mut ended = ended?;
            ended.figures.lent = lent;
            let seconds = ended.figures.seconds;
            if ended.was_killed() {
                eprintln!("{name}: the kernel killed it in its group");
            } else if lent.spoil(seconds) {
                let lasted = lent.lasted.as_secs_f64();
                eprintln!("{name}: it had more than its limit for {lasted:.1} s of {seconds:.1}");
            } else {
                match ended.succeeded() {
                    Ok(ended) => return Ok(ended),
                    Err(why) => eprintln!("{name}: it failed in its group: {why}"),
                }
            }
        }
        Err(Error::Skipped(format!(
            "in {ATTEMPTS} runs the kernel killed it for lack of memory in its group, or left it \
             more than its limit, or it failed"
        )))
    }
}

fn announce(name: &str, turn: Turn, limit: u64, repetition: u32) {
    let round = repetition + 1;
    let (contender, mib) = (turn.contender, report::mib(limit));
    match (turn.percent, contender) {
        (Some(percent), Contender::Ghost) => {
            eprintln!("{round}: {name}, {contender}, --memory beside {percent} %: {mib} MiB");
        }
        (Some(percent), _) => {
            eprintln!("{round}: {name}, {contender}, limit {percent} %: {mib} MiB");
        }
        (None, _) => eprintln!("{round}: {name}, {contender}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that zram comes before ghost in the first round, which needs its total.
    #[test]
    fn zram_runs_first() {
        let turns = turns(&[50, 30], &[Contender::Zram, Contender::Ghost]);
        let order: Vec<_> = turns
            .iter()
            .map(|turn| (turn.contender, turn.percent))
            .collect();
        assert_eq!(
            order,
            [
                (Contender::Plain, None),
                (Contender::Zram, Some(50)),
                (Contender::Ghost, Some(50)),
                (Contender::Zram, Some(30)),
                (Contender::Ghost, Some(30)),
            ]
        );
    }

    /// Proves that limits are whole pages and never nothing.
    #[test]
    fn a_limit_is_whole_pages() {
        assert_eq!(limit(200 << 20, 50), 100 << 20);
        assert_eq!(limit((100 << 20) + 8191, 100), (100 << 20) + 4096);
        assert_eq!(limit(1000, 30), 1 << 20);
    }
}
